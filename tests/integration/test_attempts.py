"""Attempts of steps: counted, one at a time, retried to the microsecond (contract §8)."""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

from selene_core import (
    AttemptConflict,
    AttemptOutcome,
    AttemptStatus,
    ContractViolation,
    RetryAction,
    StepAttemptRepository,
    WorkOrderRepository,
    tenant_scope,
)
from tests.support.calls import TERMINAL, Row, Tenant, refused
from tests.support.factories import created, new_id, wire
from tests.support.raw import connect
from tests.support.servers import Database, Server
from tests.support.sessions import Sessions
from tests.support.workers import (
    LIMITS,
    acquire,
    attempts,
    due,
    everything,
    expired_lease,
    finish,
    new_token,
    release,
    renew,
    start,
    wait_past,
)

ATTEMPTS = "os_core.work_order_step_attempts"
SHORT = {"timeout_ms": 1}
QUICK = {"retry_backoff_ms": 1}


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


def text_of(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def deadline(attempt: Row) -> Any:
    return attempt["started_at"] + ms(attempt["timeout_ms"])


def fail(tenant: Tenant, attempt: Row, **given: Any) -> Row:
    """Fail an attempt in a way that can be retried."""
    return finish(tenant.app, tenant.id, attempt["step_attempt_id"], "FAILED", **{"retryable": True, **given})


def timed_out(tenant: Tenant, order: str, key: str = "start-1", **limits: Any) -> Row:
    """Start an attempt and let its time pass."""
    attempt = start(tenant.app, tenant.id, order, key, **{**SHORT, **limits})
    wait_past(tenant, deadline(attempt))
    return attempt


def retried(tenant: Tenant, order: str, times: int, **limits: Any) -> Row:
    """Fail so often, each time as soon as it may be, and return the last attempt, which runs."""
    attempt = start(tenant.app, tenant.id, order, "start-1", **{**QUICK, **limits})
    for number in range(2, times + 2):
        wait_past(tenant, fail(tenant, attempt)["next_due_at"])
        attempt = start(tenant.app, tenant.id, order, f"start-{number}", **{**QUICK, **limits})
    return attempt


def step_events(tenant: Tenant, order: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (event["event_type"], event["payload"])
        for event in tenant.ledger(order)
        if event["event_type"].startswith("STEP")
    ]


# --- start


def test_start__is_a_row_and_an_event(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    acme.append(wire("STEP_STARTED", order, step_id="book", step_input_hash="h", reason_code=42, turn_id=5))
    before = acme.projection(order)
    attempt = start(acme.app, acme.id, order, "k")
    assert attempts(acme, order) == [attempt]
    assert {name: attempt[name] for name in LIMITS} == LIMITS
    assert (attempt["attempt_index"], attempt["attempt_status"]) == (1, "RUNNING")
    assert attempt["started_at"] == attempt["created_at"] == attempt["updated_at"]
    assert [attempt[name] for name in ("next_retry_at", "finished_at", "reason_code")] == [None] * 3
    written = acme.ledger(order)[-1]
    assert (written["event_type"], written["step_id"], written["idempotency_key"]) == (
        "STEP_STARTED",
        "book",
        None,
    )
    assert written["payload"] == {
        "step_attempt_id": attempt["step_attempt_id"],
        "attempt_index": 1,
        "steps_due_at": text_of(deadline(attempt)),
    }
    kept = ("correlation_id", "turn_id", "work_order_status", "last_reason_code", "step_input_hash")
    assert [acme.projection(order)[name] for name in kept] == [before[name] for name in kept]


@pytest.mark.parametrize("status", ["DRAFT", "CLARIFY", "CONFIRM", "EXECUTING"])
def test_start__keeps_the_status(acme: Tenant, status: str) -> None:
    order = acme.order(status)
    start(acme.app, acme.id, order)
    assert acme.projection(order)["work_order_status"] == status


def test_start__another_step_has_its_own_attempts_and_no_input_hash_of_the_first(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    acme.append(wire("STEP_STARTED", order, step_id="book", step_input_hash="h"))
    start(acme.app, acme.id, order)
    other = start(acme.app, acme.id, order, step="pay")
    assert other["attempt_index"] == 1
    projection = acme.projection(order)
    assert (projection["step_id"], projection["step_input_hash"]) == ("pay", None)


def test_start__a_retry_gets_the_same_row(acme: Tenant) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order, "k")
    before = everything(acme, order)
    assert start(acme.app, acme.id, order, "k") == attempt
    for limit in LIMITS:
        with refused("SL005") as refusal:
            start(acme.app, acme.id, order, "k", **{limit: 3})
        assert refusal.facts == {"work_order_id": order, "idempotency_key": "k"}
    assert everything(acme, order) == before
    finish(acme.app, acme.id, attempt["step_attempt_id"])
    acme.append(wire("STATUS_CHANGED", order, work_order_status="DONE"))
    assert start(acme.app, acme.id, order, "k") == attempts(acme, order)[0]
    assert attempts(acme, order)[0]["attempt_status"] == "SUCCEEDED"


def test_start__a_key_belongs_to_a_step(acme: Tenant) -> None:
    order = acme.order()
    one, other = start(acme.app, acme.id, order, "k"), start(acme.app, acme.id, order, "k", step="pay")
    assert one["step_attempt_id"] != other["step_attempt_id"]


def test_start__a_second_running_attempt(acme: Tenant) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order)
    with refused("SL012") as refusal:
        start(acme.app, acme.id, order, "other")
    assert refusal.facts == {
        "work_order_id": order,
        "step_id": "book",
        "step_attempt_id": attempt["step_attempt_id"],
        "attempt_index": 1,
        "reason": "RUNNING",
    }


def test_start__before_the_retry_is_due(acme: Tenant) -> None:
    order = acme.order()
    decision = fail(acme, start(acme.app, acme.id, order, retry_backoff_ms=60_000))
    with refused("SL012") as refusal:
        start(acme.app, acme.id, order, "other")
    assert refusal.facts["reason"] == "NOT_DUE"
    assert refusal.facts["next_retry_at"] == text_of(decision["next_due_at"])


def test_start__the_budget(acme: Tenant) -> None:
    order = acme.order()
    last = retried(acme, order, 2, max_retries=2)
    assert last["attempt_index"] == 3
    assert fail(acme, last) == {"action": "FAIL", "next_due_at": None, "next_attempt_index": None}
    with refused("SL012") as refusal:
        start(acme.app, acme.id, order, "more", max_retries=2)
    assert (refusal.facts["reason"], refusal.facts["attempt_index"]) == ("BUDGET_SPENT", 3)
    assert [attempt["attempt_index"] for attempt in attempts(acme, order)] == [1, 2, 3]
    assert all(
        one["next_retry_at"] <= next_["started_at"]
        for one, next_ in zip(attempts(acme, order), attempts(acme, order)[1:], strict=False)
    )


def test_start__after_success(acme: Tenant) -> None:
    order = acme.order()
    finish(acme.app, acme.id, start(acme.app, acme.id, order)["step_attempt_id"])
    with refused("SL012") as refusal:
        start(acme.app, acme.id, order, "other")
    assert refusal.facts["reason"] == "SUCCEEDED"


def test_start__once_more_after_a_failure_that_waits(acme: Tenant) -> None:
    order = acme.order()
    decision = fail(acme, start(acme.app, acme.id, order), retryable=False)
    assert decision == {"action": "WAIT", "next_due_at": None, "next_attempt_index": 1}
    assert due(acme.app, acme.id) == []
    assert start(acme.app, acme.id, order, "decided")["attempt_index"] == 2


@pytest.mark.parametrize("status", TERMINAL)
def test_start__on_a_terminal_order(acme: Tenant, status: str) -> None:
    with refused("SL007") as refusal:
        start(acme.app, acme.id, acme.order(status))
    assert refusal.facts["work_order_status"] == status


def test_start__while_an_approval_is_pending(acme: Tenant) -> None:
    order = acme.order("CONFIRM")
    first = timed_out(acme, order)
    acme.append(wire("EXTERNAL_APPROVAL_REQUESTED", order))
    before = everything(acme, order)
    for step in ("book", "pay"):
        with refused("SL009"):
            start(acme.app, acme.id, order, "other", step=step)
    assert everything(acme, order) == before
    assert due(acme.app, acme.id) == []
    # What runs can end meanwhile.
    assert finish(acme.app, acme.id, first["step_attempt_id"])["action"] == "RETRY_AT"


def test_start__unknown_order(acme: Tenant) -> None:
    with refused("SL016"):
        start(acme.app, acme.id, new_id())


def test_start__two_at_once(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order()
    ours, theirs = sessions.open(autocommit=False), sessions.open()
    first = start(ours.conn, acme.id, order, "ours")
    waiting = theirs.start(lambda conn: start(conn, acme.id, order, "theirs"))
    assert sessions.blockers(theirs) == {ours.pid}
    ours.conn.commit()
    error = waiting.exception()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "SL012"
    assert attempts(acme, order) == [first]


def test_start__many_at_once(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order()

    def job(number: int) -> Callable[[Any], str]:
        def run(conn: Any) -> str:
            try:
                start(conn, acme.id, order, f"start-{number}")
            except psycopg.Error as exc:
                return str(exc.sqlstate)
            return "started"

        return run

    results = sessions.at_once([job(number) for number in range(16)])
    assert sorted(results) == ["SL012"] * 15 + ["started"]
    assert len(attempts(acme, order)) == 1


# --- the dead worker


def test_start__closes_what_is_over_its_time_and_goes_on(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    dead = timed_out(acme, order, retry_backoff_ms=3_600_000)
    alive = start(acme.app, acme.id, order, "next")
    closed, running = attempts(acme, order)
    assert running == alive
    assert (alive["attempt_index"], alive["attempt_status"]) == (2, "RUNNING")
    # As failed and retryable at its deadline, to the microsecond, whoever comes when.
    assert (closed["attempt_status"], closed["finished_at"], closed["next_retry_at"]) == (
        "FAILED",
        deadline(dead),
        deadline(dead),
    )
    assert closed["finish_idempotency_key"] is None
    assert step_events(acme, order)[1][0] == "STEP_FAILED"
    assert step_events(acme, order)[1][1]["timed_out"] is True
    assert [kind for kind, _ in step_events(acme, order)] == ["STEP_STARTED", "STEP_FAILED", "STEP_STARTED"]
    assert acme.verify(order) == {}
    with refused("SL012") as refusal:
        finish(acme.app, acme.id, dead["step_attempt_id"], key="late")
    assert (refusal.facts["reason"], refusal.facts["attempt_index"]) == ("OVER", 1)


def test_start__does_not_close_what_is_in_time(acme: Tenant) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order)
    with refused("SL012"):
        start(acme.app, acme.id, order, "other")
    assert attempts(acme, order) == [attempt]


def test_start__dead_with_its_budget_spent(acme: Tenant) -> None:
    order = acme.order()
    attempt = timed_out(acme, order, max_retries=0)
    with refused("SL012") as refusal:
        start(acme.app, acme.id, order, "other", max_retries=0)
    assert refusal.facts["reason"] == "BUDGET_SPENT"
    assert due(acme.app, acme.id) == []
    assert finish(acme.app, acme.id, attempt["step_attempt_id"])["action"] == "FAIL"
    # More retries granted: a decision that somebody takes.
    assert start(acme.app, acme.id, order, "more", max_retries=1)["attempt_index"] == 2


def test_start__dead_with_its_budget_spent_and_more_granted(acme: Tenant) -> None:
    """Closed by a call that allows more retries than it had: without a retry of its own, and in time."""
    order = acme.order("EXECUTING")
    dead = timed_out(acme, order, max_retries=0)
    alive = start(acme.app, acme.id, order, "more", max_retries=1)
    closed, running = attempts(acme, order)
    assert running == alive
    assert (alive["attempt_index"], alive["attempt_status"], alive["max_retries"]) == (2, "RUNNING", 1)
    assert (closed["attempt_status"], closed["finished_at"], closed["next_retry_at"]) == (
        "FAILED",
        deadline(dead),
        None,
    )
    assert [kind for kind, _ in step_events(acme, order)] == ["STEP_STARTED", "STEP_FAILED", "STEP_STARTED"]
    assert acme.verify(order) == {}


def test_start__dead_and_its_retry_at_once(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order()
    timed_out(acme, order)

    def job(number: int) -> Callable[[Any], str]:
        def run(conn: Any) -> str:
            try:
                start(conn, acme.id, order, f"retry-{number}")
            except psycopg.Error as exc:
                return str(exc.sqlstate)
            return "started"

        return run

    assert sorted(sessions.at_once([job(n) for n in range(8)])) == ["SL012"] * 7 + ["started"]
    assert [row["attempt_status"] for row in attempts(acme, order)] == ["FAILED", "RUNNING"]


# --- finish


def test_finish__done(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order)
    decision = finish(acme.app, acme.id, attempt["step_attempt_id"], reason_code=9, key="f")
    assert decision == {"action": "DONE", "next_due_at": None, "next_attempt_index": None}
    (row,) = attempts(acme, order)
    assert (row["attempt_status"], row["reason_code"], row["finish_idempotency_key"]) == ("SUCCEEDED", 9, "f")
    assert row["started_at"] < row["finished_at"] == row["updated_at"]
    assert step_events(acme, order)[-1] == (
        "STEP_FINISHED",
        {
            "step_attempt_id": attempt["step_attempt_id"],
            "attempt_index": 1,
            "steps_due_at": text_of(row["finished_at"]),
        },
    )
    assert acme.projection(order)["last_reason_code"] == 9


@pytest.mark.parametrize("backoff", [1, 1_000, 86_400_000, 31_536_000_000])
def test_finish__retry_at_is_exact(acme: Tenant, backoff: int) -> None:
    order = acme.order()
    decision = fail(acme, start(acme.app, acme.id, order, retry_backoff_ms=backoff))
    (row,) = attempts(acme, order)
    assert decision == {
        "action": "RETRY_AT",
        "next_due_at": row["finished_at"] + ms(backoff),
        "next_attempt_index": 2,
    }
    assert row["next_retry_at"] == decision["next_due_at"]
    (_, failed), (kind, scheduled) = step_events(acme, order)[-2:]
    assert kind == "STEP_RETRY_SCHEDULED"
    assert scheduled["next_retry_at"] == scheduled["steps_due_at"] == text_of(row["next_retry_at"])
    assert failed["timed_out"] is False


def test_finish__times_are_the_databases(acme: Tenant) -> None:
    clock = "SELECT clock_timestamp()"
    before = acme.admin.execute(clock).fetchone()
    fail(acme, start(acme.app, acme.id, acme.order()))
    after = acme.admin.execute(clock).fetchone()
    assert before is not None
    assert after is not None
    (row,) = [row for row in due_rows(acme) if row["attempt_status"] == "FAILED"]
    assert before[0] < row["started_at"] < row["finished_at"] < after[0]


def due_rows(tenant: Tenant) -> list[Row]:
    """Return all attempts of a tenant."""
    return [row for order in tenant.projections() for row in attempts(tenant, order)]


@pytest.mark.parametrize(
    ("outcome", "retryable", "retries", "action"),
    [
        ("SUCCEEDED", False, 0, "DONE"),
        ("SUCCEEDED", True, 0, "DONE"),
        ("FAILED", True, 1, "RETRY_AT"),
        ("FAILED", False, 1, "WAIT"),
        ("FAILED", True, 0, "FAIL"),
        ("FAILED", False, 0, "FAIL"),
    ],
)
@pytest.mark.parametrize("status", ["RUNNING", "DONE"])
def test_finish__again_gets_the_same_decision(
    acme: Tenant, outcome: str, retryable: bool, retries: int, action: str, status: str
) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order, max_retries=retries)

    def call() -> Row:
        return finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, retryable=retryable, key="f")

    decision = call()
    assert decision["action"] == action
    if status == "DONE":
        acme.append(wire("STATUS_CHANGED", order, work_order_status="DONE"))
    before = everything(acme, order)
    assert call() == decision
    assert everything(acme, order) == before


def test_finish__a_used_key_for_something_else(acme: Tenant) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order)
    fail(acme, attempt, key="f")
    before = everything(acme, order)
    for given in ({"reason_code": 8}, {"retryable": False}):
        with refused("SL005"):
            fail(acme, attempt, key="f", **given)
    with refused("SL005"):
        finish(acme.app, acme.id, attempt["step_attempt_id"], "SUCCEEDED", key="f")
    for key in ("g", None):
        with refused("SL012") as refusal:
            fail(acme, attempt, key=key)
        assert refusal.facts["reason"] == "OVER"
    assert everything(acme, order) == before


def test_finish__without_a_key_only_once(acme: Tenant) -> None:
    attempt = start(acme.app, acme.id, acme.order())
    finish(acme.app, acme.id, attempt["step_attempt_id"])
    with refused("SL012"):
        finish(acme.app, acme.id, attempt["step_attempt_id"])


@pytest.mark.parametrize("status", TERMINAL)
def test_finish__without_a_key_only_once_on_a_terminal_order(acme: Tenant, status: str) -> None:
    order = acme.order("EXECUTING")
    before_the_end, after_it = start(acme.app, acme.id, order), start(acme.app, acme.id, order, step="pay")
    finish(acme.app, acme.id, before_the_end["step_attempt_id"])
    acme.append(wire("STATUS_CHANGED", order, work_order_status=status))
    finish(acme.app, acme.id, after_it["step_attempt_id"])
    before = everything(acme, order)
    assert [row["attempt_status"] for row in before[3]] == ["SUCCEEDED", "CANCELED"]
    for row in before[3]:
        for outcome in ("SUCCEEDED", "FAILED"):
            with refused("SL012") as refusal:
                finish(acme.app, acme.id, row["step_attempt_id"], outcome)
            assert (refusal.facts["reason"], refusal.facts["step_id"]) == ("OVER", row["step_id"])
    assert everything(acme, order) == before


@pytest.mark.parametrize("outcome", ["SUCCEEDED", "FAILED"])
@pytest.mark.parametrize(("retries", "action"), [(1, "RETRY_AT"), (0, "FAIL")])
def test_finish__after_its_timeout(acme: Tenant, outcome: str, retries: int, action: str) -> None:
    order = acme.order()
    attempt = timed_out(acme, order, max_retries=retries)
    decision = finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, key="f")
    (row,) = attempts(acme, order)
    assert (row["attempt_status"], decision["action"]) == ("FAILED", action)
    if action == "RETRY_AT":
        assert decision["next_due_at"] == row["finished_at"] + ms(row["retry_backoff_ms"])
    assert dict(step_events(acme, order))["STEP_FAILED"]["timed_out"] is True
    assert finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, key="f") == decision


