"""A scenario that a person can read: what the ledger keeps, asks once, refuses, isolates and restores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from selene_core.cli.page import Page
from selene_core.cli.rendering import attempt_lines, pending_lines, state_lines, timeline_lines
from selene_core.contract.enums import AttemptOutcome, PromptAction, RetryAction
from selene_core.contract.errors import SeleneError
from selene_core.contract.events import WorkOrderLedgerEventInput, new_work_order_id
from selene_core.store.attempts import StepAttemptRepository
from selene_core.store.leases import LeaseRepository
from selene_core.store.scope import tenant_scope, translate_errors
from selene_core.store.transactions import append_events, rebuild_tenant
from selene_core.store.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from selene_core.contract.rows import AppendResult, HeldLease, Lease, RetryDecision, StepAttempt

TENANT: Final = "acme"
STRANGER: Final = "globex"
_LAST_TTL_MS: Final = 500
_LIMITS: Final[dict[str, Any]] = {"timeout_ms": 60_000, "max_retries": 2, "retry_backoff_ms": 500}
_DAMAGE: Final = text(
    "UPDATE os_core.work_orders_current SET work_order_status = 'DRAFT', fields_json = '{}'"
    " WHERE work_order_status = 'DONE'"
)


class _Stage:
    """The two engines, the reader, and whether all has held so far."""

    def __init__(self, app: Engine, admin: Engine, say: Callable[[str], None], page: Page) -> None:
        self.app, self.admin, self.say = app, admin, say
        self.page = page.narrowed(3)
        self.held = True
        self._acts = 0

    def act(self, title: str, *terms: str) -> None:
        """Begin the next part of the scenario, with what its terms mean."""
        self._acts += 1
        if self._acts > 1:
            self.say("")
        first, *others = self.page.fold(title)
        self.say(f"{self._acts}. {first}")
        self.say("".join(f"   {line}\n" for line in others))
        for term in terms:
            self.tell(term, indent=2)
        if terms:
            self.say("")

    def tell(self, line: str, indent: int = 3) -> None:
        """Show a line of what happened, on more lines where it is too long."""
        for part in self.page.fold(line, indent):
            self.say(f"   {part}".rstrip())

    def expect(self, holds: bool) -> None:
        """Note whether something is as it must be."""
        self.held &= holds

    def refused(self, what: str, attempt: Callable[[], object]) -> None:
        """Try what must not happen, and show how it is refused."""
        try:
            attempt()
        except SeleneError as exc:
            self.tell(f"{what}:")
            self.tell(f"   {exc.code}: {exc}")
        except DBAPIError as exc:
            self.tell(f"{what}:")
            self.tell(f"   {str(exc.orig).strip()}")
        else:
            self.tell(f"{what}: NOT REFUSED")
            self.held = False

    def execute(self, engine: Engine, statement: Any) -> None:
        """Execute a statement in a transaction of its own."""
        with engine.begin() as conn, translate_errors():
            conn.execute(statement)


class _Order:
    """A work order of Alice's and the conversation about it."""

    def __init__(self, stage: _Stage) -> None:
        self.stage = stage
        self.id: str = new_work_order_id()
        self.thread: UUID = uuid4()
        self.turn = 0

    def event(
        self, event_type: str, status: str, payload: dict[str, Any], **given: Any
    ) -> WorkOrderLedgerEventInput:
        """Compose the next event."""
        self.turn += 1
        return WorkOrderLedgerEventInput.from_mapping(
            {
                "work_order_id": self.id,
                "correlation_id": self.thread,
                "turn_id": self.turn,
                "event_type": event_type,
                "work_order_status": status,
                "reason_code": 1,
                "payload": payload,
                **given,
            }
        )

    def append(self, event_type: str, status: str, payload: dict[str, Any], **given: Any) -> AppendResult:
        """Append the next event."""
        return append_events(self.stage.app, TENANT, [self.event(event_type, status, payload, **given)])[0]

    def show(self) -> None:
        """Show the order's state and time line."""
        with tenant_scope(self.stage.app, TENANT) as conn:
            orders = WorkOrderRepository(conn)
            order = orders.get(self.id)
            self.stage.expect(order is not None)
            if order is not None:
                page = self.stage.page
                events = orders.events(self.id)
                for line in (*state_lines(order, page=page), "", *timeline_lines(events, page=page)):
                    self.stage.tell(line)


