"""Never ask twice, and wait quietly: two contracts, told as stories of one work order each.

Every statement about the order is made three times: as it is, after a rebuild, and after its projection row
was destroyed and made anew from the ledger.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from selene_core import (
    CancelInvalidState,
    ExternalApprovalPending,
    InvalidTransition,
    PromptAction,
    PromptDecision,
    PromptReason,
    PromptSuppressed,
    SeleneError,
    WorkOrder,
    WorkOrderRepository,
    append_events,
    decide_prompt,
    tenant_scope,
)
from tests.support.factories import created, event, new_id
from tests.support.races import wait_until

TENANT = "acme"
REQUIRED = ("city", "date")
LONG_AGO, FAR_OFF = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


@dataclass
class Story:
    """One work order, the application that writes it, and a superuser who damages its projection."""

    app: Engine
    admin: Engine
    order: str = field(default_factory=new_id)
    turn: int = 0

    def tell(self, event_type: str, status: str = "CLARIFY", **payload: Any) -> int:
        """Append an event and return its seq."""
        self.turn += 1
        given = {"turn_id": self.turn, "work_order_status": status, "payload": payload}
        appended = event(event_type, self.order, **given)
        return append_events(self.app, TENANT, [appended])[0].work_order_seq

    def refused(
        self, error: type[SeleneError], event_type: str, status: str = "CLARIFY", **payload: Any
    ) -> SeleneError:
        """Try an event: it is refused, and nothing is written, whatever became of the projection before."""
        caught: list[SeleneError] = []

        def attempt() -> None:
            before = self.everything()
            with pytest.raises(error) as refusal:
                self.tell(event_type, status, **payload)
            assert self.everything() == before
            caught.append(refusal.value)

        self.always(attempt)
        assert {str(each) for each in caught} == {str(caught[0])}
        return caught[0]

    def now(self) -> WorkOrder:
        """Return the order."""
        with self.repository() as orders:
            found = orders.get(self.order)
        assert found is not None
        return found

    def everything(self) -> tuple[WorkOrder, list[Any]]:
        """Return the order and its events."""
        with self.repository() as orders:
            return self.now(), list(orders.events(self.order))

    def repository(self) -> "Scope":
        """Open a transaction for the tenant."""
        return Scope(self.app)

    def ask(self, required: tuple[str, ...] = REQUIRED, prefilled: tuple[str, ...] = ()) -> PromptDecision:
        """Ask what is to be asked, and record it."""
        self.turn += 1
        with self.repository() as orders:
            return orders.ask(
                self.order,
                required_fields=required,
                prefilled_fields=prefilled,
                turn_id=self.turn,
                reason_code=9,
            )

    def decides(
        self, *expected: object, required: tuple[str, ...] = REQUIRED, prefilled: tuple[str, ...] = ()
    ) -> None:
        """Expect (decision, field, reason), each time."""

        def decide() -> None:
            decided = decide_prompt(self.now(), required, prefilled)
            assert (decided.decision, decided.field_key, decided.reason) == expected

        self.always(decide)

    def always(self, check: Callable[[], object]) -> None:
        """Check now, after a rebuild, and after the events were replayed into an empty projection."""
        check()
        before = self.now()
        with self.repository() as orders:
            assert orders.verify() == []
            assert orders.rebuild(self.order).changed == 0
        check()
        with self.admin.begin() as conn:
            conn.execute(text("SET LOCAL session_replication_role = replica"))
            gone = conn.execute(
                text("DELETE FROM os_core.work_orders_current WHERE work_order_id = :id"), {"id": self.order}
            )
            assert gone.rowcount == 1
        with self.repository() as orders:
            assert orders.rebuild(self.order).changed == 1
        assert self.now() == before
        check()


class Scope:
    """A tenant_scope with its repository."""

    def __init__(self, engine: Engine) -> None:
        self._scope = tenant_scope(engine, TENANT)

    def __enter__(self) -> WorkOrderRepository:
        return WorkOrderRepository(self._scope.__enter__())

    def __exit__(self, *exc_info: Any) -> None:
        self._scope.__exit__(*exc_info)


@pytest.fixture
def story(engine: Engine, admin_engine: Engine) -> Story:
    """Begin a story: an order of alice's, of which the kind is known."""
    story = Story(engine, admin_engine)
    first = created(story.order, payload={"fields": {"kind": "trip"}, "requester_user_id": "alice"})
    append_events(engine, TENANT, [first])
    return story


ASK, OTHER, SKIP = PromptAction.ASK, PromptAction.ASK_DIFFERENT_FIELD, PromptAction.SKIP
STOP, WAIT = PromptAction.STOP, PromptAction.WAIT
NEXT, CONFLICT = PromptReason.POLICY_NEXT_FIELD, PromptReason.POLICY_CONFLICT_REQUIRES_ONE_ASK
ASKED, KNOWN = PromptReason.POLICY_ALREADY_ASKED, PromptReason.POLICY_FIELD_ALREADY_KNOWN


