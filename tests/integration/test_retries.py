"""run_in_tenant: what is run again, and what never is; a proxy cuts connections at the exact message."""

import asyncio
import itertools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from selene_core import (
    ConcurrencyConflict,
    ContractViolation,
    LeaseHeld,
    LeaseRepository,
    TenantScopeViolation,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    async_run_in_tenant,
    http_status,
    is_retryable,
    run_in_tenant,
    tenant_scope,
)
from selene_core.store import retries
from tests.support.factories import created, event, new_id
from tests.support.pooler import driver_options
from tests.support.proxy import COMMIT, Proxy, proxy_to
from tests.support.races import DEADLINE_SECONDS, backend_pid, wait_until_blocked, wait_until_gone
from tests.support.servers import Database

TENANT = "acme"
APPEND = b"append_work_order_events"
Work = Callable[[sa.Connection], Any]
RunWork = Callable[..., Any]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the pauses short, and keep how long they would be."""
    asked: list[float] = []

    def pause(attempt: int) -> float:
        asked.append(drawn := draw(attempt))
        return drawn / 1000

    draw = retries._pause
    monkeypatch.setattr(retries, "_pause", pause)
    return asked


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Stand between the application and the server."""
    with proxy_to(database.app_url) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy) -> Iterator[sa.Engine]:
    """Return an engine whose connections go through the proxy."""
    engine = sa.create_engine(proxy.url, connect_args=driver_options(proxy.url))
    yield engine
    engine.dispose()


def run_async(engine: sa.Engine, tenant: str, work: Work, *args: Any, **options: Any) -> Any:
    """Run the asynchronous twin, on an engine of its own to the same place."""

    async def job(conn: AsyncConnection) -> Any:
        return await conn.run_sync(work)

    async def main() -> Any:
        twin = create_async_engine(engine.url, connect_args=driver_options(engine.url))
        try:
            return await async_run_in_tenant(twin, tenant, job, *args, **options)
        finally:
            await twin.dispose()

    return asyncio.run(main())


