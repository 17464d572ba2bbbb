"""The async faces: complete, typed like their twins, and clean after a cancellation."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

import selene_core
from selene_core import (
    AsyncConversationRepository,
    AsyncIdentityRepository,
    AsyncLeaseRepository,
    AsyncStepAttemptRepository,
    AsyncWorkOrderRepository,
    ContractViolation,
    IdentityRepository,
    Personal,
    PromptAction,
    TenantScopeViolation,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    async_append_events,
    async_erase_subject,
    async_feed_status,
    async_rebuild_tenant,
    async_tenant_scope,
    tenant_scope,
)
from selene_core.store import aio
from selene_core.store.repository import Repository
from selene_core.store.tables import METADATA
from selene_core.store.work_order_statements import EVENTS_PAGE
from tests.support.factories import created, event
from tests.support.pooler import driver_options
from tests.support.races import wait_until, wait_until_blocked
from tests.support.servers import Database

T = TypeVar("T")
TENANT = "acme"
FACES = [
    face for face in vars(aio).values() if isinstance(face, type) and issubclass(face, aio.AsyncRepository)
]


@asynccontextmanager
async def engine_on(database: Database, **options: Any) -> AsyncIterator[AsyncEngine]:
    url = database.url("app")
    engine = create_async_engine(url, connect_args=driver_options(url), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


def run(database: Database, story: Callable[[AsyncEngine], Awaitable[T]], **options: Any) -> T:
    """Run a coroutine with an engine of its own."""

    async def main() -> T:
        async with engine_on(database, **options) as engine:
            return await story(engine)

    return asyncio.run(main())


# --- the faces


def public(repository: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(repository) if not name.startswith("_")}


def test_faces__are_complete() -> None:
    """Every repository has a face, every face all methods of its twin, with the same parameters."""
    faces = {face.__name__: face for face in FACES if face is not aio.AsyncRepository}
    repositories = {
        name: each
        for name, each in vars(selene_core).items()
        if isinstance(each, type) and issubclass(each, Repository)
    }
    assert repositories
    assert set(faces) == {f"Async{name}" for name in repositories}
    for name, twin in repositories.items():
        face = faces[f"Async{name}"]
        assert face.__name__ in selene_core.__all__
        assert public(face).keys() == public(twin).keys()
        for method, member in public(twin).items():
            theirs, ours = inspect.signature(member), inspect.signature(getattr(face, method))
            assert ours.parameters == theirs.parameters, method
            assert inspect.iscoroutinefunction(getattr(face, method)) or inspect.isasyncgenfunction(
                getattr(face, method)
            )


def test_async_erase_subject__on_an_engine_and_on_a_connection(database: Database, engine: sa.Engine) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        first = created("order", payload={"fields": {"name": Personal("anna", "Anna"), "town": "Oslo"}})
        await async_append_events(async_engine, TENANT, [first])
        erased = await async_erase_subject(async_engine, TENANT, "anna", reason_code=7)
        assert (erased.subject_id, erased.values_erased, erased.replayed) == ("anna", 1, False)
        again = await async_erase_subject(async_engine, TENANT, "anna", reason_code=7)
        assert (again.erasure_id, again.replayed) == (erased.erasure_id, True)
        async with async_engine.connect() as conn, conn.begin() as begun:
            undone = await async_erase_subject(conn, TENANT, "bob", reason_code=7)
            assert not undone.replayed
            await begun.rollback()
        async with async_tenant_scope(async_engine, TENANT) as conn:
            orders = AsyncWorkOrderRepository(conn)
            found = await orders.get("order", resolve=True)
            assert found is not None
            assert found.fields_json == {"name": {"$erased": True}, "town": "Oslo"}
        bob = await async_erase_subject(async_engine, TENANT, "bob", reason_code=7)
        assert (bob.replayed, bob.erasure_id > undone.erasure_id) == (False, True)
        for subject, reason in (("", 1), ("anna", 0)):
            with pytest.raises(ContractViolation):
                await async_erase_subject(async_engine, TENANT, subject, reason_code=reason)

    async def repeated(async_engine: AsyncEngine) -> None:
        assert (await async_erase_subject(async_engine, TENANT, "carl", reason_code=7)).replayed is False
        async with async_engine.connect() as conn, conn.begin():
            with pytest.raises(ContractViolation):
                await async_erase_subject(conn, TENANT, "carl", reason_code=7)

    # Alone it is READ COMMITTED, whatever the engine says.
    run(database, story)
    run(database, repeated, isolation_level="REPEATABLE READ")


def test_face__does_what_its_twin_does(database: Database, engine: sa.Engine) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        first = created("order", payload={"requester_user_id": "alice"}, idempotency_key="create")
        (appended,) = await async_append_events(async_engine, TENANT, [first])
        (again,) = await async_append_events(async_engine, TENANT, [first])
        assert (appended.replayed, again.replayed) == (False, True)
        async with async_tenant_scope(async_engine, TENANT) as conn:
            orders = AsyncWorkOrderRepository(conn)
            asked = await orders.ask("order", required_fields=["place"], turn_id=2, reason_code=3)
            assert asked.decision is PromptAction.ASK
            await orders.append(event("FIELD_SET", "order"))
            await orders.append(event("EXTERNAL_APPROVAL_REQUESTED", "order"))
            assert await orders.notify_wait("order") is True
            new: dict[str, Any] = {
                "correlation_id": uuid4(),
                "turn_id": 1,
                "reason_code": 1,
                "idempotency_key": "k",
            }
            made = [await orders.create(**new) for _ in range(2)]
            other = made[0].work_order_id
            assert [(each.work_order_id, each.replayed) for each in made] == [(other, False), (other, True)]
            await orders.detect_conflict(other, "place")
            await orders.resolve_conflict(other, "place", "Oslo")
            await orders.set_field(other, "place", "Rome", turn_id=2)
            await orders.request_approval(other, "r1", "bob")
            await orders.resolve_approval(other, "r1", "APPROVED")
            ended = await orders.change_status(other, "DONE", previous_status="DRAFT")
            assert ended.work_order_seq == 7
            found = await orders.get("order")
            assert found is not None
            assert await orders.get_by_correlation(found.correlation_id) == found
            assert await orders.list_pending("alice") == [found]
            assert [row.work_order_seq async for row in orders.events("order", after=1)] == [2, 3, 4, 5]
            assert await orders.as_of("order", seq=found.last_seq) == found
            assert await orders.verify() == []
            assert (await orders.rebuild()).events == 12
            await orders.cancel("order", reason_code=1, idempotency_key="cancel")
        report = await async_rebuild_tenant(async_engine, TENANT)
        assert (report.work_orders, report.events, report.changed) == (2, 13, 0)

    run(database, story)
    with tenant_scope(engine, TENANT) as conn:
        found = WorkOrderRepository(conn).get("order")
    assert found is not None
    assert found.work_order_status == "CANCELED"


def test_events__are_streamed_page_by_page(database: Database, engine: sa.Engine) -> None:
    count = 2 * EVENTS_PAGE + 3
    append_events(engine, TENANT, [created("order")])
    append_events(engine, TENANT, [event("STEP_STARTED", "order") for _ in range(count - 1)])

    async def story(async_engine: AsyncEngine) -> list[int]:
        async with async_tenant_scope(async_engine, TENANT) as conn:
            orders = AsyncWorkOrderRepository(conn)
            with pytest.raises(ContractViolation):
                [row async for row in orders.events("no id")]
            return [row.work_order_seq async for row in orders.events("order")]

    assert run(database, story) == [*range(1, count + 1)]


def test_faces__of_the_other_tables(database: Database) -> None:
    thread = uuid4()

    async def story(engine: AsyncEngine) -> None:
        async with async_tenant_scope(engine, TENANT) as conn:
            await AsyncWorkOrderRepository(conn).append(created("order"))
            leases, attempts = AsyncLeaseRepository(conn), AsyncStepAttemptRepository(conn)
            lease = await leases.acquire("order", "worker", ttl_ms=60_000)
            assert lease.token is not None
            assert await leases.current("order") is not None
            attempt = await attempts.start(
                "order",
                "book",
                timeout_ms=1_000,
                max_retries=1,
                retry_backoff_ms=1_000,
                lease_token=lease.token,
                idempotency_key="start",
            )
            decision = await attempts.finish(
                attempt.step_attempt_id, outcome="SUCCEEDED", reason_code=1, lease_token=lease.token
            )
            assert decision.action == "DONE"
            assert len(await attempts.history("order")) == 1
            await leases.renew("order", lease.token, ttl_ms=60_000)
            await leases.release("order", lease.token)
            assert await leases.current("order") is None

            users, conversation = AsyncIdentityRepository(conn), AsyncConversationRepository(conn)
            await users.register_identity("alice")
            await users.register_device("alice", "phone", device_type="phone")
            assert [device.device_id async for device in users.devices("alice")] == ["phone"]
            turn = {
                "user_id": "alice",
                "role": "USER",
                "source": "TYPED_TEXT",
                "privacy_scope": "PUBLIC_CHAT",
            }
            for turn_id in range(1, 101):
                await conversation.append(correlation_id=thread, turn_id=turn_id, text="Hello", **turn)
            said = [row.turn_id async for row in conversation.turns(thread)]
            assert said == [*range(1, 101)]

    run(database, story)


# --- the scope


async def append_both(engine: AsyncEngine, *events: WorkOrderLedgerEventInput) -> None:
    """Append events one by one in one transaction."""
    async with async_tenant_scope(engine, TENANT) as conn:
        for each in events:
            await AsyncWorkOrderRepository(conn).append(each)


def test_scope__raises_what_its_twin_raises_and_rolls_back(database: Database) -> None:
    async def story(engine: AsyncEngine) -> None:
        with pytest.raises(ContractViolation):
            async with async_tenant_scope(engine, "no tenant"):
                raise AssertionError
        with pytest.raises(WorkOrderNotFound):
            await append_both(engine, created("order"), event("STEP_STARTED", "none"))
        async with async_tenant_scope(engine, TENANT) as conn:
            orders = AsyncWorkOrderRepository(conn)
            assert await orders.get("order") is None
            with pytest.raises(TenantScopeViolation):
                async with async_tenant_scope(conn, "rival"):
                    raise AssertionError
            await conn.rollback()
            with pytest.raises(TenantScopeViolation):
                await orders.get("order")
        async with engine.connect() as conn:
            with pytest.raises(TenantScopeViolation):
                await AsyncWorkOrderRepository(conn).get("order")
            async with async_tenant_scope(conn, TENANT) as same:
                assert same is conn
                await AsyncWorkOrderRepository(conn).append(created("order"))
            async with async_tenant_scope(conn, TENANT):  # the first one committed
                assert await AsyncWorkOrderRepository(conn).get("order") is not None

    run(database, story)


def test_scope__many_tasks_share_a_pool_and_no_tenant(database: Database) -> None:
    tenants = [f"tenant-{n}" for n in range(8)]

    async def story(engine: AsyncEngine) -> None:
        async def work(tenant: str) -> None:
            for n in range(5):
                async with async_tenant_scope(engine, tenant) as conn:
                    await AsyncWorkOrderRepository(conn).append(created(f"{tenant}-{n}"))
            async with async_tenant_scope(engine, tenant) as conn:
                mine = await AsyncWorkOrderRepository(conn).list_pending()
                assert {order.work_order_id for order in mine} == {f"{tenant}-{n}" for n in range(5)}

        await asyncio.gather(*map(work, tenants))

    run(database, story, pool_size=3, max_overflow=0)


# --- cancellation


def everything(admin: sa.Connection) -> dict[str, list[str]]:
    """Return all rows of all tables."""
    return {
        table.fullname: sorted(admin.execute(sa.text(f"SELECT row::text FROM {table} AS row")).scalars())
        for table in METADATA.sorted_tables
    }


async def backend(conn: AsyncConnection) -> int:
    pid: int = (await conn.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    return pid


TURN = {
    "correlation_id": uuid4(),
    "turn_id": 1,
    "user_id": "alice",
    "role": "USER",
    "source": "TYPED_TEXT",
    "text": "Hello",
    "privacy_scope": "PUBLIC_CHAT",
    "session_id": "session",
}
WRITES: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("WorkOrderRepository", "append", (event("STEP_STARTED", "order"),), {}),
    ("LeaseRepository", "acquire", ("order", "worker"), {"ttl_ms": 600_000}),
    ("IdentityRepository", "close_session", ("session",), {}),
    ("ConversationRepository", "append", (), TURN),
]


@pytest.mark.parametrize(
    ("repository", "method", "given", "named"), WRITES, ids=[f"{row[0]}.{row[1]}" for row in WRITES]
)
def test_cancellation__in_the_middle_of_a_write_leaves_nothing_and_a_clean_pool(
    database: Database,
    engine: sa.Engine,
    admin_engine: sa.Engine,
    repository: str,
    method: str,
    given: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    """Twice, on the one connection that the pool has; each time it waits for the same write of another's."""
    with tenant_scope(engine, TENANT) as conn:
        WorkOrderRepository(conn).append(created("order"))
        users = IdentityRepository(conn)
        users.register_identity("alice")
        users.register_device("alice", "phone", device_type="phone")
        users.open_session("session", user_id="alice", device_id="phone")

    async def story(async_engine: AsyncEngine) -> None:
        pids: list[int] = []

        async def write() -> None:
            async with async_tenant_scope(async_engine, TENANT) as conn:
                pids.append(await backend(conn))
                await AsyncWorkOrderRepository(conn).append(created("other"))
                await getattr(getattr(selene_core, f"Async{repository}")(conn), method)(*given, **named)

        with admin_engine.connect() as admin:
            before = everything(admin)
            with engine.connect() as holder, holder.begin() as transaction, tenant_scope(holder, TENANT):
                getattr(getattr(selene_core, repository)(holder), method)(*given, **named)
                for _ in range(2):
                    pids.clear()
                    task = asyncio.create_task(write())
                    while not pids:
                        await asyncio.sleep(0)
                    await asyncio.to_thread(wait_until_blocked, admin, pids[0])
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                transaction.rollback()
            assert everything(admin) == before
            # The connection works, has no tenant and no transaction.
            async with async_engine.connect() as conn:
                setting = await conn.exec_driver_sql("SELECT current_setting('selene.tenant_id', TRUE)")
                assert setting.scalar_one() in (None, "")
            await write()
            assert everything(admin) != before
        async with async_tenant_scope(async_engine, TENANT) as conn:
            assert await AsyncWorkOrderRepository(conn).verify() == []

    run(database, story, pool_size=1, max_overflow=0, pool_timeout=10)
    # A transaction would see one activity for ever.
    with admin_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        busy = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        wait_until(lambda: conn.execute(busy).scalar_one() == 0, "no session is left in a transaction")