@pytest.mark.parametrize("status", TERMINAL)
@pytest.mark.parametrize("outcome", ["SUCCEEDED", "FAILED"])
def test_finish__on_a_terminal_order(acme: Tenant, status: str, outcome: str) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order)
    acme.append(wire("STATUS_CHANGED", order, work_order_status=status))
    before = everything(acme, order)
    decision = finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, retryable=True, key="f")
    assert decision == {"action": "FAIL", "next_due_at": None, "next_attempt_index": None}
    after = everything(acme, order)
    assert after[:3] == before[:3]  # no event
    assert after[3][0]["attempt_status"] == "CANCELED"
    assert finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, retryable=True, key="f") == decision
    with refused("SL005"):
        finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, reason_code=8, key="f")


def test_finish__unknown_attempt_and_another_tenants(acme: Tenant, sessions: Sessions) -> None:
    attempt = start(acme.app, acme.id, acme.order())
    globex = sessions.tenant(new_id("globex"))
    for step_attempt_id in (attempt["step_attempt_id"], 2**63 - 1):
        with refused("SL012") as refusal:
            finish(globex.app, globex.id, step_attempt_id)
        assert refusal.facts == {"step_attempt_id": step_attempt_id, "reason": "UNKNOWN"}
    assert due(globex.app, globex.id) == []


