"""The statements of the work-order repository, built once, and how their rows are read."""

from __future__ import annotations

from dataclasses import fields
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Interval,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from selene_core.contract.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.contract.rows import AppendResult, WorkOrder, WorkOrderEvent
from selene_core.store.digests import Digest
from selene_core.store.instants import Instant, instant
from selene_core.store.repository import TENANT, DriverStatement, call, in_scope, scoped
from selene_core.store.tables import IS_PENDING, bucket_of, work_order_ledger, work_orders_current

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, FromClause, RowMapping, Select, Table

R = TypeVar("R", WorkOrder, WorkOrderEvent)

REBUILD_GROUP_SIZE: Final = 200
CHAIN_PART_SIZE: Final = 2000
EVENTS_PAGE: Final = 256

_WORK_ORDER_NAMES: Final = tuple(work_orders_current.columns.keys())


def only_work_order(rows: Sequence[RowMapping]) -> WorkOrder | None:
    """Return the work order of the only row; None without a row."""
    return work_order(rows[0]) if rows else None


def work_order(row: RowMapping) -> WorkOrder:
    """Return the work order of a row."""
    found = {name: row[name] for name in _WORK_ORDER_NAMES}
    return WorkOrder(**{**found, "work_order_status": WorkOrderStatus(row["work_order_status"])})


def _array(row_type: type[R], rows: FromClause) -> ColumnElement[Any]:
    """Select what a row type has as one JSON array, whose first value is never null.

    Each column by itself would be work for the driver and for SQLAlchemy.
    """
    columns = [rows.c[each.name] for each in fields(row_type)]
    return func.json_build_array(
        *(
            each.type.column_expression(each) if isinstance(each.type, (Instant, Digest)) else each
            for each in columns
        )
    )


def _reader(row_type: type[R], table: Table) -> Callable[[Sequence[Any]], R]:
    """Make what reads the array of _array()."""
    readers: dict[type, Callable[[Any], Any]] = {Instant: instant, Uuid: UUID}
    words = {"work_order_status": WorkOrderStatus, "event_type": WorkOrderEventType}
    found = [words.get(each.name, readers.get(type(table.c[each.name].type))) for each in fields(row_type)]
    places = [(place, reader) for place, reader in enumerate(found) if reader is not None]

    def read(values: Sequence[Any]) -> R:
        values = [*values]
        for place, reader in places:
            if values[place] is not None:
                values[place] = reader(values[place])
        return row_type(*values)

    return read


_INSTANT: Final = Instant()
_WORK_ORDER: Final = bindparam("work_order_id", type_=Text)
_AFTER: Final = bindparam("after", type_=BigInteger)
_AFTER_AT: Final = bindparam("after_at", type_=_INSTANT)

APPENDED: Final[dict[str, Any]] = {
    "work_order_event_id": BigInteger,
    "work_order_seq": BigInteger,
    "replayed": Boolean,
    "created_at": _INSTANT,
}
WORK_ORDER_COLUMNS: Final[dict[str, Any]] = {
    column.name: column.type for column in work_orders_current.columns
}


_EVENTS_GIVEN: Final = cast(bindparam("events", type_=Text), JSONB)


def _append(arguments: Sequence[ColumnElement[Any]]) -> Select[Any]:
    return call("append_work_order_events", arguments, **APPENDED)


def _appended(row: Sequence[Any]) -> AppendResult:
    event_id, seq, replayed, created_at = row
    return AppendResult(event_id, seq, replayed, instant(created_at))


APPEND: Final = DriverStatement(_append([TENANT, _EVENTS_GIVEN]), _appended)


def _append_briefly() -> Select[Any]:
    """Append as a transaction of its own that waits for each lock no longer than its lock_timeout."""
    waits = func.set_config(
        literal_column("'lock_timeout'"), bindparam("lock_timeout", type_=Text), true()
    ).label("waits")
    given = select(waits).subquery("given")
    # The tenant depends on the timeout, so that this is set first.
    appended = _append([case((given.c.waits.is_not(None), TENANT)), _EVENTS_GIVEN]).lateral("appended")
    return select(appended).select_from(given.join(appended, true()))


