"""The work-order repository: append, read, replay (SPEC.md sections 4, 5, 9 and 14).

All rules are functions and policies of the database: this sends one statement a call and gives rows types.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Integer,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from selene_core.contracts import (
    AppendResult,
    DriftedOrder,
    RebuildReport,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderLedgerEventInput,
    check_tenant_id,
    check_work_order_id,
)
from selene_core.database import scope_tenant, tenant_scope
from selene_core.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.errors import ContractViolation
from selene_core.json_limits import MAX_INT64
from selene_core.repository import SCOPED_TENANT, TENANT, Repository, Unshown, call, fetch, in_scope
from selene_core.rules import EVENT_RULES, integer
from selene_core.tables import work_order_ledger, work_orders_current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement, Engine, RowMapping, Select

MAX_BATCH: Final = 1000
REBUILD_GROUP_SIZE: Final = 200
EVENTS_PAGE: Final = 256

_WORK_ORDER_NAMES: Final = tuple(work_orders_current.columns.keys())
_EVENT_NAMES: Final = tuple(work_order_ledger.columns.keys())

_POSITION: Final = integer(0, MAX_INT64)


class WorkOrderRepository(Repository):
    """Append to, read and replay the work orders of the tenant_scope that yielded the connection.

    Every method raises TenantScopeViolation outside the scope, and inside it once its transaction was ended.
    """

    def append(self, event: WorkOrderLedgerEventInput) -> AppendResult:
        """Append one event; raises what append_many raises."""
        return self.append_many([event])[0]

    def append_many(self, events: Iterable[WorkOrderLedgerEventInput]) -> list[AppendResult]:
        """Append 1..1000 events, all or none, and return a result for each, in order (SPEC.md section 4).

        Raises ContractViolation, IdempotencyConflict, ConcurrencyConflict, WorkOrderNotFound,
        InvalidTransition, CancelInvalidState, LeaseLost, BoundExceeded, CorrelationConflict,
        WorkOrderIdUnavailable and ProjectionDamaged. As after every error of the database, the transaction is
        good for a rollback only, if need be to a savepoint (conn.begin_nested()).
        """
        wire = _wire(events)
        return [AppendResult(**row) for row in self._run(_APPEND_IN_SCOPE, events=wire)]

    def get(self, work_order_id: str) -> WorkOrder | None:
        """Return the work order as it is now; raises ContractViolation for a bad id (SPEC.md section 9)."""
        return _only_work_order(self._read(_GET, work_order_id=check_work_order_id(work_order_id)))

    def get_by_correlation(self, correlation_id: UUID) -> WorkOrder | None:
        """Return the work order whose newest thread this is; raises ContractViolation (SPEC.md section 9)."""
        checked = EVENT_RULES["correlation_id"].check("correlation_id", correlation_id)
        return _only_work_order(self._read(_GET_BY_CORRELATION, correlation_id=checked))

    def events(self, work_order_id: str, after: int = 0) -> Iterator[WorkOrderEvent]:
        """Iterate over the events with work_order_seq > `after` in order, a page in memory at a time.

        Raises ContractViolation for arguments that are none, and TenantScopeViolation also on the way
        (SPEC.md section 9).
        """
        scope_tenant(self._conn)  # now, and not only where the iteration begins
        return self._events(check_work_order_id(work_order_id), _POSITION.check("after", after))

    def rebuild(
        self, work_order_id: str | None = None, progress: Callable[[RebuildReport], object] | None = None
    ) -> RebuildReport:
        """Make the projection the fold of the ledger again, of one work order or all (SPEC.md section 5).

        It locks what it rebuilds to the end of the caller's transaction: rebuild_tenant is for whole tenants.
        """
        if work_order_id is None:
            return _rebuild(lambda after: self._run(_REBUILD_NEXT, after=after)[0], progress)
        checked = check_work_order_id(work_order_id)
        report = RebuildReport(**self._run(_REBUILD_ONE, work_order_id=checked)[0])
        if progress is not None:
            progress(report)
        return report

    def verify(self, work_order_id: str | None = None) -> list[DriftedOrder]:
        """Return the work orders whose projection is not the fold of their ledger (SPEC.md section 5)."""
        checked = None if work_order_id is None else check_work_order_id(work_order_id)
        return [DriftedOrder(**row) for row in self._run(_VERIFY, work_order_id=checked)]

    def as_of(
        self,
        work_order_id: str,
        *,
        event_id: int | None = None,
        seq: int | None = None,
        at: datetime | None = None,
    ) -> WorkOrder | None:
        """Return the state after an event, or after the last event created at or before an instant.

        None before the creation. Raises ContractViolation unless exactly one of the three is given, and for a
        naive datetime (SPEC.md section 5).
        """
        if [event_id, seq, at].count(None) != 2:
            raise ContractViolation(field="as_of", rule="takes exactly one of event_id, seq and at")
        rows = self._run(
            _AS_OF,
            work_order_id=check_work_order_id(work_order_id),
            event_id=None if event_id is None else _POSITION.check("event_id", event_id),
            seq=None if seq is None else _POSITION.check("seq", seq),
            at=None if at is None else EVENT_RULES["occurred_at"].check("at", at),
        )
        return _only_work_order(rows)

    def _events(self, work_order_id: str, after: int) -> Iterator[WorkOrderEvent]:
        # Pages, not a cursor: nothing stays open where the caller stops, and each page asks for the tenant.
        while page := self._read(_EVENTS, work_order_id=work_order_id, after=after):
            yield from map(_event, page)
            if len(page) < EVENTS_PAGE:
                return
            after = page[-1]["work_order_seq"]


def append_events(
    engine: Engine, tenant_id: str, events: Iterable[WorkOrderLedgerEventInput]
) -> list[AppendResult]:
    """Append 1..1000 events, all or none, in one round trip and a transaction of its own (SPEC.md section 4).

    Raises what WorkOrderRepository.append_many raises. After a lost connection, send the same events again:
    those with an idempotency_key are not written twice.
    """
    tenant_id = check_tenant_id(tenant_id)
    wire = _wire(events)
    with engine.connect() as conn:
        # In autocommit the statement is the transaction, and the function makes it the tenant's.
        conn.execution_options(isolation_level="AUTOCOMMIT")
        return [AppendResult(**row) for row in fetch(conn, _APPEND, tenant_id=tenant_id, events=wire)]


def rebuild_tenant(
    engine: Engine, tenant_id: str, progress: Callable[[RebuildReport], object] | None = None
) -> RebuildReport:
    """Rebuild every work order of a tenant, one short transaction per group of orders (SPEC.md section 5).

    `progress` gets the sums so far after each group. Interrupted, it keeps what it has done: run it again.
    """
    tenant_id = check_tenant_id(tenant_id)

    def rebuild_group(after: str) -> RowMapping:
        with tenant_scope(engine, tenant_id) as conn:
            return fetch(conn, _REBUILD_NEXT, tenant_id=tenant_id, after=after)[0]

    return _rebuild(rebuild_group, progress)


def _rebuild(
    rebuild_group: Callable[[str], RowMapping], progress: Callable[[RebuildReport], object] | None
) -> RebuildReport:
    report = RebuildReport(0, 0, 0)
    group = rebuild_group("")
    while (last_work_order_id := group["last_work_order_id"]) is not None:
        report = RebuildReport(
            work_orders=report.work_orders + group["work_orders"],
            events=report.events + group["events"],
            changed=report.changed + group["changed"],
        )
        if progress is not None:
            progress(report)
        group = rebuild_group(last_work_order_id)
    return report


def _wire(events: object) -> str:
    """Write a batch as the JSON text that the append function takes."""
    batch = list(islice(events, MAX_BATCH + 1)) if isinstance(events, Iterable) else []
    if not 1 <= len(batch) <= MAX_BATCH:
        raise ContractViolation(field="events", rule=f"must be 1..{MAX_BATCH} events")
    for index, event in enumerate(batch):
        if not isinstance(event, WorkOrderLedgerEventInput):
            raise ContractViolation(
                field="events", rule="must be WorkOrderLedgerEventInput values", event_index=index
            )
    wire = [event.to_wire() for event in batch]
    # Unshown: an event may carry a lease token.
    return Unshown(json.dumps(wire, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _only_work_order(rows: Sequence[RowMapping]) -> WorkOrder | None:
    return _work_order(rows[0]) if rows else None


def _work_order(row: RowMapping) -> WorkOrder:
    found = {name: row[name] for name in _WORK_ORDER_NAMES}
    return WorkOrder(**{**found, "work_order_status": WorkOrderStatus(row["work_order_status"])})


def _event(row: RowMapping) -> WorkOrderEvent:
    found = {name: row[name] for name in _EVENT_NAMES}
    words = {
        "event_type": WorkOrderEventType(row["event_type"]),
        "work_order_status": WorkOrderStatus(row["work_order_status"]),
    }
    return WorkOrderEvent(**{**found, **words})


# --- statements, built once; all values are parameters

_WORK_ORDER: Final = bindparam("work_order_id", type_=Text)
_AFTER: Final = bindparam("after", type_=BigInteger)


def _append(tenant: ColumnElement[Any]) -> Select[Any]:
    return call(
        "append_work_order_events",
        [tenant, cast(bindparam("events", type_=Text), JSONB)],
        work_order_event_id=BigInteger,
        work_order_seq=BigInteger,
        replayed=Boolean,
        created_at=DateTime(timezone=True),
    )


_APPEND: Final = _append(TENANT)
_APPEND_IN_SCOPE: Final = _append(SCOPED_TENANT)

_REBUILT: Final = {"work_orders": BigInteger, "events": BigInteger, "changed": BigInteger}
_REBUILD_ONE: Final = call("rebuild_work_order", [SCOPED_TENANT, _WORK_ORDER], **_REBUILT)
_REBUILD_NEXT: Final = call(
    "rebuild_work_orders",
    [SCOPED_TENANT, bindparam("after", type_=Text), literal_column(str(REBUILD_GROUP_SIZE), Integer)],
    **_REBUILT,
    last_work_order_id=Text,
)
_VERIFY: Final = call("verify_work_orders", [SCOPED_TENANT, _WORK_ORDER], work_order_id=Text, problem=Text)
_AS_OF: Final = call(
    "work_order_as_of",
    [
        SCOPED_TENANT,
        _WORK_ORDER,
        bindparam("seq", type_=BigInteger),
        bindparam("event_id", type_=BigInteger),
        bindparam("at", type_=DateTime(timezone=True)),
    ],
    **{column.name: column.type for column in work_orders_current.columns},
)

_CURRENT: Final = work_orders_current.columns
_GET: Final = in_scope(
    work_orders_current, and_(_CURRENT.tenant_id == TENANT, _CURRENT.work_order_id == _WORK_ORDER)
)
_GET_BY_CORRELATION: Final = in_scope(
    work_orders_current,
    and_(_CURRENT.tenant_id == TENANT, _CURRENT.correlation_id == bindparam("correlation_id", type_=Uuid)),
)

_LEDGER: Final = work_order_ledger.columns
_PAGE: Final = (
    select(work_order_ledger)
    .where(_LEDGER.tenant_id == TENANT, _LEDGER.work_order_id == _WORK_ORDER, _LEDGER.work_order_seq > _AFTER)
    .order_by(_LEDGER.work_order_seq)
    .limit(EVENTS_PAGE)
    .lateral("event")
)
_EVENTS: Final = in_scope(_PAGE, true()).order_by(_PAGE.c.work_order_seq)
