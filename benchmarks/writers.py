"""Many writers at once: 16 sessions on one hot order or on their own, 64 tasks that share calls."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.events import APPEND, TENANT, Batch, append_all, batches, created, field_set, orders, wire
from benchmarks.report import Result, compare
from benchmarks.rounds import Lane, measure
from selene_core import AsyncAppender, WorkOrderLedgerEventInput, async_append_events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from benchmarks.databases import Database, Databases
    from benchmarks.scale import Scale

_HOT: Final = ("hot", "one hot order")
_OWN: Final = ("own", "orders of their own")
_ENVELOPE: Final = ("correlation_id", "turn_id", "work_order_status", "reason_code", "idempotency_key")


def hot_16(databases: Databases, scale: Scale) -> list[Result]:
    """Many connections append to one order, against orders of their own."""
    with databases.new() as database:
        with database.app() as app:
            own = [order for n in range(scale.writers) for order in orders(f"own.{n}", 1)]
            append_all(app, batches(map(created, [*own, *orders("hot", 1)]), scale.batch))
        timings = measure(
            partial(_open_lanes, database, scale.operations_of_many),
            connections=scale.writers,
            warmup=scale.warmup,
            rounds=scale.rounds_of_many,
        )
    return [compare("hot-16", timings, _HOT, _OWN, None)]


@contextmanager
def _open_lanes(database: Database, operations: int, worker: int) -> Iterator[Mapping[str, Lane]]:
    with database.app() as app:

        def lane(group: str) -> Lane:
            (order,) = orders(group, 1)

            def prepare(number: int) -> Callable[[], None]:
                events = [field_set(order, number * operations + n) for n in range(1, operations + 1)]
                plain = [{k: v for k, v in item.items() if k not in _ENVELOPE} for item in events]
                calls = [Batch(TENANT, wire([item])) for item in plain]

                def work() -> None:
                    for call in calls:
                        app.execute(APPEND, call, prepare=True).fetchall()

                return work

            return Lane(operations, prepare)

        yield {_HOT[0]: lane("hot"), _OWN[0]: lane(f"own.{worker}")}


def tasks_64(databases: Databases, scale: Scale) -> list[Result]:
    """Tasks that append one event each to different orders: AsyncAppender against async_append_events."""
    with databases.new() as database:
        with database.app() as app:
            append_all(app, batches(map(created, orders("tasks", scale.tasks)), scale.batch))
        rounds = asyncio.run(_tasks(database, scale))
    ours, theirs = rounds["appender"], rounds["append_events"]
    label, other = f"AsyncAppender, {scale.tasks} tasks", "async_append_events"
    return [
        _ratio("tasks-64", (label, other), [each[0] for each in ours], [each[0] for each in theirs], 3.0),
        _ratio("tasks-64", ("its p99", "p99"), [each[1] for each in ours], [each[1] for each in theirs], 0.5),
    ]


def _ratio(name: str, labels: tuple[str, str], ours: list[float], theirs: list[float], goal: float) -> Result:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = len(ours) // 2
    return Result(name, *labels, sorted(ours)[middle], sorted(theirs)[middle], "s", ratios, goal)


async def _tasks(database: Database, scale: Scale) -> dict[str, list[tuple[float, float]]]:
    """Return, for each round, the seconds that an event took, and the 99th percentile of the waits."""
    engine = create_async_engine(database.app_url)
    found: dict[str, list[tuple[float, float]]] = {"append_events": [], "appender": []}
    try:
        async with AsyncAppender(engine) as appender:
            lanes = {
                "append_events": lambda event: async_append_events(engine, TENANT, [event]),
                "appender": lambda event: appender.append(TENANT, event),
            }
            for number in range(scale.warmup + scale.rounds_of_many):
                for name, append in lanes.items():
                    measured = await _round(append, number, scale)
                    if number >= scale.warmup:
                        found[name].append(measured)
    finally:
        await engine.dispose()
    return found


async def _round(
    append: Callable[[WorkOrderLedgerEventInput], Awaitable[object]], number: int, scale: Scale
) -> tuple[float, float]:
    waits: list[float] = []

    async def task(order: Any) -> None:
        for n in range(scale.events_of_task):
            item = field_set(order, number * scale.events_of_task + n + 1)
            event = WorkOrderLedgerEventInput.from_mapping(
                {key: value for key, value in item.items() if key not in _ENVELOPE}
            )
            start = time.perf_counter()
            await append(event)
            waits.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(task(order) for order in orders("tasks", scale.tasks)))
    spent = time.perf_counter() - start
    waits.sort()
    return spent / len(waits), waits[len(waits) * 99 // 100]
