"""The session in which a migration runs: the same one from the first transaction to the last.

The migration lock belongs to the session, and is held while each revision is committed. A pooler may change
the session between two transactions: one would keep the lock, and another would migrate without it. So a
connection through a pooler is refused before anything is locked. Role and timeouts are set for one
transaction at a time.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from sqlalchemy import create_engine, event, pool
from sqlalchemy.exc import DBAPIError

from selene_core.migrations import MigrationRefused
from selene_core.store.engines import CONNECT_ARGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from sqlalchemy import URL, Connection
    from sqlalchemy.engine import ExceptionContext

_MARK: Final = "selene.migration"
"""A setting that the server makes only for a session that is begun with it."""

_LOOKS: Final = 3  # transactions that must find the same session before anything is done in one
_WAY_OUT: Final = (
    "A migration needs one session from its start to its end: connect to the server itself, past the pooler"
    " (past one in session mode too, because nothing tells the modes apart). Or run the script, which is one"
    " transaction: selene-core sql | psql -v ON_ERROR_STOP=1"
)


@contextmanager
def opened(url: URL) -> Iterator[Connection]:
    """Connect for a migration; each transaction on the connection begins with a look at its session.

    Raises MigrationRefused, before anything is changed or locked, if a pooler or something like it does not
    give each connection a session of its own.
    """
    mark = secrets.token_hex(16)
    # In addition to what the URL and the environment say, which it would replace.
    options = f"{_given_options(url)} -c {_MARK}={mark}".strip()
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={**CONNECT_ARGS, "options": options})
    try:
        connection = engine.connect()
    except DBAPIError as exc:
        if not _connects_without(url):
            raise
        sign = f"it refuses a startup parameter, or BEGIN ({' '.join(str(exc.orig).split())})"
        raise MigrationRefused(_pooled(sign)) from exc

    driver = _driver(connection)
    looked = 0

    @event.listens_for(engine, "begin")
    def look(connection: Connection) -> None:
        nonlocal looked
        is_ours = connection.exec_driver_sql(
            f"SELECT pg_catalog.pg_backend_pid() = {driver.info.backend_pid}"
            f" AND COALESCE(pg_catalog.current_setting('{_MARK}', TRUE), '') = '{mark}'"
        ).scalar()
        if not is_ours:
            sign = "the session is not the one that this connection began"
            raise MigrationRefused(_pooled(sign, is_untouched=looked < _LOOKS))
        looked += 1

    @event.listens_for(engine, "handle_error")
    def keep(context: ExceptionContext) -> None:
        # SQLAlchemy drops the connection of a run that is interrupted: nothing could be let go of.
        if not isinstance(context.original_exception, Exception):
            context.is_disconnect = False

    with connection:
        try:
            for _ in range(_LOOKS):
                with connection.begin():
                    pass
            yield connection
        finally:
            # The driver's connection: SQLAlchemy's would replace one that is broken.
            _let_go(driver, mark)


def begin_with(connection: Connection, settings: Callable[[Literal["LOCAL", "SESSION"]], list[str]]) -> None:
    """Make these settings in every transaction from now on, and for it alone.

    In AUTOCOMMIT, as for CREATE INDEX CONCURRENTLY, only the session can have them.
    """

    @event.listens_for(connection.engine, "begin")
    def make(connection: Connection) -> None:
        for statement in settings("SESSION" if _driver(connection).autocommit else "LOCAL"):
            connection.exec_driver_sql(statement)


def _given_options(url: URL) -> str:
    if "service" in url.query:
        # Only a connection shows what a service file sets.
        with psycopg.connect(**_arguments(url)) as driver:
            return driver.info.get_parameters().get("options", "")
    given = url.query.get("options")
    if isinstance(given, str):
        return given
    defaults = {each.keyword: each.val for each in psycopg.pq.Conninfo.get_defaults()}
    return (defaults.get(b"options") or b"").decode()


def _connects_without(url: URL) -> bool:
    """Tell whether it is the mark, or SQLAlchemy's transaction, for which a connection was refused."""
    try:
        psycopg.connect(**_arguments(url), autocommit=True).close()
    except psycopg.OperationalError:
        return False
    return True


def _arguments(url: URL) -> dict[str, Any]:
    _, arguments = create_engine(url).dialect.create_connect_args(url)
    return {**arguments, **CONNECT_ARGS}


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def _pooled(sign: str, *, is_untouched: bool = True) -> str:
    changed = "Nothing was changed." if is_untouched else "Revisions that had been run stay."
    return f"the connection leads through a pooler: {sign}. {changed} {_WAY_OUT}"


def _let_go(driver: psycopg.Connection[Any], mark: str) -> None:
    """Leave nothing in the session, which something may keep although its connection ends."""
    with suppress(psycopg.Error):
        driver.rollback()
        driver.autocommit = True
        if driver.execute(f"SELECT pg_catalog.current_setting('{_MARK}', TRUE)").fetchone() == (mark,):
            driver.execute("DISCARD ALL")
