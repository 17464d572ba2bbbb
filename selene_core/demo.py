"""A scenario that a person can read: what the ledger keeps, refuses, isolates and restores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from selene_core.attempts import StepAttemptRepository
from selene_core.contracts import (
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderStatus,
    new_work_order_id,
)
from selene_core.database import tenant_scope, translate_errors
from selene_core.enums import RetryAction
from selene_core.errors import SeleneError
from selene_core.leases import LeaseRepository
from selene_core.rendering import attempt_lines, state_lines, timeline_lines
from selene_core.work_orders import WorkOrderRepository, append_events, rebuild_tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from selene_core.attempts import RetryDecision
    from selene_core.leases import Lease

TENANT: Final = "acme"
STRANGER: Final = "globex"
_COLUMNS: Final = ("event_type", "work_order_status", "payload", "step_id", "idempotency_key")
_STORY: Final[tuple[tuple[Any, ...], ...]] = (
    (
        "WORK_ORDER_CREATED",
        "DRAFT",
        {"fields": {"kind": "travel"}, "requester_user_id": "alice"},
        None,
        "create",
    ),
    ("FIELD_PROMPTED", "CLARIFY", {"field_key": "date", "prompt_dedupe_key": "date#1"}, None, "ask-date"),
    ("FIELD_SET", "CLARIFY", {"field_key": "date", "value": "2027-03-14"}, None, "date"),
    ("FIELD_SET", "CONFIRM", {"field_key": "city", "value": "Zürich"}, None, "city"),
    ("STATUS_CHANGED", "EXECUTING", {"previous_status": "CONFIRM"}, None, "go"),
    ("STEP_STARTED", "EXECUTING", {"resource": "booking-api", "attempt_index": 1}, "book", "book-1"),
    ("STEP_FINISHED", "EXECUTING", {"booking": "LX-4711"}, "book", "booked"),
    ("STATUS_CHANGED", "DONE", {"note": "booked and confirmed"}, None, "done"),
)


def run(app: Engine, admin: Engine, say: Callable[[str], None]) -> bool:
    """Play the scenario as the application and, for the damage, as a superuser; tell if it held."""
    work_order_id = new_work_order_id()
    thread = uuid4()
    events = [
        WorkOrderLedgerEventInput(
            work_order_id=work_order_id,
            correlation_id=thread,
            turn_id=turn,
            reason_code=1,
            **dict(zip(_COLUMNS, step, strict=True)),
        )
        for turn, step in enumerate(_STORY, start=1)
    ]
    held = True

    say("1. Alice asks for a trip. Each event is appended; the projection follows.\n")
    results = [append_events(app, TENANT, [event])[0] for event in events]
    with tenant_scope(app, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        for line in (*_required(orders, work_order_id), "", *timeline_lines(orders.events(work_order_id))):
            say(f"   {line}")

    say("\n2. The last reply is lost and the service sends it again: the key answers with the original.\n")
    again = append_events(app, TENANT, [events[-1]])[0]
    held &= again.replayed and again.work_order_event_id == results[-1].work_order_event_id
    say(f"   event {again.work_order_event_id}, seq {again.work_order_seq}, replayed: {again.replayed}")

    say("\n3. What must not happen is refused by the database, whoever tries.\n")
    rewrite = text("UPDATE os_core.work_order_ledger SET reason_code = 99")
    held &= _refused(say, "a superuser rewrites the ledger", lambda: _execute(admin, rewrite))
    held &= _refused(say, "the application rewrites the projection", lambda: _execute(app, _DAMAGE))
    late = events[2].model_copy(update={"idempotency_key": "late"})
    held &= _refused(say, "an event after the end", lambda: append_events(app, TENANT, [late]))
    other = events[2].model_copy(
        update={"idempotency_key": "date", "payload": {"field_key": "date", "value": "never"}}
    )
    held &= _refused(say, "a used key for something else", lambda: append_events(app, TENANT, [other]))
    with tenant_scope(app, STRANGER) as conn:
        seen = WorkOrderRepository(conn).get(work_order_id)
    held &= seen is None
    say(f"   tenant {STRANGER} looks for the order: {seen}")

    say("\n4. A superuser damages the projection. verify names it, rebuild mends it.\n")
    _execute(admin, _DAMAGE)
    with tenant_scope(app, TENANT) as conn:
        drifted = WorkOrderRepository(conn).verify()
    held &= [order.work_order_id for order in drifted] == [work_order_id]
    for order in drifted:
        say(f"   verify: {order.problem}")
    report = rebuild_tenant(app, TENANT)
    with tenant_scope(app, TENANT) as conn:
        clean = WorkOrderRepository(conn).verify() == []
        before = WorkOrderRepository(conn).as_of(work_order_id, seq=4)
    held &= clean and report.changed == 1
    say(f"   rebuild: {report.events} events folded, {report.changed} row changed; verify is clean: {clean}")
    say("\n5. As it was after the fourth event:\n")
    if before is not None:
        for line in state_lines(before):
            say(f"   {line}")
    held &= before is not None
    return _workers(app, say) and held


def _workers(app: Engine, say: Callable[[str], None]) -> bool:
    """Let a worker die in the middle of a step, and another take over."""
    say("\n6. A worker takes the lease of a new order, starts a step and dies. Another takes over.\n")
    order = new_work_order_id()
    first = WorkOrderLedgerEventInput(
        work_order_id=order,
        correlation_id=uuid4(),
        turn_id=1,
        reason_code=1,
        event_type=WorkOrderEventType.WORK_ORDER_CREATED,
        work_order_status=WorkOrderStatus.EXECUTING,
    )
    append_events(app, TENANT, [first])
    with tenant_scope(app, TENANT) as conn:
        lease = LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=_LEASE_MS)
        dead = StepAttemptRepository(conn).start(
            order, "book", **_LIMITS, idempotency_key="book-1", lease_token=lease.token
        )
    token = lease.token or ""
    say(f"   worker-1 holds the lease behind fence {lease.fence} and runs attempt {dead.attempt_index}")
    held = _refused(say, "worker-2 wants it too", lambda: _acquire(app, order, "worker-2"))
    while _current(app, order) is not None:  # by the database's clock
        time.sleep(_LEASE_MS / 10_000)
    heir = _acquire(app, order, "worker-2")
    held &= heir.fence > lease.fence
    say(f"   the lease has expired: worker-2 takes over, behind fence {heir.fence}")

    def finish(lease_token: str | None) -> RetryDecision:
        with tenant_scope(app, TENANT) as conn:
            return StepAttemptRepository(conn).finish(
                dead.step_attempt_id, outcome="FAILED", reason_code=7, retryable=True, lease_token=lease_token
            )

    held &= _refused(say, "worker-1 wakes up and finishes its attempt", lambda: finish(token))
    decision = finish(heir.token)
    held &= decision.action is RetryAction.RETRY_AT and decision.next_attempt_index == 2
    say(f"   worker-2 closes it: {decision.action} {decision.next_due_at}\n")
    with tenant_scope(app, TENANT) as conn:
        LeaseRepository(conn).release(order, heir.token or "")
        orders = WorkOrderRepository(conn)
        for line in (
            *attempt_lines(StepAttemptRepository(conn).history(order)),
            "",
            *timeline_lines(orders.events(order)),
        ):
            say(f"   {line}")
        return held and orders.verify() == []


def _acquire(app: Engine, order: str, owner: str) -> Lease:
    with tenant_scope(app, TENANT) as conn:
        return LeaseRepository(conn).acquire(order, owner, ttl_ms=60_000)


def _current(app: Engine, order: str) -> Lease | None:
    with tenant_scope(app, TENANT) as conn:
        return LeaseRepository(conn).current(order)


_LEASE_MS: Final = 1_000
_LIMITS: Final[dict[str, Any]] = {"timeout_ms": 60_000, "max_retries": 2, "retry_backoff_ms": 30_000}

_DAMAGE: Final = text(
    "UPDATE os_core.work_orders_current SET work_order_status = 'DRAFT', fields_json = '{}'"
)


def _required(orders: WorkOrderRepository, work_order_id: str) -> tuple[str, ...]:
    order = orders.get(work_order_id)
    return () if order is None else tuple(state_lines(order))


def _execute(engine: Engine, statement: Any) -> None:
    with engine.begin() as conn, translate_errors():
        conn.execute(statement)


def _refused(say: Callable[[str], None], what: str, attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except SeleneError as exc:
        say(f"   {what}:\n      {type(exc).__name__}: {exc}")
    except DBAPIError as exc:
        say(f"   {what}:\n      {exc.orig}".rstrip())
    else:
        say(f"   {what}: NOT REFUSED")
        return False
    return True


def run_on(url: str, admin_url: str, say: Callable[[str], None]) -> bool:
    """Play the scenario on a migrated database."""
    app, admin = create_engine(url), create_engine(admin_url)
    try:
        return run(app, admin, say)
    finally:
        app.dispose()
        admin.dispose()
