"""Behind PgBouncer in transaction mode many clients share a server's session, and no tenant stays in it."""

import random
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from selene_core import (
    ConversationRepository,
    TenantScopeViolation,
    WorkOrderRepository,
    append_events,
    rebuild_tenant,
    tenant_scope,
)
from selene_core.store.tables import METADATA
from tests.support import pooler as pooling
from tests.support.factories import created, event
from tests.support.pooler import Pooler, driver_options, pgbouncer
from tests.support.races import backend_pid, wait_until_gone
from tests.support.servers import LOGIN_ROLES, PASSWORD, Database, Server
from tests.support.writes import CALLS, statement, thread_of

pytestmark = pytest.mark.needs("pgbouncer")

CLIENTS = 16
SWITCHES = 2_000
TENANTS = ("acme", "globex", "initech", "umbrella", "wayne")
SECONDS = 30

EVERYTHING = sa.text(" UNION ALL ".join(f"SELECT tenant_id FROM {table}" for table in METADATA.sorted_tables))
"""What a session sees with nothing but row-level security between it and the other tenants."""

Pools = Callable[..., Pooler]


@pytest.fixture
def pools(server: Server) -> Iterator[Pools]:
    """Start poolers with a given number of connections to the server, and settings."""
    users = dict.fromkeys(LOGIN_ROLES.values(), PASSWORD)
    with ExitStack() as stack:
        yield lambda size, **settings: stack.enter_context(
            pgbouncer(server.address, users, server_connections=size, settings=settings)
        )


def pooled_engine(database: Database, pooler: Pooler, **options: object) -> sa.Engine:
    url = pooler.url_for(LOGIN_ROLES["app"], PASSWORD, database.name)
    return sa.create_engine(url, connect_args=driver_options(url), **options)


@pytest.fixture
def two_clients(database: Database, pools: Pools) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    """Return two clients who get the same session of the server, one after the other."""
    pooler = pools(1)
    clients = pooled_engine(database, pooler), pooled_engine(database, pooler)
    yield clients
    for client in clients:
        client.dispose()


def check_nothing_left(client: sa.Engine, pid: int | None) -> None:
    """Check what the next client finds in the session: no tenant, no rows, and no use as another's."""
    with client.connect() as conn:
        if pid is not None:
            assert backend_pid(conn) == pid, "it is the same session"
        assert conn.scalar(sa.text("SELECT current_setting('selene.tenant_id', TRUE)")) in (None, "")
        assert conn.execute(EVERYTHING).all() == []
        conn.rollback()
        with pytest.raises(TenantScopeViolation):
            WorkOrderRepository(conn).get("ours")
    with tenant_scope(client, "rival") as conn:
        assert WorkOrderRepository(conn).get("ours") is None
        assert conn.execute(EVERYTHING).all() == []


def test_sixteen_clients__see_their_tenant_alone(database: Database, pools: Pools) -> None:
    engine = pooled_engine(database, pools(4), pool_size=CLIENTS, max_overflow=0)
    for tenant in TENANTS:
        with tenant_scope(engine, tenant) as conn:
            for call in CALLS.values():
                conn.exec_driver_sql(statement(call, tenant))
    start = Barrier(CLIENTS)

    def client(number: int) -> tuple[int, int, dict[int, set[str]]]:
        """Switch tenants; return how many rows of others and of one's own were seen, and the sessions."""
        luck = random.Random(number)
        foreign = own = 0
        sessions: dict[int, set[str]] = defaultdict(set)
        with engine.connect() as conn:
            start.wait(SECONDS)
            tenant = luck.choice(TENANTS)
            for switch in range(SWITCHES // CLIENTS):
                if luck.random() < 0.2:
                    foreign += len(conn.execute(EVERYTHING).all())  # in no scope
                    conn.rollback()
                tenant = luck.choice([other for other in TENANTS if other != tenant])
                end = luck.choice(["commit", "commit", "rollback", "error"])
                try:
                    with tenant_scope(conn, tenant) as scoped:
                        sessions[backend_pid(scoped)].add(tenant)
                        orders = WorkOrderRepository(scoped)
                        assert orders.get(f"{tenant}-order") is not None
                        orders.append(created(f"{tenant}-{number}-{switch}"))
                        seen = Counter(scoped.execute(EVERYTHING).scalars())
                        own += seen[tenant]
                        foreign += seen.total() - seen[tenant]
                        other = luck.choice([other for other in TENANTS if other != tenant])
                        foreign += orders.get(f"{other}-order") is not None
                        foreign += len(ConversationRepository(scoped).page(thread_of(other)))
                        if end == "rollback":
                            raise KeyError
                        if end == "error":
                            scoped.exec_driver_sql("SELECT 1 / 0")
                except (KeyError, DBAPIError):
                    assert end in ("rollback", "error")
        return foreign, own, sessions

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(client, range(CLIENTS)))
    served = defaultdict(set)
    for number, (_, own, sessions) in enumerate(results):
        assert own > 0
        for pid in sessions:
            served[pid].add(number)
    assert len(served) <= 4, "sixteen clients share four sessions"
    assert all(len(clients) > 1 for clients in served.values())
    assert max(len(tenants) for _, _, sessions in results for tenants in sessions.values()) > 1
    assert sum(foreign for foreign, _, _ in results) == 0
    for tenant in TENANTS:
        assert rebuild_tenant(engine, tenant).changed == 0
    engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback", "error"])