def prompt(key: str, number: int) -> Mapping[str, str]:
    return {"field_key": key, "prompt_dedupe_key": f"{key}#{number}"}


def test_at_os_20_never_ask_twice_enforced(story: Story) -> None:
    # Known from the creation: never asked, neither by the policy nor past it.
    story.decides(SKIP, None, KNOWN, required=("kind",))
    refusal = story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("kind", 1))
    assert isinstance(refusal, PromptSuppressed)
    assert (refusal.work_order_id, refusal.field_key) == (story.order, "kind")
    # Prefilled: known to the caller.
    story.decides(ASK, "date", NEXT, prefilled=("city",))
    story.decides(SKIP, None, KNOWN, prefilled=REQUIRED)

    # Asked: once, then the next one, then nothing.
    story.decides(ASK, "city", NEXT)
    asked = story.ask()
    assert (asked.field_key, asked.prompt_dedupe_key, asked.reason) == ("city", "city#1", NEXT)
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 2))
    story.refused(PromptSuppressed, "FIELD_PROMPTED", field_key="date", prompt_dedupe_key="city#1")
    story.decides(OTHER, "date", ASKED)
    assert story.ask().prompt_dedupe_key == "date#1"
    story.decides(STOP, None, ASKED)
    assert story.ask().prompt is None
    # Steps, notices and prompts are no change, even with another status.
    story.tell("STEP_STARTED", "EXECUTING")
    story.decides(STOP, None, ASKED)

    # Answered: known and resolved; and what was asked before this change may be asked again.
    answered = story.tell("FIELD_SET", field_key="city", value="Oslo")
    order = story.now()
    assert order.fields_json["city"] == order.resolved_fields_json["city"]["value"] == "Oslo"
    assert order.last_state_change_seq == answered
    story.decides(SKIP, None, KNOWN, required=("city",))
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 2))
    story.decides(ASK, "date", NEXT)
    assert story.ask().prompt_dedupe_key == "date#2"
    assert story.now().asked_fields_json["date"]["attempts"] == 2
    # An equal value changes nothing, so nothing may come again; null is a value.
    story.tell("FIELD_SET", field_key="city", value="Oslo")
    assert story.now().last_state_change_seq == answered
    story.decides(STOP, None, ASKED)
    story.tell("FIELD_SET", field_key="date", value=None)
    story.decides(SKIP, None, KNOWN)

    # Corrected: allowed and recorded, and no reason to ask.
    corrected = story.tell("FIELD_SET", field_key="city", value="Bergen")
    order = story.now()
    assert (order.fields_json["city"], order.resolved_fields_json["city"]["value"]) == ("Bergen", "Bergen")
    assert order.last_state_change_seq == corrected
    story.decides(SKIP, None, KNOWN)

    # In conflict: exactly one prompt, whatever else changes.
    story.tell("FIELD_CONFLICT_DETECTED", field_key="city", candidates=["Oslo", "Bergen"])
    story.decides(ASK, "city", CONFLICT)
    story.decides(SKIP, None, KNOWN, prefilled=("city",))
    assert story.ask().prompt_dedupe_key == "city#2"
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 3))
    story.tell("FIELD_SET", field_key="hotel", value="Grand")
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 3))
    story.decides(STOP, None, ASKED)
    again = story.tell("FIELD_CONFLICT_DETECTED", field_key="city")  # an open one: recorded, changes nothing
    assert story.now().last_seq == again
    assert story.now().last_state_change_seq < again
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 3))

    # Resolved: no more prompts until a new conflict, which allows one again.
    story.tell("FIELD_CONFLICT_RESOLVED", field_key="city", value="Oslo")
    order = story.now()
    assert order.conflicts_json == {}
    assert order.fields_json["city"] == order.resolved_fields_json["city"]["value"] == "Oslo"
    story.decides(SKIP, None, KNOWN)
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 3))
    story.tell("FIELD_CONFLICT_DETECTED", field_key="city")
    assert story.ask().prompt_dedupe_key == "city#3"
    story.refused(PromptSuppressed, "FIELD_PROMPTED", **prompt("city", 4))


