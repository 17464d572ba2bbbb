"""Leases: one holder at any moment, a token for each, and a fence that only grows (contract §8)."""

import logging
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel
from sqlalchemy.exc import DBAPIError

from selene_core import (
    ContractViolation,
    LeaseHeld,
    LeaseLost,
    LeaseRepository,
    LeaseState,
    StepAttemptRepository,
    WorkOrderRepository,
    tenant_scope,
)
from tests.support.calls import TERMINAL, Tenant, append, refused
from tests.support.factories import created, event, new_id, wire
from tests.support.raw import connect
from tests.support.servers import Database, Server
from tests.support.sessions import Sessions
from tests.support.workers import (
    LIMITS,
    acquire,
    everything,
    expired_lease,
    finish,
    leases,
    new_token,
    release,
    renew,
    start,
    wait_past,
)

LEASES = "os_core.work_order_leases"
FROZEN = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


def events_of(tenant: Tenant, order: str) -> list[str]:
    return [event["event_type"] for event in tenant.ledger(order)]


# --- acquire


def test_acquire__is_a_row_an_event_and_the_projection(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    acme.append(wire("STEP_STARTED", order, step_id="book", step_input_hash="h1", reason_code=42, turn_id=3))
    before = acme.projection(order)
    token = new_token()
    lease = acquire(acme.app, acme.id, order, token, ttl_ms=5_000, key="k")
    assert leases(acme, order) == [lease]
    assert lease["lease_state"] == "ACTIVE"
    assert lease["lease_expires_at"] - lease["acquired_at"] == timedelta(milliseconds=5_000)
    written = acme.ledger(order)[-1]
    assert (written["event_type"], written["work_order_seq"]) == ("LEASE_ACQUIRED", lease["fence"])
    assert written["idempotency_key"] is None
    assert written["payload"] == {"lease_id": str(lease["lease_id"]), "ttl_ms": 5_000}
    projection = acme.projection(order)
    for holder in (written, projection):
        assert [holder[name] for name in ("lease_owner_id", "lease_token_hash", "lease_expires_at")] == [
            lease[name] for name in ("lease_owner_id", "lease_token_hash", "lease_expires_at")
        ]
    # What the order said before, it still says.
    assert {name for name in projection if projection[name] != before[name]} == {
        *("last_event_id", "last_seq", "last_updated_at"),
        *("lease_owner_id", "lease_token_hash", "lease_expires_at", "queued_at"),
    }
    assert projection["queued_at"] == lease["lease_expires_at"]
    assert acme.verify(order) == {}


@pytest.mark.parametrize("first_key", [None, "k"])
@pytest.mark.parametrize("second_key", [None, "k", "other"])
def test_acquire__the_same_token_returns_the_same_lease(
    acme: Tenant, first_key: str | None, second_key: str | None
) -> None:
    order, token = acme.order(), new_token()
    lease = acquire(acme.app, acme.id, order, token, key=first_key)
    before = everything(acme, order)
    assert acquire(acme.app, acme.id, order, token, key=second_key) == lease
    assert everything(acme, order) == before


def test_acquire__the_same_token_after_a_renewal_returns_the_lease_as_it_is(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token, key="k")
    renewed = renew(acme.app, acme.id, order, token, 100_000)
    assert acquire(acme.app, acme.id, order, token, key="k") == renewed


@pytest.mark.parametrize(
    "other", [{"owner": "worker-2"}, {"ttl_ms": 60_001}, {"token": "another-token-of-mine"}]
)
def test_acquire__a_used_key_for_another_call(acme: Tenant, other: dict[str, Any]) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token, key="k")
    before = everything(acme, order)
    with refused("SL005") as refusal:
        acquire(acme.app, acme.id, order, **{"token": token, "key": "k", **other})
    assert refusal.facts == {"work_order_id": order, "idempotency_key": "k"}
    release(acme.app, acme.id, order, token)
    with refused("SL005"):
        acquire(acme.app, acme.id, order, **{"token": token, "key": "k", **other})
    assert everything(acme, order)[3] == before[3]


def test_acquire__the_same_token_for_another_owner(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token)
    with refused("SL005"):
        acquire(acme.app, acme.id, order, token, owner="worker-2")


