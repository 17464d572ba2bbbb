"""Time lanes against each other in small rounds: a noisy machine disturbs them alike, the median forgets."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.synchronize import Barrier

    OpenLanes = Callable[[int], AbstractContextManager[Mapping[str, "Lane"]]]

_SECONDS = 600.0  # the barrier's: whoever waits longer waits for a process that died


class Lane(NamedTuple):
    """One way to do a piece of work: `prepare(round)`, off the clock, returns the round's work.

    With the process ids of its sessions on the server, its processor time is measured too.
    """

    operations: int
    prepare: Callable[[int], Callable[[], object]]
    sessions: Sequence[int] = ()


class Span(NamedTuple):
    """When a round of one lane began and ended, on the clock that all processes share, in nanoseconds.

    `processor` is what client and server's sessions have used of a processor; 0 where nobody tells.
    """

    start: int
    end: int
    processor: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds an operation of each lane took, a value a round; and of a processor, where that is known.

    A commit waits for the disk, alike in each lane: that is a part of the time, and not of the processor's.
    """

    seconds: Mapping[str, Sequence[float]]
    processor: Mapping[str, Sequence[float]]

    def median(self, lane: str) -> float:
        """Return the median seconds of an operation."""
        return statistics.median(self.seconds[lane])

    def speed_ups(self, lane: str, against: str) -> list[float]:
        """Return how many times faster `lane` was, round by round."""
        return _ratios(self.seconds[lane], self.seconds[against])

    def compare_processor(self, lane: str, against: str) -> tuple[float, float, list[float]] | None:
        """Return both lanes' median processor seconds, and how many times less `lane` took, by round."""
        if not {lane, against} <= self.processor.keys():
            return None
        ours, theirs = self.processor[lane], self.processor[against]
        return statistics.median(ours), statistics.median(theirs), _ratios(ours, theirs)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [other / own for own, other in zip(ours, theirs, strict=True)]


def measure(open_lanes: OpenLanes, *, connections: int, warmup: int, rounds: int) -> Timings:
    """Run the lanes that `open_lanes(worker)` yields in turns, in as many processes as connections.

    A round of a lane begins in all processes at once and has taken as long as the last of them. The order
    of the lanes turns round by round. More than one connection needs an `open_lanes` that can be pickled.
    """
    if connections == 1:
        workers = [_work(open_lanes, 0, warmup + rounds, None)]
    else:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(connections)
        with ProcessPoolExecutor(connections, context, _adopt, (barrier,)) as pool:
            jobs = [pool.submit(_share, open_lanes, n, warmup + rounds) for n in range(connections)]
            failures = [error for job in jobs if (error := job.exception()) is not None]
            for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
                raise error
            workers = [job.result() for job in jobs]

    operations, _ = workers[0]
    spans = {
        lane: [[spans[lane][n] for _, spans in workers] for n in range(warmup, warmup + rounds)]
        for lane in operations
    }
    return Timings(
        {
            lane: [_seconds(round_) / (operations[lane] * connections) for round_ in found]
            for lane, found in spans.items()
        },
        {
            lane: [
                sum(span.processor for span in round_) / 1e9 / (operations[lane] * connections)
                for round_ in found
            ]
            for lane, found in spans.items()
            if all(span.processor > 0 for round_ in found for span in round_)
        },
    )


def _seconds(spans: Sequence[Span]) -> float:
    return (max(span.end for span in spans) - min(span.start for span in spans)) / 1e9


def _processor_used(sessions: Sequence[int]) -> int:
    """Return the nanoseconds that this process and these sessions have had of a processor; 0 if unknown."""
    try:
        used = [int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in sessions]
    except OSError:  # not Linux
        return 0
    return time.process_time_ns() + sum(used) if used else 0


def _work(
    open_lanes: OpenLanes, worker: int, rounds: int, barrier: Barrier | None
) -> tuple[dict[str, int], dict[str, list[Span]]]:
    with open_lanes(worker) as lanes:
        spans: dict[str, list[Span]] = {name: [] for name in lanes}
        for number in range(rounds):
            for name in lanes if number % 2 == 0 else reversed(list(lanes)):
                work = lanes[name].prepare(number)
                gc.collect()
                gc.disable()
                if barrier is not None:
                    barrier.wait(_SECONDS)
                used = _processor_used(lanes[name].sessions)
                start = time.perf_counter_ns()
                work()
                end = time.perf_counter_ns()
                spans[name].append(Span(start, end, _processor_used(lanes[name].sessions) - used))
                gc.enable()
        return {name: lane.operations for name, lane in lanes.items()}, spans


_barrier: Barrier | None = None


def _adopt(barrier: Barrier) -> None:
    global _barrier  # a barrier can only be inherited, not sent with a job
    _barrier = barrier


def _share(open_lanes: OpenLanes, worker: int, rounds: int) -> tuple[dict[str, int], dict[str, list[Span]]]:
    try:
        return _work(open_lanes, worker, rounds, _barrier)
    except BaseException:
        if _barrier is not None:
            _barrier.abort()
        raise
