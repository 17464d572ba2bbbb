"""What a host hands in by mistake: refused by name at every door, with what to pass instead."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import selene_core
from selene_core import (
    Appender,
    AsyncAppender,
    AsyncFeed,
    Feed,
    WorkOrderRepository,
    append_events,
    async_append_events,
    async_check_schema,
    async_erase_subject,
    async_feed_status,
    async_hold_lease,
    async_read_feed,
    async_rebuild_tenant,
    async_run_in_tenant,
    async_tenant_scope,
    async_verify_feed,
    check_schema,
    erase_subject,
    feed_status,
    hold_lease,
    read_feed,
    rebuild_tenant,
    run_in_tenant,
    tenant_scope,
    verify_feed,
)
from selene_core.store.aio import AsyncRepository
from selene_core.store.repository import Repository
from tests.support.raw import connect
from tests.support.servers import Database

TENANT = "no tenant"  # and no events: what is none is refused before anything else is looked at


def in_scope(bind: Any) -> None:
    with tenant_scope(bind, TENANT):
        raise AssertionError


async def in_async_scope(bind: Any) -> None:
    async with async_tenant_scope(bind, TENANT):
        raise AssertionError


REPOSITORIES = [
    each for each in vars(selene_core).values() if isinstance(each, type) and issubclass(each, Repository)
]
SYNC_DOORS: dict[str, Callable[[Any], object]] = {
    "tenant_scope": in_scope,
    "append_events": lambda bind: append_events(bind, TENANT, []),
    "rebuild_tenant": lambda bind: rebuild_tenant(bind, TENANT),
    "check_schema": check_schema,
    "run_in_tenant": lambda bind: run_in_tenant(bind, TENANT, lambda _conn: None),
    "hold_lease": lambda engine: hold_lease(engine, TENANT, "order", "w", ttl_ms=1).__enter__(),
    "erase_subject": lambda bind: erase_subject(bind, TENANT, "anna", reason_code=1),
    "read_feed": lambda bind: read_feed(bind, TENANT),
    "feed_status": lambda bind: feed_status(bind, TENANT),
    "verify_feed": lambda bind: verify_feed(bind, TENANT),
    "Feed": lambda engine: Feed(engine, TENANT, "billing"),
    "Appender": Appender,
    **{cls.__name__: cls for cls in REPOSITORIES},
}
ASYNC_DOORS: dict[str, Callable[[Any], Any]] = {
    "async_tenant_scope": in_async_scope,
    "async_append_events": lambda bind: async_append_events(bind, TENANT, []),
    "async_rebuild_tenant": lambda bind: async_rebuild_tenant(bind, TENANT),
    "async_check_schema": async_check_schema,
    "async_run_in_tenant": lambda bind: async_run_in_tenant(bind, TENANT, lambda _conn: asyncio.sleep(0)),
    "async_hold_lease": lambda engine: async_hold_lease(engine, TENANT, "order", "w", ttl_ms=1).__aenter__(),
    "async_erase_subject": lambda bind: async_erase_subject(bind, TENANT, "anna", reason_code=1),
    "async_read_feed": lambda bind: async_read_feed(bind, TENANT),
    "async_feed_status": lambda bind: async_feed_status(bind, TENANT),
    "async_verify_feed": lambda bind: async_verify_feed(bind, TENANT),
    "AsyncFeed": lambda engine: AsyncFeed(engine, TENANT, "billing"),
    "AsyncAppender": AsyncAppender,
    **{cls.__name__: cls for cls in AsyncRepository.__subclasses__()},
}
DOORS = SYNC_DOORS | ASYNC_DOORS
HANDED_OUT = {"FeedBatch", "AsyncFeedBatch"}  # by a feed that has passed its own door
_ALONE = ("rebuild_tenant", "hold_lease", "run_in_tenant")
ENGINE_ONLY = {
    *(*_ALONE, "Feed", "Appender"),
    *(*(f"async_{name}" for name in _ALONE), "AsyncFeed", "AsyncAppender"),
}
SECRET = "postgresql://someone:hushed@127.0.0.1:1/none"
NOWHERE = sa.create_engine(SECRET.replace("postgresql", "postgresql+psycopg"))
NOWHERE_ASYNC = create_async_engine(NOWHERE.url)


def told(door: str, given: Any) -> str:
    """Return what somebody is told who passes this to a function or a constructor."""
    with pytest.raises(TypeError) as caught:
        asyncio.run(passed(DOORS[door], given)) if door in ASYNC_DOORS else DOORS[door](given)
    assert "hushed" not in str(caught.value)
    return str(caught.value)


async def passed(function: Callable[[Any], Any], given: Any) -> None:
    outcome = function(given)
    if inspect.isawaitable(outcome):
        await outcome


def test_doors__are_all_that_take_an_engine_or_a_connection() -> None:
    taking = {
        name
        for name in selene_core.__all__
        if callable(public := getattr(selene_core, name))
        and not (isinstance(public, type) and issubclass(public, Exception))
        and {"bind", "engine", "conn"} & set(inspect.signature(public).parameters)
    }
    assert taking - HANDED_OUT == set(DOORS)


def kind(value: object) -> str:
    """Name a value in a test's id: what its repr says differs from process to process."""
    return type(value).__name__


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "not None"),
        (SECRET, "not str: make an engine with create_"),
        (sa.make_url(SECRET), "not URL: make an engine with create_"),
        (b"postgresql://", "not bytes"),
        ({"url": SECRET}, "not dict"),
        (psycopg.Connection, "not the class Connection"),
        (sessionmaker(NOWHERE), "not sessionmaker: call it first"),
        (async_sessionmaker(NOWHERE_ASYNC), "not async_sessionmaker: call it first"),
        (NOWHERE.connect, "not method: call it first"),
        (NOWHERE.begin(), "not _GeneratorContextManager: enter it by `with` first"),
        (NOWHERE_ASYNC.begin(), "not _AsyncGeneratorContextManager: enter it by `async with` first"),
        (Session, "not the class Session"),
        (WorkOrderRepository, "not the class WorkOrderRepository"),
        (sa.MetaData(), "not MetaData"),
        (7, "not int"),
    ],
    ids=kind,
)
def test_door__refuses_by_name(door: str, given: Any, words: str) -> None:
    message = told(door, given)
    assert message.startswith((f"{door} takes an ", f"{door} takes the "))
    assert words in message
    if "create_" in words:
        assert f"create_{'async_' if door in ASYNC_DOORS else ''}selene_engine(url)" in message


