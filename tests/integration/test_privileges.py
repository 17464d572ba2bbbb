"""What the logins of application and readers are refused, on everything in our schemas (contract §10)."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.support.catalogue_rules import PUBLIC_FUNCTIONS, READING_FUNCTIONS
from tests.support.servers import LOGIN_ROLES, Database, Role, Server

LOGINS: list[Role] = ["app", "readonly"]
REFUSED_ON_TABLES = [
    "INSERT INTO {table} DEFAULT VALUES",
    "INSERT INTO {table} DEFAULT VALUES ON CONFLICT DO NOTHING",
    "UPDATE {table} SET {column} = {column}",
    "UPDATE {table} SET {column} = {column} WHERE FALSE",
    "DELETE FROM {table}",
    "MERGE INTO {table} USING (SELECT 1) AS s ON FALSE WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
    "MERGE INTO {table} USING (SELECT 1) AS s ON TRUE WHEN MATCHED THEN DELETE",
    "COPY {table} FROM STDIN",
    "TRUNCATE {table}",
    "TRUNCATE {table} CASCADE",
    "SELECT FROM {table} FOR UPDATE",
    "SELECT FROM {table} FOR NO KEY UPDATE",
    "SELECT FROM {table} FOR SHARE",
    "SELECT FROM {table} FOR KEY SHARE",
    "LOCK TABLE {table}",
    "LOCK TABLE {table} IN SHARE MODE",
    "LOCK TABLE {table} IN ROW EXCLUSIVE MODE",
    "LOCK TABLE {table} IN ROW SHARE MODE",
    "CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION os_core.reject_mutation()",
    "CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION pg_temp.mine()",
    "CREATE RULE mine AS ON INSERT TO {table} DO INSTEAD NOTHING",
    "CREATE POLICY mine ON {table} USING (TRUE)",
    "CREATE INDEX mine ON {table} ({column})",
    "CREATE TEMPORARY TABLE mine () INHERITS ({table})",
    "CREATE STATISTICS pg_temp.mine ON {column}, ctid FROM {table}",
    "ALTER TABLE {table} ADD COLUMN mine int",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE {table} OWNER TO CURRENT_USER",
    "ALTER TABLE {table} RENAME TO mine",
    "ALTER TABLE {table} SET SCHEMA public",
    "COMMENT ON TABLE {table} IS 'mine'",
    "REINDEX TABLE {table}",
    "DROP TABLE {table}",
    "DROP TABLE {table} CASCADE",
]
REFUSED_ON_SEQUENCES = [
    "SELECT nextval('{sequence}')",
    "SELECT currval('{sequence}')",
    "SELECT setval('{sequence}', 1)",
    "SELECT last_value FROM {sequence}",
    "ALTER SEQUENCE {sequence} RESTART",
    "DROP SEQUENCE {sequence}",
]
REFUSED = [
    "SET ROLE selene_owner",
    "SET LOCAL ROLE selene_owner",
    "SET SESSION AUTHORIZATION selene_owner",
    "GRANT selene_owner TO CURRENT_USER",
    "ALTER ROLE selene_owner LOGIN",
    "ALTER ROLE selene_app BYPASSRLS",
    "SET session_replication_role = replica",
    "CREATE TABLE os_core.mine (x int)",
    "CREATE TABLE conversation.mine (x int)",
    "CREATE VIEW conversation.mine AS SELECT 1 AS x",
    "CREATE SEQUENCE os_core.mine",
    "CREATE TYPE os_core.mine AS ENUM ('x')",
    "CREATE FUNCTION os_core.mine() RETURNS int LANGUAGE sql RETURN 1",
    "CREATE OPERATOR os_core.= (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
    "CREATE SCHEMA mine",
    "ALTER SCHEMA os_core RENAME TO mine",
    "DROP SCHEMA conversation",
    "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner GRANT ALL ON TABLES TO PUBLIC",
]
CALLS = {
    "enroll_feed": "'acme', 'billing'",
    "advance_feed": "'acme'",
    "poll_feed": "'acme', 'billing'",
    "take_feed": "'acme', 'billing', 1",
    "lease_feed": "'acme', 'relay', 'relay-1', 1000",
    "ack_feed": "'acme', 'relay', 1, 0, 0",
    "release_feed": "'acme', 'relay', 1",
    "read_feed": "'acme', 0, 1",
    "feed_status": "'acme'",
    "verify_feed": "'acme'",
    "resolve_values": "'acme', '{}'",
    "erase_subject": "'acme', 'nobody', 1",
    "append_work_order_events": """'acme', '[{
        "work_order_id": "wo-1", "correlation_id": "6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11", "turn_id": 1,
        "event_type": "WORK_ORDER_CREATED", "work_order_status": "DRAFT", "reason_code": 1}]'""",
    "acquire_lease": "'acme', 'wo-1', 'worker-1', 'a-token-of-sixteen', 60000",
    "renew_lease": "'acme', 'wo-1', 'a-token-of-sixteen', 60000",
    "start_step_attempt": "'acme', 'wo-1', 'book', 1000, 1, 1000, 'start', 'a-token-of-sixteen'",
    "finish_step_attempt": """'acme', (SELECT max(step_attempt_id) FROM os_core.work_order_step_attempts),
        'FAILED', 1, TRUE, 'a-token-of-sixteen', 'finish'""",
    "claim_work_order": "'acme', 'worker-1', 'a-token-of-sixteen', 60000",
    "release_lease": "'acme', 'wo-1', 'a-token-of-sixteen'",
    "due_step_retries": "'acme', 10",
    "lock_work_order": "'acme', 'wo-1'",
    "rebuild_work_order": "'acme', 'wo-1'",
    "rebuild_work_orders": "'acme', NULL, 10",
    "verify_work_orders": "'acme'",
    "verify_chain": "'acme'",
    "verify_chain_part": "'acme', NULL, NULL, NULL, 10",
    "work_order_as_of": "'acme', 'wo-1', p_seq => 1",
    "require_tenant": "'acme'",
    "ask_field": "'acme', 'wo-1', '{place}'",
    "notify_wait": "'acme', 'wo-1'",
    "cancel_work_order": "'acme', 'wo-1', 1, 'cancel'",
    "register_identity": "'acme', 'alice'",
    "register_device": "'acme', 'alice', 'phone', 'phone'",
    "open_session": "'acme', 's-1', 'alice', 'phone'",
    "touch_session": "'acme', 's-1'",
    "move_session": "'acme', 's-1', 'CLOSED'",
    "conversation.append_turn": """'acme', '6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11', 1, 'alice', 'USER',
        'TYPED_TEXT', 'Hello', 'PUBLIC_CHAT', 's-1', 'phone'""",
    "conversation.tombstone_turn": "'acme', '6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11', 1, 1",
    "conversation.read_turns": "'acme', '6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11', 0, 10",
}
"""Of os_core where no schema is named."""