APPEND_BRIEFLY: Final = DriverStatement(_append_briefly(), _appended)
APPEND_IN_SCOPE: Final = DriverStatement(_append(scoped(_EVENTS_GIVEN)), _appended)

_REBUILT: Final = {"work_orders": BigInteger, "events": BigInteger, "changed": BigInteger}
REBUILD_ONE: Final = call("rebuild_work_order", scoped(_WORK_ORDER), **_REBUILT)
REBUILD_NEXT: Final = call(
    "rebuild_work_orders",
    scoped(bindparam("after", type_=Text), literal_column(str(REBUILD_GROUP_SIZE), Integer)),
    **_REBUILT,
    last_work_order_id=Text,
)
VERIFY: Final = call("verify_work_orders", scoped(_WORK_ORDER), work_order_id=Text, problem=Text)
VERIFY_CHAIN_PART: Final = call(
    "verify_chain_part",
    scoped(
        bindparam("after", type_=Text),
        bindparam("after_seq", type_=BigInteger),
        bindparam("last", type_=Text),
        literal_column(str(CHAIN_PART_SIZE), Integer),
    ),
    events=BigInteger,
    broken=JSONB,
    last_work_order_id=Text,
    last_seq=BigInteger,
)
AS_OF: Final = call(
    "work_order_as_of",
    scoped(
        _WORK_ORDER,
        bindparam("seq", type_=BigInteger),
        bindparam("event_id", type_=BigInteger),
        bindparam("at", type_=_INSTANT),
    ),
    **WORK_ORDER_COLUMNS,
)

_CURRENT: Final = work_orders_current.columns
_read_work_order: Final = _reader(WorkOrder, work_orders_current)


def _work_orders(rows: FromClause, on: ColumnElement[bool]) -> Select[Any]:
    return in_scope(rows, on, _array(WorkOrder, rows))


GET: Final = DriverStatement(
    _work_orders(
        work_orders_current, and_(_CURRENT.tenant_id == TENANT, _CURRENT.work_order_id == _WORK_ORDER)
    ),
    _read_work_order,
)
GET_BY_CORRELATION: Final = DriverStatement(
    _work_orders(
        work_orders_current,
        and_(
            _CURRENT.tenant_id == TENANT, _CURRENT.correlation_id == bindparam("correlation_id", type_=Uuid)
        ),
    ),
    _read_work_order,
)

_LEDGER: Final = work_order_ledger.columns
_PAGE: Final = (
    select(work_order_ledger)
    .where(_LEDGER.tenant_id == TENANT, _LEDGER.work_order_id == _WORK_ORDER, _LEDGER.work_order_seq > _AFTER)
    .order_by(_LEDGER.work_order_seq)
    .limit(literal_column(str(EVENTS_PAGE), Integer))
    .lateral("event")
)
EVENTS: Final = DriverStatement(
    in_scope(_PAGE, true(), _array(WorkOrderEvent, _PAGE)).order_by(_PAGE.c.work_order_seq),
    _reader(WorkOrderEvent, work_order_ledger),
)
RESOLVE: Final = select(
    func.os_core.resolve_values(*scoped(cast(bindparam("value", type_=Text), JSONB)), type_=JSONB).label(
        "value"
    )
)

_TURN: Final = bindparam("turn_id", type_=BigInteger)
_REASON: Final = bindparam("reason_code", type_=BigInteger)
_KEY: Final = bindparam("idempotency_key", type_=Text)
ASK: Final = call(
    "ask_field",
    scoped(
        _WORK_ORDER,
        bindparam("required_fields", type_=ARRAY(Text)),
        bindparam("prefilled_fields", type_=ARRAY(Text)),
        _TURN,
        _REASON,
        _KEY,
    ),
    decision=Text,
    field_key=Text,
    prompt_dedupe_key=Text,
    reason=Text,
    **APPENDED,
)
NOTIFY_WAIT: Final = select(
    func.os_core.notify_wait(*scoped(_WORK_ORDER, _TURN, _REASON), type_=Boolean).label("speaks")
)
CANCEL: Final = call(
    "cancel_work_order",
    scoped(
        _WORK_ORDER,
        _REASON,
        _KEY,
        bindparam("note", type_=Text),
    ),
    **APPENDED,
)