# --- leases


def test_lease__a_step_needs_its_token(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token)
    with refused("SL010") as refusal:
        start(acme.app, acme.id, order)
    assert refusal.facts["lease_owner_id"] == "worker-1"
    with refused("SL011"):
        start(acme.app, acme.id, order, token=new_token())
    attempt = start(acme.app, acme.id, order, token=token)
    with refused("SL010"):
        finish(acme.app, acme.id, attempt["step_attempt_id"])
    with refused("SL011"):
        finish(acme.app, acme.id, attempt["step_attempt_id"], token=new_token())
    assert attempts(acme, order) == [attempt]
    assert fail(acme, attempt, token=token)["action"] == "RETRY_AT"


def test_lease__of_nobody(acme: Tenant) -> None:
    order = acme.order()
    with refused("SL011"):
        start(acme.app, acme.id, order, token=new_token())
    token = new_token()
    expired_lease(acme, order, token)
    with refused("SL011"):
        start(acme.app, acme.id, order, token=token)
    attempt = start(acme.app, acme.id, order)  # nobody holds it
    with refused("SL011"):
        finish(acme.app, acme.id, attempt["step_attempt_id"], token=token)
    release(acme.app, acme.id, order, token)
    assert finish(acme.app, acme.id, attempt["step_attempt_id"])["action"] == "DONE"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_lease__who_was_taken_over_finishes_nothing(acme: Tenant, terminal: bool, over: bool) -> None:
    order, old, new = acme.order("EXECUTING"), new_token(), new_token()
    acquire(acme.app, acme.id, order, old)
    attempt = start(acme.app, acme.id, order, token=old)
    wait_past(acme, renew(acme.app, acme.id, order, old, 1)["lease_expires_at"])
    acquire(acme.app, acme.id, order, new, owner="worker-2")
    if over:
        finish(acme.app, acme.id, attempt["step_attempt_id"], token=new)
    if terminal:
        acme.append(wire("STATUS_CHANGED", order, work_order_status="DONE"))
    before = everything(acme, order)
    for outcome in ("SUCCEEDED", "FAILED"):
        with refused("SL011"):
            finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, token=old, key="f")
        with refused("SL010"):
            finish(acme.app, acme.id, attempt["step_attempt_id"], outcome, key="f")
    assert everything(acme, order) == before