@pytest.fixture(scope="module")
def logins(server: Server, template_database: str) -> Iterator[dict[Role, sa.Engine]]:
    """Return an engine of each login, on a database that these tests do not change: all is refused."""
    with server.new_database("privileges", template_database) as database:
        yield {role: database.engine(role) for role in LOGINS}


@pytest.fixture(params=LOGINS)
def conn(request: pytest.FixtureRequest, logins: dict[Role, sa.Engine]) -> Iterator[sa.Connection]:
    """Return a connection of each login; its transaction has a tenant, and a trigger function of its own."""
    with logins[request.param].connect() as conn:
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        conn.exec_driver_sql(
            "CREATE FUNCTION pg_temp.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        yield conn
        conn.rollback()


def tables(conn: sa.Connection) -> list[tuple[str, str]]:
    """Return every table in our schemas, and a column of each."""
    found = conn.exec_driver_sql("""
        SELECT c.oid::regclass::text, a.attname
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1
        WHERE c.relkind IN ('r', 'p')
          AND c.relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
    """)
    return [(table, column) for table, column in found]


def answer(conn: sa.Connection, statement: str) -> str:
    """Run a statement in a savepoint and return its SQLSTATE."""
    with conn.begin_nested() as savepoint:
        try:
            conn.execute(sa.text(statement))
        except sa.exc.DBAPIError as exc:
            return str(getattr(exc.orig, "sqlstate", exc.orig))
        finally:
            savepoint.rollback()
    return "00000"


def not_refused(conn: sa.Connection, statements: list[str]) -> dict[str, str]:
    """Return the statements that end in anything but "insufficient privilege", and in what they end."""
    answers = {statement: answer(conn, statement) for statement in statements}
    return {statement: state for statement, state in answers.items() if state != "42501"}


@pytest.mark.parametrize("statement", REFUSED_ON_TABLES)
def test_login__may_not_touch_a_table(conn: sa.Connection, statement: str) -> None:
    found = tables(conn)
    assert len(found) >= 3
    statements = [statement.format(table=table, column=column) for table, column in found]
    assert not_refused(conn, statements) == {}


def test_login__may_not_touch_a_sequence(conn: sa.Connection) -> None:
    sequences = conn.exec_driver_sql(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'"
        " AND relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)"
    ).scalars()
    statements = [
        statement.format(sequence=sequence) for sequence in sequences for statement in REFUSED_ON_SEQUENCES
    ]
    assert statements
    assert not_refused(conn, statements) == {}


@pytest.mark.parametrize("statement", REFUSED)
def test_login__may_not(conn: sa.Connection, statement: str) -> None:
    assert not_refused(conn, [statement]) == {}


def test_readonly__may_not_become_the_application(logins: dict[Role, sa.Engine]) -> None:
    with logins["readonly"].connect() as conn:
        assert not_refused(conn, ["SET ROLE selene_app", f"SET ROLE {LOGIN_ROLES['app']}"]) == {}


def test_login__grants_nothing(conn: sa.Connection) -> None:
    """Who holds a privilege and may not pass it on gets a warning, not an error: nothing has come of it."""
    acls = """
        SELECT c.oid::regclass::text, c.relacl::text,
          (SELECT array_agg(a.attacl::text ORDER BY a.attnum) FROM pg_attribute AS a WHERE a.attrelid = c.oid)
        FROM pg_class AS c
        WHERE c.relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
        ORDER BY 1
    """
    before = conn.exec_driver_sql(acls).all()
    for table, column in tables(conn):
        answer(conn, f"GRANT SELECT ON {table} TO PUBLIC")
        # Of these they may read columns.
        whole = table not in (
            "conversation.turn_texts",
            "os_core.subjects",
            "os_core.subject_values",
            "os_core.work_order_feed_consumers",
        )
        conn.exec_driver_sql(f"GRANT {'ALL' if whole else f'SELECT ({column})'} ON {table} TO PUBLIC")
    assert conn.exec_driver_sql(acls).all() == before


def test_login__executes_what_is_public_only(conn: sa.Connection) -> None:
    """Called with nulls: what comes after the privilege check does not matter."""
    allowed = PUBLIC_FUNCTIONS if conn.engine.url.username == LOGIN_ROLES["app"] else READING_FUNCTIONS
    functions = conn.exec_driver_sql("""
        SELECT p.oid::regprocedure::text, p.oid::regproc::text || '(' || coalesce((
            SELECT string_agg('NULL::' || format_type(argument, NULL), ', ' ORDER BY position)
            FROM unnest(p.proargtypes) WITH ORDINALITY AS types (argument, position)
          ), '') || ')'
        FROM pg_proc AS p
        WHERE p.pronamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
    """).all()
    assert len(functions) > len(PUBLIC_FUNCTIONS)
    for signature, call in functions:
        state = answer(conn, f"SELECT {call}")
        assert (state != "42501") == (signature in allowed), (signature, state)


def test_app__every_public_function_works(database: Database) -> None:
    """Whatever a public function calls inside, its caller needs no more than the function itself."""
    calls = {name if "." in name else f"os_core.{name}": given for name, given in CALLS.items()}
    with database.engine("app").begin() as conn:
        for name, arguments in calls.items():
            conn.exec_driver_sql(f"SELECT * FROM {name}({arguments})")
    assert {signature.split("(")[0] for signature in PUBLIC_FUNCTIONS} == set(calls)


@pytest.mark.parametrize("login", LOGINS)
def test_login__reads_its_tenant_and_nothing_without_one(database: Database, login: Role) -> None:
    with database.engine("app").begin() as conn:
        conn.exec_driver_sql(
            f"SELECT * FROM os_core.append_work_order_events({CALLS['append_work_order_events']})"
        )
    counted = sa.text("SELECT count(*) FROM os_core.work_order_ledger CROSS JOIN os_core.work_orders_current")
    with database.engine(login).connect() as conn:
        for tenant, rows in (("acme", 1), ("globex", 0), ("", 0), (None, 0)):
            if tenant is not None:
                conn.exec_driver_sql(f"SET LOCAL selene.tenant_id = '{tenant}'")
            assert conn.scalar(counted) == rows
            conn.rollback()


def test_app__own_schema_in_the_search_path_changes_nothing(database: Database) -> None:
    """Not even one with operators and functions that are meant to mislead ours."""
    user = LOGIN_ROLES["app"]
    with database.engine("admin").begin() as conn:
        conn.exec_driver_sql(f"CREATE SCHEMA decoy AUTHORIZATION {user}")
    with database.engine("app").connect() as conn:
        for statement in (
            "CREATE FUNCTION decoy.yes(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN TRUE",
            "CREATE FUNCTION decoy.yes(integer, integer) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN TRUE",
            *(
                f"CREATE OPERATOR decoy.{name} (FUNCTION = decoy.yes, LEFTARG = {kind}, RIGHTARG = {kind})"
                for kind, names in (("text", ("=", "<>", "~", "!~")), ("integer", ("<=", "<", "=", "<>")))
                for name in names
            ),
            "CREATE FUNCTION decoy.octet_length(text) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1",
            "CREATE FUNCTION decoy.char_length(text) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1",
            "CREATE FUNCTION decoy.current_setting(text, boolean) RETURNS text LANGUAGE sql RETURN 'globex'",
            "CREATE TABLE decoy.work_order_ledger (LIKE os_core.work_order_ledger)",
            "SET search_path = decoy, pg_catalog",
        ):
            conn.exec_driver_sql(statement)
        assert conn.scalar(sa.text("SELECT 'a' = 'b'::text"))  # they do mislead who lets them
        conn.commit()
        call = CALLS["append_work_order_events"]
        assert not_refused(conn, [f"SELECT * FROM os_core.append_work_order_events({call})"]) != {}
        conn.exec_driver_sql(f"SELECT * FROM os_core.append_work_order_events({call})")
        conn.commit()
        bad = call.replace("wo-1", "not an id")
        assert answer(conn, f"SELECT * FROM os_core.append_work_order_events({bad})") == "SL001"
        conn.rollback()
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'globex'")
        assert answer(conn, "SELECT os_core.require_tenant('acme')") == "SL002"
        assert conn.scalar(sa.text("SELECT count(*) FROM os_core.work_order_ledger")) == 0
        conn.rollback()
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        assert conn.scalar(sa.text("SELECT count(*) FROM os_core.work_order_ledger")) == 1
        assert conn.scalar(sa.text("SELECT count(*) FROM decoy.work_order_ledger")) == 0