@cache
def by_creation(
    *, of_requester: bool, of_lease_owner: bool, after: bool, oldest_first: bool
) -> DriverStatement[WorkOrder]:
    """Select a page of work orders by creation: an index range for each status, merged."""
    place = (_CURRENT.created_at, _CURRENT.work_order_id)
    start = tuple_(bindparam("after_at", type_=_INSTANT), bindparam("after_work_order_id", type_=Text))
    limit = bindparam("limit", type_=Integer)
    statuses = func.unnest(bindparam("statuses", type_=ARRAY(Text)))
    wanted = statuses.table_valued(column("status", Text), name="wanted").render_derived()
    found = select(work_orders_current).where(
        _CURRENT.tenant_id == TENANT, _CURRENT.work_order_status == wanted.c.status
    )
    if of_requester:
        found = found.where(_CURRENT.requester_user_id == bindparam("requester_user_id", type_=Text))
    if of_lease_owner:
        found = found.where(_CURRENT.lease_owner_id == bindparam("lease_owner_id", type_=Text))
    if after:
        found = found.where(tuple_(*place) > start if oldest_first else tuple_(*place) < start)
    each = found.order_by(*_directed(place, oldest_first)).limit(limit).lateral("of_status")
    merged = (each.c.created_at, each.c.work_order_id)
    page = (
        select(*each.c)
        .select_from(wanted)
        .join(each, true())
        .order_by(*_directed(merged, oldest_first))
        .limit(limit)
        .lateral("page")
    )
    ordered = _work_orders(page, true()).order_by(
        *_directed((page.c.created_at, page.c.work_order_id), oldest_first)
    )
    return DriverStatement(ordered, _read_work_order)


def _directed(place: tuple[ColumnElement[Any], ...], oldest_first: bool) -> tuple[ColumnElement[Any], ...]:
    return place if oldest_first else tuple(column.desc() for column in place)


@lru_cache
def pending(
    *, of_requester: bool, within: bool, after: bool, oldest_first: bool, limit: int
) -> DriverStatement[WorkOrder]:
    """Select a page of pending work orders.

    Its index has the bucket of last_updated_at and no more: so the bounds are said of the bucket, too, and
    the rows of one bucket are sorted. The statuses are literals, so that the partial index is used. So is the
    limit: a parameter counts as a tenth of the rows, and so, among many, the plan for all parameters looks
    so dear that PostgreSQL plans in every call.
    """
    place = (_CURRENT.last_updated_at, _CURRENT.last_event_id)
    start = tuple_(_AFTER_AT, bindparam("after_event_id", type_=BigInteger))
    page = select(work_orders_current).where(_CURRENT.tenant_id == TENANT, text(IS_PENDING))
    if of_requester:
        page = page.where(_CURRENT.requester_user_id == bindparam("requester_user_id", type_=Text))
    if within:
        # statement_timestamp(), because clock_timestamp() cannot be an index condition.
        since = func.statement_timestamp() - cast(bindparam("within", type_=Interval), Interval)
        page = page.where(_CURRENT.last_updated_at >= since, _CURRENT.updated_bucket >= bucket_of(since))
    if after and oldest_first:
        page = page.where(tuple_(*place) > start, _CURRENT.updated_bucket >= bucket_of(_AFTER_AT))
    elif after:
        page = page.where(tuple_(*place) < start, _CURRENT.updated_bucket <= bucket_of(_AFTER_AT))
    order = (_CURRENT.updated_bucket, *place)
    limited = (
        page.order_by(*(order if oldest_first else (column.desc() for column in order)))
        .limit(literal_column(str(int(limit)), Integer))
        .lateral("pending")
    )
    outer = (limited.c.last_updated_at, limited.c.last_event_id)
    ordered = _work_orders(limited, true()).order_by(*(outer if oldest_first else (c.desc() for c in outer)))
    return DriverStatement(ordered, _read_work_order)