@pytest.mark.parametrize("owner", ["worker-1", "worker-2"])
def test_acquire__held_names_owner_and_expiry(acme: Tenant, owner: str) -> None:
    order = acme.order()
    lease = acquire(acme.app, acme.id, order, new_token())
    before = everything(acme, order)
    with refused("SL010") as refusal:
        acquire(acme.app, acme.id, order, new_token(), owner=owner)
    assert refusal.facts["lease_owner_id"] == "worker-1"
    assert refusal.facts["lease_expires_at"] == lease["lease_expires_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert refusal.facts["work_order_id"] == order
    assert everything(acme, order) == before


def test_acquire__takes_over_what_has_expired(acme: Tenant) -> None:
    order, old, new = acme.order(), new_token(), new_token()
    first = expired_lease(acme, order, old)
    second = acquire(acme.app, acme.id, order, new, owner="worker-2")
    assert second["fence"] > first["fence"]
    assert leases(acme, order) == [{**first, "lease_state": "EXPIRED"}, second]
    assert acme.projection(order)["lease_owner_id"] == "worker-2"
    before = everything(acme, order)
    for call in (
        lambda: acquire(acme.app, acme.id, order, old, ttl_ms=1),
        lambda: renew(acme.app, acme.id, order, old),
        lambda: release(acme.app, acme.id, order, old),
        lambda: acme.append(wire("STEP_STARTED", order, lease_token=old)),
        lambda: acme.append(wire("FIELD_SET", order, lease_token=old)),
        lambda: start(acme.app, acme.id, order, token=old),
    ):
        with refused("SL011"):
            call()
    assert everything(acme, order) == before


def test_acquire__an_expired_lease_is_not_handed_out_again(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    expired_lease(acme, order, token)
    before = everything(acme, order)
    with refused("SL011"):
        acquire(acme.app, acme.id, order, token, ttl_ms=1)
    with refused("SL011"):
        renew(acme.app, acme.id, order, token)
    assert everything(acme, order) == before
    assert release(acme.app, acme.id, order, token)
    with refused("SL011"):
        acquire(acme.app, acme.id, order, token, ttl_ms=1)
    assert acquire(acme.app, acme.id, order, new_token())["lease_state"] == "ACTIVE"


def test_acquire__each_order_and_tenant_has_its_own(acme: Tenant, sessions: Sessions) -> None:
    token = new_token()
    one, other = acme.order(), acme.order()
    assert (
        acquire(acme.app, acme.id, one, token)["lease_id"]
        != acquire(acme.app, acme.id, other, token)["lease_id"]
    )
    globex = sessions.tenant(new_id("globex"))
    for call in (
        lambda: acquire(globex.app, globex.id, one, token),
        lambda: renew(globex.app, globex.id, one, token),
        lambda: release(globex.app, globex.id, one, token),
    ):
        with refused("SL016"):
            call()
    with refused("SL002"), globex.app.transaction():
        globex.app.execute(f"SET LOCAL selene.tenant_id = '{globex.id}'".encode())
        acquire(globex.app, acme.id, one, token)


# --- renew and release


def test_renew__from_now_on(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    first = acquire(acme.app, acme.id, order, token, ttl_ms=60_000)
    for ttl_ms in (20_000, 3_600_000, 30_000):
        lease = renew(acme.app, acme.id, order, token, ttl_ms)
        assert lease["renewed_at"] >= first["acquired_at"]
        assert lease["lease_expires_at"] - lease["renewed_at"] == timedelta(milliseconds=ttl_ms)
        assert [lease] == leases(acme, order)
        assert acme.projection(order)["lease_expires_at"] == lease["lease_expires_at"]
        if ttl_ms != 30_000:
            renew(acme.app, acme.id, order, token)
    unchanged = ("lease_id", "lease_owner_id", "lease_token_hash", "fence", "acquired_at")
    assert [lease[name] for name in unchanged] == [first[name] for name in unchanged]
    assert events_of(acme, order) == ["WORK_ORDER_CREATED", "LEASE_ACQUIRED", *["LEASE_RENEWED"] * 5]
    assert acme.verify(order) == {}


def test_renew__in_the_middle_of_a_step_keeps_the_step(acme: Tenant) -> None:
    order, token = acme.order("EXECUTING"), new_token()
    acquire(acme.app, acme.id, order, token)
    start(acme.app, acme.id, order, token=token)
    renew(acme.app, acme.id, order, token)
    assert acme.projection(order)["step_id"] == "book"


def test_release__twice_is_a_no_op(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token)
    assert release(acme.app, acme.id, order, token)
    (lease,) = leases(acme, order)
    assert (lease["lease_state"], lease["released_at"] >= lease["acquired_at"]) == ("RELEASED", True)
    assert acme.projection(order)["lease_owner_id"] is None
    before = everything(acme, order)
    assert not release(acme.app, acme.id, order, token)
    assert everything(acme, order) == before
    acquire(acme.app, acme.id, order, new_token(), owner="worker-2")
    before = everything(acme, order)
    assert not release(acme.app, acme.id, order, token)
    assert everything(acme, order) == before


def test_release__by_another_token(acme: Tenant) -> None:
    order = acme.order()
    with refused("SL011"):
        release(acme.app, acme.id, order, new_token())
    acquire(acme.app, acme.id, order, new_token())
    with refused("SL011"):
        release(acme.app, acme.id, order, new_token())
    with refused("SL011"):
        renew(acme.app, acme.id, order, new_token())


# --- what is no call


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"ttl_ms": -1}, "ttl_ms"),
        ({"ttl_ms": 3_600_001}, "ttl_ms"),
        ({"ttl_ms": 2**62}, "ttl_ms"),
        ({"ttl_ms": None}, "ttl_ms"),
        ({"token": "x" * 15}, "token"),
        ({"token": "x" * 129}, "token"),
        ({"token": "with a blank in it"}, "token"),
        ({"token": "späte-nächte-0000"}, "token"),
        ({"token": None}, "token"),
        ({"owner": ""}, "owner"),
        ({"owner": " worker"}, "owner"),
        ({"owner": "w" * 129}, "owner"),
        ({"owner": None}, "owner"),
        ({"key": ""}, "idempotency_key"),
        ({"key": "k" * 129}, "idempotency_key"),
        ({"key": " k"}, "idempotency_key"),
        ({"order": ""}, "work_order_id"),
        ({"order": None}, "work_order_id"),
        ({"order": "o" * 129}, "work_order_id"),
    ],
)
def test_acquire__bad_input(acme: Tenant, given: dict[str, Any], field: str) -> None:
    order = acme.order()
    with refused("SL001") as refusal:
        acquire(acme.app, acme.id, **{"order": order, "token": new_token(), **given})
    assert refusal.facts["field"] == field
    assert refusal.message == f"{field}: {refusal.facts['rule']}"
    if isinstance(token := given.get("token"), str):
        assert token not in refusal.message
    assert leases(acme, order) == []


