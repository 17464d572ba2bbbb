"""Finding work: a claim takes the lease on the next order that may be worked on (contract §9)."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from selene_core import (
    ContractViolation,
    HeldLease,
    Lease,
    LeaseRepository,
    WorkOrderRepository,
    WorkOrderStatus,
    tenant_scope,
)
from tests.support.calls import TERMINAL, Row, Tenant, append, refused
from tests.support.factories import new_id, wire
from tests.support.races import DEADLINE_SECONDS
from tests.support.raw import Connection
from tests.support.servers import Database
from tests.support.sessions import Sessions
from tests.support.workers import (
    acquire,
    attempts,
    claim,
    finish,
    leases,
    new_token,
    release,
    renew,
    start,
    wait_past,
)

OPEN = ("DRAFT", "CLARIFY", "CONFIRM", "EXECUTING")
REQUEST = {"request_id": "ask-1", "target_user_id": "bob"}
HOUR, MS, NOTHING = timedelta(hours=1), timedelta(milliseconds=1), timedelta()
Kept = tuple[str, datetime]


def claimed(tenant: Tenant, **given: Any) -> str | None:
    """Claim, and return which order it is."""
    row = claim(tenant.app, tenant.id, **given)
    return None if row is None else row["work_order_id"]


def all_claimed(tenant: Tenant, **given: Any) -> list[str]:
    """Claim until nothing is left."""
    found: list[str] = []
    while (order := claimed(tenant, **given)) is not None:
        found.append(order)
    return found


# --- what a claim is


def test_claim__is_a_lease_and_the_order(acme: Tenant) -> None:
    order = acme.order("EXECUTING", fields={"place": "Oslo"})
    token = new_token()
    row = claim(acme.app, acme.id, token, owner="worker-7", ttl_ms=5_000)
    assert row is not None
    (lease,) = leases(acme, order)
    assert {name: row[name] for name in lease} == lease
    assert (lease["lease_owner_id"], lease["lease_state"]) == ("worker-7", "ACTIVE")
    assert lease["lease_expires_at"] - lease["acquired_at"] == timedelta(milliseconds=5_000)
    current = acme.projection(order)
    assert {name: row[name] for name in current} == current
    assert current["last_seq"] == lease["fence"] == 2
    assert acme.ledger(order)[-1]["event_type"] == "LEASE_ACQUIRED"
    # The token is that of the lease: it renews, works and gives back.
    attempt = start(acme.app, acme.id, order, token=token)
    finish(acme.app, acme.id, attempt["step_attempt_id"], token=token)
    renew(acme.app, acme.id, order, token)
    assert release(acme.app, acme.id, order, token)
    assert acme.verify() == {}


def test_claim__none(acme: Tenant, sessions: Sessions) -> None:
    assert claimed(acme) is None
    sessions.tenant(new_id("rival")).order("EXECUTING")
    assert claimed(acme, statuses=OPEN) is None


@pytest.mark.parametrize("statuses", [("EXECUTING",), ("CONFIRM", "DRAFT"), OPEN, OPEN * 2])
def test_claim__takes_the_statuses_that_are_asked_for(acme: Tenant, statuses: tuple[str, ...]) -> None:
    orders = {status: acme.order(status) for status in ("CONFIRM", "EXECUTING", "CLARIFY", "DRAFT")}
    for status in TERMINAL:
        acme.order(status)
    assert all_claimed(acme, statuses=statuses) == [
        order for status, order in orders.items() if status in statuses
    ]


def test_claim__knows_every_status_that_is_not_terminal() -> None:
    assert {*OPEN} | {*TERMINAL} == {status.value for status in WorkOrderStatus}


@pytest.mark.parametrize(
    "statuses", [(), ("DONE",), ("EXECUTING", None), ("executing",), "EXECUTING", 7, None]
)
def test_claim__python_refuses_statuses_in_the_same_words(shared_database: Database, statuses: Any) -> None:
    rule = "must be one or more of DRAFT, CLARIFY, CONFIRM, EXECUTING"
    with tenant_scope(shared_database.engine(), new_id("acme")) as conn:
        with pytest.raises(ContractViolation) as refusal:
            LeaseRepository(conn).claim("worker-1", ttl_ms=1_000, statuses=statuses)
        assert (refusal.value.field, refusal.value.rule) == ("statuses", rule)
        assert LeaseRepository(conn).claim("worker-1", ttl_ms=1_000, statuses=iter(OPEN)) is None


def test_claim__python_gets_lease_and_order(shared_database: Database, acme: Tenant) -> None:
    order = acme.order("CONFIRM")
    token = new_token()
    for _ in range(2):  # the reply was lost
        with tenant_scope(shared_database.engine(), acme.id) as conn:
            claimed = LeaseRepository(conn).claim(
                "worker-1", ttl_ms=60_000, statuses=[WorkOrderStatus.CONFIRM], token=token
            )
            assert claimed is not None
            assert claimed.lease.token == token
            assert claimed.lease == replace_token(LeaseRepository(conn).current(order), token)
            assert claimed.work_order == WorkOrderRepository(conn).get(order)
    with tenant_scope(shared_database.engine(), acme.id) as conn:
        LeaseRepository(conn).release(order, token, not_before=moment(acme, HOUR))
        assert LeaseRepository(conn).claim("worker-1", ttl_ms=1_000, statuses=OPEN) is None
        with pytest.raises(ContractViolation):
            LeaseRepository(conn).release(order, token, not_before=datetime.now())  # noqa: DTZ005  # naive


def replace_token(lease: Lease | None, token: str) -> HeldLease:
    assert lease is not None
    return HeldLease(**{**asdict(lease), "token": token})


def test_claim__follows_the_status(acme: Tenant) -> None:
    later, first = acme.order(), acme.order("EXECUTING")
    acme.append(wire("STATUS_CHANGED", later, work_order_status="EXECUTING"))
    assert claimed(acme) == later, "it was created before"
    acme.append(wire("STATUS_CHANGED", first, work_order_status="CONFIRM"))
    assert claimed(acme) is None


# --- who comes first


def test_claim__first_who_was_created_or_given_back_longest_ago(acme: Tenant) -> None:
    one, two, three = (acme.order("EXECUTING") for _ in range(3))
    tokens = {}
    for order in (one, two):
        tokens[order] = new_token()
        assert claimed(acme, token=tokens[order]) == order
    release(acme.app, acme.id, two, tokens[two])
    release(acme.app, acme.id, one, tokens[one])
    four = acme.order("EXECUTING")
    assert all_claimed(acme) == [three, two, one, four]


def test_claim__an_expired_lease_ends_at_its_expiry(acme: Tenant) -> None:
    """Nobody writes when a worker dies: the order comes back by itself, in its place."""
    dies, fails = acme.order("EXECUTING"), acme.order("EXECUTING")
    dead = claim(acme.app, acme.id, ttl_ms=1)
    assert dead is not None
    assert dead["work_order_id"] == dies
    token = new_token()
    acquire(acme.app, acme.id, fails, token)
    wait_past(acme, dead["lease_expires_at"])
    release(acme.app, acme.id, fails, token)
    young = acme.order("EXECUTING")
    assert all_claimed(acme) == [dies, fails, young]
    assert [lease["lease_state"] for lease in leases(acme, dies)] == ["EXPIRED", "ACTIVE"]


def test_claim__sixteen_that_fail_every_time_hold_up_none_of_a_hundred(acme: Tenant) -> None:
    bad = [acme.order("EXECUTING") for _ in range(16)]
    good = [acme.order("EXECUTING") for _ in range(100)]
    done: list[str] = []
    for _ in range(116):
        token = new_token()
        order = claimed(acme, token=token)
        assert order is not None
        if order in bad:
            release(acme.app, acme.id, order, token)
        else:
            done.append(order)
            acme.append(wire("STATUS_CHANGED", order, work_order_status="DONE", lease_token=token))
            release(acme.app, acme.id, order, token)
    assert done == good
    assert {claimed(acme) for _ in range(16)} == {*bad}
    assert acme.verify() == {}


# --- what keeps an order from being claimed, and what ends it


def moment(tenant: Tenant, after: timedelta) -> datetime:
    """Return the database's time, and a time after it."""
    row = tenant.admin.execute("SELECT clock_timestamp() + %s", (after,)).fetchone()
    assert row is not None
    at: datetime = row[0]
    return at