# --- what may start now


def test_due__oldest_first_and_only_what_may_start(acme: Tenant) -> None:
    one, two, three, later, done, waits, over = (acme.order() for _ in range(7))
    dead = timed_out(acme, one)
    second = start(acme.app, acme.id, two, **QUICK)
    third = start(acme.app, acme.id, three, **QUICK)
    fail(acme, third)
    fail(acme, second)
    fail(acme, start(acme.app, acme.id, later))
    finish(acme.app, acme.id, start(acme.app, acme.id, done)["step_attempt_id"])
    fail(acme, start(acme.app, acme.id, waits), retryable=False)
    wait_past(acme, fail(acme, start(acme.app, acme.id, over, **QUICK))["next_due_at"])
    acme.append(wire("STATUS_CHANGED", over, work_order_status="DONE"))
    found = due(acme.app, acme.id)
    assert [row["work_order_id"] for row in found] == [one, three, two]
    assert found[0]["step_attempt_id"] == dead["step_attempt_id"]
    assert due(acme.app, acme.id, 2) == found[:2]
    for number, row in enumerate(found):
        start(acme.app, acme.id, row["work_order_id"], f"retry-{number}")
    assert due(acme.app, acme.id) == []


@pytest.mark.parametrize("status", [*TERMINAL, "CONFIRM"])
def test_due__not_on_an_order_that_has_ended_or_waits_for_an_approval(acme: Tenant, status: str) -> None:
    failed, dead = acme.order("EXECUTING"), acme.order("EXECUTING")
    wait_past(acme, fail(acme, start(acme.app, acme.id, failed, **QUICK))["next_due_at"])
    timed_out(acme, dead)
    found = due(acme.app, acme.id)
    assert [row["work_order_id"] for row in found] == [failed, dead]
    for order in (failed, dead):
        kind = "STATUS_CHANGED" if status in TERMINAL else "EXTERNAL_APPROVAL_REQUESTED"
        acme.append(wire(kind, order, work_order_status=status))
        found.pop(0)
        assert due(acme.app, acme.id) == found
    if status not in TERMINAL:
        acme.append(*(wire("EXTERNAL_APPROVAL_RESOLVED", order) for order in (failed, dead)))
        assert [row["work_order_id"] for row in due(acme.app, acme.id)] == [failed, dead]


