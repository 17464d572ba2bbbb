"""Whatever ends in the middle of an append, it is there wholly or not at all, and a retry finds out."""

import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from sqlalchemy.engine import make_url

from selene_core.local import LocalDatabase, LocalServerUnavailable, local_database
from tests.support.calls import Appended, Event, Tenant, append
from tests.support.factories import new_id, wire
from tests.support.races import wait_until
from tests.support.raw import connect
from tests.support.servers import Database, Server
from tests.support.sessions import Session, Sessions

ROOT = Path(__file__).parents[2]
SECONDS = 30


def field_set(order: str, value: object = "Oslo", **given: object) -> Event:
    """Compose a FIELD_SET."""
    return {**wire("FIELD_SET", order, payload={"field_key": "place", "value": value}), **given}


class Middle:
    """A call that stands still in its middle: `events` go in, and `holder` is whom they wait for."""

    def __init__(self, tenant: Tenant, holder: Session, place: str, size: int) -> None:
        self.tenant, self.holder = tenant, holder
        known, other, new = tenant.order(), tenant.order(), new_id()
        thread = "00000000-0000-4000-8000-000000000001"
        match place:
            case "row lock":  # before anything is written
                theirs = field_set(known, "theirs")
                ours = field_set(known, "ours", idempotency_key="ours")
            case "creation":  # in the ledger's unique index
                theirs = wire("WORK_ORDER_CREATED", new, idempotency_key="c")
                ours = theirs
            case "projection":  # the ledger rows are written, the projection is not
                theirs = field_set(known, correlation_id=thread)
                ours = field_set(other, "ours", correlation_id=thread, idempotency_key="ours")
            case _:
                raise AssertionError(place)
        # A batch has written other orders by then, and one more event of this one is to come.
        before = [wire("WORK_ORDER_CREATED", f"a-{new_id()}", idempotency_key="c") for _ in range(3)]
        after = field_set(ours["work_order_id"], "more", idempotency_key="more")
        after["correlation_id"] = ours["correlation_id"]
        self.events = [ours] if size == 1 else [*before, ours, after]
        self.holder.append(tenant.id, theirs)
        self.before = tenant.everything()

    def check_nothing(self) -> None:
        """Nothing of the call is there, and nothing is locked: the retry is as if it had never been sent."""
        self.holder.conn.rollback()
        assert self.tenant.everything() == self.before
        rows = self.tenant.append(*self.events)
        assert not any(row.replayed for row in rows)
        self.check_retry(rows)

    def check_all(self) -> None:
        """Everything of the call is there: the retry gets the originals."""
        rows = self.tenant.append(*self.events)
        assert all(row.replayed for row in rows)
        self.check_retry(rows)

    def check_retry(self, rows: list[Appended]) -> None:
        """Retrying once more changes nothing."""
        again = self.tenant.append(*self.events)
        assert [row.work_order_event_id for row in again] == [row.work_order_event_id for row in rows]
        assert all(row.replayed for row in again)
        stored = {event["work_order_event_id"] for event in self.tenant.ledger()}
        assert {row.work_order_event_id for row in rows} <= stored
        assert len(self.tenant.ledger()) == len(self.before[0]) + len(self.events)
        assert self.tenant.verify() == {}
        assert self.tenant.unsound() == []


@pytest.fixture(params=["row lock", "creation", "projection"])
def place(request: pytest.FixtureRequest) -> str:
    """Name where the call stands still."""
    where: str = request.param
    return where


@pytest.fixture(params=[1, 5], ids=["single", "batch"])
def middle(request: pytest.FixtureRequest, sessions: Sessions, acme: Tenant, place: str) -> Middle:
    """Return a call and somebody for whom it will have to wait."""
    return Middle(acme, sessions.open(autocommit=False), place, request.param)


def start(sessions: Sessions, middle: Middle, session: Session) -> Future[list[Appended]]:
    """Send the call, and wait until it stands still."""
    future = session.start_append(middle.tenant.id, *middle.events)
    assert sessions.blockers(session) == {middle.holder.pid}
    return future


