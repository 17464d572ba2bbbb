"""Many writers at once: no deadlock, no lost or doubled event, and ids in the order of the commits."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event as Flag
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.calls import Appended, Event, Tenant, append, refused
from tests.support.factories import correlation_of, new_id, wire
from tests.support.races import wait_until
from tests.support.raw import Connection
from tests.support.sessions import Session, Sessions

T = TypeVar("T")
WRITERS = 16
Worker = Callable[[Connection], "list[Call]"]


def created(order: str, **given: Any) -> Event:
    """Compose a first event."""
    return {**wire("WORK_ORDER_CREATED", order), **given}


def field_set(order: str, value: Any = "Oslo", **given: Any) -> Event:
    """Compose a FIELD_SET."""
    return {**wire("FIELD_SET", order, payload={"field_key": "place", "value": value}), **given}


# --- sixteen writers


@dataclass(frozen=True, slots=True)
class Call:
    """One answered call: what was sent, what came back, and when on the client's clock."""

    events: tuple[Event, ...]
    rows: tuple[Appended, ...]
    started: float
    ended: float


def call(conn: Connection, tenant_id: str, *events: Event) -> Call:
    """Append events in autocommit and note when."""
    started = time.monotonic()
    rows = append(conn, tenant_id, *events)
    return Call(events, tuple(rows), started, time.monotonic())


@contextmanager
def watched(sessions: Sessions, tenant: Tenant) -> Iterator[None]:
    """Look at the ledger all the while: below an event that was seen, no other may ever come to light."""
    enough, problems, looks = Flag(), list[str](), list[int]()
    conn = sessions.open().conn
    query = "SELECT work_order_id, work_order_event_id FROM os_core.work_order_ledger ORDER BY 1, 2"

    def look() -> None:
        seen: dict[str, list[int]] = {}
        while not enough.is_set():
            with conn.transaction():
                conn.execute(f"SET LOCAL selene.tenant_id = '{tenant.id}'".encode())
                rows = conn.execute(query.encode()).fetchall()
            now: dict[str, list[int]] = {}
            for order, event_id in rows:
                now.setdefault(order, []).append(event_id)
            problems.extend(order for order in seen if now[order][: len(seen[order])] != seen[order])
            seen = now
            looks.append(len(rows))

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield
        wait_until(lambda: any(looks) or not watcher.is_alive(), "the watcher has seen events")
    finally:
        enough.set()
        watcher.join()
    assert problems == []
    assert any(looks)


def run(sessions: Sessions, tenant: Tenant, workers: list[Worker], *, watch: bool = True) -> list[Call]:
    """Let the workers loose at the same moment, and check everything that must hold whatever they did."""
    if watch:
        with watched(sessions, tenant):
            answers = sessions.at_once(workers)
    else:
        answers = sessions.at_once(workers)
    calls = [one for answer in answers for one in answer]
    ledger = {event["work_order_event_id"]: event for event in tenant.ledger()}

    # The ledger is as it should be, and the projection is its fold.
    assert tenant.unsound() == []
    assert tenant.verify() == {}

    # Every answer is true, and every event was answered once as a new one.
    answered = []
    for one in calls:
        for event, row in zip(one.events, one.rows, strict=True):
            stored = ledger[row.work_order_event_id]
            assert (stored["work_order_id"], stored["idempotency_key"], stored["work_order_seq"]) == (
                event["work_order_id"],
                event.get("idempotency_key"),
                row.work_order_seq,
            )
            assert stored["created_at"] == row.created_at
            assert stored["payload"] == event["payload"]
            if not row.replayed:
                answered.append(row.work_order_event_id)
    assert len(answered) == len(set(answered))

    # A call that began when another had been answered has the greater ids.
    times: dict[str, list[tuple[float, float, list[int]]]] = {}
    for one in calls:
        ids: dict[str, list[int]] = {}
        for event, row in zip(one.events, one.rows, strict=True):
            if not row.replayed:
                ids.setdefault(event["work_order_id"], []).append(row.work_order_event_id)
        for order, event_ids in ids.items():
            times.setdefault(order, []).append((one.started, one.ended, event_ids))
    for of_order in times.values():
        answered_so_far = sorted(of_order, key=lambda entry: entry[1])
        greatest, position = 0, 0
        for started, _, event_ids in sorted(of_order):
            while answered_so_far[position][1] < started:
                greatest = max(greatest, *answered_so_far[position][2])
                position += 1
            assert min(event_ids) > greatest
    return calls


def shuffled(items: Iterable[T], seed: object) -> list[T]:
    """Return the items in an order of the seed's own."""
    listed = [*items]
    random.Random(repr(seed)).shuffle(listed)
    return listed


