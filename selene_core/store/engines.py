"""Engines for production: URLs, what each connection is opened with, and how long anything may wait."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection


_URL_RULE: Final = (
    "write postgresql://user:password@host:port/name, with %40 for @, %2F for /, %3A for : in the password;"
    " several hosts as host1:port1,host2:port2"
)


# User and password as SQLAlchemy finds them; then hosts as libpq takes them, which SQLAlchemy does not.
_URL: Final = re.compile(r"([\w+]+://(?:[^:/]*(?::[^@]*)?@)?)([^/?]*)(.*)", re.DOTALL)


_HOST: Final = re.compile(r"(\[[^\]@]+\]|[^:@\[\]]*)(?::([0-9]{0,5}))?")


def psycopg_url(url: str | URL) -> URL:
    """Return the URL with psycopg 3 as its driver, which a bare postgresql:// need not mean.

    Takes hosts as libpq does: several, `h1:5432,h2:5433`, or a socket's folder with %2F for /. Connections go
    to the host that it names: PGHOSTADDR in the environment, or a service file's, counts for nothing. What it
    leaves out comes from libpq's environment as ever.

    Raises ValueError for what is no URL of a PostgreSQL database, TypeError for what is neither text nor URL.
    """
    if not isinstance(url, str | URL):
        raise TypeError(f"the database URL must be text or a sqlalchemy.URL, not {type(url).__name__}")
    try:
        parsed = _with_hosts(url) if isinstance(url, str) else url
    except (ValueError, ArgumentError):
        # Its own message repeats a part of it, which may be one of the password.
        raise ValueError(f"the database URL cannot be read: {_URL_RULE}") from None
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"the database URL must begin with postgresql://, not {parsed.drivername}://")
    # A part of the query without a = is dropped by the parser.
    cut_off = [part for part in str(url).partition("?")[2].split("&") if "=" not in part]
    if any("@" in part for part in (parsed.host or "", parsed.database or "", *cut_off)):
        # What was cut off from the password would be looked up as a host or database, and printed.
        raise ValueError(f"the password in the database URL has an @ in it: {_URL_RULE}")
    parsed = parsed.set(drivername="postgresql+psycopg")
    names_its_server = (parsed.host or "host" in parsed.query) and not {"hostaddr", "service"} & set(
        parsed.query
    )
    return parsed.update_query_dict({"hostaddr": ""}) if names_its_server else parsed


def _with_hosts(url: str) -> URL:
    """Parse a URL; hosts for which SQLAlchemy's URL has no place go into its query, under libpq's names."""
    url = re.sub(r"^postgres(?=://)", "postgresql", url.strip())
    parts = _URL.fullmatch(url)
    if parts is None or not (re.search("[,%]", parts[2]) or parts[2].endswith(":")):
        return make_url(url)
    parsed = make_url(parts[1] + parts[3])
    places = [_HOST.fullmatch(place) for place in parts[2].split(",")]
    found = [(unquote(place[1]).strip("[]"), place[2] or "") for place in places if place is not None]
    if len(found) < len(places) or {"host", "port"} & parsed.query.keys():
        raise ArgumentError
    hosts, ports = map(",".join, zip(*found, strict=True))
    return parsed.update_query_dict({"host": hosts, **({"port": ports} if ports.strip(",") else {})})


def create_selene_engine(
    url: str | URL,
    *,
    pooler: bool = False,
    statement_timeout: timedelta | None = None,
    idle_in_transaction_timeout: timedelta | None = None,
    **options: Any,
) -> Engine:
    """Make an engine with what a service wants in production; `options` are create_engine's and win.

    psycopg 3, whatever the URL says; no parameter values in error messages; connections are tried before use,
    renewed after half an hour, refused after 10 seconds without an answer, and given up within a minute when
    the server has vanished; whoever waits 10 seconds for one of the pool's gets an error.

    `pooler=True` is for a transaction-mode pooler such as PgBouncer: no prepared statements, which it cannot
    carry over before 1.21. The timeouts are set in each new session and not by startup parameters, which
    PgBouncer refuses. Behind a pooler a session is not ours to set: ValueError; say
    ALTER ROLE ... SET statement_timeout there.
    """
    timeouts = _timeouts(pooler, statement_timeout, idle_in_transaction_timeout)
    engine = create_engine(psycopg_url(url), **_engine_options(pooler, options))
    _set_in_new_sessions(engine, timeouts)
    return engine


def create_async_selene_engine(
    url: str | URL,
    *,
    pooler: bool = False,
    statement_timeout: timedelta | None = None,
    idle_in_transaction_timeout: timedelta | None = None,
    **options: Any,
) -> AsyncEngine:
    """Make the asynchronous twin of create_selene_engine's engine; `options` are create_async_engine's."""
    timeouts = _timeouts(pooler, statement_timeout, idle_in_transaction_timeout)
    engine = create_async_engine(psycopg_url(url), **_engine_options(pooler, options))
    _set_in_new_sessions(engine.sync_engine, timeouts)
    return engine


def _engine_options(pooler: bool, options: dict[str, Any]) -> dict[str, Any]:
    connect_args = {
        **CONNECT_ARGS,
        **({"prepare_threshold": None} if pooler else {}),
        **options.get("connect_args", {}),
    }
    pooled = {} if "poolclass" in options else _POOL_OPTIONS
    return {"hide_parameters": True, **pooled, **options, "connect_args": connect_args}


# The driver's and libpq's own; of the server's settings only two, which poolers know. The encoding is for a
# database that has none (SQL_ASCII): its text would come as bytes.
CONNECT_ARGS: Final[dict[str, Any]] = {
    "application_name": "selene-core",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


# pool_recycle: proxies and firewalls forget connections that are idle for an hour.
_POOL_OPTIONS: Final = {"pool_pre_ping": True, "pool_recycle": 1800, "pool_timeout": 10}


def _timeouts(pooler: bool, statement: timedelta | None, idle: timedelta | None) -> dict[str, int]:
    named = {"statement_timeout": statement, "idle_in_transaction_session_timeout": idle}
    timeouts = {
        name: round(value.total_seconds() * 1000) for name, value in named.items() if value is not None
    }
    if pooler and timeouts:
        raise ValueError(
            f"{' and '.join(timeouts)} cannot be set through a pooler, whose sessions are shared:"
            " set it on the role (ALTER ROLE ... SET ...)"
        )
    for name, milliseconds in timeouts.items():
        if not 0 < milliseconds < 1 << 31:
            raise ValueError(f"{name} must be between a millisecond and 24 days")
    return timeouts


def _set_in_new_sessions(engine: Engine, timeouts: dict[str, int]) -> None:
    if not timeouts:
        return

    @event.listens_for(engine, "connect")
    def set_timeouts(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("; ".join(f"SET {name} = {value}" for name, value in timeouts.items()))
        cursor.close()
        connection.commit()