def test_at_os_21_external_approval_wait_no_spam(story: Story) -> None:
    def request(request_id: str, expires_at: str | None = None) -> dict[str, str]:
        until = {"expires_at": expires_at} if expires_at else {}
        return {"request_id": request_id, "target_user_id": "boss", **until}

    def notify() -> bool:
        with story.repository() as orders:
            return orders.notify_wait(story.order, turn_id=7, reason_code=8)

    # Nothing is pending: nothing to say, and nothing to answer.
    assert notify() is False
    story.refused(InvalidTransition, "EXTERNAL_APPROVAL_WAIT_NOTIFIED", request_id="r1")
    story.refused(InvalidTransition, "EXTERNAL_APPROVAL_RESOLVED", request_id="r1", outcome="APPROVED")

    # Requested: one at a time.
    requested = story.tell("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", **request("r1", FAR_OFF))
    order = story.now()
    assert order.external_approval_pending
    assert (order.external_approval_request_id, order.external_approval_target_user_id) == ("r1", "boss")
    assert order.last_state_change_seq == requested
    for second in ("r1", "r2"):
        refusal = story.refused(
            ExternalApprovalPending, "EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", **request(second)
        )
        assert isinstance(refusal, ExternalApprovalPending)
        assert (refusal.work_order_id, refusal.request_id) == (story.order, "r1")

    # Waiting: no prompt, no step, no way on; what is known may still come in.
    story.decides(WAIT, None, PromptReason.POLICY_APPROVAL_PENDING)
    assert story.ask().decision is WAIT
    pending = ExternalApprovalPending
    story.refused(pending, "FIELD_PROMPTED", "CONFIRM", **prompt("city", 1))
    story.refused(
        pending, "FIELD_PROMPTED", "CONFIRM", **prompt("kind", 1)
    )  # where it would be suppressed too
    story.refused(pending, "STEP_STARTED", "CONFIRM")
    for status in ("EXECUTING", "DONE"):
        story.refused(pending, "STATUS_CHANGED", status)
        story.refused(pending, "FIELD_SET", status, field_key="city", value="Oslo")
        story.refused(pending, "STEP_FINISHED", status)
        story.refused(pending, "EXTERNAL_APPROVAL_RESOLVED", status, request_id="r1", outcome="APPROVED")
    story.tell("FIELD_SET", "CONFIRM", field_key="city", value="Oslo")
    assert story.now().external_approval_pending

    # One notice, by whoever comes first; a second one is refused.
    assert notify() is True
    assert notify() is False
    assert story.now().external_approval_notices == 1
    story.refused(PromptSuppressed, "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "CONFIRM", request_id="r1")
    story.refused(InvalidTransition, "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "CONFIRM", request_id="r2")

    # Answered by the wrong id, or called expired too early: refused. Answered: resumed.
    story.refused(
        InvalidTransition, "EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r2", outcome="APPROVED"
    )
    story.refused(
        InvalidTransition, "EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r1", outcome="EXPIRED"
    )
    resolved = story.tell("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r1", outcome="APPROVED")
    order = story.now()
    assert not order.external_approval_pending
    assert order.external_approval_request_id is None
    assert order.last_state_change_seq == resolved
    story.tell("STATUS_CHANGED", "EXECUTING")
    story.tell("STEP_STARTED", "EXECUTING")
    assert story.ask().field_key == "date"

    # Expired: one more notice past the expiry, at most two in all, and EXPIRED is an answer.
    check_an_expiry_between_two_notices(story, notify)
    story.tell("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", **request("r4", LONG_AGO))
    assert notify() is True
    assert notify() is False  # the first one came past the expiry: nothing is left to say
    story.tell("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r4", outcome="EXPIRED")
    story.tell("STATUS_CHANGED", "EXECUTING")

    # Canceled while waiting: allowed, and the wait is over.
    story.tell("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", **request("r5"))
    assert notify() is True
    with story.repository() as orders:
        orders.cancel(story.order, reason_code=3, idempotency_key="cancel")
    order = story.now()
    assert (order.work_order_status, order.external_approval_pending) == ("CANCELED", False)
    assert notify() is False
    story.refused(
        InvalidTransition, "EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r5", outcome="APPROVED"
    )
    story.refused(CancelInvalidState, "WORK_ORDER_CANCELED", "CANCELED")


def check_an_expiry_between_two_notices(story: Story, notify: Callable[[], bool]) -> None:
    """A request expires between its two notices, by the database's clock: watched, not slept on."""
    with story.admin.connect() as conn:
        clock = text("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        for n in range(7):
            # However slow the machine is, one of these is long enough to give the first notice in time.
            expires_at = conn.scalars(clock).one() + timedelta(seconds=0.5 * 2**n)
            expiry = {"expires_at": f"{expires_at.isoformat()}Z"}
            story.tell(
                "EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", request_id="r3", target_user_id="boss", **expiry
            )
            said = notify(), notify()
            if conn.scalars(clock).one() < expires_at:
                break
            story.tell("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r3", outcome="EXPIRED")
        assert said == (True, False)
        assert story.now().external_approval_notices == 1
        wait_until(lambda: conn.scalars(clock).one() > expires_at, "the request expires")
    assert notify() is True
    assert story.now().external_approval_notices == 2
    assert notify() is False
    story.refused(PromptSuppressed, "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "CONFIRM", request_id="r3")
    story.tell("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", request_id="r3", outcome="EXPIRED")


@pytest.mark.parametrize("end", ["REFUSED", "FAILED"])
def test_approval__an_end_needs_no_answer(story: Story, end: str) -> None:
    story.tell("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", request_id="r1", target_user_id="boss")
    story.tell("STATUS_CHANGED", end)
    assert not story.now().external_approval_pending
    story.always(lambda: None)
