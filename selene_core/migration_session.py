"""The session that a migration runs in: one of the server's own, from its first transaction to its last.

The lock is the session's, and must be held while each revision is committed. A pooler hands sessions on between
transactions: then one session would keep the lock, and others would migrate without it. So what leads through
a pooler is refused before the lock is taken. Role and timeouts are set for one transaction at a time.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg
from sqlalchemy import create_engine, event, pool
from sqlalchemy.exc import DBAPIError

from selene_core.database import CONNECT_ARGS
from selene_core.migrations import LOCK_KEY, MigrationRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from sqlalchemy import URL, Connection

_MARK: Final = "selene.migration"
"""A setting that the server makes only for a session that is begun with it."""

_WAY_OUT: Final = (
    "Nothing was changed. A migration needs one session from its start to its end: connect to the server itself,"
    " past the pooler. Or run the script, which is one transaction: selene-core sql | psql -v ON_ERROR_STOP=1"
)


@contextmanager
def opened(url: URL) -> Iterator[Connection]:
    """Connect for a migration; every transaction on the connection begins with a look at whose session it is.

    Raises MigrationRefused before anything is changed or locked where a pooler, or whatever else does not give
    each connection a session of its own, is in between.
    """
    mark = secrets.token_hex(16)
    given = _options_past_no_pooler(url)
    engine = create_engine(
        url,
        poolclass=pool.NullPool,
        connect_args={**CONNECT_ARGS, "options": f"{given} -c {_MARK}={mark}".strip()},
    )
    try:
        connection = engine.connect()
    except DBAPIError as exc:
        _options_past_no_pooler(url)  # it may be that nobody can connect any more, which is raised as it is
        raise MigrationRefused(f"{_pooled('startup parameters are refused')} ({exc.orig})") from exc

    @event.listens_for(engine, "begin")
    def look(connection: Connection) -> None:
        is_ours = connection.exec_driver_sql(
            f"SELECT pg_catalog.pg_backend_pid() = {_driver(connection).info.backend_pid}"
            f" AND COALESCE(pg_catalog.current_setting('{_MARK}', TRUE), '') = '{mark}'"
        ).scalar()
        if not is_ours:
            raise MigrationRefused(_pooled("the session is not the one that this connection began"))

    with connection:
        try:
            with connection.begin():
                pass  # twice: with the lock's transaction it has to be the same session
            yield connection
        finally:
            _let_go(connection, mark)


def begin_with(connection: Connection, settings: Callable[[Literal["LOCAL", "SESSION"]], list[str]]) -> None:
    """Make these settings in every transaction from now on, and for it alone.

    In AUTOCOMMIT, as for CREATE INDEX CONCURRENTLY, only the session can have them.
    """

    @event.listens_for(connection.engine, "begin")
    def make(connection: Connection) -> None:
        for statement in settings("SESSION" if _driver(connection).autocommit else "LOCAL"):
            connection.exec_driver_sql(statement)


def _options_past_no_pooler(url: URL) -> str:
    """Return the options that a connection has by URL and environment; refuse a pooler that shows itself."""
    # AUTOCOMMIT: in statement mode a pooler takes no BEGIN.
    engine = create_engine(
        url, poolclass=pool.NullPool, connect_args=CONNECT_ARGS, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        driver = _driver(connection)
        serves = connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar()
        if serves != driver.info.backend_pid:
            raise MigrationRefused(_pooled("the process that serves it is not the one that it was told of"))
        return driver.info.get_parameters().get("options", "")


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] | None = connection.connection.driver_connection
    assert driver is not None
    return driver


def _pooled(sign: str) -> str:
    return f"the connection leads through a pooler: {sign}. {_WAY_OUT}"


def _let_go(connection: Connection, mark: str) -> None:
    """Leave nothing in the session: not where it ends with its connection, but something may keep it."""
    driver = _driver(connection)
    with suppress(psycopg.Error):
        driver.rollback()
        driver.autocommit = True
        if driver.execute(f"SELECT pg_catalog.current_setting('{_MARK}', TRUE)").fetchone() == (mark,):
            driver.execute("DISCARD ALL")
