"""Loads: the first import into an empty database, and a session that lives while the tables grow."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks.events import HELPDESK, append_all, batches, created, field_set, helpdesk, orders
from benchmarks.report import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.databases import Connection, Databases
    from benchmarks.events import Batch, Event
    from benchmarks.scale import Scale

_ONE_IN: Final = 50  # of a step


def first_import(databases: Databases, scale: Scale) -> list[Result]:
    """Import into an empty, freshly migrated database and, batch by batch in turns, into a grown one."""
    empty_seconds, grown_seconds, events = [], [], 0
    with databases.new() as grown:
        with grown.app() as app, grown.admin() as admin:
            append_all(app, batches(_synthetic("grown", scale.grown_orders), scale.batch))
            admin.execute("VACUUM ANALYZE")
        for number in range(scale.imports):
            calls = _import_calls(f"copy{number}", scale)
            with databases.new() as empty, empty.app() as first, grown.app() as again:
                spent = [0.0, 0.0]
                for place, call in enumerate(calls):
                    turns = [(0, first), (1, again)]
                    for side, conn in turns if place % 2 == 0 else reversed(turns):
                        start = time.perf_counter()
                        append_all(conn, [call])
                        spent[side] += time.perf_counter() - start
                with empty.admin() as admin:
                    events = _count(admin)
            empty_seconds.append(spent[0])
            grown_seconds.append(spent[1])
    return [
        Result(
            "import",
            "first, into an empty one",
            "again, into a grown one",
            events / statistics.median(empty_seconds),
            events / statistics.median(grown_seconds),
            "/s",
            [other / ours for ours, other in zip(empty_seconds, grown_seconds, strict=True)],
            1.0,
        )
    ]


def growth(databases: Databases, scale: Scale) -> list[Result]:
    """Let one session create orders, in batches and singly, and append to what it made."""
    batched: list[float] = []
    single: list[float] = []
    steps = max(10, scale.growth_orders // scale.batch)
    with databases.new() as database, database.app() as app:
        for step in range(steps):
            some = orders(f"growth.{step}", scale.batch)
            single_ones = max(1, scale.batch // _ONE_IN)
            few, new = some[:single_ones], some[single_ones:]
            batched.append(_timed(app, list(batches(map(created, new), len(new)))) / len(new))
            first = [created(order) for order in few]
            second = [field_set(order, 2) for order in few]
            single.append(_timed(app, list(batches([*first, *second], 1))) / (2 * len(few)))
    total = f"{steps * scale.batch:,} orders"
    return [
        _tenths("session", f"batches, to {total}", batched),
        _tenths("session", f"singly, to {total}", single),
    ]


def _tenths(name: str, label: str, seconds: Sequence[float]) -> Result:
    tenth = len(seconds) // 10
    first, last = statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])
    return Result(name, label, "its first tenth", last, first, "s", [first / last], 0.8)


def _timed(conn: Connection, calls: Sequence[Batch]) -> float:
    start = time.perf_counter()
    append_all(conn, calls)
    return time.perf_counter() - start


def _import_calls(copy: str, scale: Scale) -> list[Batch]:
    if scale.use_helpdesk and HELPDESK.exists():
        return helpdesk(copy, scale.batch)
    return list(batches(_synthetic(copy, scale.import_orders), scale.batch))


def _synthetic(group: str, count: int) -> Iterator[Event]:
    """Compose three events for each order, a hundred orders living at a time."""
    everything = orders(group, count)
    for start in range(0, count, 100):
        alive = everything[start : start + 100]
        yield from (created(order) for order in alive)
        for seq in (2, 3):
            yield from (field_set(order, seq) for order in alive)


def _count(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM os_core.work_order_ledger").fetchone()
    return row[0] if row else 0
