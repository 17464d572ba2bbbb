"""What a host hands in: its ORM sessions and connections are joined, and decide on both."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import selene_core
from selene_core import (
    AsyncWorkOrderRepository,
    ContractViolation,
    TenantScopeViolation,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    async_append_events,
    async_check_schema,
    async_tenant_scope,
    check_schema,
    tenant_scope,
)
from tests.integration.test_documents import guides_block
from tests.support.factories import created, event
from tests.support.pooler import driver_options
from tests.support.races import end_session, wait_until_blocked
from tests.support.servers import Database

TENANT = "acme"


class Base(DeclarativeBase):
    pass


class Booking(Base):
    """A table of the host's."""

    __tablename__ = "bookings"
    booking_id: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine(database: Database, admin_engine: sa.Engine) -> sa.Engine:
    """Return an engine of the application's, which may write to the host's table too."""
    Base.metadata.create_all(admin_engine)
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("GRANT SELECT, INSERT ON bookings TO selene_app")
    return database.engine("app")


def orders(engine: sa.Engine) -> list[str]:
    with tenant_scope(engine, TENANT) as conn:
        return sorted(order.work_order_id for order in WorkOrderRepository(conn).list_pending())


def bookings(engine: sa.Engine) -> list[str]:
    with Session(engine) as session:
        return sorted(session.scalars(sa.select(Booking.booking_id)))


# --- ORM sessions