def run(app: Engine, admin: Engine, say: Callable[[str], None], page: Page | None = None) -> bool:
    """Play the scenario as the application and, for the damage, as a superuser; tell if it held."""
    stage = _Stage(app, admin, say, page or Page())
    order = _Order(stage)
    _ask_once(stage, order)
    _wait_quietly(stage, order)
    _take_over(stage, order)
    last = _finish_the_order(stage, order)
    _refuse(stage, order, last)
    _restore(stage, order)
    return stage.held


def _ask_once(stage: _Stage, order: _Order) -> None:
    stage.act(
        "Alice asks for a trip. The assistant asks for what it must know, once.",
        "Work order: a piece of work for a user.",
        "Event: what happened to it.",
        "Ledger: the table of all events. Rows are only added.",
        f"Tenant: a customer of the service. Here: {TENANT}.",
        "ASK: ask for this field. STOP: nothing to ask now. SKIP: all is known.",
    )
    order.append("WORK_ORDER_CREATED", "DRAFT", {"fields": {"kind": "travel"}, "requester_user_id": "alice"})

    def ask(expected: PromptAction) -> None:
        order.turn += 1
        with tenant_scope(stage.app, TENANT) as conn:
            asked = WorkOrderRepository(conn).ask(
                order.id, required_fields=["kind", "date", "city"], turn_id=order.turn, reason_code=1
            )
        stage.tell(f"assistant  {asked.decision} {asked.field_key or '-'}  ({asked.reason})")
        stage.expect(asked.decision is expected)

    def answer(field_key: str, value: str) -> None:
        order.append("FIELD_SET", "CLARIFY", {"field_key": field_key, "value": value})
        stage.tell(f"alice      {field_key}: {value}")

    ask(PromptAction.ASK)
    ask(PromptAction.ASK_DIFFERENT_FIELD)
    ask(PromptAction.STOP)
    prompt = {"field_key": "date", "prompt_dedupe_key": "date#2"}
    stage.refused(
        "another process asks for the date all the same",
        lambda: order.append("FIELD_PROMPTED", "CLARIFY", prompt),
    )
    answer("date", "2027-03-14")
    answer("city", "Zürich")
    ask(PromptAction.SKIP)
    order.append("FIELD_CONFLICT_DETECTED", "CLARIFY", {"field_key": "city", "candidates": ["Zürich", "Zug"]})
    stage.tell("calendar   city: Zug?")
    ask(PromptAction.ASK)
    ask(PromptAction.STOP)
    order.append("FIELD_CONFLICT_RESOLVED", "CONFIRM", {"field_key": "city", "value": "Zürich"})
    stage.tell("alice      city: Zürich")


def _wait_quietly(stage: _Stage, order: _Order) -> None:
    stage.act(
        "The trip needs an approval. The user is told of the wait once, and nothing happens meanwhile.",
        "Approval: somebody else must agree, here Bob.",
        "Pending: not yet being worked on.",
    )
    request = {"request_id": "budget-7", "target_user_id": "bob"}
    order.append("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", {**request, "expires_at": "2999-01-01T00:00:00Z"})
    for expected in (True, False):
        with tenant_scope(stage.app, TENANT) as conn:
            speaks = WorkOrderRepository(conn).notify_wait(order.id)
        stage.tell(f"notify_wait: {'this process tells Alice' if speaks else 'she was told'}")
        stage.expect(speaks is expected)
    with tenant_scope(stage.app, TENANT) as conn:
        found = WorkOrderRepository(conn).list_pending(requester_user_id="alice")
        for line in pending_lines(found, page=stage.page):
            stage.tell(line)
    go = {"previous_status": "CONFIRM"}
    stage.refused("the work begins", lambda: order.append("STATUS_CHANGED", "EXECUTING", go))
    order.append("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", {"request_id": "budget-7", "outcome": "APPROVED"})
    stage.tell("bob        approved")
    order.append("STATUS_CHANGED", "EXECUTING", go)


