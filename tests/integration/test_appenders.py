"""Appender and AsyncAppender: many callers, few calls, and to each the answer of a call of his own."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import selene_core
from selene_core import (
    Appender,
    AppendResult,
    AsyncAppender,
    ContractViolation,
    SeleneError,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from tests.integration.test_documents import guides_block
from tests.support.factories import created, event
from tests.support.plans import listening
from tests.support.pooler import driver_options
from tests.support.races import wait_until
from tests.support.servers import Database

T = TypeVar("T")
TENANT = "acme"
N = 24


def field(order: str, value: object = "Oslo", **given: Any) -> WorkOrderLedgerEventInput:
    """Make an event that leaves the envelope to the order, so that it may share a call."""
    return WorkOrderLedgerEventInput(
        work_order_id=order,
        event_type=WorkOrderEventType.FIELD_SET,
        payload={"field_key": "place", "value": value},
        **given,
    )


@pytest.fixture
def orders(engine: sa.Engine) -> list[str]:
    names = [f"order-{n:02}" for n in range(N)]
    append_events(engine, TENANT, [created(name) for name in names])
    return names


@contextmanager
def counted(engine: sa.Engine) -> Iterator[list[int]]:
    """List how many events each call had."""
    sizes: list[int] = []

    def listen(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "append_work_order_events" in statement:
            sizes.append(str.count(parameters["events"], '"work_order_id"'))

    with listening(engine, "before_cursor_execute", listen):
        yield sizes


def told(call: Callable[[], T]) -> T | Exception:
    """Return what a call returns or raises."""
    try:
        return call()
    except Exception as exc:
        return exc


def shown(answer: object) -> object:
    """Return what of an answer does not depend on the moment."""
    if isinstance(answer, AppendResult):
        return answer.work_order_seq, answer.replayed
    return type(answer), str(answer), getattr(answer, "event_index", None)


def by_threads(
    engine: sa.Engine, events: list[WorkOrderLedgerEventInput], **options: Any
) -> list[AppendResult | Exception]:
    """Let a thread append each event, all at once."""
    barrier = Barrier(len(events))
    with Appender(engine, **options) as appender, ThreadPoolExecutor(len(events)) as pool:

        def one(each: WorkOrderLedgerEventInput) -> AppendResult | Exception:
            barrier.wait(60)
            return told(lambda: appender.append(TENANT, each))

        return list(pool.map(one, events))


def by_tasks(
    database: Database, events: list[WorkOrderLedgerEventInput], **options: Any
) -> list[AppendResult | BaseException]:
    """Let a task append each event, all at once."""

    async def story(engine: AsyncEngine) -> list[AppendResult | BaseException]:
        async with AsyncAppender(engine, **options) as appender:
            calls = [appender.append(TENANT, each) for each in events]
            return await asyncio.gather(*calls, return_exceptions=True)

    return run(database, story)


def run(database: Database, story: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    async def main() -> T:
        url = database.url("app")
        engine = create_async_engine(url, connect_args=driver_options(url))
        try:
            return await story(engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())


def history(engine: sa.Engine, order: str) -> list[Any]:
    with tenant_scope(engine, TENANT) as conn:
        return [each.payload for each in WorkOrderRepository(conn).events(order, after=1)]


# --- every answer is that of a call of its own


def mixed(names: list[str], seed: int) -> list[WorkOrderLedgerEventInput]:
    """Compose an event for each order: good ones, replays, refusals."""
    rng = random.Random(seed)
    kinds: list[Callable[[str], WorkOrderLedgerEventInput]] = [
        field,
        lambda name: field(name, idempotency_key="key"),
        lambda name: field(f"nowhere-{name}"),
        lambda name: field(name, expected_seq=9),
        lambda name: field(name, work_order_status="CONFIRM"),
        lambda name: event("STEP_STARTED", name),
        lambda name: WorkOrderLedgerEventInput(
            work_order_id=name,
            event_type=WorkOrderEventType.EXTERNAL_APPROVAL_RESOLVED,
            payload={"request_id": "r", "outcome": "APPROVED"},
        ),
    ]
    return [rng.choice(kinds)(name) for name in names]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("face", ["threads", "tasks"])
def test_answers__are_those_of_single_calls(
    engine: sa.Engine, database: Database, orders: list[str], face: str, seed: int
) -> None:
    twins = [f"twin-{name}" for name in orders]
    append_events(engine, TENANT, [created(name) for name in twins])
    for names in (orders, twins):
        append_events(engine, TENANT, [field(name, idempotency_key="key") for name in names[::2]])
    sent = mixed(orders, seed)
    alone = [told(lambda each=each: append_events(engine, TENANT, [each])[0]) for each in mixed(twins, seed)]  # type: ignore[misc]  # a lambda's default
    together: Any = by_threads(engine, sent) if face == "threads" else by_tasks(database, sent)

    def plain(answer: object) -> object:
        return repr(shown(answer)).replace("twin-", "")

    assert [plain(answer) for answer in together] == [plain(answer) for answer in alone]
    with tenant_scope(engine, TENANT) as conn:
        assert WorkOrderRepository(conn).verify() == []


def test_calls__are_shared(engine: sa.Engine, orders: list[str]) -> None:
    """While one call waits for a lock, the rest is gathered into one more."""
    with counted(engine) as sizes:
        answers = by_threads(engine, [field(name) for name in orders])
    assert all(isinstance(answer, AppendResult) for answer in answers)
    assert sum(sizes) == N
    assert len(sizes) < N


def test_calls__have_one_event_of_an_order_and_threads_go_alone(engine: sa.Engine, orders: list[str]) -> None:
    same = [field(orders[0], value) for value in range(N)]
    with counted(engine) as sizes:
        answers = by_threads(engine, same)
    assert sizes == [1] * N
    seqs = [answer.work_order_seq for answer in answers if isinstance(answer, AppendResult)]
    assert sorted(seqs) == [*range(2, N + 2)]
    with counted(engine) as sizes:
        by_threads(engine, [event("STEP_STARTED", name) for name in orders])
    assert sizes == [1] * N


def test_refusal__is_one_callers_alone(engine: sa.Engine, database: Database, orders: list[str]) -> None:
    events = [field(name if n % 5 else "nowhere") for n, name in enumerate(orders)]
    for answers in (by_threads(engine, events), by_tasks(database, events)):
        for n, answer in enumerate(answers):
            assert isinstance(answer, AppendResult if n % 5 else WorkOrderNotFound), n
    raised = [answer for answer in answers if isinstance(answer, SeleneError)]
    assert len({id(each) for each in raised}) == len(raised)


def test_input__is_refused_before_anything_is_sent(engine: sa.Engine, database: Database) -> None:
    with counted(engine) as sizes, Appender(engine) as appender:
        bad: Any
        for bad in ((TENANT, "no event"), ("no tenant", created("order"))):
            with pytest.raises(ContractViolation):
                appender.append(*bad)
    assert sizes == []
    with pytest.raises(ValueError, match="at least 2"):
        Appender(engine, calls=1)
    with pytest.raises(TypeError, match="AsyncAppender"):
        Appender(create_async_engine(database.url("app")))  # type: ignore[arg-type]  # what is tested


# --- locked orders


@pytest.mark.parametrize("locked", [1, 6])
@pytest.mark.parametrize("face", ["threads", "tasks"])
def test_locked_orders__hold_up_nobody_else(
    engine: sa.Engine, database: Database, orders: list[str], face: str, locked: int
) -> None:
    """More orders may be locked than calls are made at a time; their events wait, and then come."""
    holder = engine.connect()
    holder.begin()
    with tenant_scope(holder, TENANT):
        WorkOrderRepository(holder).append_many([field(name, "held") for name in orders[:locked]])

    def others_are_there() -> bool:
        return all(len(history(engine, name)) == 2 for name in orders[locked:])

    with ThreadPoolExecutor(1) as pool:
        events = [field(name, value) for value in (1, 2) for name in orders]
        started = (
            pool.submit(by_threads, engine, events)
            if face == "threads"
            else pool.submit(by_tasks, database, events)
        )
        try:
            wait_until(others_are_there, "the events of all other orders")
            assert not started.done()
        finally:
            holder.commit()
            holder.close()
        answers = started.result(60)
    assert all(isinstance(answer, AppendResult) for answer in answers)
    assert all(len(history(engine, name)) == 3 for name in orders[:locked])


def test_locked_order__is_waited_for_as_long_as_the_session_says(
    engine: sa.Engine, database: Database, orders: list[str]
) -> None:
    patient = database.engine("app")

    @sa.event.listens_for(patient, "connect")
    def short(connection: Any, _record: object) -> None:
        connection.execute("SET lock_timeout = 100")
        connection.commit()

    with engine.connect() as holder, holder.begin(), tenant_scope(holder, TENANT):
        WorkOrderRepository(holder).append(field(orders[0]))
        with Appender(patient) as appender:
            answer = told(lambda: appender.append(TENANT, field(orders[0])))
            assert isinstance(answer, DBAPIError)
            assert getattr(answer.orig, "sqlstate", None) == "55P03"
            assert appender.append(TENANT, field(orders[1])).work_order_seq == 2


# --- lost connections


@pytest.mark.parametrize("key", [None, "key"])
def test_lost_connection__is_told_without_a_key_and_sent_again_with_one(
    engine: sa.Engine, admin_engine: sa.Engine, orders: list[str], key: str | None
) -> None:
    """The backend is killed while the call waits for the order; whether it has written, nobody knows."""
    killed: list[int] = []
    with engine.connect() as holder, admin_engine.connect() as admin:
        transaction = holder.begin()
        with tenant_scope(holder, TENANT):
            WorkOrderRepository(holder).append(field(orders[0], "held"))
        blocked = sa.text(
            "SELECT pid FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database() LIMIT 1"
        )
        with ThreadPoolExecutor(1) as pool, Appender(engine) as appender:
            started = pool.submit(
                lambda: told(lambda: appender.append(TENANT, field(orders[0], idempotency_key=key)))
            )

            def kill() -> bool:
                admin.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
                pid = admin.execute(blocked).scalar()
                if pid and admin.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid}).scalar():
                    killed.append(pid)
                return bool(killed)

            wait_until(kill, "a backend that waits is killed")
            if key is None:

                def is_told() -> bool:
                    kill()  # one that came between two of the call's waits for the lock has lost nothing
                    return started.done()

                wait_until(is_told, "the loss is told")
                assert isinstance(started.result(), DBAPIError)
            transaction.commit()
            answer = started.result(60)
    if key is None:
        assert len(history(engine, orders[0])) == 1
    else:
        assert isinstance(answer, AppendResult)
        assert len(history(engine, orders[0])) == 2


@pytest.mark.parametrize("face", ["threads", "tasks"])
def test_lost_answer__of_what_was_written_is_told_or_asked_for_again(
    engine: sa.Engine, database: Database, orders: list[str], face: str
) -> None:
    """The first call with several events is written, and its connection breaks before the answer."""
    broken: list[str] = []

    def break_connection(conn: sa.Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "append_work_order_events" in statement and "," in parameters["events"] and not broken:
            broken.append(parameters["events"])
            conn.connection.dbapi_connection.close()  # type: ignore[union-attr]  # there is one
            raise psycopg.OperationalError("the connection is lost")

    events = [field(name, idempotency_key="key" if n % 2 else None) for n, name in enumerate(orders)]
    with listening(sa.Engine, "after_cursor_execute", break_connection):
        answers: Any = by_threads(engine, events) if face == "threads" else by_tasks(database, events)
    for n, (name, answer) in enumerate(zip(orders, answers, strict=True)):
        if f'"{name}"' not in broken[0]:
            assert shown(answer) == (2, False)
        elif n % 2:
            assert shown(answer) == (2, True)
        else:
            assert isinstance(answer, DBAPIError)
        assert len(history(engine, name)) == 1


def test_connect__that_fails_is_told_to_all(orders: list[str]) -> None:
    nowhere = sa.create_engine("postgresql+psycopg://nobody@/nothing?host=/nonexistent")
    answers = by_threads(nowhere, [field(name, idempotency_key="key") for name in orders])
    assert all(isinstance(answer, DBAPIError) for answer in answers)
    assert len({id(answer) for answer in answers}) == len(answers)


# --- canceled callers, closing


def test_canceled__before_it_is_sent_writes_nothing_and_the_others_go_on(
    engine: sa.Engine, database: Database, orders: list[str]
) -> None:
    async def story(async_engine: AsyncEngine) -> list[Any]:
        async with AsyncAppender(async_engine) as appender:
            tasks = [asyncio.create_task(appender.append(TENANT, field(name))) for name in orders]
            tasks += [asyncio.create_task(appender.append(TENANT, field(orders[1], "next")))]
            await asyncio.sleep(0)  # the first is sent, the others wait
            for canceled in tasks[1:5]:
                canceled.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(database, story)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
        1 <= n < 5 for n in range(N + 1)
    ]
    assert [len(history(engine, name)) for name in orders] == [1, 1, 0, 0, 0, *[1] * (N - 5)]


def test_close__answers_everybody_and_takes_no_more(
    engine: sa.Engine, database: Database, orders: list[str]
) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        appender = AsyncAppender(async_engine)
        tasks = [asyncio.create_task(appender.append(TENANT, field(name))) for name in orders]
        await asyncio.sleep(0)
        await appender.close()
        assert all(task.done() for task in tasks)
        with pytest.raises(RuntimeError, match="closed"):
            await appender.append(TENANT, field(orders[0]))

    run(database, story)
    appender = Appender(engine)
    appender.append(TENANT, field(orders[0]))
    appender.close()
    appender.close()
    with pytest.raises(RuntimeError, match="closed"):
        appender.append(TENANT, field(orders[0]))
    assert len(history(engine, orders[0])) == 2


def test_appender__as_in_the_guide(engine: sa.Engine, database: Database, orders: list[str]) -> None:
    example = guides_block("appender", "python")

    async def story(async_engine: AsyncEngine) -> int:
        names: dict[str, Any] = {**vars(selene_core), "engine": async_engine}
        exec(example, names)  # noqa: S102 - an example of our own
        seq: int = await names["answered"](TENANT, orders[0], "Oslo")
        return seq

    assert run(database, story) == 2
