"""Many workers, one lease: one holder at any moment, and no zombie changes anything (contract §8)."""

import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from threading import Barrier
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

from selene_core import (
    LeaseLost,
    LeaseRepository,
    SeleneError,
    StepAttemptRepository,
    WorkOrderRepository,
    tenant_scope,
)
from tests.support.calls import Row, Tenant, append, refused
from tests.support.factories import event, wire
from tests.support.races import DEADLINE_SECONDS
from tests.support.raw import Connection
from tests.support.servers import Database
from tests.support.sessions import Sessions
from tests.support.workers import (
    LIMITS,
    acquire,
    everything,
    finish,
    leases,
    new_token,
    release,
    renew,
    start,
    wait_past,
)

WORKERS = 32
ROUNDS = 5
ACTORS = 20
ACTIONS = 50
WORK = ("renew", "append", "release")
HELD_MS = 3_600_000  # no machine is so slow that it expires within a test


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def sqlstate_of(call: Callable[[], object]) -> str:
    """Run a call and return its SQLSTATE."""
    try:
        call()
    except psycopg.Error as exc:
        return str(exc.sqlstate)
    return "00000"


def check_leases_do_not_overlap(tenant: Tenant, order: str) -> None:
    """One holder at any moment: each lease began when the one before had ended, behind a higher fence."""
    rows = leases(tenant, order)
    assert [row["fence"] for row in rows] == sorted({row["fence"] for row in rows})
    for before, after in pairwise(rows):
        assert (before["released_at"] or before["lease_expires_at"]) <= after["acquired_at"]
        assert before["lease_state"] != "ACTIVE"


def check_ledger_names_holders_only(events: list[Row]) -> Counter[str]:
    """Walk the ledger: whatever came in with a token came from who then held the lease."""
    seen: Counter[str] = Counter()
    holder, expires = None, datetime.min.replace(tzinfo=UTC)
    for entry in events:
        seen[entry["event_type"]] += 1
        held = holder is not None and expires > entry["created_at"]
        match entry["event_type"]:
            case "LEASE_ACQUIRED":
                assert not held
                holder, expires = entry["lease_token_hash"], entry["lease_expires_at"]
            case "LEASE_RENEWED":
                assert held
                assert holder == entry["lease_token_hash"]
                expires = entry["lease_expires_at"]
            case "LEASE_RELEASED":
                assert holder == entry["lease_token_hash"]
                holder = None
            case "STEP_STARTED" | "FIELD_SET" if sent_with := entry["payload"].get("value", {}).get("token"):
                assert held
                assert holder == sent_with
            case "STEP_STARTED":
                assert not held
    return seen