@pytest.mark.parametrize("ttl_ms", [1, 3_600_000])
def test_acquire__shortest_and_longest(acme: Tenant, ttl_ms: int) -> None:
    lease = acquire(acme.app, acme.id, acme.order(), "t" * (16 if ttl_ms == 1 else 128), ttl_ms=ttl_ms)
    assert lease["lease_expires_at"] - lease["acquired_at"] == timedelta(milliseconds=ttl_ms)


def test_renew_release__bad_input(acme: Tenant) -> None:
    order = acme.order()
    for ttl_ms in (0, 3_600_001, None):
        with refused("SL001") as refusal:
            renew(acme.app, acme.id, order, new_token(), ttl_ms)
        assert refusal.facts["field"] == "ttl_ms"
    for token in ("short", None):
        for call in (renew, release):
            with refused("SL001") as refusal:
                call(acme.app, acme.id, order, token)
            assert refusal.facts["field"] == "token"


@pytest.mark.parametrize("status", TERMINAL)
def test_terminal__no_new_lease_but_a_release(acme: Tenant, status: str) -> None:
    order, token = acme.order(), new_token()
    lease = acquire(acme.app, acme.id, order, token, key="k")
    acme.append(wire("STATUS_CHANGED", order, work_order_status=status))
    calls: list[Callable[[], object]] = [
        lambda: acquire(acme.app, acme.id, acme.order(status), new_token()),
        lambda: acquire(acme.app, acme.id, order, new_token()),
        lambda: renew(acme.app, acme.id, order, token),
    ]
    for call in calls:
        with refused("SL007") as refusal:
            call()
        assert refusal.facts["work_order_status"] == status
    assert acquire(acme.app, acme.id, order, token, key="k") == lease  # a retry still gets what it got
    assert release(acme.app, acme.id, order, token)
    assert not release(acme.app, acme.id, order, token)
    assert acme.projection(order)["work_order_status"] == status
    assert acme.verify(order) == {}


