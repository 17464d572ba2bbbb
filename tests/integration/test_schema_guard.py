"""check_schema: a service asks whether it can work with the database (contract §13)."""

import asyncio
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread

import pytest
import sqlalchemy as sa

from selene_core import (
    ConversationRepository,
    IdentityRepository,
    LeaseRepository,
    SchemaDrifted,
    SchemaError,
    SchemaLocked,
    SchemaOutdated,
    SchemaTooNew,
    StepAttemptRepository,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    append_events,
    check_schema,
    create_async_selene_engine,
    create_selene_engine,
    rebuild_tenant,
    tenant_scope,
)
from selene_core.migrations import downgrade, upgrade
from selene_core.schema.drift import expected_schema
from selene_core.store.tables import METADATA
from tests.migrations.runs import held, run_all, stands_at
from tests.support.factories import correlation_of, created, event
from tests.support.pooler import is_pooled
from tests.support.races import wait_until
from tests.support.scratch import NEXT, upgrade_further
from tests.support.servers import Database
from tests.support.workers import LIMITS

HEAD = expected_schema().head
BEFORE_HEAD = expected_schema().revisions[-2]
LEDGER = "os_core.work_order_ledger"
CURRENT = "os_core.work_orders_current"

VERIFY = "os_core.verify_work_orders(text, text)"
VERIFY_ANEW = """
    op.execute('ALTER FUNCTION os_core.verify_work_orders(text, text) RENAME TO was_verify_work_orders')
    op.execute('''CREATE FUNCTION os_core.verify_work_orders({arguments})
      RETURNS TABLE ({columns}) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
      AS 'BEGIN END' ''')
    op.execute('GRANT EXECUTE ON FUNCTION os_core.verify_work_orders TO selene_app')
"""
ARGUMENTS = "p_tenant_id text, p_work_order_id text DEFAULT NULL"
COLUMNS = "work_order_id text, problem text"

# The fold makes whole rows of the projection: a revision that adds a column brings a fold that knows it.
A_COLUMN = """
    op.execute('ALTER TABLE os_core.work_orders_current ADD COLUMN mood text')
    fold = sql('fold/apply_work_order_event', version=1)
    ending = 'p_state.asked_fields_json,\\n    p_state.prompt_dedupe_keys_json'
    assert fold.count(ending) == 1
    op.execute(fold.replace(ending, ending + ', NULL'))
"""

