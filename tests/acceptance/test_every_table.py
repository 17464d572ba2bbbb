"""What the database owes every table of ours, those to come included: contract §2, §10 and §11.

The tables come from selene_core.store.tables, which is held to the database. Each has rows of two tenants
here, written by the public functions: a new table without any fails until it has.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from selene_core.citus import VERSION_TABLE
from selene_core.store.tables import METADATA, work_order_ledger
from tests.support.calls import refused
from tests.support.catalogue_rules import CHANGED_TABLES, GUARDS
from tests.support.raw import Connection, connect
from tests.support.servers import Database, Server
from tests.support.writes import CALLS, CREATE, SAY, make

PERMISSION_DENIED = "42501"
FOREIGN_KEY = "23503"
TABLES = {table.fullname: table for table in METADATA.sorted_tables}
LEDGERS = [name for name in TABLES if name not in CHANGED_TABLES and name not in GUARDS]
FOREIGN_KEYS = {
    str(key.name): (name, key)
    for name, table in TABLES.items()
    for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.name))  # of a set
}
REPLICA = "SET session_replication_role = replica"
EVERY_TABLE = pytest.mark.parametrize("table", TABLES)
EVERY_LEDGER = pytest.mark.parametrize("table", LEDGERS)

# Positions are given to what has come since; that two calls give none twice, test_feed.py has.
REPEATABLE = [name for name in CALLS if name != "positions"]

# The same call with other content, and what it is refused with.
CHANGED = {
    "create": (CREATE.replace('"reason_code": 1', '"reason_code": 2'), "SL005"),
    "lease": (CALLS["lease"].replace("60000", "50000"), "SL005"),
    "attempt": (CALLS["attempt"].replace("1000, 1, 1000", "1000, 2, 1000"), "SL005"),
    "session": (CALLS["session"].replace("'{tenant}-device'", "'{tenant}-other'"), "SL005"),
    "turn": (SAY.replace("Hello", "Goodbye"), "SL005"),
    "turn, other key": (SAY.replace("Hello", "Goodbye").replace("turn-1", "other"), "SL005"),
    "turn, other place": (SAY.replace("'{thread}', 1", "'{thread}', 9"), "SL005"),
    "turn, other session": (SAY.replace("'{tenant}-session'", "NULL"), "SL005"),
    "turn, other privacy": (SAY.replace("PUBLIC_CHAT", "PRIVATE_DELIVERY"), "SL005"),
    "tombstone": (CALLS["tombstone"].replace("), 7)", "), 8)"), "SL026"),
}

SOME_VALUE = {
    "text[]": "ARRAY['EXECUTING']",
    "text": "'{tenant}-order'",
    "uuid": "'{thread}'",
    "bigint": "1",
    "integer": "1",
    "boolean": "TRUE",
    "jsonb": "'[]'",
    "timestamp with time zone": "now()",
}


def run(conn: Connection, sql: str, *parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
    return conn.execute(sql.encode(), parameters or None)


def everything(admin: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows and where each lies: a write that changes nothing would show too."""
    query = "SELECT ctid::text, row::text FROM {0} AS row ORDER BY 2, 1"
    return {table: run(admin, query.format(table)).fetchall() for table in TABLES}


@dataclass(frozen=True, slots=True)
class World:
    """A database with rows of acme and rival in every table, and a connection for each kind of role."""

    database: Database
    app: Connection
    readonly: Connection
    owner: Connection
    admin: Connection


@contextmanager
def world_of(database: Database) -> Iterator[World]:
    urls = (database.app_url, database.readonly_url, database.owner_url, database.admin_url)
    with ExitStack() as stack:
        world = World(database, *(stack.enter_context(connect(url, autocommit=True)) for url in urls))
        for tenant_id in ("rival", "acme"):  # so that rival's ids are the earlier ones
            remove(world.owner, tenant_id)
            for call in CALLS.values():
                make(world.app, call, tenant_id)
        yield world


