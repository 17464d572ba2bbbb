"""What callers may pass as `bind`: an engine, a connection or an ORM session. All else is a TypeError."""

from __future__ import annotations

from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util.concurrency import in_greenlet

if TYPE_CHECKING:
    from sqlalchemy import Dialect

Bind: TypeAlias = Engine | Connection | Session | scoped_session[Any]
"""An engine, for a transaction of its own; or a connection or session, whose transaction is joined."""

AsyncBind: TypeAlias = AsyncEngine | AsyncConnection | AsyncSession | async_scoped_session[Any]
"""The asynchronous twins of Bind."""

_SYNC: Final = (Engine, Connection, Session, scoped_session)
_ASYNC: Final = (AsyncEngine, AsyncConnection, AsyncSession, async_scoped_session)
_DRIVERS: Final = frozenset({"psycopg", "psycopg_pool", "psycopg2", "asyncpg", "pg8000"})


def bound(name: str, given: object) -> Engine | Connection | Session:
    """Return the bind, without connecting yet: see joined().

    Raises TypeError for anything else and for another driver; it says what to pass to the function `name`.
    """
    given = given() if isinstance(given, scoped_session) else given
    wanted = "an Engine, a Connection or an ORM Session"
    found: Engine | Connection | Session = checked(name, wanted, given, Engine, Connection, Session)
    return found


def joined(bind: Connection | Session) -> Connection:
    """Return the bind's connection. A Session begins a transaction if it has none."""
    return bind.connection() if isinstance(bind, Session) else bind


def async_bound(name: str, given: object) -> AsyncEngine | AsyncConnection | AsyncSession:
    """Return what bound() returns, for asynchronous callers; raises TypeError."""
    given = given() if isinstance(given, async_scoped_session) else given
    wanted = "an AsyncEngine, an AsyncConnection or an AsyncSession"
    found: AsyncEngine | AsyncConnection | AsyncSession = checked(
        name, wanted, given, AsyncEngine, AsyncConnection, AsyncSession
    )
    return found


async def async_joined(bind: AsyncConnection | AsyncSession) -> AsyncConnection:
    """Return what joined() returns, for asynchronous callers."""
    return await bind.connection() if isinstance(bind, AsyncSession) else bind


def checked(name: str, wanted: str, given: object, *kinds: type) -> Any:
    """Return `given` if it is one of these classes of SQLAlchemy and uses psycopg 3; raises TypeError."""
    if not isinstance(given, kinds):
        # Show the class and never the value, which may be a URL with a password.
        raise TypeError(f"{name} takes {wanted}, not {_kind(given)}{_way_out(name, given)}")
    dialect = _dialect(name, given)
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg"):
        raise TypeError(
            f"{name} works with PostgreSQL through psycopg 3 alone, not with {dialect.name}+{dialect.driver}:"
            " make the engine from a URL that begins with postgresql+psycopg://"
        )
    # The synchronous engine or session inside an asynchronous one works only in its run_sync().
    if dialect.is_async and isinstance(given, _SYNC) and not in_greenlet():
        raise TypeError(
            f"{name} cannot wait for an asynchronous engine:"
            f" pass that to {_twin(name)}, or call {name} in its connection's run_sync()"
        )
    return given


def _dialect(name: str, given: Any) -> Dialect:
    if isinstance(given, AsyncConnection) and given.sync_connection is None:
        raise TypeError(f"{name} takes an AsyncConnection that is open: await it first, or enter it")
    if not isinstance(given, Session | AsyncSession):
        return given.dialect  # type: ignore[no-any-return]  # each of the kinds has one
    session = given.sync_session if isinstance(given, AsyncSession) else given
    try:
        return session.get_bind().dialect
    except UnboundExecutionError as exc:
        raise TypeError(
            f"{name} takes a Session that has one engine: pass its connection(bind_arguments=…)"
        ) from exc


def _kind(given: object) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    driver = type(given).__module__.partition(".")[0]
    of_driver = f" of {driver}" if driver in _DRIVERS else ""  # a Connection too
    return "None" if given is None else type(given).__name__ + of_driver


def _way_out(name: str, given: object) -> str:
    is_async = name.startswith(("async_", "Async"))
    if isinstance(given, _SYNC if is_async else _ASYNC):
        return f": pass that to {_twin(name)}"
    if isinstance(given, str | URL) or type(given).__module__.partition(".")[0] in _DRIVERS:
        return f": make an engine with create_{'async_' if is_async else ''}selene_engine(url)"
    if isawaitable(given):
        return ": await it first"
    for enter, how in ("__enter__", "with"), ("__aenter__", "async with"):
        if hasattr(given, enter):  # as of Engine.begin()
            return f": enter it by `{how}` first, and pass what that yields"
    return ": call it first" if callable(given) else ""


def _twin(name: str) -> str:
    """Return the name of the asynchronous twin, or of the synchronous one."""
    plain = name.removeprefix("async_").removeprefix("Async")
    if plain != name:
        return plain
    return f"async_{name}" if name[0].islower() else f"Async{name}"