COMPATIBLE = {
    "a column": A_COLUMN,
    "a table and an index": """
        op.execute('CREATE TABLE os_core.moods (tenant_id text NOT NULL)')
        op.execute('CREATE INDEX ix_mood ON os_core.work_orders_current (tenant_id, turn_id)')
    """,
    "a function": "op.execute('CREATE FUNCTION os_core.mood() RETURNS integer LANGUAGE sql RETURN 1')",
    "a function's body": f"op.execute('ALTER FUNCTION {VERIFY} SET enable_sort = off')",
    "a parameter with a default": VERIFY_ANEW.format(
        arguments=f"{ARGUMENTS}, p_limit integer DEFAULT 7", columns=COLUMNS
    ),
    "a column of a result": VERIFY_ANEW.format(arguments=ARGUMENTS, columns=f"{COLUMNS}, more text"),
    "a permissive policy": f"op.execute('CREATE POLICY more ON {CURRENT} USING (TRUE)')",
    "a policy": f"op.execute('CREATE POLICY more ON {CURRENT} AS RESTRICTIVE USING (TRUE)')",
}
# What a revision does, and what must be said of it.
INCOMPATIBLE = {
    "function dropped": (f"op.execute('DROP FUNCTION {VERIFY}')", "verify_work_orders(text,text) is missing"),
    "function renamed": (
        f"op.execute('ALTER FUNCTION {VERIFY} RENAME TO verify')",
        "verify_work_orders(text,text) is missing",
    ),
    "a parameter without a default": (
        VERIFY_ANEW.format(
            arguments="p_tenant_id text, p_work_order_id text, p_limit integer", columns=COLUMNS
        ),
        "verify_work_orders(text,text) is missing",
    ),
    "a default gone": (
        VERIFY_ANEW.format(arguments="p_tenant_id text, p_work_order_id text", columns=COLUMNS),
        "verify_work_orders(text,text) is missing",
    ),
    "a column of a result gone": (
        VERIFY_ANEW.format(arguments=ARGUMENTS, columns="work_order_id text"),
        "no longer returns TABLE(work_order_id text, problem text)",
    ),
    "a column of a result of another type": (
        VERIFY_ANEW.format(arguments=ARGUMENTS, columns="work_order_id text, problem jsonb"),
        "no longer returns",
    ),
    "function not executable": (
        f"op.execute('REVOKE EXECUTE ON FUNCTION {VERIFY} FROM selene_app')",
        "selene_app lacks EXECUTE on function os_core.verify_work_orders(text,text)",
    ),
    "column renamed": (
        f"op.execute('ALTER TABLE {CURRENT} RENAME turn_id TO turn')",
        "column turn_id of relation os_core.work_orders_current is missing",
    ),
    "column of another type": (
        f"op.execute('ALTER TABLE {CURRENT} ALTER requester_user_id TYPE varchar')",
        "column requester_user_id of relation os_core.work_orders_current is 'character varying",
    ),
    "column may be null": (
        f"op.execute('ALTER TABLE {CURRENT} ALTER turn_id DROP NOT NULL')",
        "column turn_id of relation os_core.work_orders_current is 'bigint'",
    ),
    "table renamed": (
        f"op.execute('ALTER TABLE {LEDGER} RENAME TO events')",
        "relation os_core.work_order_ledger is missing",
    ),
    "table not readable": (
        f"op.execute('REVOKE SELECT ON {LEDGER} FROM selene_app')",
        "selene_app lacks SELECT on correlation_id of relation os_core.work_order_ledger",
    ),
    "restrictive policy dropped": (
        f"op.execute('DROP POLICY tenant_confine ON {CURRENT}')",
        "policy tenant_confine of relation os_core.work_orders_current is missing",
    ),
    "restrictive policy opened": (
        f"op.execute('ALTER POLICY tenant_confine ON {LEDGER} USING (TRUE)')",
        "policy tenant_confine of relation os_core.work_order_ledger is",
    ),
    "permissive policy dropped": (
        f"op.execute('DROP POLICY tenant_admit ON {CURRENT}')",
        "policy tenant_admit of relation os_core.work_orders_current is missing",
    ),
    "ledger not append-only": (
        "op.execute('DROP TRIGGER reject_mutation_row ON conversation.conversation_ledger')",
        "trigger reject_mutation_row of relation conversation.conversation_ledger is missing",
    ),
    "ledger append-only but for replicas": (
        f"op.execute('ALTER TABLE {LEDGER} ENABLE TRIGGER reject_mutation_statement')",
        "is enabled as ORIGIN, not as ALWAYS",
    ),
    "row security not forced": (
        f"op.execute('ALTER TABLE {LEDGER} NO FORCE ROW LEVEL SECURITY')",
        "row-level security is not forced on relation os_core.work_order_ledger",
    ),
}
DRIFTS = {
    f"ALTER TABLE {CURRENT} NO FORCE ROW LEVEL SECURITY": "row-level security is not forced",
    f"DROP POLICY tenant_confine ON {CURRENT}": "policy tenant_confine",
    f"ALTER TABLE {LEDGER} DISABLE TRIGGER reject_mutation_row": "is disabled",
    f"GRANT SELECT ON {LEDGER} TO PUBLIC": "PUBLIC must not have SELECT",
    f"INSERT INTO os_core.alembic_version VALUES ('{BEFORE_HEAD}')": f"2 revisions, {BEFORE_HEAD} and {HEAD}",
    f"ALTER FUNCTION {VERIFY} OWNER TO CURRENT_USER": "belongs to",
    f"CREATE TABLE public.parent (); ALTER TABLE {LEDGER} INHERIT public.parent": "has parent public.parent",
    "ALTER TABLE conversation.turn_texts ALTER COLUMN text SET STATISTICS 100": "target of text",
    "CREATE STATISTICS public.mine ON text, salt FROM conversation.turn_texts": "public.mine of",
    "DROP FUNCTION os_core.require_tenant(text)": "os_core.require_tenant(text) is missing",
    "REVOKE USAGE ON SCHEMA os_core FROM selene_app": "the login may not read the version table",
}


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    """Return an engine as a service makes it."""
    engine = create_selene_engine(database.app_url, pooler=is_pooled(database.app_url))
    yield engine
    engine.dispose()


def test_check_schema__healthy(engine: sa.Engine) -> None:
    assert check_schema(engine) == HEAD