@contextmanager
def kept(tenant: Tenant, order: str) -> Iterator[None]:
    """Expect that nobody can claim the order before the block; somebody can after it."""
    assert claimed(tenant) is None
    yield
    assert claimed(tenant) == order


def check_kept_until(tenant: Tenant, make: Callable[[timedelta], Kept]) -> None:
    """Expect that nobody can claim an order before a moment, a span from now; somebody can after it."""
    # A slow machine may look too late only. Then it is tried again with more time.
    for seconds in (0.1, 1, 10, 60):
        order, until = make(timedelta(seconds=seconds))
        found = claimed(tenant)
        is_early = moment(tenant, NOTHING) < until
        if is_early:
            assert found is None
            wait_past(tenant, until)
        assert (found or claimed(tenant)) == order
        if is_early:
            return
    pytest.fail("a claim takes more than a minute")


def test_claim__not_an_order_that_waits_for_an_approval(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    acme.append(wire("EXTERNAL_APPROVAL_REQUESTED", order, payload=REQUEST, work_order_status="EXECUTING"))
    with kept(acme, order):
        answer = {"request_id": "ask-1", "outcome": "APPROVED"}
        acme.append(wire("EXTERNAL_APPROVAL_RESOLVED", order, payload=answer, work_order_status="EXECUTING"))


def test_claim__not_an_order_whose_lease_is_held(acme: Tenant) -> None:
    def hold(span: timedelta) -> Kept:
        order = acme.order("EXECUTING")
        lease = acquire(acme.app, acme.id, order, new_token(), ttl_ms=span // MS)
        return order, lease["lease_expires_at"]

    check_kept_until(acme, hold)


def test_claim__not_an_order_with_a_running_attempt(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order)
    with kept(acme, order):
        finish(acme.app, acme.id, attempt["step_attempt_id"])


def test_claim__an_attempt_past_its_timeout_is_a_retry(acme: Tenant) -> None:
    def work(span: timedelta) -> Kept:
        order = acme.order("EXECUTING")
        attempt = start(acme.app, acme.id, order, timeout_ms=span // MS)
        return order, attempt["started_at"] + span

    check_kept_until(acme, work)


def test_claim__not_before_the_retry_is_due(acme: Tenant) -> None:
    def fail(span: timedelta) -> Kept:
        order = acme.order("EXECUTING")
        attempt = start(acme.app, acme.id, order, retry_backoff_ms=span // MS)
        decision = finish(acme.app, acme.id, attempt["step_attempt_id"], "FAILED", retryable=True)
        return order, decision["next_due_at"]

    check_kept_until(acme, fail)


def test_claim__not_before_the_worker_said(acme: Tenant) -> None:
    def put_off(span: timedelta) -> Kept:
        order, token = acme.order("EXECUTING"), new_token()
        acquire(acme.app, acme.id, order, token)
        until = moment(acme, span)
        release(acme.app, acme.id, order, token, until)
        if moment(acme, NOTHING) < until:
            assert acme.projection(order)["queued_at"] == until
        return order, until

    check_kept_until(acme, put_off)


def test_claim__a_not_before_that_is_past_is_none(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    acquire(acme.app, acme.id, order, token)
    release(acme.app, acme.id, order, token, moment(acme, -HOUR))
    released = acme.ledger(order)[-1]
    assert acme.projection(order)["queued_at"] == released["created_at"]
    assert claimed(acme) == order


def test_claim__not_while_a_step_waits_for_a_decision(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order)
    assert finish(acme.app, acme.id, attempt["step_attempt_id"], "FAILED")["action"] == "WAIT"
    assert acme.projection(order)["steps_due_at"] is None
    with kept(acme, order):  # a person says: once more
        again = start(acme.app, acme.id, order, "start-2")
        assert claimed(acme) is None
        finish(acme.app, acme.id, again["step_attempt_id"])


@pytest.mark.parametrize("ending", ["failed", "timed out"])
def test_claim__not_when_a_step_has_spent_its_retries(acme: Tenant, ending: str) -> None:
    order = acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order, max_retries=0, timeout_ms=60_000 if ending == "failed" else 1)
    if ending == "failed":
        finish(acme.app, acme.id, attempt["step_attempt_id"], "FAILED", retryable=True)
    else:
        wait_past(acme, attempt["started_at"] + timedelta(milliseconds=1))
    with kept(acme, order):  # a larger budget
        again = start(acme.app, acme.id, order, "start-2", max_retries=1)
        finish(acme.app, acme.id, again["step_attempt_id"])


def test_claim__every_step_has_its_say(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    rows = {step: start(acme.app, acme.id, order, step=step, retry_backoff_ms=100) for step in "abc"}
    for step in "ab":
        finish(acme.app, acme.id, rows[step]["step_attempt_id"])
    assert claimed(acme) is None
    decision = finish(acme.app, acme.id, rows["c"]["step_attempt_id"], "FAILED", retryable=True)
    wait_past(acme, decision["next_due_at"])
    waits = start(acme.app, acme.id, order, step="d")
    finish(acme.app, acme.id, waits["step_attempt_id"], "FAILED")
    with kept(acme, order):
        again = start(acme.app, acme.id, order, "once more", step="d")
        finish(acme.app, acme.id, again["step_attempt_id"])


def test_claim__what_a_caller_says_of_the_steps_frees_nothing_that_is_kept(acme: Tenant) -> None:
    """A STEP_* event is anybody's; the attempts are judged by their own rows."""
    order = acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order)
    forged: tuple[Any, ...] = ("2001-01-01T00:00:00Z", "soon", 7, {})
    for says in forged:
        acme.append(
            wire("STEP_STARTED", order, payload={"steps_due_at": says}, work_order_status="EXECUTING")
        )
        assert claimed(acme) is None
    other = acme.order("EXECUTING")
    assert claimed(acme) == other, "what cannot be claimed stops nobody"
    finish(acme.app, acme.id, attempt["step_attempt_id"])
    assert claimed(acme) == order
    assert acme.verify() == {}


def test_claim__the_projection_is_the_fold_of_what_was_written(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    claim(acme.app, acme.id, token)
    attempt = start(acme.app, acme.id, order, token=token)
    finish(acme.app, acme.id, attempt["step_attempt_id"], "FAILED", retryable=True, token=token)
    release(acme.app, acme.id, order, token, moment(acme, HOUR))
    row = acme.projection(order)
    assert row["queued_at"] > row["last_updated_at"]
    assert row["steps_due_at"] == attempts(acme, order)[0]["next_retry_at"]
    acme.damage("UPDATE os_core.work_orders_current SET queued_at = now(), steps_due_at = NULL")
    assert acme.rebuild_one(order).changed == 1
    assert acme.projection(order) == row
    for event in acme.ledger(order):
        state = acme.as_of(order, seq=event["work_order_seq"])
        assert state is not None
        if event["event_type"] == "LEASE_ACQUIRED":
            assert state["queued_at"] == event["lease_expires_at"]


def test_claim__a_damaged_order_stops_nobody(acme: Tenant) -> None:
    damaged, order = acme.order("EXECUTING"), acme.order("EXECUTING")
    acme.damage("UPDATE os_core.work_orders_current SET last_seq = 7 WHERE work_order_id = %s", damaged)
    assert claimed(acme) == order
    assert [*acme.verify()] == [damaged]
    acme.rebuild_one(damaged)
    assert claimed(acme) == damaged


# --- tokens


def test_claim__the_same_token_gets_the_same_claim(acme: Tenant) -> None:
    order, _ = acme.order("EXECUTING"), acme.order("EXECUTING")
    token = new_token()
    first = claim(acme.app, acme.id, token)
    acme.append(wire("FIELD_SET", order, work_order_status="EXECUTING"))
    before = acme.everything()
    again = claim(acme.app, acme.id, token, ttl_ms=1, statuses=["DRAFT"])
    assert first is not None
    assert again is not None
    assert (again["lease_id"], again["fence"]) == (first["lease_id"], first["fence"])
    assert (again["lease_expires_at"], again["last_seq"]) == (first["lease_expires_at"], 3)
    assert acme.everything() == before


def test_claim__the_token_of_an_acquire_gets_that(acme: Tenant) -> None:
    acme.order("EXECUTING")
    order, token = acme.order("DRAFT"), new_token()
    acquire(acme.app, acme.id, order, token)
    assert claimed(acme, token=token) == order


@pytest.mark.parametrize("ending", ["released", "expired", "taken over"])
def test_claim__a_spent_token_is_refused_at_the_door(acme: Tenant, ending: str) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    lease = claim(acme.app, acme.id, token, ttl_ms=60_000 if ending == "released" else 1)
    assert lease is not None
    if ending == "released":
        release(acme.app, acme.id, order, token)
    else:
        wait_past(acme, lease["lease_expires_at"])
    if ending == "taken over":
        assert claimed(acme) == order
    acme.order("EXECUTING")
    before = acme.everything()
    with refused("SL011") as refusal:
        claim(acme.app, acme.id, token)
    assert refusal.facts["work_order_id"] == order
    assert acme.everything() == before


def test_claim__another_owners_token_is_a_conflict(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    claim(acme.app, acme.id, token)
    with refused("SL005") as refusal:
        claim(acme.app, acme.id, token, owner="worker-2")
    assert refusal.facts == {"work_order_id": order}


def test_claim__a_token_that_is_sent_twice_at_once_gets_one_claim(acme: Tenant, sessions: Sessions) -> None:
    """The first reply was lost while the call still ran: the second waits for it, and gets its claim."""
    orders = [acme.order("EXECUTING") for _ in range(2)]
    token = new_token()
    first, second = sessions.open(autocommit=False), sessions.open()
    row = claim(first.conn, acme.id, token)
    again = second.start(lambda conn: claim(conn, acme.id, token))
    assert sessions.blockers(second) == {first.pid}
    first.conn.commit()
    other = again.result(DEADLINE_SECONDS)
    assert row is not None
    assert other is not None
    assert (row["lease_id"], row["work_order_id"]) == (other["lease_id"], other["work_order_id"])
    assert leases(acme, orders[1]) == []


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_claim__under_a_snapshot_of_its_own_a_token_in_use_is_a_conflict(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    acme.order("EXECUTING"), acme.order("EXECUTING")
    token = new_token()
    first = sessions.open(autocommit=False)
    second = sessions.open(autocommit=False, isolation=isolation)
    claim(first.conn, acme.id, token)
    with pytest.raises(psycopg.errors.SerializationFailure):
        claim(second.conn, acme.id, token)
    second.conn.rollback()
    first.conn.commit()
    assert claim(second.conn, acme.id, token) is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"owner": " "}, "owner: "),
        ({"owner": None}, "owner: "),
        ({"token": "short"}, "token: "),
        ({"ttl_ms": 0}, "ttl_ms: must be an integer from 1 to 3600000"),
        ({"ttl_ms": None}, "ttl_ms: "),
        ({"statuses": ()}, "statuses: must be one or more of DRAFT, CLARIFY, CONFIRM, EXECUTING"),
        ({"statuses": None}, "statuses: "),
        ({"statuses": ("DONE",)}, "statuses: "),
        ({"statuses": ("EXECUTING", None)}, "statuses: "),
        ({"statuses": ("executing",)}, "statuses: "),
    ],
)
def test_claim__refuses_bad_arguments(acme: Tenant, given: Row, says: str) -> None:
    acme.order("EXECUTING")
    with refused("SL001") as refusal:
        claim(acme.app, acme.id, **given)
    assert refusal.message.startswith(says)
    assert claimed(acme) is not None


def test_release__refuses_a_time_that_not_every_client_can_read(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    acquire(acme.app, acme.id, order, token)
    for until in ("infinity", "-infinity", "20000-01-01Z"):
        with refused("SL001") as refusal:
            release(acme.app, acme.id, order, token, until)
        assert refusal.facts["field"] == "not_before"
    assert release(acme.app, acme.id, order, token)


def test_release__twice_keeps_the_first_time(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    acquire(acme.app, acme.id, order, token)
    assert release(acme.app, acme.id, order, token, moment(acme, HOUR))
    before = acme.everything()
    assert not release(acme.app, acme.id, order, token)
    assert not release(acme.app, acme.id, order, token, moment(acme, 2 * HOUR))
    assert acme.everything() == before


# --- races


def test_claim__leaves_alone_who_is_locked(acme: Tenant, sessions: Sessions) -> None:
    busy, order = acme.order("EXECUTING"), acme.order("EXECUTING")
    user = sessions.open(autocommit=False)
    user.append(acme.id, wire("FIELD_SET", busy, work_order_status="EXECUTING"))
    assert claimed(acme) == order
    assert claimed(acme) is None
    user.conn.commit()
    assert claimed(acme) == busy


def start_and_release(conn: Connection, tenant: str, order: str) -> None:
    token = new_token()
    acquire(conn, tenant, order, token)
    start(conn, tenant, order, token=token)
    release(conn, tenant, order, token)


def release_for_later(conn: Connection, tenant: str, order: str) -> None:
    token = new_token()
    acquire(conn, tenant, order, token)
    release(conn, tenant, order, token, datetime.now(UTC) + HOUR)


def append_to(event_type: str, **given: Any) -> Callable[[Connection, str, str], object]:
    return lambda conn, tenant, order: append(conn, tenant, wire(event_type, order, **given))


MEANWHILE: dict[str, Callable[[Connection, str, str], object]] = {
    "starts an attempt and gives the order back": start_and_release,
    "starts an attempt without a lease": start,
    "takes the lease": lambda conn, tenant, order: acquire(conn, tenant, order, new_token()),
    "gives it back for later": release_for_later,
    "asks for an approval": append_to(
        "EXTERNAL_APPROVAL_REQUESTED", payload=REQUEST, work_order_status="EXECUTING"
    ),
    "asks the user": append_to("STATUS_CHANGED", work_order_status="CLARIFY"),
    "cancels": append_to("WORK_ORDER_CANCELED"),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_claim__is_judged_by_what_happened_between_choice_and_lock(
    acme: Tenant, sessions: Sessions, what: str
) -> None:
    """The lock on the table lets a claim choose, and not lock; who holds it does something to the choice."""
    order, other = acme.order("EXECUTING"), acme.order("EXECUTING")
    claimer, meanwhile = sessions.open(), sessions.open_as_superuser()
    meanwhile.conn.execute("LOCK TABLE os_core.work_orders_current IN EXCLUSIVE MODE")
    claiming = claimer.start(lambda conn: claim(conn, acme.id))
    assert sessions.blockers(claimer) == {meanwhile.pid}
    MEANWHILE[what](meanwhile.conn, acme.id, order)
    meanwhile.conn.commit()
    row = claiming.result(DEADLINE_SECONDS)
    assert row is not None
    assert row["work_order_id"] == other
    assert acme.verify() == {}


def test_claim__what_does_not_pass_is_not_kept_locked(acme: Tenant, sessions: Sessions) -> None:
    """A transaction that claims and goes on holds up nobody but its own order."""
    order, other = acme.order("EXECUTING"), acme.order("EXECUTING")
    attempt = start(acme.app, acme.id, order)
    forged = {"steps_due_at": "2001-01-01T00:00:00Z"}
    acme.append(wire("STEP_STARTED", order, payload=forged, work_order_status="EXECUTING"))
    claimer = sessions.open(autocommit=False)
    row = claim(claimer.conn, acme.id)
    assert row is not None
    assert row["work_order_id"] == other
    finish(acme.app, acme.id, attempt["step_attempt_id"])
    claimer.conn.rollback()


def test_claim__a_claim_that_is_rolled_back_never_was(acme: Tenant, sessions: Sessions) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    claimer = sessions.open(autocommit=False)
    claim(claimer.conn, acme.id, token)
    claimer.conn.rollback()
    assert (claimed(acme, token=token), leases(acme, order)[0]["fence"]) == (order, 2)


def test_claim__sixteen_workers_claim_a_thousand_orders_each_once(acme: Tenant, sessions: Sessions) -> None:
    names = [new_id() for _ in range(1000)]
    acme.append(*(wire("WORK_ORDER_CREATED", name, work_order_status="EXECUTING") for name in names))

    def work(conn: Connection) -> list[str]:
        found = []
        while (row := claim(conn, acme.id)) is not None:
            found.append(row["work_order_id"])
        return found

    workers, waits = sessions.start_at_once([work] * 16), []
    while not all(worker.done() for worker in workers):
        waits += sessions.admin.execute(
            "SELECT locktype, mode FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE NOT granted AND datname = current_database() AND locktype <> 'extend'"
        ).fetchall()
    assert Counter(order for worker in workers for order in worker.result()) == dict.fromkeys(names, 1)
    assert waits == []
    assert len({row["lease_token_hash"] for row in acme.projections().values()}) == 1000
    assert acme.verify() == {}