def test_door__refuses_a_connection_of_the_driver_itself(database: Database) -> None:
    with connect(database.app_url) as conn:
        for door in DOORS:
            assert "not Connection of psycopg: make an engine with create_" in told(door, conn)


TWINS = {name: name.removeprefix("async_").removeprefix("Async") for name in ASYNC_DOORS}


@pytest.mark.parametrize("door", ASYNC_DOORS)
@pytest.mark.parametrize(
    "given", [NOWHERE, Session(NOWHERE), scoped_session(sessionmaker(NOWHERE))], ids=kind
)
def test_async_door__sends_the_others_to_its_twin(door: str, given: Any) -> None:
    assert told(door, given).endswith(f"not {type(given).__name__}: pass that to {TWINS[door]}")


@pytest.mark.parametrize("door", SYNC_DOORS)
@pytest.mark.parametrize(
    "given",
    [
        *(NOWHERE_ASYNC, AsyncSession(NOWHERE_ASYNC), NOWHERE_ASYNC.connect()),
        async_scoped_session(async_sessionmaker(NOWHERE_ASYNC), asyncio.current_task),
    ],
    ids=kind,
)
def test_door__sends_the_asynchronous_to_its_twin(door: str, given: Any) -> None:
    twin = next(name for name, plain in TWINS.items() if plain == door)
    assert told(door, given).endswith(f"not {type(given).__name__}: pass that to {twin}")


@pytest.mark.parametrize("door", [name for name in SYNC_DOORS if not name.endswith("Repository")])
def test_door__knows_an_asynchronous_engine_from_inside(door: str) -> None:
    twin = next(name for name, plain in TWINS.items() if plain == door)
    assert f"pass that to {twin}" in told(door, NOWHERE_ASYNC.sync_engine)


@pytest.mark.parametrize("door", [name for name in ASYNC_DOORS if name not in ENGINE_ONLY])
def test_async_door__wants_a_connection_that_is_open(door: str) -> None:
    assert "await it first" in told(door, NOWHERE_ASYNC.connect())


def test_async_door__wants_what_was_awaited() -> None:
    waiting = AsyncSession(NOWHERE_ASYNC).connection()
    assert "not coroutine: await it first" in told("async_tenant_scope", waiting)
    waiting.close()


def test_door__takes_nothing_to_join_where_it_cannot(engine: sa.Engine) -> None:
    with Session(engine) as session, engine.connect() as conn:
        for door in ENGINE_ONLY & {*SYNC_DOORS}:
            assert "not Session" in told(door, session)
            assert "not Connection" in told(door, conn)
        for cls in REPOSITORIES:
            assert "not Session" in told(cls.__name__, session)
            assert "not Engine" in told(cls.__name__, engine)
        assert not session.in_transaction()


# --- other drivers


class FakeDriver:
    """Stand in for a driver that need not be installed: it is refused before it is asked for anything."""

    paramstyle = "pyformat"
    __version__ = "9.9.9"

    def __getattr__(self, name: str) -> Any:
        return type(name, (Exception,), {})


@pytest.fixture
def other_engine(driver: str, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """Return an engine of another driver's dialect."""
    monkeypatch.setitem(sys.modules, driver, cast("Any", FakeDriver()))
    return sa.create_engine(f"postgresql+{driver}://127.0.0.1:1/none", module=FakeDriver())


@pytest.mark.parametrize("door", [name for name in SYNC_DOORS if not name.endswith("Repository")])
@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_door__refuses_another_driver_by_name(door: str, driver: str, other_engine: sa.Engine) -> None:
    binds = [other_engine] if door in ENGINE_ONLY else [other_engine, Session(other_engine)]
    for bind in binds:
        refused_driver(told(door, bind), door, driver)


@pytest.mark.parametrize("door", [name for name in ASYNC_DOORS if not name.endswith("Repository")])
@pytest.mark.parametrize("driver", ["asyncpg"])
def test_async_door__refuses_another_driver_by_name(door: str, driver: str, other_engine: sa.Engine) -> None:
    engine = AsyncEngine(other_engine)
    for bind in [engine] if door in ENGINE_ONLY else [engine, AsyncSession(engine)]:
        refused_driver(told(door, bind), door, driver)


def refused_driver(message: str, door: str, driver: str) -> None:
    refused = f"{door} works with PostgreSQL through psycopg 3 alone, not with postgresql+{driver}: "
    assert message.startswith(refused)
    assert "postgresql+psycopg://" in message


@pytest.mark.parametrize("door", SYNC_DOORS)
def test_door__refuses_another_databases_connection(door: str) -> None:
    other = sa.create_engine("sqlite://")
    with other.connect() as conn:
        assert "not with sqlite+pysqlite" in told(door, other if door in ENGINE_ONLY else conn)
    other.dispose()