def test_next_client__finds_no_tenant(two_clients: tuple[sa.Engine, sa.Engine], end: str) -> None:
    first, second = two_clients
    append_events(first, "acme", [created("ours")])
    with first.connect() as conn:
        pid = None
        try:
            with tenant_scope(conn, "acme") as scoped:
                pid = backend_pid(scoped)
                WorkOrderRepository(scoped).append(event("FIELD_SET", "ours"))
                if end == "error":
                    scoped.exec_driver_sql("SELECT 1 / 0")
                if end == "rollback":
                    raise KeyError
        except (KeyError, DBAPIError):
            assert end != "commit"
        check_nothing_left(second, pid)
    with tenant_scope(second, "acme") as conn:
        assert len([*WorkOrderRepository(conn).events("ours")]) == (2 if end == "commit" else 1)


KILLED = """
    import sys
    from sqlalchemy import create_engine
    from selene_core import WorkOrderRepository, tenant_scope
    from tests.support.factories import event

    engine = create_engine(sys.argv[1], connect_args={"prepare_threshold": None})
    with tenant_scope(engine, "acme") as conn:
        WorkOrderRepository(conn).append(event("FIELD_SET", "ours"))
        print(conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one(), flush=True)
        sys.stdin.read()
"""


@pytest.mark.slow
def test_killed_client__leaves_no_tenant_and_no_rows(
    two_clients: tuple[sa.Engine, sa.Engine], admin_engine: sa.Engine
) -> None:
    first, second = two_clients
    append_events(first, "acme", [created("ours")])
    url = first.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    check_nothing_left(second, None)
    with admin_engine.connect() as conn:
        wait_until_gone(conn, pid)  # PgBouncer does not hand on a session in the middle of a transaction
    with tenant_scope(second, "acme") as conn:
        assert len([*WorkOrderRepository(conn).events("ours")]) == 1


def test_killed_backend__is_one_clients_error(
    two_clients: tuple[sa.Engine, sa.Engine], admin_engine: sa.Engine
) -> None:
    first, second = two_clients
    append_events(first, "acme", [created("ours")])
    with tenant_scope(first, "acme") as conn:
        orders = WorkOrderRepository(conn)
        orders.append(event("FIELD_SET", "ours"))
        with admin_engine.connect() as admin:
            admin.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": backend_pid(conn)})
        with pytest.raises(DBAPIError) as caught:
            orders.get("ours")
        assert isinstance(caught.value.orig, psycopg.OperationalError)
        conn.invalidate()
        conn.rollback()
    check_nothing_left(second, None)
    append_events(first, "acme", [event("FIELD_SET", "ours")])


def test_statements__run_often_from_many_clients(two_clients: tuple[sa.Engine, sa.Engine]) -> None:
    """More often than psycopg waits before it prepares a statement, which must then not be prepared."""
    for client in two_clients:
        append_events(client, "acme", [created(f"order-{id(client)}")])
    for _ in range(8):
        for client in two_clients:
            append_events(client, "acme", [event("FIELD_SET", f"order-{id(client)}")])
            with tenant_scope(client, "acme") as conn:
                orders = WorkOrderRepository(conn)
                assert orders.get(f"order-{id(client)}") is not None
                assert len([*orders.events(f"order-{id(client)}")]) > 1
                assert orders.verify() == []


RESET = {"server_reset_query": "DISCARD ALL", "server_reset_query_always": "1"}


@pytest.mark.parametrize("settings", [{}, RESET], ids=["as it comes", "with a reset after each transaction"])
def test_a_setting_left_in_the_session(database: Database, pools: Pools, settings: dict[str, str]) -> None:
    """Somebody says SET without LOCAL: scopes hold, and what is outside of them only with a reset."""
    pooler = pools(1, **settings)
    first, second = pooled_engine(database, pooler), pooled_engine(database, pooler)
    append_events(first, "acme", [created("ours")])
    with first.begin() as conn:
        conn.exec_driver_sql("SET selene.tenant_id = 'acme'")
    with tenant_scope(second, "rival") as conn:
        assert conn.execute(EVERYTHING).all() == []
        assert WorkOrderRepository(conn).get("ours") is None
    with second.connect() as conn:
        left = conn.execute(EVERYTHING).scalars().all()
        with pytest.raises(TenantScopeViolation):
            WorkOrderRepository(conn).get("ours")
    if settings:
        assert left == []
        append_events(second, "rival", [created("theirs")])
    else:
        assert left == ["acme", "acme"], "the known limit of a plain SET"
        with pytest.raises(TenantScopeViolation):
            append_events(second, "rival", [created("theirs")])
    for client in (first, second):
        client.dispose()


def test_direct__names_tests_that_exist() -> None:
    for name in pooling.DIRECT:
        file, _, function = name.partition("::")
        (path,) = Path(__file__).parent.glob(file)
        assert f"def {function.split('[')[0]}(" in path.read_text(encoding="utf-8"), name
