"""A service that uses everything that selene_core offers: mypy --strict reads it with the installed package.

It is checked, not run. tests/packaging/test_consumer.py fails for a public name that is not used here.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import assert_never
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from selene_core import (
    PENDING_STATUSES,
    TERMINAL_STATUSES,
    AppendOnlyViolation,
    AppendResult,
    ApprovalOutcome,
    AttemptConflict,
    BoundExceeded,
    CancelInvalidState,
    ConcurrencyConflict,
    ContractViolation,
    CorrelationConflict,
    DriftedOrder,
    ExternalApprovalPending,
    IdempotencyConflict,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    ProjectionDamaged,
    PromptSuppressed,
    RebuildReport,
    SchemaDrifted,
    SchemaError,
    SchemaLocked,
    SchemaOutdated,
    SchemaTooNew,
    SeleneError,
    TenantScopeViolation,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderEventType,
    WorkOrderIdUnavailable,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    check_schema,
    create_async_selene_engine,
    create_selene_engine,
    new_work_order_id,
    rebuild_tenant,
    tenant_scope,
    work_order_event_schema,
)
from selene_core.local import LocalDatabase, LocalServerUnavailable, local_database

log = logging.getLogger(__name__)


# --- connections


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    engine: Engine = create_selene_engine(
        url,
        statement_timeout=timedelta(seconds=30),
        idle_in_transaction_timeout=timedelta(minutes=1),
        pool_size=10,
    )
    try:
        revision: str = check_schema(engine)
        log.info("revision %s", revision)
        yield engine
    finally:
        engine.dispose()


async def connected_asynchronously(url: str) -> AsyncEngine:
    engine: AsyncEngine = create_async_selene_engine(url, pooler=True)
    async with engine.connect() as conn:
        await conn.run_sync(check_schema)
    return engine


def why_not(error: SchemaError) -> str:
    stands: str | None = error.revision
    match error:
        case SchemaOutdated():
            return f"upgrade from {stands} to {error.expected}"
        case SchemaTooNew() | SchemaDrifted():
            return "; ".join(error.problems)
        case SchemaLocked():
            return "later"
        case _:
            return f"{error.code}: {error.message}"


# --- work orders


def create(engine: Engine, tenant_id: str, fields: dict[str, object]) -> tuple[str, AppendResult]:
    first = WorkOrderLedgerEventInput(
        work_order_id=new_work_order_id(),
        correlation_id=uuid4(),
        turn_id=1,
        event_type=WorkOrderEventType.WORK_ORDER_CREATED,
        work_order_status=WorkOrderStatus.DRAFT,
        reason_code=1,
        payload={"fields": fields, "requester_user_id": "alice"},
        idempotency_key="create",
        occurred_at=datetime.now(UTC),
        expected_seq=0,
    )
    results: list[AppendResult] = append_events(engine, tenant_id, [first])
    return first.work_order_id, results[0]


def answer(
    engine: Engine, tenant_id: str, correlation_id: UUID, key: str, value: object
) -> AppendResult | None:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        order: WorkOrder | None = orders.get_by_correlation(correlation_id)
        if order is None or order.work_order_status in TERMINAL_STATUSES:
            return None
        said = WorkOrderLedgerEventInput(
            work_order_id=order.work_order_id,
            correlation_id=order.correlation_id,
            turn_id=order.turn_id + 1,
            event_type=WorkOrderEventType.FIELD_SET,
            work_order_status=order.work_order_status,
            reason_code=2,
            payload={"field_key": key, "value": value},
            idempotency_key=f"{key}-answer",
        )
        resolved = said.model_copy(
            update={
                "event_type": WorkOrderEventType.EXTERNAL_APPROVAL_RESOLVED,
                "payload": {"request_id": "ask-1", "outcome": ApprovalOutcome.APPROVED},
            }
        )
        result: AppendResult = orders.append(said)
        more: list[AppendResult] = orders.append_many([resolved])
        return max(result, *more, key=lambda each: each.work_order_seq)


def next_step(status: WorkOrderStatus) -> str:
    if status in PENDING_STATUSES:
        return "ask"
    match status:
        case WorkOrderStatus.EXECUTING:
            return "work"
        case WorkOrderStatus.DONE | WorkOrderStatus.REFUSED | WorkOrderStatus.FAILED:
            return "tell"
        case WorkOrderStatus.CANCELED:
            return "nothing"
        case WorkOrderStatus.DRAFT | WorkOrderStatus.CLARIFY | WorkOrderStatus.CONFIRM:
            return "ask"
        case _:
            assert_never(status)


def story(engine: Engine, tenant_id: str, work_order_id: str) -> list[str]:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        events: Iterator[WorkOrderEvent] = orders.events(work_order_id, after=0)
        lines = [
            f"{event.work_order_seq} {event.event_type.value} {event.created_at:%H:%M}" for event in events
        ]
        yesterday: WorkOrder | None = orders.as_of(work_order_id, at=datetime.now(UTC) - timedelta(days=1))
        if yesterday is not None:
            lines.insert(0, f"yesterday: {yesterday.work_order_status.value}")
        return lines


def maintain(engine: Engine, tenant_id: str) -> RebuildReport:
    with tenant_scope(engine, tenant_id) as conn:
        drifted: list[DriftedOrder] = WorkOrderRepository(conn).verify()
    for order in drifted:
        log.warning("%s: %s", order.work_order_id, order.problem)
    return rebuild_tenant(engine, tenant_id, lambda so_far: log.info("%d", so_far.work_orders))


# --- what the database refuses


def explain(error: SeleneError) -> str:
    match error:
        case ContractViolation(field=field, rule=rule, event_index=index):
            return f"event {index}: {field} {rule}"
        case IdempotencyConflict(idempotency_key=key, work_order_event_id=event_id):
            return f"{key} stands for event {event_id}"
        case ConcurrencyConflict(expected_seq=expected, last_seq=last):
            return f"{expected} is not {last}"
        case InvalidTransition(work_order_status=status) | CancelInvalidState(work_order_status=status):
            return f"not from {status}"
        case LeaseHeld(lease_owner_id=owner, lease_expires_at=until):
            return f"{owner} has it until {until}"
        case BoundExceeded(bound=bound, limit=limit):
            return f"{bound}: at most {limit}"
        case CorrelationConflict(correlation_id=correlation_id):
            return f"{correlation_id} is taken"
        case PromptSuppressed(field_key=key):
            return f"{key} was asked"
        case ExternalApprovalPending(request_id=request_id):
            return f"waits for {request_id}"
        case AttemptConflict(step_id=step_id):
            return f"not {step_id} now"
        case AppendOnlyViolation(table=table, operation=operation):
            return f"no {operation} on {table}"
        case WorkOrderNotFound() | WorkOrderIdUnavailable() | LeaseLost() | ProjectionDamaged():
            return str(error.work_order_id)
        case TenantScopeViolation():
            return error.message
        case _:
            return f"{error.code} ({error.sqlstate}{', try again' if error.retryable else ''})"


def published() -> str:
    return str(work_order_event_schema()["title"])


def main() -> None:
    try:
        with local_database() as database:
            local: LocalDatabase = database
            with connected(local.url) as engine:
                work_order_id, _ = create(engine, "acme", {"city": "Zürich"})
                for line in story(engine, "acme", work_order_id):
                    log.info(line)
    except SeleneError as exc:
        log.warning(explain(exc))
    except LocalServerUnavailable:
        log.warning("no PostgreSQL here")