def remove(owner: Connection, tenant_id: str) -> None:
    """Open and close the removal of a tenant that has no rows yet."""
    for function in ("open", "close"):
        with owner.transaction():
            run(owner, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
            run(owner, f"SELECT os_core.{function}_tenant_removal('{tenant_id}')")


@pytest.fixture(scope="module")
def world(server: Server, template_database: str) -> Iterator[World]:
    """Return a world in which everything is refused or taken back."""
    with server.new_database("world", template_database) as database, world_of(database) as world:
        yield world


@pytest.fixture
def own_world(database: Database) -> Iterator[World]:
    """Return a world of the test's own."""
    with world_of(database) as world:
        yield world


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold every test of the shared world to leaving it as it was."""
    if "world" not in request.fixturenames:
        yield
        return
    world: World = request.getfixturevalue("world")
    before = everything(world.admin)
    yield
    assert everything(world.admin) == before


def sqlstate_of(conn: Connection, tenant_id: str | None, *statements: str) -> str | None:
    """Run statements for a tenant and take them back; return the SQLSTATE with which one was refused."""
    try:
        with conn.transaction(force_rollback=True):
            if tenant_id is not None:
                run(conn, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
            for each in statements:
                run(conn, each)
    except psycopg.Error as exc:
        return exc.sqlstate
    return None


def tenants_in(conn: Connection, table: str, tenant_id: str | None) -> set[str]:
    """Return whose rows a transaction of a tenant sees."""
    with conn.transaction(force_rollback=True):
        if tenant_id is not None:
            run(conn, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
        return {row[0] for row in run(conn, f"SELECT tenant_id FROM {table}")}


# --- the tables


def test_tables__are_all_of_them(world: World) -> None:
    found = run(
        world.admin,
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)",
    )
    versions = {"os_core.alembic_version", f"os_core.{VERSION_TABLE}"}  # the second on a cluster
    assert {name for (name,) in found} - versions == {*TABLES}


@EVERY_TABLE
def test_table__has_rows_of_both_tenants_here(world: World, table: str) -> None:
    found = {row[0] for row in run(world.admin, f"SELECT tenant_id FROM {table}")}
    assert found == {"acme", "rival"}, f"let CALLS write to {table}"


# --- tenant isolation


@EVERY_TABLE
@pytest.mark.parametrize("role", ["app", "readonly", "owner"])
def test_isolation__a_tenant_sees_its_own_rows_only(world: World, table: str, role: str) -> None:
    conn: Connection = getattr(world, role)
    assert tenants_in(conn, table, None) == set()
    for tenant_id in ("acme", "rival"):
        assert tenants_in(conn, table, tenant_id) == {tenant_id}
        assert tenants_in(conn, table, None) == tenants_in(conn, table, "") == set()
    assert tenants_in(conn, table, "nobody") == set()
    # An error, and not all rows.
    off = sqlstate_of(conn, "acme", "SET LOCAL row_security = off", f"SELECT tenant_id FROM {table}")
    assert off == PERMISSION_DENIED


@EVERY_TABLE
def test_isolation__no_row_is_written_past_the_policies(world: World, table: str) -> None:
    owner = world.owner
    columns = [column.name for column in TABLES[table].columns if column.computed is None]
    others = ", ".join(name for name in columns if name != "tenant_id")
    copy = f"INSERT INTO {table} (tenant_id, {others}) SELECT 'rival', {others} FROM {table}"
    assert sqlstate_of(owner, "acme", copy) == PERMISSION_DENIED
    assert (
        sqlstate_of(owner, "acme", f"INSERT INTO {table} (tenant_id) VALUES ('rival')") == PERMISSION_DENIED
    )
    for no_tenant in (None, ""):
        assert sqlstate_of(owner, no_tenant, f"INSERT INTO {table} (tenant_id) VALUES ('acme')") == "SL002"
    if table in GUARDS:  # which refuse first
        for each in (f"UPDATE {table} SET tenant_id = 'rival'", f"DELETE FROM {table} WHERE FALSE"):
            assert sqlstate_of(owner, "acme", each) == "SL003"
    elif table not in LEDGERS:
        assert sqlstate_of(owner, "acme", f"UPDATE {table} SET tenant_id = 'rival'") == PERMISSION_DENIED
        with owner.transaction(force_rollback=True):
            run(owner, "SET LOCAL selene.tenant_id = 'acme'")
            move = f"UPDATE {table} SET tenant_id = tenant_id WHERE tenant_id = 'rival'"
            assert run(owner, move).rowcount == 0
            assert run(owner, f"DELETE FROM {table} WHERE tenant_id = 'rival'").rowcount == 0


@EVERY_TABLE
def test_isolation__a_later_policy_opens_nothing(world: World, table: str) -> None:
    with world.owner.transaction(force_rollback=True):
        run(world.owner, f"CREATE POLICY open ON {table} FOR ALL TO PUBLIC USING (TRUE) WITH CHECK (TRUE)")
        assert tenants_in(world.owner, table, None) == set()
        assert tenants_in(world.owner, table, "acme") == {"acme"}


def test_isolation__no_function_takes_a_second_tenant(world: World) -> None:
    """None that the server has for a service, one to come included."""
    public = run(
        world.admin,
        "SELECT oid::regproc::text, proargnames[1:pronargs], proargtypes::regtype[]::text[] FROM pg_proc"
        " WHERE pronamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)"
        " AND has_function_privilege('selene_app', oid, 'EXECUTE')",
    ).fetchall()
    assert public
    for function, names, types in public:
        assert (names[0], types[0]) == ("p_tenant_id", "text"), function
        given = [f", {name} => {SOME_VALUE[of]}" for name, of in zip(names[1:], types[1:], strict=True)]
        check_refused_to_acme(world, f"{function}(p_tenant_id => '{{tenant}}'{''.join(given)})")


@pytest.mark.parametrize("name", CALLS)
def test_isolation__no_call_is_taken_for_a_second_tenant(world: World, name: str) -> None:
    """Not where it would be a replay either."""
    call = CALLS[name].replace("read_turns('{tenant}'", "read_turns('acme'")
    check_refused_to_acme(world, call)


def check_refused_to_acme(world: World, call: str) -> None:
    """Check that a call for rival is refused within a transaction of acme's, and names neither."""
    with refused("SL002") as refusal, world.app.transaction():
        run(world.app, "SET LOCAL selene.tenant_id = 'acme'")
        make(world.app, call, "rival")
    assert (refusal.message, refusal.facts) == ("the transaction belongs to another tenant", {}), call


# --- append-only


def rewriting(table: str) -> Iterator[str]:
    """Yield every way that SQL has to change, replace or remove rows, also where there are none to meet."""
    columns = [column.name for column in TABLES[table].columns if column.computed is None]
    key = ", ".join(TABLES[table].primary_key.columns.keys())
    listed = ", ".join(columns)
    other = columns[-1]
    insert = f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {table} LIMIT 1"
    merge = f"MERGE INTO {table} AS a USING {table} AS b ON a.{columns[0]} = b.{columns[0]} WHEN MATCHED THEN"
    yield from (
        f"UPDATE {table} SET {other} = {other}",
        f"UPDATE {table} SET {other} = NULL WHERE FALSE",
        f"UPDATE ONLY {table} SET {other} = NULL",
        f"WITH changed AS (UPDATE {table} SET {other} = NULL RETURNING 1) SELECT * FROM changed",
        f"DELETE FROM {table}",
        f"DELETE FROM {table} WHERE FALSE",
        f"TRUNCATE {table} CASCADE",
        f"{insert} ON CONFLICT ({key}) DO UPDATE SET {other} = NULL",
        f"{insert} ON CONFLICT ON CONSTRAINT pk_{TABLES[table].name} DO UPDATE SET {other} = NULL",
        f"{merge} UPDATE SET {other} = NULL",
        f"{merge} DELETE",
    )


@EVERY_LEDGER
def test_ledger__cannot_be_rewritten(world: World, table: str) -> None:
    for each in rewriting(table):
        for conn in (world.app, world.readonly):
            assert sqlstate_of(conn, "acme", each) == PERMISSION_DENIED, each
        for conn in (world.owner, world.admin):
            with refused("SL003") as refusal, conn.transaction():
                run(conn, "SET LOCAL selene.tenant_id = 'acme'")
                run(conn, each)
            assert refusal.facts["table"] == table
        assert sqlstate_of(world.admin, "acme", REPLICA, each) == "SL003", each


@EVERY_LEDGER
@pytest.mark.parametrize("trigger", ["reject_mutation_row", "reject_mutation_statement"])
def test_ledger__each_trigger_stands_alone(world: World, table: str, trigger: str) -> None:
    """Logical apply fires row triggers only, a statement that meets no row statement triggers only."""
    disarm = f"ALTER TABLE {table} DISABLE TRIGGER {trigger}"
    for each in (f"UPDATE {table} SET tenant_id = 'acme'", f"DELETE FROM {table}"):
        assert sqlstate_of(world.admin, "acme", disarm, REPLICA, each) == "SL003"


@EVERY_LEDGER
def test_ledger__nothing_cascades_into_it(world: World, table: str) -> None:
    parent = (
        "CREATE TABLE os_core.parent (id text PRIMARY KEY)",
        "INSERT INTO os_core.parent VALUES ('acme'), ('rival')",
        f"ALTER TABLE {table} ADD FOREIGN KEY (tenant_id) REFERENCES os_core.parent"
        " ON DELETE CASCADE ON UPDATE CASCADE",
    )
    for conn in (world.owner, world.admin):
        assert sqlstate_of(conn, "acme", *parent) is None
        for each in (
            "DELETE FROM os_core.parent",
            "UPDATE os_core.parent SET id = id || 'x'",
            "TRUNCATE os_core.parent CASCADE",
        ):
            assert sqlstate_of(conn, "acme", *parent, each) == "SL003", each


# --- foreign keys


def point_elsewhere(admin: Connection, name: str, assignments: list[str]) -> None:
    """Make a row of acme's point elsewhere, with no other rule in the way than this foreign key."""
    table, key = FOREIGN_KEYS[name]
    filled = " AND ".join(f"{column.name} IS NOT NULL" for column in key.columns)
    with admin.transaction():
        for other, (of_table, _) in FOREIGN_KEYS.items():
            if other != name:
                run(admin, f"ALTER TABLE {of_table} DROP CONSTRAINT {other}")
        run(admin, f"ALTER TABLE {table} DROP CONSTRAINT pk_{TABLES[table].name}")
        run(admin, f"ALTER TABLE {table} DROP CONSTRAINT ck_{TABLES[table].name}_contract")
        run(admin, f"ALTER TABLE {table} DISABLE TRIGGER USER")
        last = f"SELECT max(ctid) FROM {table} WHERE tenant_id = 'acme' AND {filled}"
        run(admin, f"UPDATE {table} SET {', '.join(assignments)} WHERE ctid = ({last})")


@pytest.mark.parametrize("name", FOREIGN_KEYS)
def test_foreign_key__refuses_another_tenants_row_like_one_that_is_not_there(world: World, name: str) -> None:
    _, key = FOREIGN_KEYS[name]
    referred = f"{key.referred_table.schema}.{key.referred_table.name}"
    pairs = [(element.parent, element.column.name) for element in key.elements]
    assert [pair[0].name for pair in pairs if pair[1] == "tenant_id"] == ["tenant_id"]
    nothing = {
        sa.Text: "'nobody'",
        sa.BigInteger: "0",
        sa.Uuid: "gen_random_uuid()",
        sa.LargeBinary: "os_core.random_salt()",
    }
    theirs = [
        f"{column.name} = (SELECT {of} FROM {referred} WHERE tenant_id = 'rival' LIMIT 1)"
        for column, of in pairs[1:]
    ]
    none = [f"{column.name} = {nothing[type(column.type)]}" for column, _ in pairs[1:]]
    answers = []
    for assignments in (theirs, none):
        with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
            point_elsewhere(world.admin, name, assignments)
        answers.append((caught.value.diag.constraint_name, caught.value.diag.message_primary))
    assert answers[0] == answers[1]
    assert answers[0][0] == name


# --- idempotency


@pytest.mark.parametrize("name", REPEATABLE)
def test_call__again_changes_nothing(own_world: World, name: str) -> None:
    before = everything(own_world.admin)
    make(own_world.app, CALLS[name], "acme")
    after = everything(own_world.admin)
    if name == "device":  # has been seen again, which is all
        seen = "SELECT tenant_id, device_id, user_id, device_type, audio_profile_ref FROM os_core.devices"
        assert run(own_world.admin, seen).rowcount == 2
        del before["os_core.devices"], after["os_core.devices"]
    assert after == before


@pytest.mark.parametrize("name", CHANGED)
def test_call__again_with_other_content_is_refused(world: World, name: str) -> None:
    call, sqlstate = CHANGED[name]
    with refused(sqlstate):
        make(world.app, call, "acme")


@pytest.mark.parametrize("name", REPEATABLE)
def test_call__of_many_at_once_one_writes(database: Database, name: str) -> None:
    """Whoever comes second gets what the first has written."""
    with ExitStack() as stack:
        conns = [stack.enter_context(connect(database.app_url, autocommit=True)) for _ in range(8)]
        admin = stack.enter_context(connect(database.admin_url, autocommit=True))
        for before in list(CALLS)[: list(CALLS).index(name)]:
            make(conns[0], CALLS[before], "acme")
        counts = {table: run(admin, f"SELECT FROM {table}").rowcount for table in TABLES}
        barrier = Barrier(len(conns))

        def call(conn: Connection) -> list[tuple[Any, ...]]:
            barrier.wait(20)
            return make(conn, CALLS[name], "acme").fetchall()

        with ThreadPoolExecutor(len(conns)) as pool:
            answers = list(pool.map(call, conns))
        assert all(len(answer) == 1 for answer in answers)
        if name != "device":  # which each of them has seen at a time of its own
            assert (
                len({tuple(str(value) for value in row if not isinstance(value, bool)) for (row,) in answers})
                == 1
            )
        grown = {table for table in TABLES if run(admin, f"SELECT FROM {table}").rowcount != counts[table]}
        assert all(run(admin, f"SELECT FROM {table}").rowcount == counts[table] + 1 for table in grown)
        assert grown


DECOYS = """
    CREATE SCHEMA decoy;
    DO $make$
    DECLARE
      _types constant oid[] :=
        '{text,int2,int4,int8,timestamptz,jsonb,jsonpath,bytea,bool,numeric,interval,text[],oid}'
        ::regtype[]::oid[];
      _made record;
    BEGIN
      FOR _made IN
        SELECT
          proname, proargtypes::oid[] AS types, prorettype::regtype AS returns,
          oidvectortypes(proargtypes) AS arguments
        FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset
          AND provariadic = 0 AND pronargs BETWEEN 1 AND 3 AND proargtypes::oid[] <@ _types
          AND prorettype = ANY(_types)
      LOOP
        EXECUTE format(
          'CREATE FUNCTION decoy.%I(%s) RETURNS %s LANGUAGE plpgsql'
          ' AS $$ BEGIN RAISE ''a stranger ran''; END $$',
          _made.proname, _made.arguments, _made.returns
        );
      END LOOP;
      FOR _made IN
        SELECT o.oprname, o.oprleft::regtype AS lefts, o.oprright::regtype AS rights, p.proname
        FROM pg_operator AS o JOIN pg_proc AS p ON p.oid = o.oprcode
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace
          AND o.oprleft = ANY(_types) AND o.oprright = ANY(_types) AND o.oprresult = ANY(_types)
          AND to_regprocedure(format('decoy.%I(%s,%s)', p.proname, o.oprleft::regtype, o.oprright::regtype))
            IS NOT NULL
      LOOP
        EXECUTE format(
          'CREATE OPERATOR decoy.%s (FUNCTION = decoy.%I, LEFTARG = %s, RIGHTARG = %s)',
          _made.oprname, _made.proname, _made.lefts, _made.rights
        );
      END LOOP;
    END
    $make$;
    CREATE FUNCTION decoy.caught() RETURNS boolean LANGUAGE plpgsql
    AS $$ BEGIN RAISE 'a stranger ran'; END $$;
    CREATE DOMAIN decoy.text AS pg_catalog.text CHECK (decoy.caught());
    CREATE DOMAIN decoy.jsonb AS pg_catalog.jsonb CHECK (decoy.caught());
    SET LOCAL search_path = decoy, pg_catalog
"""
MISLED = ("SELECT now() >= now()", "SELECT ''::text")
BROKEN = """
    CREATE TEMPORARY TABLE broken ON COMMIT DROP AS
    SELECT bad, (jsonb_populate_record(event, bad)).*
    FROM os_core.work_order_ledger AS event
    CROSS JOIN unnest(CAST(ARRAY[
      '{"tenant_id": "?"}', '{"work_order_id": "?"}', '{"work_order_seq": 0}', '{"turn_id": 0}',
      '{"event_type": "X"}', '{"work_order_status": "X"}', '{"reason_code": 4294967296}',
      '{"step_id": "?"}', '{"step_input_hash": " "}', '{"lease_owner_id": "?"}',
      '{"lease_token_hash": " "}', '{"lease_expires_at": "infinity"}', '{"payload": []}',
      '{"payload": {"a": 1e400}}', '{"idempotency_key": " "}', '{"occurred_at": "infinity"}',
      '{"created_at": "infinity"}', '{"event_hash": "\\\\x00"}'
    ] AS jsonb[])) AS bad
    WHERE work_order_event_id = (SELECT min(work_order_event_id) FROM os_core.work_order_ledger)
"""


def test_search_path__no_row_that_is_written_runs_a_strangers_operator(world: World) -> None:
    """CHECKs run in the session that writes: an owner's, say, with somebody's schema in its path."""
    writes = [f"INSERT INTO {table} SELECT * FROM {table} ON CONFLICT DO NOTHING" for table in TABLES]
    misled, refused = set(), {}
    with world.admin.transaction(force_rollback=True):
        run(world.admin, BROKEN)
        broken = range(run(world.admin, "SELECT FROM broken").rowcount)
        columns = ", ".join(column.name for column in work_order_ledger.columns)
        writes += [
            f"INSERT INTO os_core.work_order_ledger SELECT {columns} FROM pg_temp.broken OFFSET {n} LIMIT 1"
            for n in broken
        ]
        run(world.admin, DECOYS)
        for write in (*writes, *MISLED):
            try:
                with world.admin.transaction():
                    run(world.admin, write)
            except psycopg.errors.RaiseException:
                misled.add(write)
            except psycopg.Error as exc:
                refused[write] = exc.sqlstate
    assert misled == set(MISLED)
    assert len(refused) == len(broken) > 0
    assert set(refused.values()) == {"SL001", "23514"}