@pytest.mark.parametrize("limit", [0, 1001, -1, None])
def test_due__bad_limit(acme: Tenant, limit: Any) -> None:
    with refused("SL001") as refusal:
        due(acme.app, acme.id, limit)
    assert refusal.facts["field"] == "limit"


# Of each step a first attempt that failed and was retried, and a second that succeeded or still runs.
MANY = """
    INSERT INTO os_core.work_order_step_attempts (
      tenant_id, work_order_id, step_id, attempt_index, attempt_status, timeout_ms, max_retries,
      retry_backoff_ms, next_retry_at, started_at, finished_at, reason_code, idempotency_key, created_at,
      updated_at
    )
    SELECT
      tenant_id, work_order_id, 'step-' || step, index, status, 3600000, 3, 1000,
      CASE WHEN index = 1 THEN at + interval '1 s' END, at, CASE WHEN status <> 'RUNNING' THEN at END,
      CASE WHEN status <> 'RUNNING' THEN 1 END, 'k' || index, at, at
    FROM os_core.work_orders_current, generate_series(1, 200) AS step, generate_series(1, 2) AS index,
      LATERAL (SELECT clock_timestamp() - interval '30 min' + index * interval '1 ms' AS at) AS moment,
      LATERAL (
        SELECT CASE WHEN index = 1 THEN 'FAILED' WHEN step <= 10 THEN 'RUNNING' ELSE 'SUCCEEDED' END AS status
      ) AS how
"""


