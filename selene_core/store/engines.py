"""Engines for production: URLs, connection options and timeouts."""

from __future__ import annotations

import math
import re
import select
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect


_URL_RULE: Final = (
    "write postgresql://user:password@host:port/name, with %40 for @, %2F for /, %3A for : in the password;"
    " several hosts as host1:port1,host2:port2"
)


# User and password as in SQLAlchemy; then hosts as in libpq, some of which SQLAlchemy cannot read.
_URL: Final = re.compile(r"([\w+]+://(?:[^:/]*(?::[^@]*)?@)?)([^/?]*)(.*)", re.DOTALL)


_HOST: Final = re.compile(r"(\[[^\]@]+\]|[^:@\[\]]*)(?::([0-9]{0,5}))?")


def psycopg_url(url: str | URL) -> URL:
    """Return the URL with psycopg 3 as its driver: in SQLAlchemy postgresql:// may mean another.

    Hosts are as in libpq: several as `h1:5432,h2:5433`, or a socket's folder with %2F for /. If the URL names
    a host, PGHOSTADDR and the hostaddr of a service file are ignored. What the URL leaves out comes from
    libpq's environment variables, as usual.

    Raises ValueError for a text that is not the URL of a PostgreSQL database, TypeError for other types.
    """
    if not isinstance(url, str | URL):
        raise TypeError(f"the database URL must be text or a sqlalchemy.URL, not {type(url).__name__}")
    try:
        parsed = _with_hosts(url) if isinstance(url, str) else url
    except (ValueError, ArgumentError):
        # SQLAlchemy's message repeats a part of the URL, which may be a part of the password.
        raise ValueError(f"the database URL cannot be read: {_URL_RULE}") from None
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"the database URL must begin with postgresql://, not {parsed.drivername}://")
    # The parser drops a part of the query that has no =.
    cut_off = [part for part in str(url).partition("?")[2].split("&") if "=" not in part]
    if any("@" in part for part in (parsed.host or "", parsed.database or "", *cut_off)):
        # The rest of the password would be taken for a host or database, and printed.
        raise ValueError(f"the password in the database URL has an @ in it: {_URL_RULE}")
    parsed = parsed.set(drivername="postgresql+psycopg")
    names_its_server = (parsed.host or "host" in parsed.query) and not {"hostaddr", "service"} & set(
        parsed.query
    )
    return parsed.update_query_dict({"hostaddr": ""}) if names_its_server else parsed


def _with_hosts(url: str) -> URL:
    """Parse a URL. Hosts that SQLAlchemy's URL cannot hold go into its query, as libpq's host and port."""
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
    """Make an engine for production. `options` are those of create_engine, and override ours.

    It uses psycopg 3 and shows no parameter values in error messages. It renews a connection after half an
    hour, and pings it before use, at most once a second. In between, a look at its socket shows whether the
    server has closed it. A session that is about to end, in the milliseconds in which a server begins to shut
    down, it does not show: then the call fails. pool_pre_ping=True pings before every use.

    Connecting fails after 10 seconds without an answer; so does waiting for a connection of the pool. A
    server that has vanished is noticed within a minute.

    `pooler=True` is for a transaction-mode pooler such as PgBouncer: it switches off prepared statements,
    which PgBouncer supports from 1.21 on only. The timeouts are set by SET in each new session, because
    PgBouncer refuses them as startup parameters. With `pooler=True` they raise ValueError, because sessions
    are shared: use ALTER ROLE ... SET statement_timeout.
    """
    timeouts = _timeouts(pooler, statement_timeout, idle_in_transaction_timeout)
    engine = create_engine(psycopg_url(url), **_engine_options(pooler, options))
    _set_in_new_sessions(engine, timeouts)
    _ping_seldom(engine.dialect, options)
    return engine


def create_async_selene_engine(
    url: str | URL,
    *,
    pooler: bool = False,
    statement_timeout: timedelta | None = None,
    idle_in_transaction_timeout: timedelta | None = None,
    **options: Any,
) -> AsyncEngine:
    """Make an asynchronous engine, as create_selene_engine does; `options` are create_async_engine's."""
    timeouts = _timeouts(pooler, statement_timeout, idle_in_transaction_timeout)
    engine = create_async_engine(psycopg_url(url), **_engine_options(pooler, options))
    _set_in_new_sessions(engine.sync_engine, timeouts)
    _ping_seldom(engine.sync_engine.dialect, options)
    return engine


def _engine_options(pooler: bool, options: dict[str, Any]) -> dict[str, Any]:
    connect_args = {
        **CONNECT_ARGS,
        **({"prepare_threshold": None} if pooler else {}),
        **options.get("connect_args", {}),
    }
    pooled = {} if "poolclass" in options else _POOL_OPTIONS
    return {"hide_parameters": True, **pooled, **options, "connect_args": connect_args}


# Parameters of the driver and libpq, and only two settings of the server, which poolers know. client_encoding
# is for a database in SQL_ASCII, whose text would come as bytes.
CONNECT_ARGS: Final[dict[str, Any]] = {
    "application_name": "selene-core",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


# pool_recycle: proxies and firewalls drop connections that are idle for an hour.
_POOL_OPTIONS: Final = {"pool_pre_ping": True, "pool_recycle": 1800, "pool_timeout": 10}

_TRUSTED_SECONDS: Final = 1.0


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


def _ping_seldom(dialect: Dialect, options: dict[str, Any]) -> None:
    """Let our pool_pre_ping trust a connection that answered a ping just now, and whose server is silent."""
    if {"pool_pre_ping", "poolclass"} & options.keys():
        return  # the caller's own decides
    ping = dialect.do_ping
    pinged: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def do_ping(connection: DBAPIConnection) -> bool:
        driver = getattr(connection, "driver_connection", connection)
        now = time.monotonic()
        if now - pinged.get(driver, -math.inf) > _TRUSTED_SECONDS or not _is_silent(driver):
            ping(connection)
            pinged[driver] = now
        return True

    dialect.do_ping = do_ping  # type: ignore[assignment]  # of this engine alone


def _is_silent(driver: Any) -> bool:
    """Tell whether a connection is idle, and nothing has come from the server. On Windows nobody can tell."""
    if driver.pgconn.transaction_status != TransactionStatus.IDLE or not hasattr(select, "poll"):
        return False
    found = select.poll()
    found.register(driver.fileno(), select.POLLIN)
    return not found.poll(0)