def test_check_schema__joins_a_transaction_and_leaves_it_as_it_was(engine: sa.Engine) -> None:
    settings = "SELECT current_setting('search_path'), current_setting('selene.tenant_id')"
    with tenant_scope(engine, "acme") as conn:
        conn.exec_driver_sql("SET LOCAL search_path = os_core, public")
        before = conn.exec_driver_sql(settings).one()
        assert check_schema(conn) == HEAD
        assert conn.exec_driver_sql(settings).one() == before
        assert WorkOrderRepository(conn).verify() == []
    with engine.connect() as conn:
        assert check_schema(conn) == HEAD
        assert not conn.in_transaction()


def test_check_schema__autocommit(database: Database) -> None:
    autocommit = database.engine("app", isolation_level="AUTOCOMMIT")
    assert check_schema(autocommit) == HEAD
    with autocommit.connect() as conn, pytest.raises(ValueError, match="AUTOCOMMIT"):
        check_schema(conn)


def test_check_schema__asynchronous(database: Database) -> None:
    async def check() -> str:
        engine = create_async_selene_engine(database.app_url, pooler=is_pooled(database.app_url))
        try:
            async with engine.connect() as conn:
                return await conn.run_sync(check_schema)
        finally:
            await engine.dispose()

    assert asyncio.run(check()) == HEAD


def test_check_schema__older(database: Database, engine: sa.Engine) -> None:
    # As the superuser: whether the older revision lets the application look is not ours to say.
    downgrade(database.admin_url, BEFORE_HEAD)
    with pytest.raises(SchemaOutdated, match="run selene-core upgrade") as raised:
        check_schema(database.engine("admin"))
    assert (raised.value.revision, raised.value.expected) == (BEFORE_HEAD, HEAD)
    upgrade(database.admin_url)
    assert check_schema(engine) == HEAD


def test_check_schema__not_migrated(empty_database: Database, database: Database) -> None:
    with pytest.raises(SchemaOutdated, match="is not migrated") as raised:
        check_schema(empty_database.engine("app"))
    assert raised.value.revision is None


def test_check_schema__schema_of_another_product(empty_database: Database) -> None:
    run_all(
        empty_database,
        [
            "CREATE SCHEMA os_core",
            "CREATE TABLE os_core.alembic_version (version_num varchar(32) NOT NULL)",
            "INSERT INTO os_core.alembic_version VALUES ('abcdef012345')",
        ],
    )
    with pytest.raises(SchemaDrifted, match="this os_core is not ours"):
        check_schema(empty_database.engine("admin"))


@pytest.mark.parametrize("drift", DRIFTS)
def test_check_schema__drifted(database: Database, engine: sa.Engine, drift: str) -> None:
    assert check_schema(engine) == HEAD
    run_all(database, [drift])
    with pytest.raises(SchemaDrifted, match="selene-core doctor") as raised:
        check_schema(engine)
    assert [problem for problem in raised.value.problems if DRIFTS[drift] in problem], raised.value.problems


def test_check_schema__what_is_harmless_passes(database: Database, engine: sa.Engine) -> None:
    run_all(
        database,
        [
            f"CREATE INDEX mine ON {CURRENT} (turn_id)",
            f"ALTER TABLE {LEDGER} SET (fillfactor = 90)",
            f"ALTER TABLE {LEDGER} ALTER COLUMN turn_id SET STATISTICS 1000",
            f"CREATE STATISTICS public.mine ON turn_id, tenant_id FROM {CURRENT}",
        ],
    )
    assert check_schema(engine) == HEAD


@pytest.mark.parametrize(
    ("role", "words"), [("admin", "is a superuser"), ("readonly", "is not a member of selene_app")]
)
def test_check_schema__login_that_is_not_the_applications(database: Database, role: str, words: str) -> None:
    with pytest.raises(SchemaDrifted, match=words):
        check_schema(database.engine("admin" if role == "admin" else "readonly"))


@pytest.mark.parametrize(
    ("power", "words"),
    [
        ("GRANT pg_read_all_data TO {login}", "can become pg_read_all_data"),
        ("GRANT selene_owner TO {login}", "can become selene_owner"),
        ("CREATE ROLE {login}_b BYPASSRLS; GRANT {login}_b TO {login}", "can become {login}_b (BYPASSRLS)"),
        ("ALTER ROLE {login} CREATEROLE", "CREATEROLE"),
    ],
)
def test_check_schema__login_that_can_rise(database: Database, power: str, words: str) -> None:
    name = f"riser_of_{database.name}"
    run_all(database, [f"CREATE ROLE {name} LOGIN PASSWORD 'selene-test' IN ROLE selene_app"])
    riser = create_selene_engine(database.server.url_for(name, database.name), poolclass=sa.NullPool)
    try:
        assert check_schema(riser) == HEAD
        run_all(database, [power.format(login=name)])
        if words == "CREATEROLE" and database.server.version >= 16:
            assert check_schema(riser) == HEAD
            return
        with pytest.raises(SchemaDrifted, match=re.escape(words.format(login=name))):
            check_schema(riser)
    finally:
        run_all(database, [f"DROP ROLE {name}", f"DROP ROLE IF EXISTS {name}_b"])