@pytest.fixture(params=[run_in_tenant, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> RunWork:
    """Return each of the faces."""
    face: RunWork = request.param
    return face


def set_field(order: str, runs: list[int], **given: Any) -> Work:
    """Return work that sets a field, with a key unless told otherwise, and counts its runs."""
    given.setdefault("idempotency_key", "once")

    def work(conn: sa.Connection) -> Any:
        runs.append(backend_pid(conn))
        fact = event("FIELD_SET", order, payload={"field_key": "place", "value": "Oslo"}, **given)
        return WorkOrderRepository(conn).append(fact)

    return work


def values_set(engine: sa.Engine, order: str) -> int:
    """Count what stands in the ledger, apart from the creation."""
    with tenant_scope(engine, TENANT) as conn:
        return sum(1 for _ in WorkOrderRepository(conn).events(order, after=1))


@pytest.fixture
def order(engine: sa.Engine) -> str:
    """Append an order."""
    append_events(engine, TENANT, [created(order := new_id())])
    return order


# --- lost connections


@pytest.mark.parametrize("at", ["request", "reply"])
@pytest.mark.parametrize("key", ["once", None])
def test_lost__before_the_commit_is_run_again(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str, at: Any, key: str | None
) -> None:
    """With or without keys: of a transaction without its commit nothing stays, though it was answered."""
    runs: list[int] = []
    proxy.cut(APPEND, at)
    result = run(through, TENANT, set_field(order, runs, idempotency_key=key))
    assert not result.replayed
    assert len(runs) == 2
    assert values_set(engine, order) == 1


@pytest.mark.parametrize("at", ["request", "reply"])
def test_lost__during_the_commit_is_told(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str, at: Any
) -> None:
    """The client sees the same, whether the server got the COMMIT or not."""
    runs: list[int] = []
    proxy.cut(COMMIT, at)
    with pytest.raises(DBAPIError) as caught:
        run(through, TENANT, set_field(order, runs, idempotency_key=None))
    assert "whether it took effect is not known" in "".join(caught.value.__notes__)
    assert len(runs) == 1
    assert values_set(engine, order) == (1 if at == "reply" else 0)
    assert http_status(caught.value) == 503


@pytest.mark.parametrize("at", ["request", "reply"])
def test_lost__during_the_commit_is_run_again_if_told_so(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str, at: Any
) -> None:
    runs: list[int] = []
    proxy.cut(COMMIT, at)
    result = run(through, TENANT, set_field(order, runs), retry_unknown=True)
    assert result.replayed is (at == "reply")
    assert len(runs) == 2
    assert values_set(engine, order) == 1


def test_lost__again_and_again_is_told_in_the_end(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str, pauses: list[float]
) -> None:
    runs: list[int] = []
    proxy.cut(APPEND, "reply", times=10)
    with pytest.raises(DBAPIError) as caught:
        run(through, TENANT, set_field(order, runs), 3)
    assert not hasattr(caught.value, "__notes__")  # this one is known: nothing was done
    assert len(runs) == 3
    assert len(pauses) == 2
    assert values_set(engine, order) == 0


def test_lost__no_connection_to_be_had(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str
) -> None:
    """Nothing was begun: it is tried again."""
    proxy.refusals = 2
    runs: list[int] = []
    run(through, TENANT, set_field(order, runs, idempotency_key=None))
    assert len(runs) == 1
    assert proxy.seen == 3
    assert values_set(engine, order) == 1


def test_lost__a_killed_backend(run: RunWork, engine: sa.Engine, admin_engine: sa.Engine, order: str) -> None:
    """Also where the server can still say why: 57P01."""
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> Any:
        result = inner(conn)
        if len(runs) == 1:
            with admin_engine.connect() as admin:
                admin.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": runs[0]})
            conn.execute(sa.text("SELECT 1"))
        return result

    assert not run(engine, TENANT, work).replayed
    assert len({*runs}) == 2
    assert values_set(engine, order) == 1


def test_lost__to_a_limit_on_idle_transactions(
    run: RunWork, engine: sa.Engine, admin_engine: sa.Engine, order: str
) -> None:
    """The server says 25P03, or the client finds the connection broken before it reads that."""
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> Any:
        result = inner(conn)
        if len(runs) == 1:
            conn.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 1")
            with admin_engine.connect() as admin:
                wait_until_gone(admin, runs[0])
        conn.execute(sa.text("SELECT 1"))
        return result

    assert not run(engine, TENANT, work).replayed
    assert len(runs) == 2
    assert values_set(engine, order) == 1


def test_lost__an_error_of_the_work_is_not_hidden_by_its_rollback(
    run: RunWork, through: sa.Engine, proxy: Proxy, order: str
) -> None:
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> Any:
        inner(conn)
        proxy.cut(b"ROLLBACK\0", "request")
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        run(through, TENANT, work)
    assert len(runs) == 1


def test_cancellation__ends_it(database: Database, engine: sa.Engine, order: str) -> None:
    """A canceled task is not run again, and its transaction is rolled back."""
    runs: list[int] = []

    async def main() -> None:
        url = database.app_url
        twin = create_async_engine(url, connect_args=driver_options(url))
        reached = asyncio.Event()

        async def work(conn: AsyncConnection) -> None:
            await conn.run_sync(set_field(order, runs))
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(async_run_in_tenant(twin, TENANT, work, retry_unknown=True))
        await asyncio.wait_for(reached.wait(), DEADLINE_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await twin.dispose()

    asyncio.run(main())
    assert len(runs) == 1
    assert values_set(engine, order) == 0


# --- conflicts


def test_conflict__of_a_snapshot_is_run_again(run: RunWork, engine: sa.Engine, order: str) -> None:
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> Any:
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        seen = WorkOrderRepository(conn).get(order)
        assert seen is not None
        if not runs:
            append_events(engine, TENANT, [event("STEP_STARTED", order)])  # meanwhile, somebody else
        return inner(conn)

    assert run(engine, TENANT, work).work_order_seq == 3
    assert len(runs) == 2


def test_conflict__at_the_commit_itself_is_run_again(
    run: RunWork, engine: sa.Engine, admin_engine: sa.Engine, order: str
) -> None:
    """SERIALIZABLE may refuse a COMMIT with 40001: then it is certain that nothing stays."""
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE public.pairs (who text)")
        conn.exec_driver_sql("GRANT SELECT, INSERT ON public.pairs TO PUBLIC")
    runs: list[int] = []
    inner = set_field(order, runs, idempotency_key=None)

    def skew(conn: sa.Connection, who: str) -> None:
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        conn.exec_driver_sql("SELECT count(*) FROM public.pairs").all()
        conn.execute(sa.text("INSERT INTO public.pairs VALUES (:who)"), {"who": who})

    def work(conn: sa.Connection) -> Any:
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        conn.exec_driver_sql("SELECT count(*) FROM public.pairs").all()
        result = inner(conn)
        conn.exec_driver_sql("INSERT INTO public.pairs VALUES ('ours')")
        if len(runs) == 1:
            with admin_engine.begin() as other:
                skew(other, "theirs")
        return result

    run(engine, TENANT, work)
    assert len(runs) == 2
    assert values_set(engine, order) == 1


def test_conflict__of_a_deadlock_is_run_again(run: RunWork, engine: sa.Engine, database: Database) -> None:
    """Two that lock two orders in opposite order: whoever is the victim comes again."""
    first, second = new_id(), new_id()
    append_events(engine, TENANT, [created(first), created(second)])
    runs: list[int] = []
    with database.engine("admin").connect() as other, database.engine("admin").connect() as watcher:
        lock = sa.text("SELECT FROM os_core.work_orders_current WHERE work_order_id = :id FOR NO KEY UPDATE")
        # The other side never finds the deadlock first.
        other.exec_driver_sql("SET deadlock_timeout = '1h'")
        other.commit()

        def work(conn: sa.Connection) -> Any:
            runs.append(backend_pid(conn))
            if len(runs) == 1:
                other.execute(lock, {"id": second})
                WorkOrderRepository(conn).append(event("STEP_STARTED", first))
                pid = backend_pid(other)
                waiting.append(pool.submit(other.execute, lock, {"id": first}))
                wait_until_blocked(watcher, pid)
                WorkOrderRepository(conn).append(event("STEP_STARTED", second))  # 40P01
            for done in waiting:
                done.result(60)
            other.rollback()
            return WorkOrderRepository(conn).append(event("STEP_STARTED", second))

        waiting: list[Future[Any]] = []
        with ThreadPoolExecutor() as pool:
            assert run(engine, TENANT, work).work_order_seq == 2
    assert len(runs) == 2


def test_conflict__with_what_was_read_is_decided_again(run: RunWork, engine: sa.Engine, order: str) -> None:
    runs: list[int] = []

    def work(conn: sa.Connection) -> Any:
        seen = WorkOrderRepository(conn).get(order)
        assert seen is not None
        runs.append(seen.last_seq)
        if len(runs) == 1:
            append_events(engine, TENANT, [event("STEP_STARTED", order)])
        return WorkOrderRepository(conn).append(event("STEP_STARTED", order, expected_seq=seen.last_seq))

    assert run(engine, TENANT, work).work_order_seq == 3
    assert runs == [1, 2]


def test_conflict__that_stays_is_raised(
    run: RunWork, engine: sa.Engine, order: str, pauses: list[float]
) -> None:
    runs: list[int] = []
    with pytest.raises(ConcurrencyConflict) as caught:
        run(engine, TENANT, set_field(order, runs, expected_seq=9), 7)
    assert len(runs) == 7
    assert all(pause <= min(2.0, 0.1 * 2**made) for made, pause in enumerate(pauses))
    assert len({*pauses}) == 6
    assert pickle.loads(pickle.dumps(caught.value)).last_seq == 1


# --- what is not run again


@pytest.mark.parametrize(
    ("work", "raised"),
    [
        (lambda conn: WorkOrderRepository(conn).append(event("STEP_STARTED", "nowhere")), WorkOrderNotFound),
        (lambda conn: WorkOrderRepository(conn).get(" "), ContractViolation),
        (lambda conn: conn.exec_driver_sql("SELECT 1 / 0"), DBAPIError),
        (lambda _conn: [].pop(), IndexError),
    ],
)
def test_refusal__is_raised_at_once(
    run: RunWork, engine: sa.Engine, work: Work, raised: type[Exception]
) -> None:
    runs = itertools.count(1)
    with pytest.raises(raised):
        run(engine, TENANT, lambda conn: (next(runs), work(conn)))
    assert next(runs) == 2


def test_refusal__a_held_lease_takes_time(run: RunWork, engine: sa.Engine, order: str) -> None:
    with tenant_scope(engine, TENANT) as conn:
        LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=60_000)
    runs = itertools.count(1)
    with pytest.raises(LeaseHeld):
        run(engine, TENANT, lambda conn: (next(runs), LeaseRepository(conn).acquire(order, "w", ttl_ms=9)))
    assert next(runs) == 2


@pytest.mark.parametrize("commit", ["", "COMMIT", " end;", "COMMIT AND CHAIN"])
def test_work__that_commits_itself_is_never_run_again(
    run: RunWork, engine: sa.Engine, order: str, commit: str
) -> None:
    runs: list[int] = []
    inner = set_field(order, runs, idempotency_key=None)

    def work(conn: sa.Connection) -> None:
        inner(conn)
        conn.exec_driver_sql(commit) if commit else conn.commit()
        append_events(engine, TENANT, [event("STEP_STARTED", order, expected_seq=9)])

    with pytest.raises(ConcurrencyConflict):
        run(engine, TENANT, work)
    assert len(runs) == 1
    assert values_set(engine, order) == 1


def test_work__that_loses_the_connection_in_a_commit_of_its_own(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str
) -> None:
    runs: list[int] = []
    inner = set_field(order, runs, idempotency_key=None)
    proxy.cut(COMMIT, "reply")

    def work(conn: sa.Connection) -> None:
        inner(conn)
        conn.exec_driver_sql("COMMIT")

    with pytest.raises(DBAPIError):
        run(through, TENANT, work)
    assert len(runs) == 1
    assert values_set(engine, order) == 1


def test_work__that_hides_the_end_of_its_transaction_is_told(
    run: RunWork, engine: sa.Engine, order: str
) -> None:
    """The server would answer COMMIT with ROLLBACK: what was appended before would be gone without a word."""
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> str:
        inner(conn)
        try:
            WorkOrderRepository(conn).append(event("STEP_STARTED", order, expected_seq=9))
        except ConcurrencyConflict:
            return "never mind"
        return "well"

    with pytest.raises(TenantScopeViolation, match=r"begin_nested"):
        run(engine, TENANT, work)
    assert len(runs) == 1
    assert values_set(engine, order) == 0


def test_work__may_try_in_a_savepoint(run: RunWork, engine: sa.Engine, order: str) -> None:
    runs: list[int] = []
    inner = set_field(order, runs)

    def work(conn: sa.Connection) -> str:
        inner(conn)
        try:
            with conn.begin_nested():
                WorkOrderRepository(conn).append(event("STEP_STARTED", order, expected_seq=9))
        except ConcurrencyConflict:
            return "never mind"
        return "well"

    assert run(engine, TENANT, work) == "never mind"
    assert values_set(engine, order) == 1


def test_work__that_hides_a_lost_connection_is_told(
    run: RunWork, through: sa.Engine, engine: sa.Engine, proxy: Proxy, order: str
) -> None:
    runs: list[int] = []
    inner = set_field(order, runs)
    proxy.cut(APPEND, "reply")

    def work(conn: sa.Connection) -> str:
        try:
            inner(conn)
        except DBAPIError:
            return "never mind"
        return "well"

    with pytest.raises(TenantScopeViolation, match="nothing is written"):
        run(through, TENANT, work)
    assert values_set(engine, order) == 0


@pytest.mark.parametrize("attempts", [0, -1, 101, True, 2.0, "3"])
def test_arguments__attempts_are_bounded(run: RunWork, engine: sa.Engine, attempts: Any) -> None:
    with pytest.raises(ContractViolation, match="attempts"):
        run(engine, TENANT, lambda _conn: 1, attempts)


def test_arguments__are_named(engine: sa.Engine) -> None:
    with engine.connect() as conn, pytest.raises(TypeError, match="run_in_tenant takes an Engine"):
        run_in_tenant(conn, TENANT, lambda _conn: 1)  # type: ignore[arg-type]
    with pytest.raises(ContractViolation, match="tenant_id"):
        run_in_tenant(engine, " ", lambda _conn: 1)
    with pytest.raises(ContractViolation, match="retry_unknown"):
        run_in_tenant(engine, TENANT, lambda _conn: 1, retry_unknown="yes")  # type: ignore[arg-type]


# --- is_retryable and http_status, of real errors


def test_failures__of_a_real_server(engine: sa.Engine, through: sa.Engine, proxy: Proxy, order: str) -> None:
    proxy.cut(APPEND, "reply")
    with pytest.raises(DBAPIError) as lost:
        append_events(through, TENANT, [event("STEP_STARTED", order)])
    proxy.refusals = 1
    with pytest.raises(DBAPIError) as unconnected:
        append_events(through, TENANT, [event("STEP_STARTED", order)])
    with pytest.raises(DBAPIError) as wrong, engine.connect() as conn:
        conn.exec_driver_sql("SELECT nothing")
    with engine.connect() as conn:
        conn.exec_driver_sql("SET LOCAL statement_timeout = 1")
        with pytest.raises(DBAPIError) as slow:
            conn.exec_driver_sql("SELECT pg_sleep(60)")
    told = [
        (is_retryable(exc.value), is_retryable(exc.value, retry_unknown=True), http_status(exc.value))
        for exc in (lost, unconnected, wrong, slow)
    ]
    assert told == [(False, True, 503), (True, True, 503), (False, False, 500), (False, False, 503)]
    raw = lost.value.orig
    assert isinstance(raw, psycopg.Error)
    ended = psycopg.errors.IdleInTransactionSessionTimeout()
    assert (is_retryable(ended), is_retryable(ended, retry_unknown=True), http_status(ended)) == (
        False,
        True,
        503,
    )
    assert (is_retryable(raw), is_retryable(raw, retry_unknown=True), http_status(raw)) == (False, True, 503)
