"""Whatever ends in the middle of a lease or attempt function, it is there wholly or not at all."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from selene_core.local import LocalDatabase, LocalServerUnavailable, local_database
from tests.support.calls import Row, Tenant
from tests.support.factories import new_id
from tests.support.races import wait_until
from tests.support.raw import Connection
from tests.support.servers import Server
from tests.support.sessions import Session, Sessions
from tests.support.workers import acquire, everything, expired_lease, finish, new_token, release, renew, start

LEASES = "os_core.work_order_leases"
ATTEMPTS = "os_core.work_order_step_attempts"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of the functions on an order, with the key or token by which it can be retried."""

    order: str
    table: str
    run: Callable[[Connection], Any]


def acquiring(tenant: Tenant) -> Call:
    order, token = tenant.order(), new_token()
    return Call(order, LEASES, lambda conn: acquire(conn, tenant.id, order, token, key="k"))


def taking_over(tenant: Tenant) -> Call:
    order, token = tenant.order(), new_token()
    expired_lease(tenant, order, new_token())
    return Call(order, LEASES, lambda conn: acquire(conn, tenant.id, order, token, key="k"))


def renewing(tenant: Tenant) -> Call:
    order, token = tenant.order(), new_token()
    acquire(tenant.app, tenant.id, order, token)
    return Call(order, LEASES, lambda conn: renew(conn, tenant.id, order, token))


def releasing(tenant: Tenant) -> Call:
    order, token = tenant.order(), new_token()
    acquire(tenant.app, tenant.id, order, token)
    return Call(order, LEASES, lambda conn: release(conn, tenant.id, order, token))


def starting(tenant: Tenant) -> Call:
    order = tenant.order()
    return Call(order, ATTEMPTS, lambda conn: start(conn, tenant.id, order, "k"))


def starting_after_a_dead_one(tenant: Tenant) -> Call:
    order = tenant.order()
    start(tenant.app, tenant.id, order, "dead", timeout_ms=1)
    overdue = "SELECT count(*) = 1 FROM os_core.due_step_retries(%s, 10) WHERE work_order_id = %s"
    wait_until(
        lambda: tenant.app.execute(overdue, (tenant.id, order)).fetchone() == (True,), "the attempt is over"
    )
    return Call(order, ATTEMPTS, lambda conn: start(conn, tenant.id, order, "k"))


def finishing(tenant: Tenant) -> Call:
    order = tenant.order()
    attempt = start(tenant.app, tenant.id, order)

    def run(conn: Connection) -> Row:
        return finish(conn, tenant.id, attempt["step_attempt_id"], "FAILED", retryable=True, key="f")

    return Call(order, ATTEMPTS, run)


CALLS = [acquiring, taking_over, renewing, releasing, starting, starting_after_a_dead_one, finishing]
ONCE_MORE_IS_NEW = {renewing}
"""A renewal is not recognised: sent again it holds the lease from then on, which is what its caller wants."""


def stalled(sessions: Sessions, call: Call, place: str) -> tuple[Session, Session, Any]:
    """Send a call and wait until it stands still: before it writes anything, or with its event written."""
    holder, session = sessions.open_as_superuser(), sessions.open()
    if place == "event written":
        # The rows of leases and attempts are written last.
        holder.conn.execute(f"LOCK TABLE {call.table} IN SHARE MODE".encode())
    else:
        holder.conn.execute(
            "SELECT FROM os_core.work_orders_current WHERE work_order_id = %s FOR NO KEY UPDATE",
            (call.order,),
        )
    future = session.start(call.run)
    assert sessions.blockers(session) == {holder.pid}
    return holder, session, future


def check_retry(tenant: Tenant, call: Call, make: Callable[[Tenant], Call], before: tuple[Any, ...]) -> None:
    """Nothing is there; the retry does it all; once more, it is known."""
    assert everything(tenant, call.order) == before
    call.run(tenant.app)
    after = everything(tenant, call.order)
    assert len(after[0]) > len(before[0])
    assert tenant.verify(call.order) == {}
    if make not in ONCE_MORE_IS_NEW:
        call.run(tenant.app)
        assert everything(tenant, call.order) == after
    assert tenant.unsound() == []


@pytest.mark.parametrize("make", CALLS)
@pytest.mark.parametrize("place", ["row lock", "event written"])
@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_killed_backend__leaves_nothing(
    acme: Tenant, sessions: Sessions, make: Callable[[Tenant], Call], place: str, function: str
) -> None:
    call = make(acme)
    before = everything(acme, call.order)
    holder, session, future = stalled(sessions, call, place)
    sessions.admin.execute(f"SELECT {function}(%s)".encode(), (session.pid,))
    assert isinstance(future.exception(), psycopg.Error)
    holder.conn.rollback()
    check_retry(acme, call, make, before)


@pytest.mark.parametrize("make", CALLS)
def test_lost_reply__the_call_is_there(
    acme: Tenant, sessions: Sessions, make: Callable[[Tenant], Call]
) -> None:
    call = make(acme)
    session = sessions.open(autocommit=False)
    answer = call.run(session.conn)
    session.conn.commit()
    session.conn.close()
    after = everything(acme, call.order)
    if make not in ONCE_MORE_IS_NEW:
        again = call.run(acme.app)
        assert again == (False if make is releasing else answer)
        assert everything(acme, call.order) == after


# --- kill -9: the whole server goes down with one backend, and comes back


@pytest.fixture(scope="module")
def mortal(server: Server) -> Iterator[LocalDatabase]:
    """Start a server of the test's own."""
    try:
        with local_database(version=server.version, durable=True) as database:
            yield database
    except LocalServerUnavailable:
        with local_database(durable=True) as database:
            yield database


def alive(conn: Connection) -> bool:
    with suppress(psycopg.OperationalError):
        conn.execute("SELECT 1")
        return True
    return False


def answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), closing(connect_to(url)):
        return True
    return False


def connect_to(url: str) -> Connection:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", CALLS)
def test_kill_9__leaves_nothing(mortal: LocalDatabase, make: Callable[[Tenant], Call]) -> None:
    tenant_id = new_id("acme")
    with closing(Sessions(make_url(mortal.url), make_url(mortal.admin_url))) as sessions:
        acme = sessions.tenant(tenant_id)
        call = make(acme)
        before = everything(acme, call.order)
        _, session, future = stalled(sessions, call, "event written")
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        assert isinstance(future.exception(), psycopg.OperationalError)
        wait_until(lambda: not alive(sessions.admin), "the server ends all other sessions")
    wait_until(lambda: answers(mortal.admin_url), "the server is back", 60)
    with closing(connect_to(mortal.url)) as app, closing(connect_to(mortal.admin_url)) as admin:
        check_retry(Tenant(tenant_id, app, admin), call, make, before)