@pytest.mark.parametrize("analyzed", [True, False])
def test_due__at_volume_goes_through_indexes(server: Server, template_database: str, analyzed: bool) -> None:
    with ExitStack() as stack:
        database = stack.enter_context(server.new_database("volume", template_database))
        admin = stack.enter_context(closing(connect(database.admin_url, autocommit=True)))
        app = stack.enter_context(closing(connect(database.app_url, autocommit=True)))
        acme = Tenant("acme", app, admin)
        due(app, acme.id)  # a plan made for empty tables
        orders = [acme.order() for _ in range(50)]
        assert admin.execute(MANY).rowcount == 20_000
        waiting = start(app, acme.id, orders[0], **QUICK)
        wait_past(acme, fail(acme, waiting)["next_due_at"])
        if analyzed:
            admin.execute("ANALYZE")
        # How the function itself reads: by what its tables count while it runs.
        count = (
            "SELECT relname, coalesce(seq_scan, 0), coalesce(idx_scan, 0), coalesce(idx_tup_fetch, 0)"
            " FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('work_order_step_attempts', 'work_orders_current')"
        )
        with app.transaction():
            found = due(app, acme.id)
            scans = {name: counted for name, *counted in app.execute(count)}
        assert [row["step_attempt_id"] for row in found] == [waiting["step_attempt_id"]]
        assert set(scans) == {"work_order_step_attempts", "work_orders_current"}
        for by_seq, by_index, fetched in scans.values():
            assert by_seq == 0
            assert by_index
            assert fetched <= 5 * 10_001  # a few rows for each failed attempt, never one for each pair


# --- what is no call


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"step": ""}, "step_id"),
        ({"step": "s" * 97}, "step_id"),
        ({"step": None}, "step_id"),
        ({"order": "no id"}, "work_order_id"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"timeout_ms": 31_536_000_001}, "timeout_ms"),
        ({"timeout_ms": None}, "timeout_ms"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 1025}, "max_retries"),
        ({"max_retries": 2**62}, "max_retries"),
        ({"max_retries": None}, "max_retries"),
        ({"retry_backoff_ms": 0}, "retry_backoff_ms"),
        ({"retry_backoff_ms": 31_536_000_001}, "retry_backoff_ms"),
        ({"key": None}, "idempotency_key"),
        ({"key": ""}, "idempotency_key"),
        ({"key": "k" * 129}, "idempotency_key"),
        ({"token": "short"}, "lease_token"),
        ({"token": "x" * 129}, "lease_token"),
    ],
)
def test_start__bad_input(acme: Tenant, given: dict[str, Any], field: str) -> None:
    order = acme.order()
    with refused("SL001") as refusal:
        start(acme.app, acme.id, **{"order": order, **given})
    assert refusal.facts["field"] == field
    assert attempts(acme, order) == []


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"step_attempt_id": 0}, "step_attempt_id"),
        ({"step_attempt_id": None}, "step_attempt_id"),
        ({"outcome": "CANCELED"}, "outcome"),
        ({"outcome": "done"}, "outcome"),
        ({"outcome": None}, "outcome"),
        ({"reason_code": 0}, "reason_code"),
        ({"reason_code": 2**32}, "reason_code"),
        ({"reason_code": None}, "reason_code"),
        ({"retryable": None}, "retryable"),
        ({"token": "short"}, "lease_token"),
        ({"key": " "}, "idempotency_key"),
    ],
)
def test_finish__bad_input(acme: Tenant, given: dict[str, Any], field: str) -> None:
    order = acme.order()
    attempt = start(acme.app, acme.id, order)
    with refused("SL001") as refusal:
        finish(acme.app, acme.id, **{"step_attempt_id": attempt["step_attempt_id"], **given})
    assert refusal.facts["field"] == field
    assert attempts(acme, order) == [attempt]


@pytest.mark.parametrize(
    "limits", [{"timeout_ms": 31_536_000_000}, {"max_retries": 1024}, {"max_retries": 0}]
)
def test_start__extreme_limits(acme: Tenant, limits: dict[str, Any]) -> None:
    assert start(acme.app, acme.id, acme.order(), **limits)["attempt_index"] == 1


# --- the rows cannot be changed but by their rules

CHANGES = [
    f"DELETE FROM {ATTEMPTS}",
    f"DELETE FROM {ATTEMPTS} WHERE FALSE",
    f"TRUNCATE {ATTEMPTS}",
    f"TRUNCATE {ATTEMPTS}, os_core.work_orders_current CASCADE",
    f"UPDATE {ATTEMPTS} SET attempt_status = 'RUNNING' WHERE attempt_status = 'FAILED'",
    f"UPDATE {ATTEMPTS} SET next_retry_at = NULL WHERE attempt_status = 'FAILED'",
    f"UPDATE {ATTEMPTS} SET updated_at = clock_timestamp() WHERE attempt_status = 'SUCCEEDED'",
    f"UPDATE {ATTEMPTS} SET reason_code = 1 WHERE attempt_status = 'CANCELED'",
    f"UPDATE {ATTEMPTS} SET attempt_index = 9 WHERE attempt_status = 'RUNNING'",
    f"UPDATE {ATTEMPTS} SET started_at = clock_timestamp() WHERE attempt_status = 'RUNNING'",
    f"UPDATE {ATTEMPTS} SET max_retries = 1000 WHERE attempt_status = 'RUNNING'",
    f"UPDATE {ATTEMPTS} SET idempotency_key = 'other' WHERE attempt_status = 'RUNNING'",
]


