"""The engines that services make: what they set, what a pooler cannot bear, how waiting ends."""

import asyncio
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from selene_core import append_events, create_async_selene_engine, create_selene_engine
from selene_core.store.engines import psycopg_url
from tests.support.factories import created, event
from tests.support.plans import driver_of, round_trips
from tests.support.pooler import is_pooled
from tests.support.races import DEADLINE_SECONDS, backend_pid, end_session
from tests.support.servers import Database

PREPARED = sa.text("SELECT count(*) FROM pg_prepared_statements")


@contextmanager
def engine_of(database: Database, url: sa.URL | None = None, **options: Any) -> Iterator[sa.Engine]:
    url = url or database.app_url
    engine = create_selene_engine(url, **{"pooler": is_pooled(url), **options})
    try:
        yield engine
    finally:
        engine.dispose()


def asynchronously(database: Database, statement: str, repeat: int = 1, **options: Any) -> Any:
    """Run a statement on an asynchronous engine's connection, and return its value."""

    async def run() -> Any:
        pooler = is_pooled(database.app_url)
        engine = create_async_selene_engine(database.app_url, **{"pooler": pooler, **options})
        try:
            async with engine.connect() as conn:
                for _ in range(repeat - 1):
                    await conn.scalar(sa.text(statement))
                return await conn.scalar(sa.text(statement))
        finally:
            await engine.dispose()

    return asyncio.run(run())


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_engine__is_psycopg_3_whatever_the_url_says(scheme: str) -> None:
    engine = create_selene_engine(f"{scheme}://nobody@127.0.0.1:1/none")
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg")
    assert not engine.dialect.is_async
    assert create_async_selene_engine(f"{scheme}://nobody@127.0.0.1:1/none").dialect.is_async


def test_engine__hides_what_somebody_entered(database: Database) -> None:
    with engine_of(database) as engine, engine.connect() as conn, pytest.raises(sa.exc.DBAPIError) as raised:
        conn.execute(sa.text("SELECT 1 / (length(:secret) - 6)"), {"secret": "hushed"})
    assert "hushed" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "selene-core"), ({"connect_args": {"application_name": "orders"}}, "orders")],
)
def test_engine__application_name(database: Database, options: dict[str, Any], name: str) -> None:
    shown = "SHOW application_name"
    with engine_of(database, **options) as engine, engine.connect() as conn:
        assert conn.scalar(sa.text(shown)) == name
    assert asynchronously(database, shown, **options) == name


def test_engine__comes_over_a_connection_that_died_in_the_pool(database: Database) -> None:
    with engine_of(database, pool_size=1) as engine:
        with engine.connect() as conn:
            pid = backend_pid(conn)
        end_session(database.engine("admin"), pid)
        with engine.connect() as conn:
            assert backend_pid(conn) != pid


def test_engine__an_asynchronous_one_too(database: Database) -> None:
    async def run() -> None:
        pooler = is_pooled(database.app_url)
        engine = create_async_selene_engine(database.app_url, pooler=pooler, pool_size=1)
        try:
            async with engine.connect() as conn:
                pid = await conn.run_sync(backend_pid)
            end_session(database.engine("admin"), pid)
            async with engine.connect() as conn:
                assert await conn.run_sync(backend_pid) != pid
        finally:
            await engine.dispose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("trusted", "options", "expected"),
    [(1e9, {}, 1), (-1.0, {}, 2), (-1.0, {"pool_pre_ping": False}, 1), (1e9, {"pool_pre_ping": True}, 2)],
    ids=["pinged just now", "not lately", "told not to", "told to"],
)
def test_engine__round_trips_of_a_call(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    trusted: float,
    options: dict[str, Any],
    expected: int,
) -> None:
    monkeypatch.setattr("selene_core.store.engines._TRUSTED_SECONDS", trusted)
    with engine_of(database, pool_size=1, max_overflow=0, **options) as engine:
        engine.dispose()  # the next pool does as the first
        append_events(engine, "acme", [created("order")])
        with engine.connect() as conn:
            driver = driver_of(conn)
        with round_trips(driver) as found:
            append_events(engine, "acme", [event("STEP_STARTED", "order")])
        assert found == [expected]