@pytest.mark.parametrize("status", TERMINAL)
def test_terminal__an_expired_lease_can_be_released(acme: Tenant, status: str) -> None:
    order, token = acme.order(), new_token()
    expired_lease(acme, order, token)
    acme.append(wire("STATUS_CHANGED", order, work_order_status=status))
    assert release(acme.app, acme.id, order, token)
    (lease,) = leases(acme, order)
    assert (lease["lease_state"], lease["released_at"] >= lease["lease_expires_at"]) == ("RELEASED", True)
    assert events_of(acme, order)[-1] == "LEASE_RELEASED"
    assert acme.projection(order)["lease_owner_id"] is None
    assert not release(acme.app, acme.id, order, token)
    assert acme.verify(order) == {}


def test_unknown_order(acme: Tenant) -> None:
    order = new_id()
    for call in (acquire, renew, release):
        with refused("SL016") as refusal:
            call(acme.app, acme.id, order, new_token())
        assert refusal.facts == {"work_order_id": order}


def test_damaged_projection__is_told(acme: Tenant) -> None:
    order, token = acme.order(), new_token()
    acquire(acme.app, acme.id, order, token)
    acme.damage("DELETE FROM os_core.work_orders_current WHERE work_order_id = %s", order)
    for call in (
        lambda: acquire(acme.app, acme.id, order, token),
        lambda: renew(acme.app, acme.id, order, token),
        lambda: release(acme.app, acme.id, order, token),
    ):
        with refused("SL017"):
            call()
    # A row that leases refer to is restored from the ledger, with its lease.
    assert acme.rebuild_one(order).changed == 1
    assert acme.verify(order) == {}
    assert renew(acme.app, acme.id, order, token)["lease_state"] == "ACTIVE"


# --- the rows cannot be changed but by their rules


CHANGES = [
    f"DELETE FROM {LEASES}",
    f"DELETE FROM {LEASES} WHERE FALSE",
    f"TRUNCATE {LEASES}",
    f"TRUNCATE {LEASES} CASCADE",
    f"TRUNCATE {LEASES}, os_core.work_orders_current CASCADE",
    f"UPDATE {LEASES} SET lease_state = 'ACTIVE' WHERE lease_state = 'EXPIRED'",
    f"UPDATE {LEASES} SET lease_state = 'ACTIVE', released_at = NULL WHERE lease_state = 'RELEASED'",
    f"UPDATE {LEASES} SET lease_expires_at = lease_expires_at + interval '1 h' WHERE lease_state = 'EXPIRED'",
    f"UPDATE {LEASES} SET lease_owner_id = 'mallory' WHERE lease_state = 'ACTIVE'",
    f"UPDATE {LEASES} SET lease_token_hash = repeat('0', 64) WHERE lease_state = 'ACTIVE'",
    f"UPDATE {LEASES} SET fence = fence + 1 WHERE lease_state = 'ACTIVE'",
    f"UPDATE {LEASES} SET tenant_id = 'mallory' WHERE lease_state = 'ACTIVE'",
    f"UPDATE {LEASES} SET idempotency_key = 'other' WHERE lease_state = 'ACTIVE'",
]