@pytest.fixture
def all_statuses(acme: Tenant) -> str:
    """Return an order with attempts in each status."""
    order = acme.order()
    fail(acme, start(acme.app, acme.id, order, step="failed"))
    finish(acme.app, acme.id, start(acme.app, acme.id, order, step="good")["step_attempt_id"])
    runs = start(acme.app, acme.id, order, step="runs")
    start(acme.app, acme.id, order, step="stays")
    acme.append(wire("STATUS_CHANGED", order, work_order_status="DONE"))
    finish(acme.app, acme.id, runs["step_attempt_id"])
    assert {row["attempt_status"] for row in attempts(acme, order)} == {*AttemptStatus}
    return order


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["owner", "admin", "replica"])
def test_guard__holds_for_everyone(
    shared_database: Database, acme: Tenant, all_statuses: str, change: str, role: str
) -> None:
    before = attempts(acme, all_statuses)
    url = shared_database.owner_url if role == "owner" else shared_database.admin_url
    with closing(connect(url)) as conn:
        if role == "replica":
            conn.execute("SET session_replication_role = replica")
        else:
            conn.execute(f"SET LOCAL selene.tenant_id = '{acme.id}'".encode())
        with refused("SL003") as refusal:
            conn.execute(change.encode())
    assert refusal.facts == {"table": ATTEMPTS, "operation": change.split()[0]}
    assert attempts(acme, all_statuses) == before


@pytest.mark.parametrize(
    "change",
    [
        "attempt_status = 'GONE'",
        "attempt_status = 'FAILED'",
        "finished_at = clock_timestamp()",
        "attempt_status = 'SUCCEEDED', finished_at = clock_timestamp()",
        "attempt_status = 'SUCCEEDED', finished_at = started_at - interval '1 s', reason_code = 1",
        "attempt_status = 'SUCCEEDED', finished_at = clock_timestamp(), reason_code = 0",
        "attempt_status = 'SUCCEEDED', finished_at = clock_timestamp(), reason_code = 1,"
        " next_retry_at = clock_timestamp()",
        "attempt_status = 'FAILED', finished_at = clock_timestamp(), reason_code = 1,"
        " next_retry_at = 'infinity'",
        "finish_idempotency_key = 'f'",
        "updated_at = created_at - interval '1 s'",
    ],
)
def test_row__is_what_the_contract_says(acme: Tenant, all_statuses: str, change: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        acme.admin.execute(
            f"UPDATE {ATTEMPTS} SET {change} WHERE tenant_id = %s AND attempt_status = 'RUNNING'".encode(),
            (acme.id,),
        )
    assert caught.value.diag.constraint_name == "ck_work_order_step_attempts_contract"


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"attempt_index": 2, "idempotency_key": "other"}, "ux_work_order_step_attempts_running"),
        ({"attempt_index": 1, "idempotency_key": "other"}, "ux_work_order_step_attempts_index"),
        ({"attempt_index": 2}, "ux_work_order_step_attempts_idempotency"),
        ({"tenant_id": "mallory"}, "fk_work_order_step_attempts_work_order"),
    ],
)
def test_row__keys(acme: Tenant, all_statuses: str, columns: dict[str, Any], constraint: str) -> None:
    (row,) = [row for row in attempts(acme, all_statuses) if row["attempt_status"] == "RUNNING"]
    copy = {**row, **columns}
    del copy["step_attempt_id"]
    if constraint.endswith(("_index", "_idempotency")):
        copy.update(attempt_status="SUCCEEDED", finished_at=row["started_at"], reason_code=1)
    names = ", ".join(copy)
    marks = ", ".join(["%s"] * len(copy))
    with pytest.raises(psycopg.IntegrityError) as caught:
        acme.admin.execute(f"INSERT INTO {ATTEMPTS} ({names}) VALUES ({marks})".encode(), list(copy.values()))
    assert caught.value.diag.constraint_name == constraint


def test_words__equal_the_database(acme: Tenant) -> None:
    rows = acme.admin.execute(
        "SELECT status FROM unnest(%s::text[]) AS status, LATERAL (SELECT CASE WHEN status <> 'RUNNING'"
        " THEN '2026-01-01Z'::timestamptz END AS ended) AS e WHERE os_core.is_step_attempt_row("
        "'s', 1, status, 1, 0, 1, NULL, '2026-01-01Z', ended, CASE WHEN ended IS NOT NULL THEN 1 END, 'k',"
        " NULL, '2026-01-01Z', '2026-01-01Z')",
        ([*AttemptStatus, "running", "", "TIMED_OUT"],),
    )
    assert [row[0] for row in rows] == list(AttemptStatus)
    for status in {*AttemptStatus} - {*AttemptOutcome}:
        attempt = start(acme.app, acme.id, acme.order())
        with refused("SL001"):
            finish(acme.app, acme.id, attempt["step_attempt_id"], status.value)
    for outcome in AttemptOutcome:
        attempt = start(acme.app, acme.id, acme.order(), max_retries=0)
        assert finish(acme.app, acme.id, attempt["step_attempt_id"], outcome.value)["action"] in {
            *RetryAction
        }


# --- rebuild, frozen snapshots