def test_cancellation__at_any_moment_an_append_is_whole_or_not_there(
    database: Database, engine: sa.Engine
) -> None:
    """Canceled after so many turns of the event loop; sent again, its events are all replays or all new."""

    async def story(async_engine: AsyncEngine) -> int:
        canceled = 0
        for turns in range(60):
            batch = [created(f"order-{turns}", idempotency_key="create")]
            batch += [event("STEP_STARTED", f"order-{turns}", idempotency_key=f"step-{n}") for n in range(3)]
            task = asyncio.create_task(async_append_events(async_engine, TENANT, batch))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                canceled += 1
            async with async_tenant_scope(async_engine, TENANT) as conn:
                orders = AsyncWorkOrderRepository(conn)
                assert len([row async for row in orders.events(f"order-{turns}")]) in (0, 4)
            again = await async_append_events(async_engine, TENANT, batch)
            assert len({result.replayed for result in again}) == 1
            assert [result.work_order_seq for result in again] == [1, 2, 3, 4]
        return canceled

    assert run(database, story, pool_size=1, max_overflow=0, pool_timeout=10) > 0
    with tenant_scope(engine, TENANT) as conn:
        assert WorkOrderRepository(conn).verify() == []


ALONE: dict[str, Callable[[AsyncEngine], Awaitable[object]]] = {
    "append": lambda engine: async_append_events(
        engine, TENANT, [created("order", idempotency_key="create")]
    ),
    "erase": lambda engine: async_erase_subject(engine, TENANT, "alice", reason_code=7),
    "feed": lambda engine: async_feed_status(engine, TENANT),
}