@pytest.fixture
def all_states(acme: Tenant) -> str:
    """Return an order with a lease in each state."""
    order = acme.order()
    expired_lease(acme, order, new_token())
    token = new_token()
    acquire(acme.app, acme.id, order, token)
    release(acme.app, acme.id, order, token)
    acquire(acme.app, acme.id, order, new_token(), key="k")
    assert [lease["lease_state"] for lease in leases(acme, order)] == ["EXPIRED", "RELEASED", "ACTIVE"]
    return order


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["owner", "admin", "replica"])
def test_guard__holds_for_everyone(
    shared_database: Database, acme: Tenant, all_states: str, change: str, role: str
) -> None:
    before = leases(acme, all_states)
    url = shared_database.owner_url if role == "owner" else shared_database.admin_url
    with closing(connect(url)) as conn:
        if role == "replica":
            conn.execute("SET session_replication_role = replica")
        else:
            conn.execute(f"SET LOCAL selene.tenant_id = '{acme.id}'".encode())
        with refused("SL003") as refusal:
            conn.execute(change.encode())
    assert refusal.facts == {"table": LEASES, "operation": change.split()[0]}
    assert leases(acme, all_states) == before


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("lease_state = 'GONE'", "contract"),
        ("lease_expires_at = acquired_at", "contract"),
        ("lease_expires_at = 'infinity'", "contract"),
        ("released_at = clock_timestamp()", "contract"),
        ("lease_state = 'RELEASED'", "contract"),
        ("renewed_at = acquired_at - interval '1 s'", "contract"),
    ],
)
def test_row__is_what_the_contract_says(acme: Tenant, all_states: str, change: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        acme.admin.execute(
            f"UPDATE {LEASES} SET {change} WHERE tenant_id = %s AND lease_state = 'ACTIVE'".encode(),
            (acme.id,),
        )
    assert caught.value.diag.constraint_name == f"ck_work_order_leases_{constraint}"


def test_row__one_active_lease_an_order(acme: Tenant, all_states: str) -> None:
    copy = (
        f"INSERT INTO {LEASES} SELECT gen_random_uuid(), tenant_id, work_order_id, lease_owner_id,"
        " repeat('0', 64), 'ACTIVE', fence + 1, acquired_at, renewed_at, lease_expires_at, released_at, NULL"
        f" FROM {LEASES} WHERE tenant_id = %s AND lease_state = 'ACTIVE'"
    )
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        acme.admin.execute(copy.encode(), (acme.id,))
    assert caught.value.diag.constraint_name == "ux_work_order_leases_active"


def test_row__belongs_to_an_order_of_its_tenant(acme: Tenant, all_states: str) -> None:
    copy = (
        f"INSERT INTO {LEASES} SELECT gen_random_uuid(), 'mallory', work_order_id, lease_owner_id,"
        " lease_token_hash, lease_state, fence, acquired_at, renewed_at, lease_expires_at, released_at,"
        f" idempotency_key FROM {LEASES} WHERE tenant_id = %s AND lease_state = 'ACTIVE'"
    )
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        acme.admin.execute(copy.encode(), (acme.id,))
    assert caught.value.diag.constraint_name == "fk_work_order_leases_work_order"


def test_words__equal_the_check(acme: Tenant) -> None:
    states = acme.admin.execute(
        "SELECT state FROM unnest(%s::text[]) AS state WHERE os_core.is_lease_row("
        "'w', repeat('0', 64), state, 1, '2026-01-01Z', NULL, '2026-01-02Z',"
        " CASE state WHEN 'RELEASED' THEN '2026-01-02Z'::timestamptz END, NULL)",
        ([*LeaseState, "active", "", "TAKEN"],),
    )
    assert [row[0] for row in states] == list(LeaseState)


# --- rebuild


def test_rebuild__loses_no_lease(acme: Tenant, all_states: str) -> None:
    before = everything(acme, all_states)
    acme.damage(
        "UPDATE os_core.work_orders_current SET lease_owner_id = NULL, lease_token_hash = NULL,"
        " lease_expires_at = NULL WHERE work_order_id = %s",
        all_states,
    )
    assert set(acme.verify()) == {all_states}
    assert acme.rebuild().changed == 1
    assert everything(acme, all_states) == before
    assert acme.verify() == {}


def test_rebuild__keeps_a_row_without_events_that_a_lease_refers_to(acme: Tenant, all_states: str) -> None:
    with acme.admin.transaction():
        # Only so can a ledger lose its events: its guards are off for as long as this takes.
        acme.admin.execute("ALTER TABLE os_core.work_order_ledger DISABLE TRIGGER USER")
        acme.damage("DELETE FROM os_core.work_order_ledger WHERE work_order_id = %s", all_states)
        for name in ("row", "statement"):
            acme.admin.execute(
                f"ALTER TABLE os_core.work_order_ledger ENABLE ALWAYS TRIGGER reject_mutation_{name}".encode()
            )
    before = leases(acme, all_states)
    assert acme.rebuild().changed == 0
    assert leases(acme, all_states) == before
    assert acme.verify() == {all_states: "the projection row has no events"}


# --- frozen snapshots


@pytest.mark.parametrize("isolation", FROZEN)
def test_frozen_snapshot__a_conflict_is_40001(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    order, token = acme.order(), new_token()
    first = acquire(acme.app, acme.id, order, token)
    frozen = sessions.open(autocommit=False, isolation=isolation)
    for call in (
        lambda: acquire(frozen.conn, acme.id, order, new_token()),
        lambda: acquire(frozen.conn, acme.id, order, token),
        lambda: renew(frozen.conn, acme.id, order, token),
        lambda: release(frozen.conn, acme.id, order, token),
        lambda: start(frozen.conn, acme.id, order, token=token),
    ):
        frozen.conn.execute("SELECT 1")
        acme.append(wire("FIELD_SET", order))
        with refused("40001"):
            call()
        frozen.conn.rollback()
    assert leases(acme, order) == [first]


@pytest.mark.parametrize("isolation", FROZEN)
def test_frozen_snapshot__two_at_once(acme: Tenant, sessions: Sessions, isolation: IsolationLevel) -> None:
    order = acme.order()
    ours = sessions.open(autocommit=False, isolation=isolation)
    theirs = sessions.open(autocommit=False, isolation=isolation)
    acquire(ours.conn, acme.id, order, new_token(), key="k")
    waiting = theirs.start(lambda conn: acquire(conn, acme.id, order, new_token(), key="k"))
    assert sessions.blockers(theirs) == {ours.pid}
    ours.conn.commit()
    error = waiting.exception()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "40001"


# --- through the package


@pytest.fixture
def order(engine: sa.Engine) -> str:
    """Create a work order in a database of the test's own."""
    with tenant_scope(engine, "acme") as conn:
        first = created()
        WorkOrderRepository(conn).append(first)
        return first.work_order_id


def test_repository__acquire_renew_release(engine: sa.Engine, order: str) -> None:
    with tenant_scope(engine, "acme") as conn:
        held = LeaseRepository(conn)
        assert held.current(order) is None
        lease = held.acquire(order, "worker-1", ttl_ms=60_000, idempotency_key="k")
        assert lease.token is not None
        assert len(lease.token) >= 32
        assert lease.token not in repr(lease)
        assert held.acquire(order, "worker-1", ttl_ms=60_000, token=lease.token, idempotency_key="k") == lease
        with pytest.raises(LeaseHeld) as caught, conn.begin_nested():
            held.acquire(order, "worker-1", ttl_ms=60_000)
        assert (caught.value.lease_owner_id, caught.value.lease_expires_at) == (
            "worker-1",
            lease.lease_expires_at,
        )
        renewed = held.renew(order, lease.token, ttl_ms=90_000)
        assert (renewed.fence, renewed.token, renewed.lease_state) == (
            lease.fence,
            lease.token,
            LeaseState.ACTIVE,
        )
        found = held.current(order)
        assert found is not None
        assert found.token is None
        assert found.lease_expires_at == renewed.lease_expires_at
        held.release(order, lease.token)
        held.release(order, lease.token)
        assert held.current(order) is None


def test_repository__current_is_none_once_expired(engine: sa.Engine, order: str, database: Database) -> None:
    with tenant_scope(engine, "acme") as conn:
        lease = LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=1)
    with closing(connect(database.admin_url, autocommit=True)) as admin:
        wait_past(Tenant("acme", admin, admin), lease.lease_expires_at)
    with tenant_scope(engine, "acme") as conn:
        assert LeaseRepository(conn).current(order) is None
        with pytest.raises(LeaseLost):
            LeaseRepository(conn).renew(order, lease.token or "", ttl_ms=10)


@pytest.mark.parametrize("ttl_ms", [0, 3_600_001, 1.5, True, None])
def test_repository__bad_ttl(engine: sa.Engine, order: str, ttl_ms: Any) -> None:
    with tenant_scope(engine, "acme") as conn:
        calls: list[Callable[[], object]] = [
            lambda: LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=ttl_ms),
            lambda: LeaseRepository(conn).renew(order, "t" * 20, ttl_ms=ttl_ms),
        ]
        for call in calls:
            with pytest.raises(ContractViolation) as caught:
                call()
            assert caught.value.field == "ttl_ms"


