"""Many events in one call: against single appends, and against plain statements over sets."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import bare
from benchmarks.events import append_all, batches, created, field_set, orders
from benchmarks.report import compare
from benchmarks.rounds import Lane, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.databases import Database, Databases
    from benchmarks.events import Event
    from benchmarks.report import Result
    from benchmarks.scale import Scale

    Compose = Callable[[str, int, int], list[Event]]

_BATCH: Final = "batch"
_BARE: Final = ("bare", "bare statement over sets")
_SINGLES: Final = ("singles", "single appends")


def batch_new(databases: Databases, scale: Scale) -> list[Result]:
    """Create many orders in one call."""

    def compose(lane: str, number: int, count: int) -> list[Event]:
        return [created(order) for order in orders(f"{lane}.{number}", count)]

    return _batch("batch-new", databases, scale, compose, bare.CREATE_ORDERS)


def batch_old(databases: Databases, scale: Scale) -> list[Result]:
    """Append to many orders in one call, an event each."""

    def compose(lane: str, number: int, count: int) -> list[Event]:
        return [field_set(order, number + 2) for order in orders(lane, count)]

    return _batch("batch-old", databases, scale, compose, bare.SET_FIELDS)


def _batch(name: str, databases: Databases, scale: Scale, compose: Compose, statement: str) -> list[Result]:
    ours = (_BATCH, f"{scale.batch} events in one call")
    with databases.new() as database:
        everything = [order for lane, _ in (ours, _BARE, _SINGLES) for order in orders(lane, scale.batch)]
        bare.make_copies(database, everything, scale.batch)
        timings = measure(
            partial(_open_lanes, database, scale, compose, statement),
            connections=1,
            warmup=scale.warmup,
            rounds=scale.rounds,
        )
    return [compare(name, timings, ours, _SINGLES, 10.0), compare(name, timings, ours, _BARE, 0.5)]


@contextmanager
def _open_lanes(
    database: Database, scale: Scale, compose: Compose, statement: str, _worker: int
) -> Iterator[Mapping[str, Lane]]:
    few = min(scale.operations, scale.batch)
    with database.app() as ours, database.app() as other:

        def batch(number: int) -> Callable[[], None]:
            calls = list(batches(compose(_BATCH, number, scale.batch), scale.batch))
            return partial(append_all, ours, calls)

        def singles(number: int) -> Callable[[], None]:
            calls = list(batches(compose(_SINGLES[0], number, few), 1))
            return partial(append_all, ours, calls)

        def plain(number: int) -> Callable[[], None]:
            arguments = bare.set_arguments(compose(_BARE[0], number, scale.batch))

            def work() -> None:
                written = other.execute(statement, arguments, prepare=True).fetchall()
                if len(written) != scale.batch:
                    raise RuntimeError(f"the bare statement wrote {len(written)} of {scale.batch} events")

            return work

        yield {
            _BATCH: Lane(scale.batch, batch),
            _BARE[0]: Lane(scale.batch, plain),
            _SINGLES[0]: Lane(few, singles),
        }