@pytest.mark.parametrize("switch", [1, 2])
@pytest.mark.parametrize("call", ALONE.values(), ids=ALONE)
def test_cancellation__while_autocommit_is_switched_leaves_none_behind(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[AsyncEngine], Awaitable[object]],
    switch: int,
) -> None:
    """On a busy machine psycopg lets other tasks run once it has set autocommit; then the cancel comes."""
    switched = psycopg.AsyncConnection.set_autocommit
    task: asyncio.Task[object] | None = None
    switches = 0

    async def set_autocommit(conn: psycopg.AsyncConnection[Any], value: bool) -> None:
        nonlocal switches
        await switched(conn, value)
        if asyncio.current_task() is task and task is not None:
            switches += 1
            if switches == switch:
                task.cancel()
                await asyncio.sleep(0)

    async def called(engine: AsyncEngine) -> object:
        return await call(engine)

    async def story(async_engine: AsyncEngine) -> None:
        nonlocal task
        async with async_tenant_scope(async_engine, TENANT):
            monkeypatch.setattr(psycopg.AsyncConnection, "set_autocommit", set_autocommit)
        task = asyncio.create_task(called(async_engine))
        with suppress(asyncio.CancelledError):
            await task
        async with async_tenant_scope(async_engine, TENANT) as conn:
            assert await AsyncWorkOrderRepository(conn).verify() == []

    run(database, story, pool_size=1, max_overflow=0, pool_timeout=10)
    assert switches >= 1