# --- the token is nowhere

TOKEN = "unmistakable-" + "7f3a" * 8


def test_token__is_in_no_table_error_or_log(
    server: Server, template_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with server.new_database("token", template_database) as database:
        engine = database.engine("app", echo=True)
        other = "another-one-of-" + TOKEN
        told: list[str] = []
        with caplog.at_level(logging.DEBUG), closing(connect(database.admin_url, autocommit=True)) as admin:
            with tenant_scope(engine, "acme") as conn:
                first = created()
                order = first.work_order_id
                WorkOrderRepository(conn).append(first)
                lease = LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=60_000, token=TOKEN)
                told += [repr(lease), str(lease), repr(LeaseRepository(conn).current(order))]
                LeaseRepository(conn).renew(order, TOKEN, ttl_ms=60_000)
                attempt = StepAttemptRepository(conn).start(
                    order,
                    "book",
                    timeout_ms=1_000,
                    max_retries=1,
                    retry_backoff_ms=1_000,
                    idempotency_key="s",
                    lease_token=TOKEN,
                )
                started = event("STEP_STARTED", order, lease_token=TOKEN)
                WorkOrderRepository(conn).append(started)
                told += [repr(attempt), repr(started)]

            def run(call: Callable[[sa.Connection], object]) -> None:
                with tenant_scope(engine, "acme") as conn:
                    conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
                    call(conn)

            calls: list[Callable[[sa.Connection], object]] = [
                lambda conn: LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=1, token=other),
                lambda conn: LeaseRepository(conn).renew(order, other, ttl_ms=1),
                lambda conn: LeaseRepository(conn).release(order, other),
                lambda conn: StepAttemptRepository(conn).start(
                    order, "pay", **LIMITS, idempotency_key="s", lease_token=other
                ),
                lambda conn: StepAttemptRepository(conn).finish(
                    attempt.step_attempt_id, outcome="SUCCEEDED", reason_code=1, lease_token=other
                ),
                lambda conn: WorkOrderRepository(conn).append(
                    event("STEP_STARTED", order, lease_token=other)
                ),
            ]
            for call in calls:
                with pytest.raises((LeaseHeld, LeaseLost)) as refusal:
                    run(call)
                with admin.transaction():
                    admin.execute("LOCK TABLE os_core.work_orders_current IN ACCESS EXCLUSIVE MODE")
                    with pytest.raises(DBAPIError) as failed:  # what is not ours passes as it is
                        run(call)
                for error in (refusal.value, refusal.value.__cause__, failed.value, failed.value.orig):
                    told += [repr(error), str(error)]
                told.append(str(vars(refusal.value)))
            # What the package would not even send.
            with closing(connect(database.app_url, autocommit=True)) as app:
                bad = TOKEN + "\t"
                violations: list[Callable[[], object]] = [
                    lambda: acquire(app, "acme", order, bad),
                    lambda: renew(app, "acme", order, bad),
                    lambda: release(app, "acme", order, bad),
                    lambda: start(app, "acme", order, token=bad),
                    lambda: finish(app, "acme", attempt.step_attempt_id, token=bad),
                    lambda: append(app, "acme", wire("STEP_STARTED", order, lease_token=bad)),
                    lambda: append(app, "acme", wire("STEP_STARTED", order, lease_token=TOKEN, turn_id=0)),
                    lambda: append(app, "acme", wire("FIELD_SET", order, lease_token=[TOKEN])),
                ]
                for violation in violations:
                    with pytest.raises(psycopg.Error) as violated:
                        violation()
                    assert violated.value.sqlstate == "SL001"
                    diag = violated.value.diag
                    told += [
                        f"{diag.message_primary} {diag.message_detail} {diag.message_hint} {diag.context}"
                    ]
            with tenant_scope(engine, "acme") as conn:
                LeaseRepository(conn).release(order, TOKEN)
            tables = admin.execute(
                "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relkind = 'r'"
                " AND c.relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)"
            ).fetchall()
            assert len(tables) >= 5
            for (table,) in tables:
                told += [row[0] for row in admin.execute(f"SELECT t::text FROM {table} AS t".encode())]
            told += [
                row[0] for row in admin.execute("SELECT query FROM pg_stat_activity WHERE query IS NOT NULL")
            ]
        told.append(caplog.text)
        assert "acquire_lease" in caplog.text  # statements were logged indeed
        if server.local is not None:  # one whose log can be read: it has the settings that are the default
            log = (server.local.socket_directory / "log").read_text(errors="replace")
            for words in ("worker-1 holds the lease", "not that of an active lease", "lease_token: must be"):
                assert words in log
            told.append(log)
        assert not [text for text in told if TOKEN in text]