def test_check_schema__login_that_hides_what_it_may_become(database: Database) -> None:
    """What a session may go back to counts, not only what it acts as."""
    name = f"both_of_{database.name}"
    run_all(database, [f"CREATE ROLE {name} LOGIN PASSWORD 'selene-test' IN ROLE selene_app, selene_owner"])
    both = create_selene_engine(database.server.url_for(name, database.name), poolclass=sa.NullPool)
    try:
        for statement in ("SELECT 1", f"ALTER ROLE {name} SET role = 'selene_app'"):
            run_all(database, [statement])
            with pytest.raises(SchemaDrifted, match=f"role {name} can become selene_owner"):
                check_schema(both)
        with database.engine("admin").connect() as conn:
            conn.exec_driver_sql("SET ROLE selene_app")
            with pytest.raises(SchemaDrifted, match="is a superuser or has BYPASSRLS"):
                check_schema(conn)
    finally:
        run_all(database, [f"DROP ROLE {name}"])


def test_check_schema__login_without_any_rights(database: Database) -> None:
    name = f"stranger_of_{database.name}"
    run_all(database, [f"CREATE ROLE {name} LOGIN PASSWORD 'selene-test'"])
    stranger = create_selene_engine(database.server.url_for(name, database.name), poolclass=sa.NullPool)
    try:
        with pytest.raises(SchemaDrifted, match="may not read the version table"):
            check_schema(stranger)
    finally:
        run_all(database, [f"DROP ROLE {name}"])


@pytest.mark.parametrize("change", COMPATIBLE)
def test_check_schema__newer_and_compatible(database: Database, engine: sa.Engine, change: str) -> None:
    upgrade_further(database, COMPATIBLE[change])
    assert check_schema(engine) == NEXT


@pytest.mark.parametrize("change", INCOMPATIBLE)
def test_check_schema__newer_and_incompatible(database: Database, engine: sa.Engine, change: str) -> None:
    body, words = INCOMPATIBLE[change]
    upgrade_further(database, body)
    with pytest.raises(SchemaTooNew, match="Install the newer version") as raised:
        check_schema(engine)
    assert (raised.value.revision, raised.value.expected) == (NEXT, HEAD)
    assert [problem for problem in raised.value.problems if words in problem], raised.value.problems


def test_check_schema__newer_and_a_parent_elsewhere(database: Database, engine: sa.Engine) -> None:
    """Whoever may query the parent meets no policy of its children."""
    upgrade_further(database, COMPATIBLE["a function"])
    run_all(database, [f"CREATE TABLE public.parent (); ALTER TABLE {LEDGER} INHERIT public.parent"])
    with pytest.raises(SchemaTooNew, match=f"relation {LEDGER} has parent public.parent"):
        check_schema(engine)


def test_check_schema__while_a_migration_is_under_way(database: Database, engine: sa.Engine) -> None:
    """PostgreSQL locks a table to print its constraints: it waits for a while, and then says so."""
    with (
        held(database, f"ALTER TABLE {CURRENT} ADD COLUMN mood text"),
        pytest.raises(SchemaLocked, match="ask again"),
    ):
        check_schema(engine)
    assert check_schema(engine) == HEAD


A_COLUMN_MORE = [
    A_COLUMN if table.fullname == CURRENT else f"op.execute('ALTER TABLE {table} ADD COLUMN mood text')"
    for table in METADATA.sorted_tables
]
"""For every table, a revision each: none waits for one table while it has another."""


