"""One tenant's ledger grows from thousands to millions of events: what a call costs, and what is stored.

Beside the database that grows is a new one with as many events as the first step has. Each round calls both
in turns, so a busy machine changes the times, and hardly the ratios. Both are treated alike: the same number
of orders is worked on, spread over the whole ledger.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import plot
from benchmarks.events import TENANT
from benchmarks.history import PENDING_APART, load, order_at, orders_of
from benchmarks.rounds import Lane, Timings, measure
from selene_core import (
    LeaseRepository,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    tenant_scope,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.scale import Scale
    from selene_core import Claim

SETTINGS: Final = {
    # A quarter of the machine's memory, as PostgreSQL's manual advises.
    "shared_buffers": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 4 >> 20}MB",
    # No checkpoint comes amid the rounds.
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}
_HOUR: Final = 3_600_000
_BY_INDEX: Final = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off"
# An index scan, because a scan of a large table would leave few of its pages in the shared buffers.
_READ_ORDERS: Final = """
    SELECT count(last_seq) FROM (
      SELECT last_seq FROM os_core.work_orders_current ORDER BY tenant_id, work_order_id OFFSET 0
    ) AS each
"""
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


def grow(databases: Databases, scale: Scale, restart: Callable[[], None] | None = None) -> Iterator[Step]:
    """Load step by step, and measure at each; `restart` restarts the server, for the first calls."""
    first, last = scale.growth_steps[0], scale.growth_steps[-1]
    now = datetime.now(UTC)
    with databases.new() as grown:
        loaded = 0
        for events in scale.growth_steps:
            loaded = load(grown, loaded, events, now - timedelta(seconds=last))
            with databases.new() as small:
                load(small, 0, first, now - timedelta(seconds=first))
                yield compare((small, first), (grown, events), scale, restart)


def compare(
    small: tuple[Database, int],
    grown: tuple[Database, int],
    scale: Scale,
    restart: Callable[[], None] | None = None,
) -> Step:
    """Measure in two databases with so many events, in turns."""
    sides = {
        "small": _Side(small[0], orders_of(small[1]), scale.growth_working),
        "grown": _Side(grown[0], orders_of(grown[1]), scale.growth_working),
    }
    for side in sides.values():
        side.begin()
    timings = measure(
        partial(_open_lanes, sides, scale.growth_operations),
        connections=1,
        warmup=scale.warmup,
        rounds=scale.rounds,
    )
    wal_bytes = sides["grown"].wal_of_append()
    if restart is not None:
        restart()
        timings = Timings({**timings.seconds, **_first_calls(sides)}, timings.processor)
    for side in sides.values():
        side.end()
    with grown[0].admin() as admin:
        ledger, ledger_indexes, projection, projection_indexes, dead = admin.execute(_SIZES).fetchall()[0]
    names = [name.removesuffix(" grown") for name in timings.seconds if name.endswith(" grown")]
    return Step(
        grown[1],
        {name: timings.median(f"{name} grown") for name in names},
        {name: statistics.median(timings.speed_ups(f"{name} small", f"{name} grown")) for name in names},
        ledger,
        ledger_indexes,
        projection,
        projection_indexes,
        dead,
        wal_bytes,
    )


class _Side:
    """One of the two databases, and its orders that are worked on: as many in both, spread over all."""

    def __init__(self, database: Database, count: int, working: int) -> None:
        self.database, self._count = database, count
        apart = count // PENDING_APART // (2 * working) * PENDING_APART
        ids = [order_at(apart * n).work_order_id for n in range(2 * working)]
        self.appended_to, self.queued = ids[::2], ids[1::2]
        self._random = random.Random(count)

    def begin(self) -> None:
        """Put orders into the queue of claim, read the projection into memory, and write what is dirty."""
        self._set_status(WorkOrderStatus.EXECUTING)
        with self.database.admin() as admin:
            for setting in _BY_INDEX.split("; "):
                admin.execute(setting.encode())
            admin.execute(_READ_ORDERS)
            admin.execute("CHECKPOINT")

    def end(self) -> None:
        """Take the orders from the queue again."""
        self._set_status(WorkOrderStatus.CONFIRM)

    def _set_status(self, status: WorkOrderStatus) -> None:
        with self.database.app_engine() as engine:
            for work_order_id in self.queued:
                changed = WorkOrderLedgerEventInput(
                    work_order_id=work_order_id,
                    event_type=WorkOrderEventType.STATUS_CHANGED,
                    work_order_status=status,
                )
                append_events(engine, TENANT, [changed])

    def any(self) -> str:
        """Return an order, whichever."""
        return order_at(self._random.randrange(self._count)).work_order_id

    def worked_on(self, place: int) -> str:
        """Return an order that is appended to."""
        return self.appended_to[place % len(self.appended_to)]

    def event(self, place: int) -> WorkOrderLedgerEventInput:
        """Compose an event of one of the orders that are appended to."""
        return WorkOrderLedgerEventInput(
            work_order_id=self.worked_on(place),
            event_type=WorkOrderEventType.FIELD_SET,
            payload={"field_key": "activity", "value": self._random.random()},
        )

    def wal_of_append(self) -> float:
        """Return the bytes of WAL that an append writes, to an order that was appended to before."""
        with self.database.app_engine() as engine, self.database.admin() as admin:
            written = []
            for place in range(len(self.appended_to)):
                before = _wal(admin)
                append_events(engine, TENANT, [self.event(place)])
                written.append(_wal(admin) - before)
        return statistics.mean(written)


def _wal(admin: Connection) -> float:
    row = admin.execute(_WAL).fetchone()
    return float(row[0]) if row else 0.0


@contextmanager
def _open_lanes(sides: Mapping[str, _Side], operations: int, _worker: int) -> Iterator[dict[str, Lane]]:
    with ExitStack() as stack:
        engines = {name: stack.enter_context(side.database.app_engine()) for name, side in sides.items()}
        lanes = {
            name: _lanes(
                side, engines[name], stack.enter_context(_claims(engines[name], len(side.queued))), operations
            )
            for name, side in sides.items()
        }
        yield {f"{call} {side}": lanes[side][call] for call in lanes["small"] for side in sides}


def _lanes(side: _Side, engine: Engine, claims: Lane, operations: int) -> dict[str, Lane]:
    def append(_round: int) -> Callable[[], None]:
        events = [side.event(place) for place in range(operations)]

        def work() -> None:
            for event in events:
                append_events(engine, TENANT, [event])

        return work

    def get(_round: int) -> Callable[[], None]:
        return partial(read, [side.worked_on(place) for place in range(operations)])

    def get_any(_round: int) -> Callable[[], None]:
        return partial(read, [side.any() for _ in range(operations)])

    def read(ids: Sequence[str]) -> None:
        with tenant_scope(engine, TENANT) as conn:
            repository = WorkOrderRepository(conn)
            for work_order_id in ids:
                if repository.get(work_order_id) is None:
                    raise LookupError(work_order_id)

    def list_pending(_round: int) -> Callable[[], None]:
        def work() -> None:
            with tenant_scope(engine, TENANT) as conn:
                repository = WorkOrderRepository(conn)
                for _ in range(operations):
                    if not repository.list_pending():
                        raise LookupError("nothing is pending")

        return work

    calls = {"append": append, "get": get, "get any": get_any, "list_pending": list_pending}
    return {**{name: Lane(operations, prepare) for name, prepare in calls.items()}, "claim": claims}


@contextmanager
def _claims(engine: Engine, queued: int) -> Iterator[Lane]:
    """Claim half of the queue in a round, each in a transaction; give back what is claimed off the clock."""
    claimed: list[Claim] = []
    operations = max(1, queued // 2)

    def give_back() -> None:
        while claimed:
            claim = claimed.pop(0)
            with tenant_scope(engine, TENANT) as conn:
                LeaseRepository(conn).release(claim.work_order.work_order_id, claim.lease.token)

    def prepare(_round: int) -> Callable[[], None]:
        give_back()
        return work

    def work() -> None:
        for _ in range(operations):
            with tenant_scope(engine, TENANT) as conn:
                claim = LeaseRepository(conn).claim("worker-1", _HOUR)
                if claim is None:
                    raise LookupError("the queue is empty")
            claimed.append(claim)

    yield Lane(operations, prepare)
    give_back()


def _first_calls(sides: Mapping[str, _Side]) -> dict[str, list[float]]:
    """Time calls each of which is the first one about its order since the server was started."""
    spent: dict[str, list[float]] = {}

    def time_of(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        spent.setdefault(name, []).append(time.perf_counter() - start)

    with ExitStack() as stack:
        engines = {name: stack.enter_context(side.database.app_engine()) for name, side in sides.items()}
        count = min(len(side.appended_to) for side in sides.values())
        for place in range(count):
            for name, side in sides.items():
                append = partial(append_events, engines[name], TENANT, [side.event(place)])
                time_of(f"first append {name}", append)
            for name, side in sides.items():
                with tenant_scope(engines[name], TENANT) as conn:
                    time_of(f"first get {name}", partial(WorkOrderRepository(conn).get, side.any()))
    return spent


def table(steps: Sequence[Step]) -> str:
    """Lay the steps out as two tables of a document: what a call costs, and what is stored."""
    names = list(steps[0].seconds)
    costs = [["events", *(f"{name}, µs (ratio)" for name in names)]]
    stored = [
        ["events", "ledger, MB (indexes)", "projection, MB (indexes)", "dead rows", "WAL of an append, bytes"]
    ]
    for step in steps:
        calls = [f"{step.seconds[name] * 1e6:,.0f} ({step.ratios[name]:.2f})" for name in names]
        costs.append([f"{step.events:,}", *calls])
        stored.append(
            [
                f"{step.events:,}",
                f"{step.ledger_bytes / 1e6:,.1f} ({step.ledger_index_bytes / 1e6:,.1f})",
                f"{step.projection_bytes / 1e6:,.1f} ({step.projection_index_bytes / 1e6:,.1f})",
                f"{step.dead_rows:,}",
                f"{step.wal_bytes:,.0f}",
            ]
        )
    return f"{_rows(costs)}\n\n{_rows(stored)}"


def picture(steps: Sequence[Step]) -> str:
    """Draw the ratio of each call, without the first ones."""
    names = [name for name in steps[0].ratios if not name.startswith("first ")]
    ratios = {name: [step.ratios[name] for step in steps] for name in names}
    title = f"How many times as long as among {steps[0].events:,} events"
    return plot.lines(title, "times", [step.events for step in steps], ratios)


def _rows(table: Sequence[Sequence[str]]) -> str:
    head, *lines = table
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---:"] * len(head), *lines])