def test_sixteen__append_to_one_order(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()

    def worker(number: int) -> Worker:
        return lambda conn: [
            call(conn, acme.id, field_set(order, [number, n]))
            if n % 4
            else call(conn, acme.id, *(field_set(order, [number, n, m]) for m in range(3)))
            for n in range(20)
        ]

    run(sessions, acme, [worker(number) for number in range(WRITERS)])
    assert acme.projection(order)["last_seq"] == 1 + WRITERS * (15 + 5 * 3)


def test_sixteen__append_to_many_orders(sessions: Sessions, acme: Tenant) -> None:
    orders = [acme.order() for _ in range(20)]

    def worker(number: int) -> Worker:
        return lambda conn: [
            call(conn, acme.id, field_set(order, [number, n]))
            for n in range(2)
            for order in shuffled(orders, (number, n))
        ]

    run(sessions, acme, [worker(number) for number in range(WRITERS)])
    assert {row["last_seq"] for row in acme.projections().values()} == {1 + 2 * WRITERS}


def test_sixteen__batches_over_several_orders(sessions: Sessions, acme: Tenant) -> None:
    orders = [acme.order() for _ in range(12)]

    def worker(number: int) -> Worker:
        return lambda conn: [
            call(
                conn,
                acme.id,
                *(field_set(order, [number, n]) for order in shuffled(orders * 2, (number, n))[:15]),
            )
            for n in range(12)
        ]

    calls = run(sessions, acme, [worker(number) for number in range(WRITERS)])
    assert len(calls) == WRITERS * 12
    assert len(acme.ledger()) == 12 + WRITERS * 12 * 15


@pytest.mark.parametrize("size", [1, 5, 50])
def test_sixteen__create_the_same_orders(sessions: Sessions, acme: Tenant, size: int) -> None:
    orders = [new_id() for _ in range(50)]

    def worker(number: int) -> Worker:
        mine = shuffled(orders, number)
        groups = [mine[start : start + size] for start in range(0, len(mine), size)]
        return lambda conn: [
            call(conn, acme.id, *(created(order, idempotency_key="c") for order in group)) for group in groups
        ]

    calls = run(sessions, acme, [worker(number) for number in range(WRITERS)])
    # One row an order, and everybody was told the same id.
    assert len(acme.ledger()) == 50
    told = {
        (event["work_order_id"], row.work_order_event_id)
        for one in calls
        for event, row in zip(one.events, one.rows, strict=True)
    }
    assert len(told) == 50
    assert sum(not row.replayed for one in calls for row in one.rows) == 50


def test_sixteen__create_the_same_orders_without_a_key(sessions: Sessions, acme: Tenant) -> None:
    orders = [new_id() for _ in range(50)]

    def create(conn: Connection, order: str) -> str | None:
        try:
            append(conn, acme.id, created(order))
        except psycopg.Error as error:
            return error.sqlstate
        return None

    def worker(number: int) -> Callable[[Connection], list[str | None]]:
        return lambda conn: [create(conn, order) for order in shuffled(orders, number)]

    answers = sessions.at_once([worker(number) for number in range(WRITERS)])
    states = [state for answer in answers for state in answer]
    assert states.count(None) == 50
    assert states.count("SL007") == 50 * (WRITERS - 1)
    assert len(acme.ledger()) == 50
    assert acme.verify() == {}
    assert acme.unsound() == []


def test_sixteen__share_their_keys(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()
    events = [field_set(order, n, idempotency_key=f"k{n}") for n in range(60)]

    def worker(number: int) -> Worker:
        mine = shuffled(events, number)
        if number % 2:
            return lambda conn: [call(conn, acme.id, event) for event in mine]
        return lambda conn: [call(conn, acme.id, *mine[start : start + 7]) for start in range(0, 60, 7)]

    calls = run(sessions, acme, [worker(number) for number in range(WRITERS)])
    told = {
        (event["idempotency_key"], row.work_order_event_id)
        for one in calls
        for event, row in zip(one.events, one.rows, strict=True)
    }
    assert len(told) == 60
    assert len(acme.ledger()) == 61


def test_sixteen__create_append_and_replay(sessions: Sessions, acme: Tenant) -> None:
    orders = [new_id() for _ in range(10)]

    def worker(number: int) -> Worker:
        def work(conn: Connection) -> list[Call]:
            chance, known, calls = random.Random(number), set[str](), []
            for n in range(25):
                chosen = chance.sample(orders, chance.randint(1, 4))
                batch = [created(order, idempotency_key="c") for order in chosen if order not in known]
                for order in chosen:
                    batch += [
                        field_set(order, n, idempotency_key=f"k{n}"),
                        field_set(order, [number, n]),
                        field_set(order, n, idempotency_key=f"k{n}"),
                    ]
                if chance.random() < 0.5:
                    calls.append(call(conn, acme.id, *batch))
                else:
                    calls += [call(conn, acme.id, event) for event in batch]
                known.update(chosen)
            return calls

        return work

    calls = run(sessions, acme, [worker(number) for number in range(WRITERS)])
    keys = [(event["work_order_id"], event["idempotency_key"]) for event in acme.ledger()]
    keyed = [key for key in keys if key[1] is not None]
    assert len(keyed) == len(set(keyed))
    assert len(keys) == sum(not row.replayed for one in calls for row in one.rows)


@pytest.mark.parametrize("same", [False, True], ids=["distinct orders", "the same orders"])
def test_sixteen__batches_of_a_thousand_new_orders(sessions: Sessions, acme: Tenant, same: bool) -> None:
    # With the lock table as small as it is by default; a lock for each new order would fill it.
    assert acme.admin.execute("SHOW max_locks_per_transaction").fetchone() == ("64",)
    shared = [new_id() for _ in range(1000)]

    def worker(number: int) -> Worker:
        orders = shuffled(shared, number) if same else [new_id() for _ in range(1000)]
        batch = [created(order, idempotency_key="c") for order in orders]
        return lambda conn: [call(conn, acme.id, *batch)]

    calls = run(sessions, acme, [worker(number) for number in range(WRITERS)], watch=False)
    assert len(acme.ledger()) == (1000 if same else 16_000)
    if same:
        # All of them lost to one whole batch, and then replayed.
        assert sorted(sum(row.replayed for row in one.rows) for one in calls) == [0] + [1000] * 15


def test_sixteen__half_new_and_half_known_orders(sessions: Sessions, acme: Tenant) -> None:
    known, new = [acme.order() for _ in range(20)], [new_id() for _ in range(20)]

    def worker(number: int) -> Worker:
        def batch(n: int) -> list[Event]:
            chosen = shuffled(known + new, (number, n))[:12]
            return [
                event
                for order in chosen
                for event in (
                    *([created(order, idempotency_key="c")] if order in new else []),
                    field_set(order, [number, n]),
                )
            ]

        return lambda conn: [call(conn, acme.id, *batch(n)) for n in range(8)]

    run(sessions, acme, [worker(number) for number in range(WRITERS)])
    # Every event but the creations that lost is there.
    fields = [event for event in acme.ledger() if event["event_type"] == "FIELD_SET"]
    assert len(fields) == WRITERS * 8 * 12


@pytest.mark.parametrize("size", [1, 10])
def test_sixteen__of_two_tenants_create_the_same_ids(sessions: Sessions, acme: Tenant, size: int) -> None:
    rival = sessions.tenant(new_id("rival"))
    ids = [new_id() for _ in range(40)]

    def create(conn: Connection, tenant_id: str, group: list[str]) -> str | None:
        try:
            append(
                conn,
                tenant_id,
                *(
                    created(each, idempotency_key="c", correlation_id=str(correlation_of(tenant_id + each)))
                    for each in group
                ),
            )
        except psycopg.Error as error:
            return error.sqlstate
        return None

    def worker(number: int) -> Callable[[Connection], list[str | None]]:
        tenant_id = (acme, rival)[number % 2].id
        mine = shuffled(ids, number)
        groups = [mine[start : start + size] for start in range(0, len(mine), size)]
        return lambda conn: [create(conn, tenant_id, group) for group in groups]

    answers = sessions.at_once([worker(number) for number in range(WRITERS)])
    assert {state for answer in answers for state in answer} == {None, "SL015"}
    for tenant in (acme, rival):
        assert tenant.verify() == {}
        assert tenant.unsound() == []
    if size == 1:
        assert len(acme.ledger()) + len(rival.ledger()) == 40


def test_sixteen__take_each_others_correlations(sessions: Sessions, acme: Tenant) -> None:
    orders = [acme.order() for _ in range(6)]
    threads = [str(uuid4()) for _ in range(4)]

    def move(conn: Connection, chance: random.Random) -> str | None:
        try:
            append(conn, acme.id, field_set(chance.choice(orders), correlation_id=chance.choice(threads)))
        except psycopg.Error as error:
            return error.sqlstate
        return None

    def worker(number: int) -> Callable[[Connection], list[str | None]]:
        chance = random.Random(number)
        return lambda conn: [move(conn, chance) for _ in range(40)]

    answers = sessions.at_once([worker(number) for number in range(WRITERS)])
    # 40001: the one who held it gave it up while this one looked who it was.
    assert {state for answer in answers for state in answer} <= {None, "SL014", "40001"}
    assert acme.verify() == {}
    assert acme.unsound() == []


# --- two sessions, one step at a time: who waits for whom is seen, not hoped for


@pytest.fixture
def other(sessions: Sessions) -> Session:
    """Return a session in a transaction that ends when the test says so."""
    return sessions.open(autocommit=False)


class Waiting:
    """Starts calls that have to wait for another session's transaction."""

    def __init__(self, sessions: Sessions, tenant: Tenant, holder: Session) -> None:
        self._sessions, self._tenant, self._holder = sessions, tenant, holder

    def __call__(self, *events: Event) -> Future[list[Appended]]:
        """Start to append; return once the call waits for the holder and nobody else."""
        session = self._sessions.open()
        future = session.start_append(self._tenant.id, *events)
        assert self._sessions.blockers(session) == {self._holder.pid}
        return future


@pytest.fixture
def waiting(sessions: Sessions, acme: Tenant, other: Session) -> Waiting:
    """Start calls that wait for the session `other`."""
    return Waiting(sessions, acme, other)


def last_number(admin: Connection) -> int:
    """Return the last event id that the sequence gave out."""
    row = admin.execute("SELECT last_value FROM os_core.work_order_ledger_work_order_event_id_seq").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("more", [0, 2], ids=["single", "batch"])
@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_creation__with_the_same_key_waits_and_replays(
    acme: Tenant, other: Session, end: str, more: int, waiting: Waiting
) -> None:
    first = created(new_id(), idempotency_key="c")
    [original] = other.append(acme.id, first)
    rest = [field_set(first["work_order_id"], n) for n in range(more)]
    future = waiting(first, *rest)
    getattr(other.conn, end)()
    row, *following = future.result()
    assert row.replayed is (end == "commit")
    assert (row.work_order_event_id == original.work_order_event_id) is (end == "commit")
    # What it sent besides follows on the other's creation.
    assert [one.work_order_seq for one in following] == [*range(2, 2 + more)]
    assert len(acme.ledger()) == 1 + more
    assert acme.verify() == {}
    assert acme.unsound() == []


@pytest.mark.parametrize("more", [0, 2], ids=["single", "batch"])
@pytest.mark.parametrize(
    ("given", "sqlstate"),
    [({}, "SL007"), ({"idempotency_key": "c", "turn_id": 9}, "SL005"), ({"expected_seq": 0}, "SL006")],
    ids=["no key", "other content", "expected_seq"],
)
@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_creation__that_lost_is_refused(
    acme: Tenant, other: Session, end: str, given: Event, sqlstate: str, more: int, waiting: Waiting
) -> None:
    order = new_id()
    other.append(acme.id, created(order, idempotency_key="c"), field_set(order, "theirs"))
    rest = [field_set(order, n) for n in range(more)]
    future = waiting(created(order, **given), *rest)
    getattr(other.conn, end)()
    if end == "rollback":
        assert [row.work_order_seq for row in future.result()] == [*range(1, 2 + more)]
    else:
        with refused(sqlstate) as refusal:
            future.result()
        assert refusal.facts["event_index"] == 0
    assert len(acme.ledger(order)) == (2 if end == "commit" else 1 + more)
    assert acme.verify() == {}
    assert acme.unsound() == []


def test_creation__replays_although_the_order_has_ended_meanwhile(
    acme: Tenant, other: Session, waiting: Waiting
) -> None:
    first = created(new_id(), idempotency_key="c")
    canceled = wire("WORK_ORDER_CANCELED", first["work_order_id"], idempotency_key="x")
    originals = other.append(acme.id, first, canceled)
    single = waiting(first)
    batch = waiting(first, canceled)
    other.conn.commit()
    again = [*single.result(), *batch.result()]
    assert all(row.replayed for row in again)
    assert [row.work_order_event_id for row in again] == [
        originals[0].work_order_event_id,
        *(row.work_order_event_id for row in originals),
    ]


def test_creation__of_two_orders_by_two_batches(
    sessions: Sessions, acme: Tenant, other: Session, waiting: Waiting
) -> None:
    # Sent in opposite orders: the second batch waits before it holds anything that the first needs.
    one, two = f"a-{new_id()}", f"b-{new_id()}"
    other.append(acme.id, created(two, idempotency_key="c"))
    first = waiting(created(two, idempotency_key="c"), created(one, idempotency_key="c"))
    second = sessions.open()
    late = second.start_append(acme.id, created(one, idempotency_key="c"), created(two, idempotency_key="c"))
    sessions.blockers(second)
    other.conn.rollback()
    rows = first.result() + late.result()
    assert sorted(row.replayed for row in rows) == [False, False, True, True]
    assert len(acme.ledger()) == 2
    assert acme.verify() == {}


def test_batch__loses_an_order_and_gives_back_what_it_holds_before_it_waits(
    sessions: Sessions, acme: Tenant
) -> None:
    new, own, held = f"a-{new_id()}", f"m-{new_id()}", f"z-{new_id()}"
    acme.append(created(held))
    keeper, rival = sessions.open(autocommit=False), sessions.open(autocommit=False)

    # The batch has looked for its orders and waits for the one that exists.
    keeper.append(acme.id, field_set(held, "keeper"))
    batch = sessions.open()
    future = batch.start_append(
        acme.id, created(new, idempotency_key="c"), created(own), field_set(held, "batch")
    )
    assert sessions.blockers(batch) == {keeper.pid}

    # Meanwhile another creates the new one, and goes on working with it.
    acme.append(created(new, idempotency_key="c"))
    rival.append(acme.id, field_set(new, "rival"))

    # The batch loses it, and waits for its new owner with empty hands.
    keeper.conn.commit()
    wait_until(lambda: sessions.blockers(batch) == {rival.pid}, "the batch waits for the rival")
    rival.append(acme.id, field_set(held, "rival"))
    rival.append(acme.id, created(own, idempotency_key="o"))
    assert not future.done()
    rival.conn.rollback()

    rows = future.result()
    assert [(row.work_order_seq, row.replayed) for row in rows] == [(1, True), (1, False), (3, False)]
    assert acme.verify() == {}
    assert acme.unsound() == []


def test_batch__with_a_new_order_waits_for_the_one_that_another_holds(
    acme: Tenant, other: Session, waiting: Waiting
) -> None:
    new, held = new_id(), acme.order()
    other.append(acme.id, field_set(held, "theirs"))
    future = waiting(created(new), field_set(held, "ours"), field_set(new))
    # It has not begun to write: the new order is free.
    acme.append(created(new, idempotency_key="c"))
    other.conn.commit()
    with refused("SL007") as refusal:
        future.result()
    assert refusal.facts["event_index"] == 0
    assert len(acme.ledger(held)) == 2
    assert acme.verify() == {}


@pytest.mark.parametrize("size", [1, 3], ids=["single", "batch"])
def test_append__waits_for_another_and_takes_its_number_after(
    acme: Tenant, other: Session, size: int, waiting: Waiting
) -> None:
    order = acme.order()
    [theirs] = other.append(acme.id, field_set(order, "theirs"))
    number = last_number(acme.admin)
    future = waiting(*(field_set(order, n) for n in range(size)))
    assert last_number(acme.admin) == number
    # Other orders do not wait.
    acme.append(*(created(new_id()) for _ in range(3)))
    between = last_number(acme.admin)
    other.conn.commit()
    rows = future.result()
    assert [row.work_order_seq for row in rows] == [*range(3, 3 + size)]
    assert all(row.work_order_event_id > between > theirs.work_order_event_id for row in rows)
    assert all(row.created_at >= theirs.created_at for row in rows)
    assert acme.verify() == {}


@pytest.mark.parametrize("end", ["rollback", "commit"])
@pytest.mark.parametrize("size", [1, 3], ids=["single", "batch"])
def test_append__a_retry_waits_for_the_uncommitted_original(
    acme: Tenant, other: Session, size: int, end: str, waiting: Waiting
) -> None:
    order = acme.order()
    events = [field_set(order, n, idempotency_key=f"k{n}") for n in range(size)]
    originals = other.append(acme.id, *events)
    future = waiting(*events)
    getattr(other.conn, end)()
    rows = future.result()
    assert {row.replayed for row in rows} == {end == "commit"}
    if end == "commit":
        assert [row.work_order_event_id for row in rows] == [row.work_order_event_id for row in originals]
    assert len(acme.ledger(order)) == 1 + size
    assert acme.verify() == {}


@pytest.mark.parametrize("size", [1, 2], ids=["single", "batch"])
@pytest.mark.parametrize(
    ("theirs", "ours", "sqlstate"),
    [
        ({"work_order_status": "DONE"}, {}, "SL007"),
        ({}, {"expected_seq": 1}, "SL006"),
        ({"idempotency_key": "k"}, {"idempotency_key": "k", "turn_id": 5}, "SL005"),
    ],
    ids=["ended", "expected_seq", "other content"],
)
def test_append__is_judged_by_what_it_waited_for(
    acme: Tenant, other: Session, theirs: Event, ours: Event, sqlstate: str, size: int, waiting: Waiting
) -> None:
    order = acme.order()
    other.append(acme.id, field_set(order, **theirs))
    events = [field_set(order, **ours), field_set(order, "more")][:size]
    future = waiting(*events)
    other.conn.commit()
    with refused(sqlstate):
        future.result()
    assert len(acme.ledger(order)) == 2


# --- frozen snapshots: a conflict is 40001, and the next transaction gets it right

FROZEN = pytest.mark.parametrize(
    "isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE], ids=lambda level: level.name
)
SIZES = pytest.mark.parametrize("size", [1, 2], ids=["single", "batch"])


def frozen(sessions: Sessions, isolation: IsolationLevel) -> Session:
    """Open a session in a transaction that has its snapshot."""
    session = sessions.open(autocommit=False, isolation=isolation)
    session.conn.execute("SELECT FROM os_core.work_order_ledger")
    return session


def fails_and_succeeds_later(session: Session, acme: Tenant, *events: Event) -> list[Appended]:
    """Send what cannot be serialised, and again in a new transaction; return what came of it."""
    before = acme.everything()
    with refused("40001"):
        session.append(acme.id, *events)
    session.conn.rollback()
    assert acme.everything() == before
    rows = session.append(acme.id, *events)
    session.conn.commit()
    assert acme.verify() == {}
    assert acme.unsound() == []
    return rows


@FROZEN
@SIZES
def test_frozen__order_appended_by_another(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, size: int
) -> None:
    order = acme.order()
    session = frozen(sessions, isolation)
    acme.append(field_set(order, "theirs"))
    rows = fails_and_succeeds_later(session, acme, *(field_set(order, n) for n in range(size)))
    assert [row.work_order_seq for row in rows] == [*range(3, 3 + size)]


@FROZEN
@SIZES
def test_frozen__key_used_by_another(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, size: int
) -> None:
    order = acme.order()
    events = [field_set(order, n, idempotency_key=f"k{n}") for n in range(size)]
    session = frozen(sessions, isolation)
    originals = acme.append(*events)
    rows = fails_and_succeeds_later(session, acme, *events)
    assert all(row.replayed for row in rows)
    assert [row.work_order_event_id for row in rows] == [row.work_order_event_id for row in originals]


@FROZEN
@SIZES
def test_frozen__order_created_by_another(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, size: int
) -> None:
    events = [created(new_id(), idempotency_key="c") for _ in range(size)]
    session = frozen(sessions, isolation)
    acme.append(events[-1])
    rows = fails_and_succeeds_later(session, acme, *events)
    assert [row.replayed for row in rows] == [False] * (size - 1) + [True]


@FROZEN
@SIZES
@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_frozen__waits_for_another(
    sessions: Sessions, acme: Tenant, other: Session, isolation: IsolationLevel, size: int, end: str
) -> None:
    order, new = acme.order(), new_id()
    for theirs in (field_set(order, "theirs"), created(new, idempotency_key="c")):
        ours = [{**theirs}, field_set(theirs["work_order_id"], "more")][:size]
        session = frozen(sessions, isolation)
        other.append(acme.id, theirs)
        future = session.start_append(acme.id, *ours)
        assert sessions.blockers(session) == {other.pid}
        getattr(other.conn, end)()
        if end == "commit":
            with refused("40001"):
                future.result()
            session.conn.rollback()
        else:
            assert len(future.result()) == size
            session.conn.commit()
        assert acme.verify() == {}
        assert acme.unsound() == []


@FROZEN
@SIZES
@pytest.mark.parametrize("new", [False, True], ids=["known order", "new order"])
def test_frozen__correlation_taken_by_another(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, size: int, new: bool
) -> None:
    thread = str(uuid4())
    order, holder, besides = acme.order(), acme.order(), acme.order()
    session = frozen(sessions, isolation)
    acme.append(field_set(holder, correlation_id=thread))
    events = [field_set(besides)][: size - 1]
    events.append(
        created(new_id(), correlation_id=thread) if new else field_set(order, correlation_id=thread)
    )
    with refused("40001"):
        session.append(acme.id, *events)
    session.conn.rollback()
    # The next transaction is told what the matter is, and goes on once it is free.
    with refused("SL014"):
        session.append(acme.id, *events)
    session.conn.rollback()
    acme.append(field_set(holder))
    assert len(session.append(acme.id, *events)) == size
    session.conn.commit()
    assert acme.verify() == {}


@FROZEN
@SIZES
def test_frozen__id_taken_by_another_tenant(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, size: int
) -> None:
    rival = sessions.tenant(new_id("rival"))
    events = [created(new_id()) for _ in range(size)]
    session = frozen(sessions, isolation)
    rival.append(events[-1])
    for sqlstate in ("40001", "SL015"):
        with refused(sqlstate) as refusal:
            session.append(acme.id, *events)
        assert rival.id not in str(refusal)
        session.conn.rollback()
    assert acme.ledger() == []


def test_serializable__two_that_read_what_the_other_writes(sessions: Sessions, acme: Tenant) -> None:
    # Each cancels its order because the other's is still open: one of the two has to fail.
    one, two = acme.order(), acme.order()
    states = []
    pair = [sessions.open(autocommit=False, isolation=IsolationLevel.SERIALIZABLE) for _ in range(2)]
    try:
        for session, mine, others in zip(pair, (one, two), (two, one), strict=True):
            session.conn.execute(f"SET LOCAL selene.tenant_id = '{acme.id}'".encode())
            states += session.conn.execute(
                "SELECT work_order_status FROM os_core.work_orders_current WHERE work_order_id = %s",
                (others,),
            ).fetchall()
            session.append(acme.id, wire("WORK_ORDER_CANCELED", mine))
    except psycopg.errors.SerializationFailure:
        pair[1].conn.rollback()
    outcomes = []
    for session in pair:
        try:
            session.conn.commit()
            outcomes.append("committed")
        except psycopg.errors.SerializationFailure:
            outcomes.append("failed")
    canceled = [row for row in acme.projections().values() if row["work_order_status"] == "CANCELED"]
    assert states[0] == ("DRAFT",)
    assert len(canceled) == 1
    assert acme.verify() == {}


# --- correlations and ids that others hold


@SIZES
@pytest.mark.parametrize("new", [False, True], ids=["known order", "new order"])
def test_correlation__of_another_order_is_refused(acme: Tenant, size: int, new: bool) -> None:
    holder, order, besides = acme.order(), acme.order(), acme.order()
    thread = str(correlation_of(holder))
    mine = new_id() if new else order
    event = (created if new else field_set)(mine, correlation_id=thread)
    before = acme.everything()
    with refused("SL014") as refusal:
        acme.append(*[field_set(besides)][: size - 1], event)
    assert refusal.facts == {"work_order_id": mine, "correlation_id": thread}
    assert acme.everything() == before


def test_correlation__belongs_to_one_tenant(sessions: Sessions, acme: Tenant) -> None:
    rival, thread = sessions.tenant(new_id("rival")), str(uuid4())
    for tenant in (acme, rival):
        tenant.append(created(new_id(), correlation_id=thread))
        assert tenant.verify() == {}


@SIZES
@pytest.mark.parametrize("end", ["rollback", "commit"])
@pytest.mark.parametrize("new", [False, True], ids=["known order", "new order"])
def test_correlation__that_is_being_taken_is_waited_for(
    acme: Tenant, other: Session, size: int, end: str, new: bool, waiting: Waiting
) -> None:
    holder, order, besides, thread = acme.order(), acme.order(), acme.order(), str(uuid4())
    other.append(acme.id, field_set(holder, correlation_id=thread))
    event = created(new_id(), correlation_id=thread) if new else field_set(order, correlation_id=thread)
    future = waiting(*[field_set(besides)][: size - 1], event)
    getattr(other.conn, end)()
    if end == "commit":
        with refused("SL014"):
            future.result()
    else:
        assert len(future.result()) == size
    assert acme.verify() == {}


def test_correlation__that_is_being_left_is_still_held(acme: Tenant, other: Session) -> None:
    # Nobody waits for what another may be about to leave: two who each want the other's would wait for ever.
    holder, order = acme.order(), acme.order()
    take = field_set(order, correlation_id=str(correlation_of(holder)))
    other.append(acme.id, field_set(holder, correlation_id=str(uuid4())))
    with refused("SL014"):
        acme.append(take)
    other.conn.commit()
    assert len(acme.append(take)) == 1
    assert acme.verify() == {}


@pytest.mark.parametrize("new", [False, True], ids=["known order", "new order"])
@pytest.mark.parametrize("taker_first", [False, True], ids=["left first", "taken first"])
def test_correlation__left_by_one_and_taken_by_another_in_a_batch(
    acme: Tenant, new: bool, taker_first: bool
) -> None:
    for letters in ("az", "za"):  # whichever comes first in the sorted order
        leaver, taker = (f"{letter}-{new_id()}" for letter in letters)
        acme.append(created(leaver))
        if not new:
            acme.append(created(taker))
        thread = str(correlation_of(leaver))
        leave = field_set(leaver, correlation_id=str(uuid4()))
        take = (created if new else field_set)(taker, correlation_id=thread)
        acme.append(*((take, leave) if taker_first else (leave, take)))
        assert str(acme.projection(taker)["correlation_id"]) == thread
        assert acme.verify() == {}


def test_correlation__exchanged_round_a_circle_in_a_batch(acme: Tenant) -> None:
    orders = [acme.order() for _ in range(7)]
    for step in (1, 3, 6):
        moves = [
            field_set(order, correlation_id=str(acme.projection(after)["correlation_id"]))
            for order, after in zip(orders, orders[step:] + orders[:step], strict=True)
        ]
        acme.append(*shuffled(moves, step))
        assert acme.verify() == {}
        held = [str(acme.projection(order)["correlation_id"]) for order in orders]
        assert held == [move["correlation_id"] for move in moves]


def test_correlation__an_exchange_with_an_outsider_in_it_is_refused(acme: Tenant) -> None:
    one, two, outsider = acme.order(), acme.order(), acme.order()
    before = acme.everything()
    with refused("SL014") as refusal:
        acme.append(
            field_set(one, correlation_id=str(correlation_of(two))),
            field_set(two, correlation_id=str(correlation_of(outsider))),
        )
    assert refusal.facts == {"work_order_id": two, "correlation_id": str(correlation_of(outsider))}
    assert acme.everything() == before


def test_correlation__two_orders_of_a_batch_want_the_same(acme: Tenant) -> None:
    one, thread = acme.order(), str(uuid4())
    before = acme.everything()
    for two in (created(new_id(), correlation_id=thread), field_set(acme.order(), correlation_id=thread)):
        before = acme.everything()
        with refused("SL014") as refusal:
            acme.append(field_set(one, correlation_id=thread), two)
        assert refusal.facts["correlation_id"] == thread
        assert acme.everything() == before


def test_correlation__two_batches_take_the_same_two_in_opposite_orders(
    sessions: Sessions, acme: Tenant, other: Session
) -> None:
    # Each has taken its first, and waits at a gate, when it goes for the other's.
    threads, gates = [str(uuid4()), str(uuid4())], [str(uuid4()), str(uuid4())]
    other.append(acme.id, *(created(new_id(), correlation_id=gate) for gate in gates))
    futures = []
    for n in range(2):
        session = sessions.open()
        futures.append(
            session.start_append(
                acme.id,
                created(f"a-{new_id()}", correlation_id=threads[n]),
                created(f"m-{new_id()}", correlation_id=gates[n]),
                created(f"z-{new_id()}", correlation_id=threads[1 - n]),
            )
        )
        assert sessions.blockers(session) == {other.pid}
    other.conn.rollback()
    states = set()
    for future in futures:
        error = future.exception()
        states.add(error.sqlstate if isinstance(error, psycopg.Error) else None)
    assert states == {None, "SL014"}
    assert acme.verify() == {}


@SIZES
@pytest.mark.parametrize("place", ["a", "z"])
def test_work_order_id__of_another_tenant_is_not_available(
    sessions: Sessions, acme: Tenant, size: int, place: str
) -> None:
    rival = sessions.tenant(new_id("rival"))
    theirs = f"{place}-{new_id()}"
    rival.append(created(theirs, payload={"fields": {"secret": "of-the-rival"}}))
    rival.append(field_set(theirs))
    before = acme.everything(), rival.everything()
    for _ in range(2):
        with refused("SL015") as refusal:
            acme.append(*[created(f"m-{new_id()}")][: size - 1], created(theirs))
        assert refusal.facts == {"work_order_id": theirs}
        assert refusal.message == f"work_order_id {theirs} is not available"
    assert (acme.everything(), rival.everything()) == before


@pytest.mark.parametrize("end", ["rollback", "commit"])
@SIZES
def test_work_order_id__that_another_tenant_is_taking_is_waited_for(
    acme: Tenant, other: Session, size: int, end: str, waiting: Waiting
) -> None:
    order = new_id()
    other.append(new_id("rival"), created(order))
    future = waiting(created(order), *[created(new_id())][: size - 1])
    getattr(other.conn, end)()
    if end == "commit":
        with refused("SL015") as refusal:
            future.result()
        assert refusal.facts == {"work_order_id": order}
    else:
        assert len(future.result()) == size
    assert acme.verify() == {}


def test_work_order_id__is_named_rightly_where_correlations_move_too(
    sessions: Sessions, acme: Tenant
) -> None:
    # The unavailable one is the last; another of the batch takes the thread that a third one leaves.
    rival, leaver, theirs = sessions.tenant(new_id("rival")), acme.order(), f"z-{new_id()}"
    rival.append(created(theirs))
    with refused("SL015") as refusal:
        acme.append(
            field_set(leaver, correlation_id=str(uuid4())),
            created(f"a-{new_id()}", correlation_id=str(correlation_of(leaver))),
            created(theirs),
        )
    assert refusal.facts == {"work_order_id": theirs}