class Service:
    """An old service at work: it writes and reads every table in a loop, in a thread of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self.orders = 0
        self.failure: Exception | None = None
        self._engine = engine
        self._stop = Event()
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        try:
            for number in count():
                if self._stop.is_set():
                    return
                order = created()
                more = [event("FIELD_SET", order.work_order_id), event("STATUS_CHANGED", order.work_order_id)]
                for batch in [[order, *more]] if number % 2 else [[order], *([each] for each in more)]:
                    append_events(self._engine, "acme", batch)
                self._read(order)
                self._work_on(order)
                self._talk_about(order)
                self.orders += 1
        except Exception as exc:
            self.failure = exc

    def _read(self, order: WorkOrderLedgerEventInput) -> None:
        with tenant_scope(self._engine, "acme") as conn:
            orders = WorkOrderRepository(conn)
            assert orders.get(order.work_order_id) == orders.as_of(order.work_order_id, seq=3)
            assert len([*orders.events(order.work_order_id)]) == 3
            assert orders.verify(order.work_order_id) == []

    def _work_on(self, order: WorkOrderLedgerEventInput) -> None:
        with tenant_scope(self._engine, "acme") as conn:
            leases, attempts = LeaseRepository(conn), StepAttemptRepository(conn)
            lease = leases.acquire(order.work_order_id, "worker", ttl_ms=600_000)
            assert leases.renew(order.work_order_id, lease.token, ttl_ms=600_000).fence == lease.fence
            attempt = attempts.start(
                order.work_order_id, "book", idempotency_key="book", lease_token=lease.token, **LIMITS
            )
            attempts.finish(
                attempt.step_attempt_id, outcome="SUCCEEDED", reason_code=1, lease_token=lease.token
            )
            assert [each.attempt_status for each in attempts.history(order.work_order_id)] == ["SUCCEEDED"]
            attempts.due_retries(1)
            leases.release(order.work_order_id, lease.token)
            assert leases.current(order.work_order_id) is None
            assert WorkOrderRepository(conn).verify(order.work_order_id) == []

    def _talk_about(self, order: WorkOrderLedgerEventInput) -> None:
        session, thread = order.work_order_id, correlation_of(order.work_order_id)
        with tenant_scope(self._engine, "acme") as conn:
            users, conversation = IdentityRepository(conn), ConversationRepository(conn)
            users.register_identity("alice")
            users.register_device("alice", "phone", device_type="phone")
            users.open_session(session, user_id="alice", device_id="phone")
            said = conversation.append(
                correlation_id=thread,
                turn_id=1,
                user_id="alice",
                role="USER",
                source="TYPED_TEXT",
                text="Hello",
                privacy_scope="PUBLIC_CHAT",
                session_id=session,
            )
            assert [turn.text for turn in conversation.turns(thread)] == ["Hello"]
            conversation.tombstone(thread, said.conversation_turn_id, reason_code=1)
            assert [turn.text for turn in conversation.turns(thread)] == [None, ""]
            touched = users.touch_session(session)
            assert users.get_session(session) == touched
            assert users.close_session(session).session_state == "CLOSED"
            assert users.get_identity("alice") is not None
            assert [each.device_id for each in users.devices("alice")] == ["phone"]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def goes_on(self, orders: int = 4) -> None:
        """Wait until it has done some more work, or has failed."""
        goal = self.orders + orders
        wait_until(lambda: self.failure or self.orders >= goal, "the service works", 60)


def test_old_service__works_while_the_next_revisions_come(database: Database, engine: sa.Engine) -> None:
    service = Service(engine)
    with service.at_work():
        service.goes_on(8)  # so often that its driver prepares what it sends
        upgrade_further(database, *A_COLUMN_MORE, COMPATIBLE["a function"])
        assert stands_at(database) == NEXT
        service.goes_on()
        assert check_schema(engine) == NEXT
        service.goes_on()
    assert service.failure is None
    assert rebuild_tenant(engine, "acme").changed == 0


def test_old_service__is_told_when_it_no_longer_can(database: Database, engine: sa.Engine) -> None:
    service = Service(engine)
    with service.at_work():
        service.goes_on()
        upgrade_further(database, INCOMPATIBLE["function renamed"][0])
        wait_until(lambda: service.failure, "the service fails", 60)
        with pytest.raises(SchemaTooNew, match="verify_work_orders"):
            check_schema(engine)
    assert isinstance(service.failure, sa.exc.ProgrammingError)


@pytest.mark.parametrize("error", [SchemaOutdated, SchemaTooNew, SchemaDrifted, SchemaLocked])
def test_error__survives_pickle_and_has_a_code(error: type[SchemaError]) -> None:
    raised = error("what", "0001", "0002", ("one", "two"))
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again)) == (error, "what")
    assert (again.revision, again.expected, again.problems) == ("0001", "0002", ("one", "two"))
    classes = (SchemaOutdated, SchemaTooNew, SchemaDrifted, SchemaLocked, SchemaError)
    assert len({each.code for each in classes}) == len(classes)