def test_rebuild__loses_no_attempt(acme: Tenant, all_statuses: str) -> None:
    before = everything(acme, all_statuses)
    acme.damage("DELETE FROM os_core.work_orders_current WHERE work_order_id = %s", all_statuses)
    with refused("SL017"):
        start(acme.app, acme.id, all_statuses)
    with refused("SL017"):
        finish(acme.app, acme.id, attempts(acme, all_statuses)[-1]["step_attempt_id"])
    assert acme.rebuild().changed == 1
    assert everything(acme, all_statuses) == before
    assert acme.verify() == {}


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_frozen_snapshot__a_conflict_is_40001(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    order, ended = acme.order(), acme.order()
    attempt = start(acme.app, acme.id, order)
    late = start(acme.app, acme.id, ended)
    acme.append(wire("STATUS_CHANGED", ended, work_order_status="DONE"))
    frozen = sessions.open(autocommit=False, isolation=isolation)

    frozen.conn.execute("SELECT 1")
    start(acme.app, acme.id, order, step="pay")
    with refused("40001"):
        start(frozen.conn, acme.id, order, step="pay")
    frozen.conn.rollback()

    frozen.conn.execute("SELECT 1")
    finish(acme.app, acme.id, attempt["step_attempt_id"])
    with refused("40001"):
        finish(frozen.conn, acme.id, attempt["step_attempt_id"], "FAILED")
    frozen.conn.rollback()

    # No event tells of this one; the row itself does.
    frozen.conn.execute("SELECT 1")
    finish(acme.app, acme.id, late["step_attempt_id"])
    with refused("40001"):
        finish(frozen.conn, acme.id, late["step_attempt_id"])
    frozen.conn.rollback()


# --- through the package


def test_repository(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        first = created()
        order = first.work_order_id
        WorkOrderRepository(conn).append(first)
        steps = StepAttemptRepository(conn)
        attempt = steps.start(order, "book", **LIMITS, idempotency_key="s")
        assert (attempt.attempt_index, attempt.attempt_status) == (1, AttemptStatus.RUNNING)
        other = steps.start(order, "pay", **LIMITS, idempotency_key="s")
        decision = steps.finish(
            attempt.step_attempt_id, outcome="FAILED", reason_code=7, retryable=True, idempotency_key="f"
        )
        (failed,) = steps.history(order, "book")
        assert failed.finished_at is not None
        assert decision.action is RetryAction.RETRY_AT
        assert (
            decision.next_due_at
            == failed.next_retry_at
            == failed.finished_at + ms(LIMITS["retry_backoff_ms"])
        )
        assert decision.next_attempt_index == 2
        done = steps.finish(other.step_attempt_id, outcome=AttemptOutcome.SUCCEEDED, reason_code=7)
        assert (done.action, done.next_due_at, done.next_attempt_index) == (RetryAction.DONE, None, None)
        assert [one.step_id for one in steps.history(order)] == ["book", "pay"]
        assert steps.history("nowhere") == []
        assert steps.due_retries(10) == []
        with pytest.raises(AttemptConflict) as caught, conn.begin_nested():
            steps.start(order, "book", **LIMITS, idempotency_key="t")
        assert (caught.value.reason, caught.value.next_retry_at, caught.value.attempt_index) == (
            "NOT_DUE",
            decision.next_due_at,
            1,
        )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": True}, "timeout_ms"),
        ({"max_retries": 1025}, "max_retries"),
        ({"retry_backoff_ms": 1.0}, "retry_backoff_ms"),
        ({"idempotency_key": None}, "idempotency_key"),
        ({"lease_token": "short"}, "lease_token"),
        ({"step_id": "-"}, "step_id"),
    ],
)
def test_repository__bad_input(engine: sa.Engine, given: dict[str, Any], field: str) -> None:
    with tenant_scope(engine, "acme") as conn, pytest.raises(ContractViolation) as caught:
        StepAttemptRepository(conn).start(
            **{"work_order_id": "order", "step_id": "book", "idempotency_key": "s", **LIMITS, **given}
        )
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"outcome": "CANCELED"}, "outcome"),
        ({"reason_code": 0}, "reason_code"),
        ({"retryable": None}, "retryable"),
        ({"retryable": 1}, "retryable"),
        ({"step_attempt_id": 0}, "step_attempt_id"),
        ({"idempotency_key": ""}, "idempotency_key"),
    ],
)
def test_repository__bad_finish(engine: sa.Engine, given: dict[str, Any], field: str) -> None:
    with tenant_scope(engine, "acme") as conn, pytest.raises(ContractViolation) as caught:
        StepAttemptRepository(conn).finish(
            **{"step_attempt_id": 1, "outcome": "SUCCEEDED", "reason_code": 1, **given}
        )
    assert caught.value.field == field


def test_payloads__are_json_that_every_client_reads(acme: Tenant) -> None:
    order = acme.order()
    fail(acme, start(acme.app, acme.id, order))
    assert [json.loads(json.dumps(payload)) for _, payload in step_events(acme, order)]


def test_sequence__set_back_is_noticed(database: Database) -> None:
    """As after a restore without it: an operator's error, with the statement that mends it."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        one, other = acme.order("EXECUTING"), acme.order("EXECUTING")
        start(acme.app, acme.id, one)
        start(acme.app, acme.id, other)
        sessions.admin.execute(
            "SELECT setval('os_core.work_order_step_attempts_step_attempt_id_seq', 1, FALSE)"
        )
        with pytest.raises(psycopg.Error) as caught:
            start(acme.app, acme.id, acme.order("EXECUTING"))
        assert caught.value.sqlstate == "55000"
        hint = (caught.value.diag.message_hint or "").removeprefix("Let a superuser run: ")
        sessions.admin.execute(hint.encode())
        start(acme.app, acme.id, acme.order("EXECUTING"))