def test_engine__a_checkout_that_sends_nothing_is_no_sign_of_life(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1000.0, 1000.6, 1001.2])
    monkeypatch.setattr("selene_core.store.engines.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with engine_of(database, pool_size=1, max_overflow=0) as engine:
        engine.connect().close()  # it is new
        with engine.connect() as conn:  # the first ping
            driver = driver_of(conn)
        with round_trips(driver) as found:
            engine.connect().close()
            engine.connect().close()
        assert found == [1]


def test_engine__tests_a_connection_before_others_use_it(database: Database) -> None:
    """What a host does at each checkout meets no lost connection, and its listener hears of the loss."""
    heard: list[bool] = []

    def use(connection: Any, *_: Any) -> None:
        connection.execute("SELECT 1")
        connection.rollback()

    # Not through a pooler, which keeps its side of the session.
    url = database.admin_url
    with engine_of(database, url, pool_size=1, pool_events=[(use, "checkout")]) as engine:
        sa.event.listen(engine, "handle_error", lambda context: heard.append(context.is_pre_ping))
        with engine.connect() as conn:
            pid = backend_pid(conn)
        end_session(database.engine("admin"), pid)
        with engine.connect() as conn:
            assert backend_pid(conn) != pid
        assert heard == [True]


def test_engine__a_message_of_the_server_is_not_the_end(database: Database) -> None:
    with engine_of(database, database.admin_url, pool_size=1) as engine:
        with engine.begin() as conn:
            conn.execute(sa.text("LISTEN news"))
            driver, pid = driver_of(conn), backend_pid(conn)
        with database.engine("admin").begin() as other:
            other.execute(sa.text("NOTIFY news"))
        assert select.select([driver.fileno()], [], [], DEADLINE_SECONDS)[0]
        with engine.connect() as conn:
            assert backend_pid(conn) == pid


def test_engine__waits_for_the_pool_only_so_long(database: Database) -> None:
    with (
        engine_of(database, pool_size=1, max_overflow=0, pool_timeout=0.05) as engine,
        engine.connect(),
        pytest.raises(sa.exc.TimeoutError),
    ):
        engine.connect()
    assert engine.pool.timeout() == 0.05  # type: ignore[attr-defined]
    with engine_of(database) as usual:
        assert usual.pool.timeout() == 10  # type: ignore[attr-defined]


def test_engine__other_pools(database: Database) -> None:
    with engine_of(database, poolclass=sa.NullPool) as engine, engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT 1")) == 1


TIMEOUTS: dict[str, Any] = {
    "statement_timeout": timedelta(seconds=1.5),
    "idle_in_transaction_timeout": timedelta(minutes=2),
}


def test_engine__timeouts_hold_in_every_transaction(database: Database) -> None:
    shown = sa.text("SELECT current_setting('statement_timeout'), current_setting(:name)")
    with engine_of(database, **TIMEOUTS, pool_size=1) as engine:
        for _ in range(2):
            with engine.connect() as conn:
                found = conn.execute(shown, {"name": "idle_in_transaction_session_timeout"}).one()
                assert found == ("1500ms", "2min")
                conn.rollback()
                assert conn.scalar(sa.text("SHOW statement_timeout")) == "1500ms"
    assert asynchronously(database, "SHOW statement_timeout", **TIMEOUTS) == "1500ms"


def test_engine__timeouts_end_what_takes_too_long(database: Database) -> None:
    short: dict[str, Any] = {"statement_timeout": timedelta(seconds=2)}
    with engine_of(database, **short) as engine, engine.connect() as conn:
        with pytest.raises(sa.exc.OperationalError) as raised:
            conn.execute(sa.text("SELECT pg_sleep(60)"))
        assert isinstance(raised.value.orig, psycopg.errors.QueryCanceled)
    with pytest.raises(sa.exc.OperationalError):
        asynchronously(database, "SELECT pg_sleep(60)", **short)


def test_engine__sets_none_unless_told(database: Database) -> None:
    with engine_of(database) as engine, database.engine("app").connect() as plain, engine.connect() as conn:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            assert conn.scalar(sa.text(f"SHOW {name}")) == plain.scalar(sa.text(f"SHOW {name}"))


def test_engine__behind_a_pooler_nothing_is_prepared(database: Database) -> None:
    count = "SELECT count(*) FROM pg_prepared_statements"
    for pooler in (False, True):
        with engine_of(database, pooler=pooler) as engine, engine.connect() as conn:
            for _ in range(10):
                conn.execute(sa.text("SELECT 1"))
            assert (conn.scalar(PREPARED) == 0) == pooler
        assert (asynchronously(database, count, 10, pooler=pooler) == 0) == pooler


@pytest.mark.parametrize("options", [{}, {"pooler": True}, TIMEOUTS])
def test_engine__startup_packet_has_nothing_that_pgbouncer_refuses(options: dict[str, Any]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(DEADLINE_SECONDS)
        packet = pool.submit(startup_parameters, listener)
        url = f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/none?sslmode=disable&gssencmode=disable"
        with pytest.raises(sa.exc.OperationalError):
            create_selene_engine(url, **options).connect()
        sent = packet.result()
    assert sent["application_name"] == "selene-core"
    assert set(sent) <= {"user", "database", "application_name", "client_encoding"}


def startup_parameters(listener: socket.socket) -> dict[str, str]:
    """Take one connection, read what it starts with, and hang up."""
    client, _ = listener.accept()
    with client, client.makefile("rb") as stream:
        length = int.from_bytes(stream.read(4))
        words = stream.read(length - 4)[4:].decode().rstrip("\0").split("\0")
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("make", [create_selene_engine, create_async_selene_engine])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooler": True, **TIMEOUTS}, "ALTER ROLE"),
        ({"statement_timeout": timedelta(0)}, "statement_timeout must be"),
        ({"statement_timeout": timedelta(days=30)}, "statement_timeout must be"),
        ({"idle_in_transaction_timeout": timedelta(seconds=-1)}, "idle_in_transaction_session_timeout must"),
    ],
)
def test_engine__refuses_what_would_not_hold(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("postgresql://nobody@127.0.0.1:1/none", **options)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u@h/d", "must begin with postgresql://, not mysql://"),
        ("postgresql://u:hu@sh:ed@h/d", "the database URL cannot be read"),
        ("postgresql://u:p@hu/shed@h/d", "the password in the database URL has an @ in it"),
        ("postgresql://u:p@hu?shed@h", "the password in the database URL has an @ in it"),
        ("postgresql://u:hu@shed@h/d", "the password in the database URL has an @ in it"),
    ],
)
def test_psycopg_url__what_it_refuses_is_not_repeated(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        psycopg_url(url)
    assert "shed" not in str(raised.value)