def test_middle__is_where_it_should_be(sessions: Sessions, acme: Tenant, place: str) -> None:
    # Seen from outside: which table's unique index or row the call waits at, by the locks that it has.
    middle = Middle(acme, sessions.open(autocommit=False), place, 1)
    session = sessions.open()
    future = start(sessions, middle, session)
    written = sessions.admin.execute(
        "SELECT relation::regclass::text FROM pg_locks WHERE pid = %s AND mode = 'RowExclusiveLock'"
        " AND relation IN ('os_core.work_order_ledger'::regclass, 'os_core.work_orders_current'::regclass)"
        " ORDER BY 1",
        (session.pid,),
    ).fetchall()
    assert [row[0] for row in written] == {
        "row lock": [],
        "creation": ["os_core.work_order_ledger"],
        "projection": ["os_core.work_order_ledger", "os_core.work_orders_current"],
    }[place]
    middle.holder.conn.rollback()
    assert len(future.result()) == 1


@pytest.mark.parametrize(
    ("function", "sqlstate"), [("pg_terminate_backend", "57P01"), ("pg_cancel_backend", "57014")]
)
def test_killed_backend__leaves_nothing(
    sessions: Sessions, middle: Middle, function: str, sqlstate: str
) -> None:
    session = sessions.open()
    future = start(sessions, middle, session)
    sessions.admin.execute(f"SELECT {function}(%s)".encode(), (session.pid,))
    error = future.exception()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == sqlstate
    middle.check_nothing()


def test_timeout__leaves_nothing(sessions: Sessions, middle: Middle) -> None:
    session = sessions.open()
    session.conn.execute("SET lock_timeout = '200ms'")
    error = session.start_append(middle.tenant.id, *middle.events).exception()
    assert isinstance(error, psycopg.errors.LockNotAvailable)
    middle.check_nothing()
    assert session.append(middle.tenant.id, *middle.events)[0].replayed


def test_dropped_connection__of_a_call_under_way_loses_only_the_answer(
    sessions: Sessions, middle: Middle
) -> None:
    session = sessions.open()
    future = start(sessions, middle, session)
    with socket.socket(fileno=session.conn.pgconn.socket) as line:
        line.shutdown(socket.SHUT_RDWR)
        line.detach()
    assert isinstance(future.exception(), psycopg.OperationalError)
    # The server does not notice while the call waits. It goes on as soon as it can, and commits.
    assert session.conn.broken
    middle.holder.conn.rollback()
    sessions.wait_until_gone(session.pid)
    middle.check_all()


def test_dropped_connection__is_noticed_by_a_server_that_looks(sessions: Sessions, middle: Middle) -> None:
    session = sessions.open()
    session.conn.execute("SET client_connection_check_interval = '50ms'")
    future = start(sessions, middle, session)
    with socket.socket(fileno=session.conn.pgconn.socket) as line:
        line.shutdown(socket.SHUT_RDWR)
        line.detach()
    assert isinstance(future.exception(), psycopg.OperationalError)
    sessions.wait_until_gone(session.pid)
    middle.check_nothing()


CLIENT = """
    import json, sys
    import psycopg

    dsn, tenant_id, events, how = sys.argv[1:]
    with psycopg.connect(dsn, autocommit=how == "autocommit", application_name=tenant_id) as conn:
        conn.execute("SELECT os_core.append_work_order_events(%s, %s)", (tenant_id, events))
        print("appended", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def clients(shared_database: Database) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that append: they are named after their tenant, and say when they have appended."""
    started: list[subprocess.Popen[str]] = []

    def client(tenant_id: str, events: list[Event], how: str) -> subprocess.Popen[str]:
        dsn = shared_database.app_url.set(drivername="postgresql").render_as_string(hide_password=False)
        arguments = [dsn, tenant_id, json.dumps(events), how]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield client
    for process in started:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    """Read the next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_killed_client__in_autocommit_loses_only_the_answer(
    sessions: Sessions, middle: Middle, clients: Callable[..., subprocess.Popen[str]]
) -> None:
    process = clients(middle.tenant.id, middle.events, "autocommit")
    pid = wait_until(lambda: sessions.backend_named(middle.tenant.id), "the client appends")
    blocking = "SELECT %s = ANY (pg_blocking_pids(%s))"
    wait_until(
        lambda: sessions.admin.execute(blocking, (middle.holder.pid, pid)).fetchone() == (True,),
        f"backend {pid} waits",
    )
    process.kill()
    process.wait(SECONDS)
    assert told(process) == ""
    middle.holder.conn.rollback()
    sessions.wait_until_gone(pid)
    middle.check_all()


@pytest.mark.slow
def test_killed_client__before_its_commit_leaves_nothing(
    sessions: Sessions, acme: Tenant, clients: Callable[..., subprocess.Popen[str]]
) -> None:
    order = acme.order()
    before = acme.everything()
    events = [
        field_set(order, 1, idempotency_key="k1"),
        wire("WORK_ORDER_CREATED", idempotency_key="c"),
        field_set(order, 2, idempotency_key="k2"),
    ]
    process = clients(acme.id, events, "in a transaction")
    assert told(process) == "appended"
    pid = sessions.backend_named(acme.id)
    assert pid is not None
    process.kill()
    process.wait(SECONDS)
    sessions.wait_until_gone(pid)
    assert acme.everything() == before
    assert [row.replayed for row in acme.append(*events)] == [False] * 3
    assert [row.replayed for row in acme.append(*events)] == [True] * 3
    assert acme.verify() == {}


# --- a server that dies

WRITERS = 4


@pytest.fixture(scope="module")
def durable(server: Server) -> Iterator[LocalDatabase]:
    """Start a server with the settings of one whose data matter."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(local_database(version=server.version, durable=True))
        except LocalServerUnavailable:
            database = stack.enter_context(local_database(durable=True))
        yield database


