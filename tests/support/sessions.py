"""Several sessions at once, and calls that wait for each other in threads of their own."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any, TypeVar

from psycopg import IsolationLevel
from sqlalchemy.engine import URL

from tests.support.calls import Appended, Tenant, append
from tests.support.pooler import is_pooled
from tests.support.races import DEADLINE_SECONDS, wait_until
from tests.support.raw import Connection, connect

T = TypeVar("T")


class Session:
    """A connection, and its backend's process id."""

    def __init__(self, conn: Connection, pool: ThreadPoolExecutor, pid: Callable[[], int | None]) -> None:
        self.conn = conn
        self._find_pid = pid
        self._pool = pool
        self._started: list[Future[Any]] = []

    @property
    def pid(self) -> int | None:
        """The process id of its backend; behind a pooler None between two transactions."""
        return self._find_pid()

    def append(self, tenant_id: str, *events: Mapping[str, Any]) -> list[Appended]:
        """Append events in one call."""
        return append(self.conn, tenant_id, *events)

    def start(self, call: Callable[[Connection], T]) -> Future[T]:
        """Run a call on this session in a thread of its own."""
        future = self._pool.submit(call, self.conn)
        self._started.append(future)
        return future

    def start_append(self, tenant_id: str, *events: Mapping[str, Any]) -> Future[list[Appended]]:
        """Append events in a thread: the call will have to wait for another session."""
        return self.start(lambda conn: append(conn, tenant_id, *events))

    def running(self) -> list[Future[Any]]:
        """Return the calls that have not come back."""
        return [future for future in self._started if not future.done()]


class Sessions:
    """The sessions of one test. What still runs at its end is terminated, so that no thread stays."""

    def __init__(self, app_url: URL, admin_url: URL) -> None:
        self.urls = (app_url, admin_url)
        self._url, self._admin_url = self.urls
        self.admin = connect(admin_url, autocommit=True)
        self._pool = ThreadPoolExecutor(max_workers=64)
        self._open: list[Session] = []

    def open(self, *, autocommit: bool = True, isolation: IsolationLevel | None = None) -> Session:
        """Open a session of the application's."""
        name = f"session-{secrets.token_hex(8)}"
        conn = connect(self._url.update_query_dict({"application_name": name}), autocommit=autocommit)
        conn.isolation_level = isolation
        pid = conn.info.backend_pid  # not known any more when the connection is broken; a pooler makes one up
        pooled = is_pooled(self._url)
        session = Session(conn, self._pool, lambda: self.backend_named(name) if pooled else pid)
        self._open.append(session)
        return session

    def open_as_superuser(self) -> Session:
        """Open a session, with a transaction, of one who may lock rows and tables."""
        conn = connect(self._admin_url)
        pid = conn.info.backend_pid
        session = Session(conn, self._pool, lambda: pid)
        self._open.append(session)
        return session

    def tenant(self, tenant_id: str) -> Tenant:
        """Return a tenant with a session of its own."""
        return Tenant(tenant_id, self.open().conn, self.admin)

    def backend_named(self, application_name: str) -> int | None:
        """Find who works for a client: a pooler hands the name on to whichever session it takes."""
        row = self.admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'",
            (application_name,),
        ).fetchone()
        return None if row is None else row[0]

    def wait_until_gone(self, pid: int | None) -> None:
        """Wait until a backend has ended, and its transaction with it. Closing a session does not wait."""
        alive = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        wait_until(lambda: self.admin.execute(alive, (pid,)).fetchone() == (False,), f"backend {pid} ends")

    def blockers(self, session: Session) -> set[int]:
        """Wait until a session waits for a lock, and return the backends that it waits for."""
        return set(wait_until(lambda: self.blockers_now(session), f"backend {session.pid} waits for a lock"))

    def at_once(self, jobs: Iterable[Callable[[Connection], T]]) -> list[T]:
        """Run each job on a session of its own, all from the same moment; raise what any of them raises."""
        futures = self.start_at_once([*jobs])
        return [future.result() for future in futures]

    def start_at_once(self, jobs: Sequence[Callable[[Connection], T]]) -> list[Future[T]]:
        """Start each job on a session of its own, all at the same moment."""
        barrier = Barrier(len(jobs))

        def after_the_others(job: Callable[[Connection], T]) -> Callable[[Connection], T]:
            def run(conn: Connection) -> T:
                barrier.wait(DEADLINE_SECONDS)
                return job(conn)

            return run

        sessions = [self.open() for _ in jobs]
        return [session.start(after_the_others(job)) for session, job in zip(sessions, jobs, strict=True)]

    def close(self) -> None:
        """End every session."""
        running = [(session, session.running()) for session in self._open]
        for session, futures in running:
            if futures:
                self.admin.execute("SELECT pg_terminate_backend(%s)", (session.pid,))
                wait(futures, DEADLINE_SECONDS)
            session.conn.close()
        self._pool.shutdown()
        self.admin.close()

    def blockers_now(self, session: Session) -> list[int]:
        """Return the backends that a session waits for at this moment."""
        row = self.admin.execute("SELECT pg_blocking_pids(%s)", (session.pid,)).fetchone()
        assert row is not None
        pids: list[int] = row[0]
        return pids