@contextmanager
def plain(engine: sa.Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@contextmanager
def on_a_connection(engine: sa.Engine) -> Iterator[Session]:
    with engine.connect() as conn, Session(conn) as session:
        yield session


@contextmanager
def without_autobegin(engine: sa.Engine) -> Iterator[Session]:
    with Session(engine, autobegin=False) as session:
        session.begin()
        yield session


@contextmanager
def scoped(engine: sa.Engine) -> Iterator[scoped_session[Session]]:
    session = scoped_session(sessionmaker(engine))
    yield session
    session.remove()


SESSIONS = [plain, on_a_connection, without_autobegin, scoped]
WRITES: list[Callable[[Any], object]] = [
    lambda session: append_events(session, TENANT, [created("order")]),
    lambda session: append_events(session.connection(), TENANT, [created("order")]),
    lambda session: append_in_scope(session),
    lambda session: append_in_scope(session.connection()),
]


def append_in_scope(bind: Any) -> None:
    with tenant_scope(bind, TENANT) as conn:
        WorkOrderRepository(conn).append(created("order"))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("opened", SESSIONS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_session__decides_on_both(
    engine: sa.Engine, opened: Callable[[sa.Engine], Any], write: Callable[[Any], object], end: str
) -> None:
    """What the host wrote, before and after, and what we wrote are there together, or not at all."""
    with opened(engine) as session:
        session.add(Booking(booking_id="before"))
        write(session)
        session.add(Booking(booking_id="after"))
        session.flush()
        assert (orders(engine), bookings(engine)) == ([], [])
        getattr(session, end)()
    written = end == "commit"
    assert orders(engine) == ["order"] * written
    assert bookings(engine) == ["after", "before"] * written


@pytest.mark.parametrize("opened", SESSIONS)
def test_session__begins_and_its_end_is_the_hosts(
    engine: sa.Engine, opened: Callable[[sa.Engine], Any]
) -> None:
    with opened(engine) as session:
        with tenant_scope(session, TENANT) as conn:
            assert conn is session.connection()
            WorkOrderRepository(conn).append(created("order"))
        assert orders(engine) == []
        with tenant_scope(session, TENANT) as again:
            assert WorkOrderRepository(again).get("order") is not None
        session.commit()
    assert orders(engine) == ["order"]


def test_session__has_one_tenant_a_transaction(engine: sa.Engine) -> None:
    with Session(engine) as session:
        append_events(session, TENANT, [created("ours")])
        with pytest.raises(TenantScopeViolation):
            append_events(session, "rival", [created("theirs")])
        with pytest.raises(TenantScopeViolation), tenant_scope(session, "rival"):
            pass
        session.commit()
        append_events(session, "rival", [created("theirs")])
        session.commit()
    assert orders(engine) == ["ours"]


def test_session__that_was_committed_in_the_block_has_left_the_scope(engine: sa.Engine) -> None:
    with Session(engine) as session, tenant_scope(session, TENANT) as conn:
        repository = WorkOrderRepository(conn)
        repository.append(created("order"))
        session.commit()
        with pytest.raises(TenantScopeViolation):
            repository.get("order")
    assert orders(engine) == ["order"]


def test_session__goes_on_after_a_savepoint(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Booking(booking_id="kept"))
        with pytest.raises(WorkOrderNotFound), session.begin_nested():
            append_events(session, TENANT, [event("STEP_STARTED", "nowhere")])
        append_events(session, TENANT, [created("order")])
        session.commit()
    assert (orders(engine), bookings(engine)) == (["order"], ["kept"])


def test_session__whose_tenant_is_none_opens_nothing(engine: sa.Engine) -> None:
    with Session(engine) as session:
        for call in (lambda: append_events(session, "no tenant", [created()]), lambda: enter(session)):
            with pytest.raises(ContractViolation):
                call()
        assert not session.in_transaction()


def enter(bind: Any) -> None:
    with tenant_scope(bind, "no tenant"):
        raise AssertionError


def test_session__in_autocommit_has_no_transaction_to_join(engine: sa.Engine) -> None:
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(TenantScopeViolation, match="AUTOCOMMIT"), tenant_scope(session, TENANT):
            pass
        append_events(session, TENANT, [created("order")])
        assert orders(engine) == ["order"]


def test_session__with_several_engines_is_asked_for_the_connection(engine: sa.Engine) -> None:
    with Session(binds={Booking: engine}) as session:
        with pytest.raises(TypeError, match=r"connection\(bind_arguments"), tenant_scope(session, TENANT):
            pass
        append_events(session.connection(bind_arguments={"mapper": Booking}), TENANT, [created("order")])
        session.commit()
    assert orders(engine) == ["order"]


def test_session__as_in_the_guide(engine: sa.Engine) -> None:
    example = guides_block("session", "python")
    given = {"engine": engine, "booking": Booking(booking_id="booking"), "event": created("order")}
    exec(example, {**vars(selene_core), **given})  # noqa: S102 - an example of our own
    assert (orders(engine), bookings(engine)) == (["order"], ["booking"])


# --- connections


def test_append_events__on_a_connection_is_a_transaction_of_its_own(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        [first] = append_events(conn, TENANT, [created("order", idempotency_key="create")])
        assert not conn.in_transaction()
        assert orders(engine) == ["order"]
        [again] = append_events(conn, TENANT, [created("order", idempotency_key="create")])
        assert (first.replayed, again.replayed) == (False, True)
        with pytest.raises(WorkOrderNotFound):
            append_events(conn, TENANT, [created("other"), event("STEP_STARTED", "nowhere")])
        assert not conn.in_transaction()
        append_events(conn, "rival", [created("theirs")])
    assert orders(engine) == ["order"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_append_events__on_a_connection_joins_its_transaction(engine: sa.Engine, end: str) -> None:
    with engine.connect() as conn:
        conn.execute(sa.insert(Booking).values(booking_id="booking"))
        append_events(conn, TENANT, [created("order")])
        append_events(conn, TENANT, [event("STATUS_CHANGED", "order")])
        assert orders(engine) == []
        getattr(conn, end)()
    assert orders(engine) == ["order"] * (end == "commit")
    assert bookings(engine) == ["booking"] * (end == "commit")


def test_append_events__on_a_connection_in_autocommit(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        for tenant_id, order in ((TENANT, "ours"), ("rival", "theirs"), (TENANT, "more")):
            append_events(conn, tenant_id, [created(order)])
    assert orders(engine) == ["more", "ours"]


def test_check_schema__in_what_a_host_has(engine: sa.Engine) -> None:
    expected = check_schema(engine)
    with Session(engine) as session, engine.connect() as conn:
        for bind in (session, session.connection(), conn, scoped_session(sessionmaker(engine))):
            assert check_schema(bind) == expected
        assert session.in_transaction()
        assert not conn.in_transaction()


# --- the same, asynchronously


def run(database: Database, story: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        url = database.url("app")
        engine = create_async_engine(url, connect_args=driver_options(url), **options)
        try:
            await story(engine)
        finally:
            await engine.dispose()

    asyncio.run(main())


async def append_in_async_scope(bind: Any) -> None:
    async with async_tenant_scope(bind, TENANT) as conn:
        await AsyncWorkOrderRepository(conn).append(created("order"))


async def append_in_run_sync(session: AsyncSession | async_scoped_session[AsyncSession]) -> None:
    plain = session() if isinstance(session, async_scoped_session) else session
    await plain.run_sync(lambda inner: append_events(inner, TENANT, [created("order")]))


async def on_its_connection(write: Callable[[Any], Awaitable[object]], session: AsyncSession) -> None:
    await write(await session.connection())


async def append_order(bind: Any) -> None:
    await async_append_events(bind, TENANT, [created("order")])


ASYNC_WRITES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "append": append_order,
    "append on its connection": lambda session: on_its_connection(append_order, session),
    "scope": append_in_async_scope,
    "scope on its connection": lambda session: on_its_connection(append_in_async_scope, session),
    "run_sync": append_in_run_sync,
}


@pytest.mark.parametrize("write", ASYNC_WRITES.values(), ids=ASYNC_WRITES.keys())
@pytest.mark.parametrize("is_scoped", [False, True], ids=["session", "scoped"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_async_session__decides_on_both(
    database: Database,
    engine: sa.Engine,
    write: Callable[[Any], Awaitable[object]],
    is_scoped: bool,
    end: str,
) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        make = async_sessionmaker(async_engine)
        session: Any = async_scoped_session(make, asyncio.current_task) if is_scoped else make()
        try:
            session.add(Booking(booking_id="booking"))
            await session.flush()
            await write(session)
            assert orders(engine) == []
            await getattr(session, end)()
        finally:
            await (session.remove() if is_scoped else session.close())

    run(database, story)
    assert orders(engine) == ["order"] * (end == "commit")
    assert bookings(engine) == ["booking"] * (end == "commit")


def test_async_append_events__on_a_connection(database: Database, engine: sa.Engine) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        async with async_engine.connect() as conn:
            await async_append_events(conn, TENANT, [created("alone")])
            assert orders(engine) == ["alone"]
            async with conn.begin() as transaction:
                await async_append_events(conn, TENANT, [created("joined")])
                await transaction.rollback()
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            await async_append_events(conn, TENANT, [created("autocommitted")])

    run(database, story)
    assert orders(engine) == ["alone", "autocommitted"]


def test_async_check_schema__on_whatever_is_asynchronous(database: Database, engine: sa.Engine) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        autocommit = async_engine.execution_options(isolation_level="AUTOCOMMIT")
        found = [await async_check_schema(async_engine), await async_check_schema(autocommit)]
        async with async_engine.connect() as conn:
            found += [await async_check_schema(conn), await conn.run_sync(check_schema)]
            assert not conn.in_transaction()
        async with AsyncSession(async_engine) as session:
            found += [await async_check_schema(session), await async_check_schema(await session.connection())]
        assert set(found) == {check_schema(engine)}

    run(database, story, pool_size=1, max_overflow=0)


# --- append_events on an engine: autocommit for one statement, and not for the pool's next user


def test_append_events__leaves_no_autocommit_behind(database: Database, admin_engine: sa.Engine) -> None:
    one = database.engine("app", pool_size=1, max_overflow=0)

    def check() -> int:
        with one.connect() as conn:
            pid: int = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            conn.execute(sa.insert(Booking).values(booking_id="rolled back"))
            conn.rollback()
        assert bookings(one) == []
        return pid

    Base.metadata.create_all(admin_engine)
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("GRANT SELECT, INSERT ON bookings TO selene_app")
    append_events(one, TENANT, [created("order")])
    pid = check()
    with pytest.raises(WorkOrderNotFound):
        append_events(one, TENANT, [event("STEP_STARTED", "nowhere")])
    assert check() == pid
    end_session(admin_engine, pid)
    with pytest.raises(sa.exc.DBAPIError):
        append_events(one, TENANT, [event("STEP_STARTED", "order")])
    assert check() != pid


def test_async_append_events__canceled_leaves_no_autocommit_behind(
    database: Database, engine: sa.Engine, admin_engine: sa.Engine
) -> None:
    append_events(engine, TENANT, [created("order")])

    async def story(one: AsyncEngine) -> None:
        async with one.connect() as conn:
            pid = (await conn.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
        with engine.begin() as holder, admin_engine.connect() as admin:
            append_events(holder, TENANT, [event("STEP_STARTED", "order")])
            step = event("STEP_FINISHED", "order")
            task = asyncio.create_task(async_append_events(one, TENANT, [step]))
            await asyncio.to_thread(wait_until_blocked, admin, pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with one.connect() as conn:
            await conn.execute(sa.insert(Booking).values(booking_id="rolled back"))
            await conn.rollback()

    run(database, story, pool_size=1, max_overflow=0)
    assert bookings(engine) == []
