"""The statements of the work-order repository, built once, and how their rows are read."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Interval,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from selene_core.contract.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.contract.rows import WorkOrder, WorkOrderEvent
from selene_core.store.instants import Instant
from selene_core.store.repository import SCOPED_TENANT, TENANT, call, in_scope
from selene_core.store.tables import IS_PENDING, work_order_ledger, work_orders_current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, RowMapping, Select

REBUILD_GROUP_SIZE: Final = 200
EVENTS_PAGE: Final = 256

_WORK_ORDER_NAMES: Final = tuple(work_orders_current.columns.keys())
_EVENT_NAMES: Final = tuple(work_order_ledger.columns.keys())


def only_work_order(rows: Sequence[RowMapping]) -> WorkOrder | None:
    """Return the work order of the only row; None without a row."""
    return work_order(rows[0]) if rows else None


def work_order(row: RowMapping) -> WorkOrder:
    """Return the work order of a row."""
    found = {name: row[name] for name in _WORK_ORDER_NAMES}
    return WorkOrder(**{**found, "work_order_status": WorkOrderStatus(row["work_order_status"])})


def event(row: RowMapping) -> WorkOrderEvent:
    """Return the event of a row."""
    found = {name: row[name] for name in _EVENT_NAMES}
    words = {
        "event_type": WorkOrderEventType(row["event_type"]),
        "work_order_status": WorkOrderStatus(row["work_order_status"]),
    }
    return WorkOrderEvent(**{**found, **words})


_WORK_ORDER: Final = bindparam("work_order_id", type_=Text)
_AFTER: Final = bindparam("after", type_=BigInteger)


_INSTANT: Final = Instant()
_APPENDED: Final[dict[str, Any]] = {
    "work_order_event_id": BigInteger,
    "work_order_seq": BigInteger,
    "replayed": Boolean,
    "created_at": _INSTANT,
}
_WORK_ORDER_COLUMNS: Final[dict[str, Any]] = {
    column.name: column.type for column in work_orders_current.columns
}


def _append(tenant: ColumnElement[Any]) -> Select[Any]:
    return call(
        "append_work_order_events", [tenant, cast(bindparam("events", type_=Text), JSONB)], **_APPENDED
    )


APPEND: Final = _append(TENANT)
APPEND_IN_SCOPE: Final = _append(SCOPED_TENANT)

_REBUILT: Final = {"work_orders": BigInteger, "events": BigInteger, "changed": BigInteger}
REBUILD_ONE: Final = call("rebuild_work_order", [SCOPED_TENANT, _WORK_ORDER], **_REBUILT)
REBUILD_NEXT: Final = call(
    "rebuild_work_orders",
    [SCOPED_TENANT, bindparam("after", type_=Text), literal_column(str(REBUILD_GROUP_SIZE), Integer)],
    **_REBUILT,
    last_work_order_id=Text,
)
VERIFY: Final = call("verify_work_orders", [SCOPED_TENANT, _WORK_ORDER], work_order_id=Text, problem=Text)
AS_OF: Final = call(
    "work_order_as_of",
    [
        SCOPED_TENANT,
        _WORK_ORDER,
        bindparam("seq", type_=BigInteger),
        bindparam("event_id", type_=BigInteger),
        bindparam("at", type_=_INSTANT),
    ],
    **_WORK_ORDER_COLUMNS,
)

_CURRENT: Final = work_orders_current.columns
GET: Final = in_scope(
    work_orders_current, and_(_CURRENT.tenant_id == TENANT, _CURRENT.work_order_id == _WORK_ORDER)
)
GET_BY_CORRELATION: Final = in_scope(
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
EVENTS: Final = in_scope(_PAGE, true()).order_by(_PAGE.c.work_order_seq)

RESOLVE: Final = select(
    func.os_core.resolve_values(
        SCOPED_TENANT, cast(bindparam("value", type_=Text), JSONB), type_=JSONB
    ).label("value")
)
LOCK: Final = call("lock_work_order", [SCOPED_TENANT, _WORK_ORDER], **_WORK_ORDER_COLUMNS)
EVENT_OF_KEY: Final = in_scope(
    work_order_ledger,
    and_(
        _LEDGER.tenant_id == TENANT,
        _LEDGER.work_order_id == _WORK_ORDER,
        _LEDGER.idempotency_key == bindparam("idempotency_key", type_=Text),
    ),
)
_REASON: Final = bindparam("reason_code", type_=BigInteger)
NOTIFY_WAIT: Final = select(
    func.os_core.notify_wait(
        SCOPED_TENANT, _WORK_ORDER, bindparam("turn_id", type_=BigInteger), _REASON, type_=Boolean
    ).label("speaks")
)
CANCEL: Final = call(
    "cancel_work_order",
    [
        SCOPED_TENANT,
        _WORK_ORDER,
        _REASON,
        bindparam("idempotency_key", type_=Text),
        bindparam("note", type_=Text),
    ],
    **_APPENDED,
)


@cache
def pending(*, of_requester: bool, within: bool, after: bool, oldest_first: bool) -> Select[Any]:
    """Select a page of pending work orders; the statuses are literals, so that its partial index is used."""
    place = (_CURRENT.last_updated_at, _CURRENT.last_event_id)
    start = tuple_(bindparam("after_at", type_=_INSTANT), bindparam("after_event_id", type_=BigInteger))
    page = select(work_orders_current).where(_CURRENT.tenant_id == TENANT, text(IS_PENDING))
    if of_requester:
        page = page.where(_CURRENT.requester_user_id == bindparam("requester_user_id", type_=Text))
    if within:
        # statement_timestamp(), because clock_timestamp() cannot be an index condition.
        since = func.statement_timestamp() - cast(bindparam("within", type_=Interval), Interval)
        page = page.where(_CURRENT.last_updated_at >= since)
    if after:
        page = page.where(tuple_(*place) > start if oldest_first else tuple_(*place) < start)
    order = place if oldest_first else tuple(column.desc() for column in place)
    limited = page.order_by(*order).limit(bindparam("limit", type_=Integer)).lateral("pending")
    outer = (limited.c.last_updated_at, limited.c.last_event_id)
    return in_scope(limited, true()).order_by(*(outer if oldest_first else (c.desc() for c in outer)))