def _take_over(stage: _Stage, order: _Order) -> None:
    stage.act(
        "A worker takes the lease, starts a step and dies. Another takes over and retries it.",
        "Lease: the right to work on an order, until a time.",
        "Fence: a number that grows with each lease; so other systems can refuse an old worker.",
        'Step: a part of the work, here "book".',
        "Attempt: one try at a step. RETRY_AT: when the next may start.",
    )
    lease = _acquire(stage, order, "worker-1")
    with tenant_scope(stage.app, TENANT) as conn:
        attempt = StepAttemptRepository(conn).start(
            order.id, "book", **_LIMITS, idempotency_key="book-1", lease_token=lease.token
        )
    stage.tell(
        f"worker-1   holds the lease behind fence {lease.fence} and runs attempt {attempt.attempt_index}"
    )
    stage.refused("worker-2 wants it too", lambda: _acquire(stage, order, "worker-2"))
    with tenant_scope(stage.app, TENANT) as conn:
        LeaseRepository(conn).renew(order.id, lease.token, ttl_ms=_LAST_TTL_MS)
    stage.tell(f"worker-1   renews it for {_LAST_TTL_MS} ms, and is not heard of again")
    while _current_lease(stage, order) is not None:  # by the database's clock
        time.sleep(0.05)
    heir = _acquire(stage, order, "worker-2")
    stage.expect(heir.fence > lease.fence)
    stage.tell(f"worker-2   takes over after the expiry, fence {heir.fence}")

    def finish(attempt: StepAttempt, lease: HeldLease, outcome: AttemptOutcome) -> RetryDecision:
        with tenant_scope(stage.app, TENANT) as conn:
            return StepAttemptRepository(conn).finish(
                attempt.step_attempt_id,
                outcome=outcome,
                reason_code=7,
                retryable=outcome is AttemptOutcome.FAILED,
                lease_token=lease.token,
            )

    stage.refused(
        "worker-1 wakes up and finishes its attempt", lambda: finish(attempt, lease, AttemptOutcome.SUCCEEDED)
    )
    decision = finish(attempt, heir, AttemptOutcome.FAILED)
    stage.expect((decision.action, decision.next_attempt_index) == (RetryAction.RETRY_AT, 2))
    stage.tell(f"worker-2   closes it: {decision.action} {decision.next_due_at}")
    while not _due(stage):
        time.sleep(0.05)
    with tenant_scope(stage.app, TENANT) as conn:
        second = StepAttemptRepository(conn).start(
            order.id, "book", **_LIMITS, idempotency_key="book-2", lease_token=heir.token
        )
    decision = finish(second, heir, AttemptOutcome.SUCCEEDED)
    stage.expect(decision.action is RetryAction.DONE)
    stage.tell(f"worker-2   runs attempt {second.attempt_index}: {decision.action}")
    with tenant_scope(stage.app, TENANT) as conn:
        LeaseRepository(conn).release(order.id, heir.token)
        for line in attempt_lines(StepAttemptRepository(conn).history(order.id), page=stage.page):
            stage.tell(line)


def _acquire(stage: _Stage, order: _Order, owner: str) -> HeldLease:
    with tenant_scope(stage.app, TENANT) as conn:
        return LeaseRepository(conn).acquire(order.id, owner, ttl_ms=60_000)


def _current_lease(stage: _Stage, order: _Order) -> Lease | None:
    with tenant_scope(stage.app, TENANT) as conn:
        return LeaseRepository(conn).current(order.id)


def _due(stage: _Stage) -> list[StepAttempt]:
    with tenant_scope(stage.app, TENANT) as conn:
        return StepAttemptRepository(conn).due_retries(1)


