"""One tenant's ledger grows from thousands to millions of events: what a call costs, and what is stored.

Beside the database that grows stays one that has the first step's size: each round calls both in turns. So
a busy machine changes the times, and hardly the ratios.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from benchmarks.events import TENANT, append_all, batches, life, orders
from selene_core import (
    LeaseRepository,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.events import Event, Order
    from benchmarks.scale import Scale

_ALIVE: Final = 100
_EVENTS_OF_TEN: Final = 9 * 10 + 6
"""Of ten orders nine end, one is still pending. Orders are loaded by tens, so that each tenth is pending."""
_SIZES: Final = """
    SELECT
      pg_table_size('os_core.work_order_ledger'), pg_indexes_size('os_core.work_order_ledger'),
      pg_table_size('os_core.work_orders_current'), pg_indexes_size('os_core.work_orders_current'),
      (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'os_core.work_orders_current'::regclass)
"""
_WAL: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"


@dataclass(frozen=True, slots=True)
class Step:
    """A size of the ledger, and what was measured there."""

    events: int
    seconds: Mapping[str, float]
    ratios: Mapping[str, float]
    """How many times as long as in the small database."""
    ledger_bytes: int
    ledger_index_bytes: int
    projection_bytes: int
    projection_index_bytes: int
    dead_rows: int
    wal_bytes: float


def grow(databases: Databases, scale: Scale) -> Iterator[Step]:
    """Load step by step, and measure at each."""
    first, *_ = scale.growth_steps
    with databases.new() as small, databases.new() as grown:
        few = _load(small, 0, first)
        loaded = 0
        for target in scale.growth_steps:
            loaded = _load(grown, loaded, target)
            yield _measure(small, few, grown, loaded, target, scale)


def _load(database: Database, done: int, events: int) -> int:
    """Load orders until there are so many events; return how many orders there are."""
    count = max(1, events // _EVENTS_OF_TEN) * 10
    with database.app() as app, database.admin() as admin:
        for start in range(done, count, _ALIVE):
            append_all(app, batches(_lives(_orders(start, min(start + _ALIVE, count))), 1000))
        admin.execute("VACUUM ANALYZE")
        admin.execute("CHECKPOINT")
    return count


def _orders(start: int, end: int) -> list[Order]:
    return [order for n in range(start, end) for order in orders(f"growth.{n}", 1)]


def _lives(some: Sequence[Order]) -> Iterator[Event]:
    """Let orders live at the same time; one in ten is still pending at the end."""
    lives = [list(islice(life(order), 6 if n % 10 == 0 else None)) for n, order in enumerate(some)]
    for turn in range(10):
        yield from (events[turn] for events in lives if turn < len(events))


def _measure(small: Database, few: int, grown: Database, many: int, events: int, scale: Scale) -> Step:
    sides = [(small, few), (grown, many)]
    spent: list[dict[str, list[float]]] = [{}, {}]
    wal: list[float] = []
    with small.app_engine() as engine, grown.app_engine() as other, grown.admin() as admin:
        calls = [
            _calls(each, random.Random(events), count, scale.growth_operations)
            for each, (_, count) in zip((engine, other), sides, strict=True)
        ]
        for number in range(scale.warmup + scale.rounds):
            for name in calls[0]:
                for side in (0, 1) if number % 2 == 0 else (1, 0):
                    before = _wal(admin)
                    start = time.perf_counter()
                    done = calls[side][name]()
                    seconds = (time.perf_counter() - start) / done
                    if number >= scale.warmup:
                        spent[side].setdefault(name, []).append(seconds)
                        if (side, name) == (1, "append"):
                            wal.append((_wal(admin) - before) / done)
        ledger, ledger_indexes, projection, projection_indexes, dead = admin.execute(_SIZES).fetchone() or (
            0,
            0,
            0,
            0,
            0,
        )
    return Step(
        events,
        {name: statistics.median(values) for name, values in spent[1].items()},
        {
            name: statistics.median(b / a for a, b in zip(spent[0][name], spent[1][name], strict=True))
            for name in spent[0]
        },
        ledger,
        ledger_indexes,
        projection,
        projection_indexes,
        dead,
        statistics.median(wal),
    )


def _wal(admin: Connection) -> float:
    row = admin.execute(_WAL).fetchone()
    return float(row[0]) if row else 0.0


def _calls(engine: Engine, rng: random.Random, count: int, operations: int) -> dict[str, Callable[[], int]]:
    """Return the calls, each of which tells how many operations it did."""

    def some(step: int) -> list[str]:
        picked = [rng.randrange(0, count, step) for _ in range(operations)]
        return [order.work_order_id for n in picked for order in orders(f"growth.{n}", 1)]

    def append() -> int:
        pending = some(10)  # each tenth is pending: _lives
        for work_order_id in pending:
            value = {"field_key": "activity", "value": rng.random()}
            event = WorkOrderLedgerEventInput(
                work_order_id=work_order_id, event_type=WorkOrderEventType.FIELD_SET, payload=value
            )
            append_events(engine, TENANT, [event])
        return len(pending)

    def get() -> int:
        ids = some(1)
        with tenant_scope(engine, TENANT) as conn:
            repository = WorkOrderRepository(conn)
            for work_order_id in ids:
                if repository.get(work_order_id) is None:
                    raise LookupError(work_order_id)
        return len(ids)

    def list_pending() -> int:
        with tenant_scope(engine, TENANT) as conn:
            repository = WorkOrderRepository(conn)
            for _ in range(operations):
                if not repository.list_pending():
                    raise LookupError("nothing is pending")
        return operations

    def claim() -> int:
        with tenant_scope(engine, TENANT) as conn:
            leases = LeaseRepository(conn)
            for _ in range(operations):
                leases.claim("worker-1", 60_000)
            conn.rollback()
        return operations

    return {"append": append, "get": get, "list_pending": list_pending, "claim": claim}


def table(steps: Sequence[Step]) -> str:
    """Lay the steps out as a table of a document."""
    names = list(steps[0].seconds)
    head = ["events", *(f"{name}, µs (ratio)" for name in names), "WAL, bytes", "ledger, MB (indexes)"]
    lines = [[*head, "projection, MB (indexes)", "dead rows"], ["---:"] * (len(names) + 5)]
    for step in steps:
        cells = [f"{step.events:,}"]
        cells += [f"{step.seconds[name] * 1e6:,.0f} ({step.ratios[name]:.2f})" for name in names]
        cells += [f"{step.wal_bytes:,.0f}"]
        cells += [f"{step.ledger_bytes / 1e6:,.1f} ({step.ledger_index_bytes / 1e6:,.1f})"]
        cells += [f"{step.projection_bytes / 1e6:,.1f} ({step.projection_index_bytes / 1e6:,.1f})"]
        lines.append([*cells, f"{step.dead_rows:,}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