class Writer:
    """One who appends until the server is gone, and remembers what it was told."""

    def __init__(self, url: str, tenant_id: str, shared_order: str, number: int) -> None:
        self._url, self._tenant_id, self._order, self._number = make_url(url), tenant_id, shared_order, number
        self.sent: list[list[Event]] = []
        self.told: list[list[Appended]] = []

    def run(self, start: Barrier) -> None:
        """Append until the server ends."""
        with closing(connect(self._url, autocommit=True)) as conn:
            start.wait(SECONDS)
            while True:
                self.sent.append(self._call(len(self.sent)))
                try:
                    self.told.append(append(conn, self._tenant_id, *self.sent[-1]))
                except psycopg.OperationalError:
                    return

    def _call(self, n: int) -> list[Event]:
        shared = field_set(self._order, [self._number, n], idempotency_key=f"{self._number}-{n}")
        if n % 3:
            return [shared]
        new = [new_id() for _ in range(5)]
        return [
            *(wire("WORK_ORDER_CREATED", order, idempotency_key="c") for order in new),
            shared,
            *(field_set(order, n, idempotency_key="f") for order in new),
        ]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [1, 2])
def test_killed_server__keeps_what_it_acknowledged(durable: LocalDatabase, attempt: int) -> None:
    tenant_id, order = new_id("acme"), new_id()
    with closing(connect(make_url(durable.url), autocommit=True)) as conn:
        append(conn, tenant_id, wire("WORK_ORDER_CREATED", order))
    writers = [Writer(durable.url, tenant_id, order, number) for number in range(WRITERS)]
    start = Barrier(WRITERS + 1)
    with ThreadPoolExecutor(WRITERS) as pool:
        running = [pool.submit(writer.run, start) for writer in writers]
        start.wait(SECONDS)
        wait_until(lambda: all(len(writer.told) > 30 * attempt for writer in writers), "everybody writes")
        durable.server.stop(immediate=True)
        for future in running:
            future.result(SECONDS)
    durable.server.start()

    with (
        closing(connect(make_url(durable.url), autocommit=True)) as app,
        closing(connect(make_url(durable.admin_url), autocommit=True)) as admin,
    ):
        acme = Tenant(tenant_id, app, admin)
        assert acme.verify() == {}
        assert acme.unsound() == []
        stored = {event["work_order_event_id"]: event for event in acme.ledger()}
        for writer in writers:
            # One call has no answer: it is there wholly or not at all. All the others are there.
            assert len(writer.sent) == len(writer.told) + 1
            for sent, told in zip(writer.sent, writer.told, strict=False):
                for event, row in zip(sent, told, strict=True):
                    written = stored[row.work_order_event_id]
                    assert written["work_order_seq"] == row.work_order_seq
                    assert written["created_at"] == row.created_at
                    assert written["payload"] == event["payload"]
                assert [row.work_order_event_id for row in acme.append(*sent)] == [
                    row.work_order_event_id for row in told
                ]
            retried = acme.append(*writer.sent[-1])
            assert len({row.replayed for row in retried}) == 1
            assert all(row.replayed for row in acme.append(*writer.sent[-1]))
        events = sum(len(call) for writer in writers for call in writer.sent)
        assert len(acme.ledger()) == 1 + events
        assert acme.verify() == {}
        assert acme.unsound() == []
        assert acme.rebuild().changed == 0