def test_race__one_holder_at_any_moment(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order("EXECUTING")
    racers = [sessions.open() for _ in range(WORKERS)]
    start_line = Barrier(WORKERS)

    def run(worker: int, token: str) -> Callable[[Connection], str]:
        def job(conn: Connection) -> str:
            start_line.wait(DEADLINE_SECONDS)
            return sqlstate_of(lambda: acquire(conn, acme.id, order, token, owner=f"worker-{worker}"))

        return job

    fences = []
    for _ in range(ROUNDS):
        tokens = [new_token() for _ in racers]
        racing = [racer.start(run(n, tokens[n])) for n, racer in enumerate(racers)]
        states = [future.result() for future in racing]
        assert Counter(states) == {"00000": 1, "SL010": WORKERS - 1}
        winner = states.index("00000")
        (lease,) = [row for row in leases(acme, order) if row["lease_state"] == "ACTIVE"]
        assert lease["lease_owner_id"] == f"worker-{winner}"
        fences.append(lease["fence"])
        shortened = renew(acme.app, acme.id, order, tokens[winner], 1)
        wait_past(acme, shortened["lease_expires_at"])
    assert fences == sorted(set(fences))
    assert len(leases(acme, order)) == ROUNDS
    check_leases_do_not_overlap(acme, order)
    assert acme.verify(order) == {}


class Actor:
    """A worker who at times holds a lease and works, and else tries any token that it ever had."""

    def __init__(self, tenant_id: str, order: str, number: int) -> None:
        self.tenant_id, self.order, self.number = tenant_id, order, number
        self.random = random.Random(number)
        self.tokens = [new_token()]
        self.done: Counter[str] = Counter()

    def run(self, conn: Connection) -> None:
        """Act; what has to succeed is asked with a lease that cannot expire meanwhile."""
        while (left := ACTIONS - self.done.total()) > 0:
            name = self.random.choice(["acquire", "acquire", "renew", "release", "append", "append", "bare"])
            if name == "acquire":
                self.tokens.append(new_token())
            if name == "acquire" and left > len(WORK) and self.random.random() < 0.5:
                self.work(conn, self.tokens[-1])
            else:
                token = self.tokens[-1] if name == "acquire" else self.random.choice(self.tokens[-3:])
                self.act(conn, name, token, self.random.choice([1, 5, 20, 50]))

    def work(self, conn: Connection, token: str) -> None:
        """Hold a lease for as long as it takes: the holder is never refused."""
        if self.act(conn, "acquire", token, HELD_MS) == "00000":
            assert [self.act(conn, name, token, HELD_MS) for name in WORK] == ["00000"] * len(WORK)

    def act(self, conn: Connection, name: str, token: str, ttl_ms: int) -> str:
        """Do one thing, and return how it went."""
        state = sqlstate_of(lambda: self.call(conn, name, token, ttl_ms))
        assert state in ("00000", "SL010", "SL011"), state
        self.done[f"{name} {state}"] += 1
        return state

    def call(self, conn: Connection, name: str, token: str, ttl_ms: int) -> None:
        """Ask the database for one thing."""
        match name:
            case "acquire":
                owner = f"worker-{self.number}"
                acquire(conn, self.tenant_id, self.order, token, owner=owner, ttl_ms=ttl_ms)
            case "renew":
                renew(conn, self.tenant_id, self.order, token, ttl_ms)
            case "release":
                release(conn, self.tenant_id, self.order, token)
            case "append":
                kind = self.random.choice(["STEP_STARTED", "FIELD_SET"])
                payload = {"field_key": "by", "value": {"token": hash_of(token)}}
                sent = wire(kind, self.order, payload=payload, lease_token=token)
                batch = [sent] * self.random.choice([1, 1, 3])
                append(conn, self.tenant_id, *batch)
            case _:
                harmless = wire("FIELD_SET", self.order, payload={"field_key": "by", "value": {}})
                before = [harmless] * self.random.choice([0, 0, 2])
                append(conn, self.tenant_id, *before, wire("STEP_STARTED", self.order))


def test_history__no_event_enters_with_a_token_that_is_not_the_holders(
    acme: Tenant, sessions: Sessions
) -> None:
    order = acme.order("EXECUTING")
    actors = [Actor(acme.id, order, number) for number in range(ACTORS)]
    sessions.at_once([actor.run for actor in actors])
    done = sum((actor.done for actor in actors), Counter[str]())
    assert done.total() == ACTORS * ACTIONS == 1_000
    # The history is about something: each action was accepted at times and refused at times.
    for name in ("acquire 00000", "acquire SL010", "renew 00000", "renew SL011", "release 00000"):
        assert done[name], done
    for name in ("release SL011", "append 00000", "append SL011", "bare 00000", "bare SL010"):
        assert done[name], done
    seen = check_ledger_names_holders_only(acme.ledger(order))
    assert seen["LEASE_ACQUIRED"] == done["acquire 00000"] == len(leases(acme, order))
    assert seen["LEASE_RENEWED"] == done["renew 00000"]
    check_leases_do_not_overlap(acme, order)
    assert acme.unsound() == []
    assert acme.verify(order) == {}
    before = leases(acme, order)
    assert acme.rebuild().changed == 0
    assert leases(acme, order) == before


STEPS = ("STEP_STARTED", "STEP_FINISHED", "STEP_FAILED", "STEP_RETRY_SCHEDULED")


@pytest.mark.parametrize("kind", STEPS)
def test_batch__a_step_without_a_token_is_refused_while_somebody_holds_the_lease(
    acme: Tenant, kind: str
) -> None:
    held, free, token = acme.order("EXECUTING"), acme.order("EXECUTING"), new_token()
    acquire(acme.app, acme.id, held, token, owner="holder", ttl_ms=HELD_MS)
    step, elsewhere = wire(kind, held), wire(kind, free)
    # Each with the place of the event that is refused.
    batches = [
        (1, [wire("FIELD_SET", held), step]),
        (0, [step, wire("FIELD_SET", held)]),
        (1, [elsewhere, step]),
        (0, [step, elsewhere]),
        (1, [{**step, "lease_token": token}, step]),  # a token counts for its own event
        (2, [elsewhere, {**step, "lease_token": token}, step, elsewhere]),
    ]
    before = acme.everything()
    for index, batch in batches:
        with refused("SL010") as refusal:
            acme.append(*batch)
        assert (refusal.facts["work_order_id"], refusal.facts["event_index"]) == (held, index)
        assert refusal.facts["lease_owner_id"] == "holder"
        assert acme.everything() == before
    # Once it is expired, nobody holds it.
    wait_past(acme, renew(acme.app, acme.id, held, token, 1)["lease_expires_at"])
    for _, batch in batches[:4]:
        assert len(acme.append(*batch)) == 2
    assert acme.verify() == {}


# --- zombies


class Zombie:
    """A worker whose lease expired, and was taken over unless told, while its transaction stood open."""

    def __init__(self, tenant: Tenant, conn: Connection, *, taken_over: bool = True) -> None:
        self.tenant, self.conn = tenant, conn
        self.order, self.token = tenant.order("EXECUTING"), new_token()
        # From here on its transaction is open: now() stays before the expiry.
        conn.execute(f"SET LOCAL selene.tenant_id = '{tenant.id}'".encode())
        acquire(tenant.app, tenant.id, self.order, self.token, owner="zombie")
        self.attempt = start(tenant.app, tenant.id, self.order, token=self.token)
        lease = renew(tenant.app, tenant.id, self.order, self.token, 1)
        # And from here on its snapshot, where it keeps one.
        conn.execute("SELECT lease_owner_id FROM os_core.work_orders_current")
        wait_past(tenant, lease["lease_expires_at"])
        if taken_over:
            self.heir_token = new_token()
            heir = acquire(tenant.app, tenant.id, self.order, self.heir_token, owner="heir")
            assert heir["fence"] > lease["fence"]

    def calls(self) -> dict[str, Callable[[Connection], object]]:
        """Return all that it could do with its token."""
        tenant_id, order, token = self.tenant.id, self.order, self.token
        step_attempt_id = self.attempt["step_attempt_id"]
        step = wire("STEP_FINISHED", order, lease_token=token)
        return {
            "append": lambda conn: append(conn, tenant_id, step),
            "append many": lambda conn: append(conn, tenant_id, wire("FIELD_SET", order), step),
            "renew": lambda conn: renew(conn, tenant_id, order, token),
            "release": lambda conn: release(conn, tenant_id, order, token),
            "acquire": lambda conn: acquire(conn, tenant_id, order, token, owner="zombie", ttl_ms=500),
            "start": lambda conn: start(conn, tenant_id, order, "other", step="pay", token=token),
            "finish": lambda conn: finish(conn, tenant_id, step_attempt_id, token=token),
            "fail": lambda conn: finish(conn, tenant_id, step_attempt_id, "FAILED", token=token),
        }

    def try_all(self) -> dict[str, str]:
        """Try each in its old transaction, take it back, and return how it went."""
        states = {}
        for name, call in self.calls().items():
            self.conn.execute("SAVEPOINT before")
            states[name] = sqlstate_of(lambda call=call: call(self.conn))  # type: ignore[misc]  # of a default
            self.conn.execute("ROLLBACK TO SAVEPOINT before")
        return states


@pytest.mark.parametrize(
    ("isolation", "sqlstate"),
    [
        (IsolationLevel.READ_COMMITTED, "SL011"),
        (IsolationLevel.REPEATABLE_READ, "40001"),
        (IsolationLevel.SERIALIZABLE, "40001"),
    ],
)
def test_zombie__in_its_old_transaction(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel, sqlstate: str
) -> None:
    zombie = Zombie(acme, sessions.open(autocommit=False, isolation=isolation).conn)
    before = everything(acme, zombie.order)
    assert zombie.try_all() == dict.fromkeys(zombie.calls(), sqlstate)
    zombie.conn.commit()
    assert everything(acme, zombie.order) == before
    assert (
        finish(acme.app, acme.id, zombie.attempt["step_attempt_id"], token=zombie.heir_token)["action"]
        == "DONE"
    )


@pytest.mark.parametrize(
    "isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
)
def test_zombie__that_nobody_took_over_can_only_release(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    """Its lease was valid when its transaction began: what counts is the clock at each call."""
    zombie = Zombie(acme, sessions.open(autocommit=False, isolation=isolation).conn, taken_over=False)
    before = everything(acme, zombie.order)
    expected = {name: "00000" if name == "release" else "SL011" for name in zombie.calls()}
    assert zombie.try_all() == expected
    assert everything(acme, zombie.order) == before
    assert release(zombie.conn, acme.id, zombie.order, zombie.token)
    zombie.conn.commit()
    (lease,) = leases(acme, zombie.order)
    assert lease["lease_state"] == "RELEASED"
    assert acme.verify(zombie.order) == {}


def test_zombie__that_waits_for_the_lock_while_it_is_taken_over(acme: Tenant, sessions: Sessions) -> None:
    """It sends its event in time; by when it has the lock, another holds the lease."""
    order, token = acme.order("EXECUTING"), new_token()
    lease = acquire(acme.app, acme.id, order, token, ttl_ms=500)
    heir, zombie = sessions.open(autocommit=False), sessions.open()
    append(heir.conn, acme.id, wire("FIELD_SET", order))  # holds the lock
    waiting = zombie.start_append(acme.id, wire("STEP_FINISHED", order, lease_token=token))
    assert sessions.blockers(zombie) == {heir.pid}
    wait_past(acme, lease["lease_expires_at"])
    acquire(heir.conn, acme.id, order, new_token(), owner="heir")
    heir.conn.commit()
    error = waiting.exception()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "SL011"


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def set_clock_off(monkeypatch: pytest.MonkeyPatch, off: timedelta) -> None:
    """Set every clock off that the package could ask for the time of day."""

    class Off(datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a plain one
            return datetime.now(tz) + off

    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + off.total_seconds())
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + off // timedelta(microseconds=1) * 1000)
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "selene_core"]
    for module in [each for each in ours if vars(each).get("datetime") is datetime]:
        monkeypatch.setattr(module, "datetime", Off)


@pytest.mark.parametrize("minutes", [-10, 10])
def test_zombie__with_a_wrong_clock(
    acme: Tenant, shared_database: Database, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    off = timedelta(minutes=minutes)
    with tenant_scope(shared_database.engine("app"), acme.id) as old:
        driver: Any = old.connection.driver_connection
        zombie = Zombie(acme, driver)
        before = everything(acme, zombie.order)
        set_clock_off(monkeypatch, off)
        token, step_attempt_id = zombie.token, zombie.attempt["step_attempt_id"]
        step = event("STEP_FINISHED", zombie.order, lease_token=token, occurred_at=datetime.now(UTC) + off)
        calls: list[Callable[[sa.Connection], object]] = [
            lambda conn: WorkOrderRepository(conn).append(step),
            lambda conn: WorkOrderRepository(conn).append_many([step, step]),
            lambda conn: LeaseRepository(conn).renew(zombie.order, token, ttl_ms=60_000),
            lambda conn: LeaseRepository(conn).release(zombie.order, token),
            lambda conn: StepAttemptRepository(conn).start(
                zombie.order, "pay", **LIMITS, idempotency_key="p", lease_token=token
            ),
            lambda conn: StepAttemptRepository(conn).finish(
                step_attempt_id, outcome="SUCCEEDED", reason_code=1, lease_token=token
            ),
        ]
        for call in calls:
            with pytest.raises(LeaseLost), old.begin_nested():
                call(old)
            with pytest.raises(LeaseLost), tenant_scope(old.engine, acme.id) as new:
                call(new)
    assert everything(acme, zombie.order) == before


@pytest.mark.parametrize("minutes", [-10, 10])
def test_heir__with_a_wrong_clock_works_as_any(
    acme: Tenant, shared_database: Database, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    order = acme.order()
    set_clock_off(monkeypatch, timedelta(minutes=minutes))
    with tenant_scope(shared_database.engine("app"), acme.id) as conn:
        held = LeaseRepository(conn)
        lease = held.acquire(order, "worker-1", ttl_ms=60_000)
        assert lease.lease_expires_at - lease.acquired_at == timedelta(minutes=1)
        assert held.current(order) is not None


# --- attempts under many hands


def test_attempts__many_workers_one_step(acme: Tenant, sessions: Sessions) -> None:
    """Start, fail, start again, by many: the numbers have no gap and no two attempts run at once."""
    order = acme.order("EXECUTING")

    def work(number: int) -> Callable[[Any], Counter[str]]:
        def run(conn: Connection) -> Counter[str]:
            done: Counter[str] = Counter()
            for n in range(25):
                key = f"{number}-{n}"
                limits = {"max_retries": 1024, "retry_backoff_ms": 1}
                try:
                    attempt = start(conn, acme.id, order, key, **limits)
                    finish(conn, acme.id, attempt["step_attempt_id"], "FAILED", retryable=True, key=key)
                    done["ran"] += 1
                except psycopg.Error as exc:
                    done[str(exc.sqlstate)] += 1
            return done

        return run

    done = sum(sessions.at_once([work(number) for number in range(12)]), Counter[str]())
    assert set(done) <= {"ran", "SL012"}
    rows = everything(acme, order)[3]
    assert [row["attempt_index"] for row in rows] == list(range(1, done["ran"] + 1))
    for before, after in pairwise(rows):
        assert before["finished_at"] <= before["next_retry_at"] <= after["started_at"]
        assert before["next_retry_at"] - before["finished_at"] == timedelta(milliseconds=1)
    assert acme.verify(order) == {}


def test_errors__carry_what_a_worker_acts_on() -> None:
    assert issubclass(LeaseLost, SeleneError)
    assert not LeaseLost.retryable