def _finish_the_order(stage: _Stage, order: _Order) -> WorkOrderLedgerEventInput:
    stage.act(
        "The order is done, and the last reply is lost: sent again, its key answers with the original.",
        "Key: the caller's own name for an event.",
        "Replayed: known by its key, so not written again.",
        "Seq: the number of an event in its order.",
        "Thread: the conversation. Turn: a message of it.",
    )
    done = order.event("STATUS_CHANGED", "DONE", {"note": "booked and confirmed"}, idempotency_key="done")
    (first,), (again,) = (append_events(stage.app, TENANT, [done]) for _ in range(2))
    stage.expect(again.replayed and again.work_order_event_id == first.work_order_event_id)
    stage.tell(f"event {again.work_order_event_id}, seq {again.work_order_seq}, replayed: {again.replayed}")
    stage.tell("")
    order.show()
    return done


def _refuse(stage: _Stage, order: _Order, last: WorkOrderLedgerEventInput) -> None:
    stage.act(
        "What must not happen is refused by the database, whoever tries.",
        "Projection: the table of what each order is now.",
        "Superuser: a login that may do everything in PostgreSQL.",
    )
    rewrite = text("UPDATE os_core.work_order_ledger SET reason_code = 99")
    stage.refused("a superuser rewrites the ledger", lambda: stage.execute(stage.admin, rewrite))
    stage.refused("the application rewrites the projection", lambda: stage.execute(stage.app, _DAMAGE))
    stage.refused(
        "an event after the end",
        lambda: order.append("FIELD_SET", "DONE", {"field_key": "city", "value": "Zug"}),
    )
    other = last.model_copy(update={"payload": {"note": "something else"}})
    stage.refused("a used key for something else", lambda: append_events(stage.app, TENANT, [other]))
    with tenant_scope(stage.app, STRANGER) as conn:
        seen = WorkOrderRepository(conn).get(order.id)
    stage.expect(seen is None)
    stage.tell(f"tenant {STRANGER} looks for the order: {seen}")


def _restore(stage: _Stage, order: _Order) -> None:
    stage.act(
        "A superuser damages the projection. verify names it, rebuild repairs it.",
        "Fold: compute what an order is from its events, one after the other.",
        "verify: compare the projection with the fold. rebuild: write the fold into it.",
    )
    stage.execute(stage.admin, _DAMAGE)
    with tenant_scope(stage.app, TENANT) as conn:
        drifted = WorkOrderRepository(conn).verify()
    stage.expect([each.work_order_id for each in drifted] == [order.id])
    for each in drifted:
        stage.tell(f"verify: {each.problem}")
    report = rebuild_tenant(stage.app, TENANT)
    with tenant_scope(stage.app, TENANT) as conn:
        clean = WorkOrderRepository(conn).verify() == []
        before = WorkOrderRepository(conn).as_of(order.id, seq=4)
    stage.expect(clean and report.changed == 1)
    stage.tell(
        f"rebuild: {report.events} events folded, {report.changed} row changed; verify is clean: {clean}"
    )

    stage.act("As it was after the fourth event:")
    stage.expect(before is not None)
    if before is not None:
        for line in state_lines(before, page=stage.page):
            stage.tell(line)


def run_on(url: str, admin_url: str, say: Callable[[str], None], page: Page) -> bool:
    """Play the scenario on a migrated database."""
    app, admin = create_engine(url), create_engine(admin_url)
    for engine in (app, admin):
        event.listen(engine, "connect", _set_plain_session)
    try:
        return run(app, admin, say, page)
    finally:
        app.dispose()
        admin.dispose()


def _set_plain_session(connection: DBAPIConnection, _record: object) -> None:
    # PGTZ and PGDATESTYLE reach every session, and the driver reads times in ISO only.
    cursor = connection.cursor()
    cursor.execute("SET DateStyle = 'ISO'; SET TimeZone = 'UTC'")
    cursor.close()
    connection.commit()
