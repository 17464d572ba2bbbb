"""selene-core doctor: reports every fault, and what it prints fixes it (contract §15)."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from selene_core import (
    ConversationRepository,
    IdentityRepository,
    append_events,
    tenant_scope,
)
from selene_core.cli import cli
from selene_core.local import local_server
from selene_core.migrations import downgrade, upgrade
from selene_core.schema.doctor import examine, server_faults
from selene_core.schema.drift import expected_schema
from tests.migrations.runs import admin, catalogue_of, held, psql, run_all, stands_at
from tests.support.factories import created
from tests.support.races import wait_until
from tests.support.scratch import upgrade_further
from tests.support.servers import Database, Server, embedded_server

LEDGER = "os_core.work_order_ledger"
CURRENT = "os_core.work_orders_current"
EVENT_IDS = "os_core.work_order_ledger_work_order_event_id_seq"
TURNS = "conversation.turn_texts"
APPEND = "os_core.append_work_order_events(text, jsonb)"
PROJECTION_ROW = (
    "os_core.is_projection_row(turn_id, work_order_status, last_seq, last_reason_code,"
    " external_approval_notices)"
)
CONVERSATION = UUID("0189f7a2-7c3e-7000-8000-000000000001")
HEAD = expected_schema().head
BEFORE_HEAD = expected_schema().revisions[-2]

# What somebody did to a database, and what must be said of it.
FAULTS = {
    "policy dropped": (f"DROP POLICY tenant_confine ON {LEDGER}", "policy tenant_confine"),
    "FORCE off": (f"ALTER TABLE {CURRENT} NO FORCE ROW LEVEL SECURITY", "not forced on relation"),
    "trigger disabled": (f"ALTER TABLE {LEDGER} DISABLE TRIGGER reject_mutation_row", "is disabled"),
    "trigger not ALWAYS": (
        f"ALTER TABLE {LEDGER} ENABLE TRIGGER reject_mutation_statement",
        "reject_mutation_statement of relation os_core.work_order_ledger is enabled as ORIGIN",
    ),
    "grant to PUBLIC": (f"GRANT SELECT ON {LEDGER} TO PUBLIC", "PUBLIC must not have SELECT"),
    "TRUNCATE granted": (f"GRANT TRUNCATE ON {LEDGER} TO selene_app", "selene_app must not have TRUNCATE"),
    "function body changed": (
        "CREATE OR REPLACE FUNCTION os_core.no_tenant(p_tenant_id text) RETURNS boolean LANGUAGE plpgsql"
        " IMMUTABLE SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN FALSE; END'",
        "body of function os_core.no_tenant(text) is not the one that was shipped",
    ),
    "function owned by a superuser": (
        f"ALTER FUNCTION {APPEND} OWNER TO CURRENT_USER",
        "function os_core.append_work_order_events(text,jsonb) belongs to",
    ),
    "index marked invalid": (
        "UPDATE pg_index SET indisvalid = FALSE"
        " WHERE indexrelid = 'os_core.ix_work_orders_current_pending'::regclass",
        "index ix_work_orders_current_pending of relation os_core.work_orders_current is invalid",
    ),
    # Beyond those.
    "row security off": (f"ALTER TABLE {LEDGER} DISABLE ROW LEVEL SECURITY", "not enabled on relation"),
    "policy added": (f"CREATE POLICY open ON {LEDGER} USING (TRUE)", "policy open of"),
    "policy changed": (f"ALTER POLICY tenant_confine ON {LEDGER} TO selene_app", "policy tenant_confine"),
    "trigger dropped": (f"DROP TRIGGER reject_mutation_row ON {LEDGER}", "reject_mutation_row of"),
    "trigger changed": (
        f"CREATE OR REPLACE TRIGGER reject_mutation_row BEFORE DELETE ON {LEDGER}"
        " FOR EACH ROW EXECUTE FUNCTION os_core.reject_mutation()",
        "reject_mutation_row of",
    ),
    "all triggers disabled": (
        f"ALTER TABLE {LEDGER} DISABLE TRIGGER ALL",
        "keeps a foreign key, is disabled",
    ),
    "trigger added": (
        f"CREATE TRIGGER mine BEFORE UPDATE ON {CURRENT} FOR EACH ROW"
        " EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
        "trigger mine of relation os_core.work_orders_current must not be there",
    ),
    "function dropped": (
        "DROP FUNCTION os_core.verify_work_orders(text, text)",
        "os_core.verify_work_orders(text,text) is missing",
    ),
    "function of another signature": (
        "DROP FUNCTION os_core.require_tenant(text);"
        "CREATE FUNCTION os_core.require_tenant(x text) RETURNS integer LANGUAGE sql RETURN 1",
        "signature of function os_core.require_tenant(text)",
    ),
    "function without search_path": (f"ALTER FUNCTION {APPEND} RESET ALL", "settings of function"),
    "function not SECURITY DEFINER": (f"ALTER FUNCTION {APPEND} SECURITY INVOKER", "attributes of function"),
    "function executable by PUBLIC": (
        "GRANT EXECUTE ON FUNCTION os_core.no_tenant(text) TO PUBLIC",
        "PUBLIC must not have EXECUTE on function os_core.no_tenant(text)",
    ),
    "function no longer executable": (
        f"REVOKE EXECUTE ON FUNCTION {APPEND} FROM selene_app",
        "selene_app lacks EXECUTE on function os_core.append_work_order_events(text,jsonb)",
    ),
    "index dropped": ("DROP INDEX os_core.ix_work_orders_current_pending", "ix_work_orders_current_pending"),
    "index changed": (
        "DROP INDEX os_core.ix_work_orders_current_pending;"
        f"CREATE INDEX ix_work_orders_current_pending ON {CURRENT} (tenant_id)",
        "ix_work_orders_current_pending",
    ),
    "unique index added": (f"CREATE UNIQUE INDEX mine ON {CURRENT} (turn_id)", "index mine of"),
    "constraint dropped": (
        f"ALTER TABLE {CURRENT} DROP CONSTRAINT fk_work_orders_current_last_event",
        "fk_work_orders_current_last_event",
    ),
    "constraint not validated": (
        f"ALTER TABLE {CURRENT} DROP CONSTRAINT ck_work_orders_current_contract,"
        f" ADD CONSTRAINT ck_work_orders_current_contract CHECK ({PROJECTION_ROW}) NOT VALID",
        "ck_work_orders_current_contract of relation os_core.work_orders_current is not validated",
    ),
    "keys dropped": (
        f"ALTER TABLE {LEDGER} DROP CONSTRAINT ux_work_order_ledger_tenant_work_order_event CASCADE",
        "constraint ux_work_order_ledger_tenant_work_order_event",
    ),
    "index on what was said": (
        f"CREATE INDEX mine ON {TURNS} (pg_catalog.lower(text))",
        f"index mine of relation {TURNS} must not be there",
    ),
    "grant to a stranger, with more than he may have": (
        f"GRANT SELECT, INSERT ON {CURRENT} TO pg_monitor; GRANT ALL ON SCHEMA os_core TO pg_monitor",
        f"pg_monitor must not have INSERT on relation {CURRENT}",
    ),
    "rule added": (f"CREATE RULE quiet AS ON DELETE TO {CURRENT} DO INSTEAD NOTHING", "rule quiet of"),
    "table of another owner": (f"ALTER TABLE {LEDGER} OWNER TO CURRENT_USER", "work_order_ledger belongs to"),
    "schema of another owner": ("ALTER SCHEMA conversation OWNER TO CURRENT_USER", "schema conversation"),
    "schema open to PUBLIC": ("GRANT CREATE ON SCHEMA os_core TO PUBLIC", "PUBLIC must not have CREATE"),
    "schema closed to the application": (
        "REVOKE USAGE ON SCHEMA os_core FROM selene_app",
        "selene_app lacks USAGE on schema os_core",
    ),
    "column granted": (
        f"GRANT UPDATE (payload) ON {LEDGER} TO selene_app",
        "selene_app must not have UPDATE on payload of relation os_core.work_order_ledger",
    ),
    "grant passed on": (
        f"GRANT SELECT ON {LEDGER} TO selene_app WITH GRANT OPTION; SET ROLE selene_app;"
        f"GRANT SELECT ON {LEDGER} TO PUBLIC; RESET ROLE",
        "selene_app must not have SELECT with grant option",
    ),
    "owner without privileges": (f"REVOKE ALL ON {LEDGER} FROM selene_owner", "the owner lacks ALL"),
    "functions to come for PUBLIC": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC must not have EXECUTE on FUNCTIONS by default privileges of selene_owner",
    ),
    "tables to come for PUBLIC": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner IN SCHEMA os_core GRANT SELECT ON TABLES TO PUBLIC",
        "PUBLIC must not have SELECT on TABLES by default privileges of selene_owner in schema os_core",
    ),
    "sequence granted": (f"GRANT USAGE ON SEQUENCE {EVENT_IDS} TO selene_app", "must not have USAGE"),
    "sequence changed": (f"ALTER SEQUENCE {EVENT_IDS} CACHE 20 CYCLE", "definition of sequence"),
    "a tenant for every session": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET selene.tenant_id = acme', current_database());"
        " END $$",
        "sets selene.tenant_id for every session",
    ),
    "foreign keys off for every session": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = %L',"
        " current_database(), 'REPLICA'); END $$",
        "sets session_replication_role for every session",
    ),
    "row_security off for every session": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET row_security = %L', current_database(), 'Fal');"
        " END $$",
        "sets row_security for every session",
    ),
}

# What is told, too, but has no statement: an operator has to look, or data may be lost.
NAMED = {
    "column renamed": (
        f"ALTER TABLE {LEDGER} RENAME COLUMN correlation_id TO correlation",
        "column correlation_id of relation os_core.work_order_ledger is missing",
        "column correlation of relation os_core.work_order_ledger must not be there",
    ),
    "key column renamed and changed": (
        f"ALTER TABLE {LEDGER} RENAME COLUMN work_order_event_id TO text;"
        f"ALTER TABLE {LEDGER} ALTER COLUMN text DROP DEFAULT",
        "column work_order_event_id of relation os_core.work_order_ledger is missing",
        "column text of relation os_core.work_order_ledger must not be there",
    ),
    "columns of other types": (
        f"ALTER TABLE {CURRENT} ALTER COLUMN requester_user_id TYPE varchar COLLATE pg_catalog.default,"
        " ALTER COLUMN turn_id TYPE integer",
        "column requester_user_id of relation os_core.work_orders_current is 'character varying",
    ),
    "table renamed": (
        f"ALTER TABLE {LEDGER} RENAME TO events",
        f"relation {LEDGER} is missing",
        "relation os_core.events must not be there",
    ),
    "table moved": (
        f"ALTER TABLE {LEDGER} SET SCHEMA public",
        f"relation {LEDGER} is missing",
        "selene_owner owns table public.work_order_ledger, outside our schemas",
    ),
    "table moved to our other schema": (
        f"ALTER TABLE {CURRENT} SET SCHEMA conversation",
        f"relation {CURRENT} is missing",
        "relation conversation.work_orders_current must not be there",
    ),
    "schema renamed": (
        "ALTER SCHEMA conversation RENAME TO talk",
        "schema conversation is missing",
        "selene_owner owns schema talk, outside our schemas",
    ),
    "other schema renamed": (
        'ALTER SCHEMA os_core RENAME TO "Old"',
        "schema os_core is missing",
        'selene_owner owns schema "Old", outside our schemas',
    ),
    "column changed": (
        f"ALTER TABLE {CURRENT} ALTER turn_id DROP NOT NULL, ALTER created_at SET DEFAULT now()",
        "column created_at of",
    ),
    "table added": ("CREATE TABLE os_core.mine (id bigserial)", "relation os_core.mine must not be there"),
    "view added": ("CREATE VIEW conversation.mine AS SELECT 1 AS x", "relation conversation.mine must not"),
    "views added": (
        f"CREATE VIEW os_core.a AS SELECT * FROM {LEDGER}; CREATE VIEW os_core.b AS SELECT * FROM os_core.a;"
        f"CREATE MATERIALIZED VIEW os_core.c AS SELECT * FROM {LEDGER}",
        "relation os_core.a must not be there",
        "relation os_core.b must not be there",
        "relation os_core.c must not be there",
    ),
    "type added": ("CREATE TYPE os_core.mine AS ENUM ('x')", "type os_core.mine must not be there"),
    "child of a table": (f"CREATE TABLE public.child () INHERITS ({CURRENT})", "child public.child of"),
    "child of a table elsewhere": (
        'CREATE TABLE public.parent (tenant_id text COLLATE "C" NOT NULL);'
        f"ALTER TABLE {CURRENT} INHERIT public.parent; GRANT SELECT, DELETE ON public.parent TO PUBLIC",
        f"relation {CURRENT} has parent public.parent",
    ),
    "partition of a table elsewhere": (
        "CREATE TABLE public.parent (LIKE os_core.identities) PARTITION BY LIST (tenant_id);"
        "CREATE UNIQUE INDEX ON public.parent (tenant_id, user_id);"
        "CREATE FUNCTION public.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER mine AFTER INSERT ON public.parent FOR EACH ROW EXECUTE FUNCTION public.mine();"
        "ALTER TABLE public.parent ATTACH PARTITION os_core.identities DEFAULT;"
        "GRANT DELETE ON public.parent TO selene_app",
        "relation os_core.identities has parent public.parent",
    ),
    "child of a table of ours": (
        "CREATE TABLE os_core.mine (tenant_id text NOT NULL);"
        'ALTER TABLE os_core.mine ALTER COLUMN tenant_id TYPE text COLLATE "C";'
        f"ALTER TABLE {CURRENT} INHERIT os_core.mine",
        f"relation {CURRENT} has parent os_core.mine",
    ),
    "statistics of what was said": (
        f"ALTER TABLE {TURNS} ALTER COLUMN text SET STATISTICS -1",
        f"statistics target of text of relation {TURNS} is the default, not 0",
    ),
    "extended statistics of what was said": (
        f"CREATE STATISTICS public.mine (mcv) ON text, text_hash FROM {TURNS};"
        f"CREATE STATISTICS os_core.mine ON (pg_catalog.lower(text)) FROM {TURNS}",
        f"extended statistics public.mine of relation {TURNS} must not be there",
    ),
    "view of selene_owner's elsewhere": (
        f"CREATE VIEW public.said AS SELECT text FROM {TURNS}; ALTER VIEW public.said OWNER TO selene_owner;"
        "GRANT SELECT ON public.said TO selene_app",
        "selene_owner owns view public.said, outside our schemas",
    ),
    "function of selene_owner's elsewhere": (
        "CREATE FUNCTION public.said() RETURNS text LANGUAGE sql SECURITY DEFINER RETURN 'x';"
        "ALTER FUNCTION public.said() OWNER TO selene_owner;"
        "CREATE PROCEDURE public.do(INOUT x integer) LANGUAGE sql AS 'SELECT 1';"
        "ALTER PROCEDURE public.do OWNER TO selene_owner",
        "selene_owner owns function public.said(), outside our schemas",
        'selene_owner owns procedure public."do"(integer), outside our schemas',
    ),
    "other things of selene_owner's elsewhere": (
        'CREATE SCHEMA "Its" AUTHORIZATION selene_owner; SET ROLE selene_owner;'
        'CREATE TYPE "Its".mood AS ENUM (\'x\'); CREATE DOMAIN "Its".d AS text;'
        'CREATE TYPE "Its".r AS RANGE (SUBTYPE = float8); CREATE TYPE "Its".c AS (x integer);'
        'CREATE SEQUENCE "Its".s; CREATE COLLATION "Its".k FROM "C";'
        'CREATE AGGREGATE "Its".total(*) (SFUNC = int8inc, STYPE = int8, INITCOND = 0);'
        'CREATE OPERATOR "Its".=== (FUNCTION = int4eq, LEFTARG = integer, RIGHTARG = integer);'
        'CREATE TEXT SEARCH CONFIGURATION "Its".t (COPY = simple); SELECT lo_create(0); RESET ROLE',
        'selene_owner owns schema "Its", outside our schemas',
        'selene_owner owns type "Its".mood, outside our schemas',
        'selene_owner owns sequence "Its".s, outside our schemas',
    ),
    "view of a superuser's": (
        f"CREATE VIEW public.mine AS SELECT * FROM {CURRENT}; GRANT SELECT ON public.mine TO selene_app",
        "view public.mine shows our tables with the rights of",
    ),
    "function of a superuser's": (
        "CREATE FUNCTION public.mine() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        f" AS 'SELECT count(*) FROM {TURNS}'",
        "function public.mine() uses our tables with the rights of",
    ),
    "sequence dropped": (f"DROP SEQUENCE {EVENT_IDS} CASCADE", f"sequence {EVENT_IDS} is missing"),
    "revision set back": (
        f"UPDATE os_core.alembic_version SET version_num = '{BEFORE_HEAD}'",
        f"stands at revision {BEFORE_HEAD}, but its schema is that of {HEAD}",
    ),
    "revision set ahead": (
        "UPDATE os_core.alembic_version SET version_num = 'ffff'",
        f"stands at revision ffff, but its schema is that of {HEAD}",
    ),
    "version table dropped": (
        "DROP TABLE os_core.alembic_version",
        f"has no revision, but its schema is that of {HEAD}",
        "relation os_core.alembic_version is missing",
    ),
    "version table empty": ("DELETE FROM os_core.alembic_version", "has no revision, but its schema"),
    "two revisions": (
        f"INSERT INTO os_core.alembic_version VALUES ('{BEFORE_HEAD}')",
        f"stands at revision {BEFORE_HEAD} and {HEAD}, but its schema",
    ),
    "trigger added, with its function": (
        "CREATE FUNCTION os_core.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        f"CREATE TRIGGER mine BEFORE INSERT ON {CURRENT} FOR EACH ROW EXECUTE FUNCTION os_core.mine()",
        "function os_core.mine() must not be there",
    ),
}

# The same for roles, which belong to the cluster: with what undoes it, should the remedy fail.
ROLE_FAULTS = {
    "application login with BYPASSRLS": (
        "ALTER ROLE {login} BYPASSRLS",
        "role {login}, a member of selene_app, selene_readonly or selene_feed, has BYPASSRLS",
    ),
    "application login a superuser": ("ALTER ROLE {login} SUPERUSER", "has SUPERUSER"),
    "application login an owner": ("GRANT selene_owner TO {login}", "role {login}, a member of selene_app"),
    "application login with CREATEROLE": ("ALTER ROLE {login} CREATEROLE", "has CREATEROLE"),
    "application login that can grant itself the owner": (
        "GRANT selene_owner TO {login} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE",
        "role {login}, a member of selene_app, selene_readonly or selene_feed, has ADMIN OPTION on"
        " selene_owner",
    ),
    "application login that becomes a superuser": (
        "CREATE ROLE {login}_super SUPERUSER; CREATE ROLE {login}_team; GRANT {login}_super TO {login}_team;"
        "GRANT {login}_team TO {login}",
        "can become {login}_super (SUPERUSER)",
    ),
    "application login that becomes one with BYPASSRLS": (
        "CREATE ROLE {login}_super BYPASSRLS; GRANT {login}_super TO {login}",
        "can become {login}_super (BYPASSRLS)",
    ),
    "application login that reads all data": (
        "GRANT pg_read_all_data TO {login}",
        "can become pg_read_all_data",
    ),
    "selene_app with BYPASSRLS": ("ALTER ROLE selene_app BYPASSRLS", "role selene_app is NOLOGIN BYPASSRLS"),
    "selene_owner with BYPASSRLS": ("ALTER ROLE selene_owner BYPASSRLS", "role selene_owner is NOLOGIN"),
    "selene_app with LOGIN": ("ALTER ROLE selene_app LOGIN", "role selene_app is LOGIN"),
    "selene_app an owner": (
        "GRANT selene_owner TO selene_app",
        "role selene_app must not be a member of selene_owner",
    ),
    "selene_readonly writes": (
        "GRANT pg_write_all_data TO selene_readonly",
        "role selene_readonly must not be a member of pg_write_all_data",
    ),
    "a parameter for a login": (
        "GRANT SET ON PARAMETER session_replication_role TO {login}",
        "{login} must not have SET on parameter session_replication_role",
    ),
    "a parameter for the application": (
        "GRANT SET, ALTER SYSTEM ON PARAMETER session_replication_role TO selene_app WITH GRANT OPTION;"
        "SET ROLE selene_app; GRANT SET ON PARAMETER session_replication_role TO {login}; RESET ROLE",
        "selene_app must not have ALTER SYSTEM on parameter session_replication_role",
    ),
    "row_security off for a login": (
        "ALTER ROLE {login} SET row_security = 'NO'",
        "ROLE {login} sets row_security for every session",
    ),
    "row_security off for a login, by one letter": (
        "ALTER ROLE {login} SET row_security = 'f'",
        "ROLE {login} sets row_security for every session",
    ),
    "a tenant for every session of a login": (
        "ALTER ROLE {login} SET selene.tenant_id = 'acme'",
        "ROLE {login} sets selene.tenant_id for every session",
    ),
}
# What the newest releases only have, and what is none of a fault in them.
FROM_16 = {"application login that can grant itself the owner"}
BEFORE_16 = {"application login with CREATEROLE"}
UNDONE = [
    "REVOKE ALL ON PARAMETER session_replication_role FROM selene_app CASCADE",
    "ALTER ROLE selene_app NOLOGIN NOBYPASSRLS",
    "ALTER ROLE selene_owner NOBYPASSRLS",
    "REVOKE selene_owner FROM selene_app",
    "REVOKE pg_write_all_data FROM selene_readonly",
]


def release(version: str) -> int:
    """Return what server_version_num would be."""
    major, minor = version.split()[0].split(".")
    return int(major) * 10000 + int(minor)


def doctor(url: sa.URL) -> dict[str, Any]:
    """Run the command with --json and return what it says, the server's release left out."""
    address = url.render_as_string(hide_password=False)
    done = CliRunner().invoke(cli, ["doctor", "--json", "--url", address])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["healthy"] == (done.exit_code == 0)
    of_server = [fault.what for fault in server_faults(release(told["diagnosis"]["server_version"]))]
    found = [fault for fault in told["diagnosis"]["faults"] if fault["what"] not in of_server]
    return {**told["diagnosis"], "faults": found, "healthy": not (found or told["diagnosis"]["unseen"])}


def mend(database: Database, told: dict[str, Any]) -> None:
    """Run what was printed, as a superuser."""
    for fault in told["faults"]:
        if fault["sql"] is not None:
            run_all(database, [fault["sql"]])
        elif serves := re.match(r"if it serves: (.+;) If it migrates: ", fault["command"]):
            run_all(database, [serves[1]])
        else:
            assert fault["command"] == "selene-core upgrade", fault
            address = database.admin_url.render_as_string(hide_password=False)
            assert CliRunner().invoke(cli, ["upgrade", "--url", address]).exit_code == 0


@pytest.fixture
def login(database: Database) -> Iterator[str]:
    """Return a login of the test's own that is a member of selene_app."""
    name = f"login_of_{database.name}"
    run_all(database, [f"CREATE ROLE {name} LOGIN IN ROLE selene_app"])
    yield name
    run_all(database, [*UNDONE, f"DROP OWNED BY {name}", f"DROP ROLE {name}"])
    run_all(database, [f"DROP ROLE IF EXISTS {name}_team, {name}_super"])


@pytest.fixture(scope="module")
def healthy(shared_database: Database) -> str:
    """Describe a database to which nothing was done."""
    return catalogue_of(shared_database)


@pytest.mark.parametrize("fault", FAULTS)
def test_doctor__names_the_fault_and_what_mends_it(database: Database, healthy: str, fault: str) -> None:
    plant, words = FAULTS[fault]
    run_all(database, ["SET allow_system_table_mods = on", plant])
    told = doctor(database.app_url)
    assert [each for each in told["faults"] if words in each["what"]], told
    mend(database, told)
    mended = doctor(database.app_url)
    assert mended["faults"] == []
    assert mended["healthy"]
    left = [line for line in catalogue_of(database).splitlines() if not line.startswith("type ")]
    assert [line for line in healthy.splitlines() if line not in left] == []


@pytest.mark.parametrize("fault", ROLE_FAULTS)
def test_doctor__names_the_role_and_what_mends_it(database: Database, login: str, fault: str) -> None:
    plant, words = (text.format(login=login) for text in ROLE_FAULTS[fault])
    if database.server.version < 16 and fault in FROM_16:
        with pytest.raises(psycopg.errors.SyntaxError):  # memberships have no options there: no such fault
            run_all(database, [plant])
        return
    run_all(database, [plant])
    if database.server.version >= 16 and fault in BEFORE_16:
        assert doctor(database.readonly_url)["healthy"]
        return
    told = doctor(database.readonly_url)
    assert [each for each in told["faults"] if words in each["what"]], told
    assert ";;" not in json.dumps(told["faults"])
    mend(database, told)
    assert doctor(database.app_url)["healthy"]


def lost(what: str) -> list[str]:
    """Compose statements that take everything of a kind from a database, whatever there is now or will be."""
    relations = {
        thing.removeprefix("relation "): facts
        for thing, facts in expected_schema().facts.items()
        if thing.startswith("relation ") and "alembic_version" not in thing
    }
    parts = [
        (name, *aspect.partition(" ")[::2], facts) for name, facts in relations.items() for aspect in facts
    ]
    functions = [
        thing.removeprefix("function ") for thing in expected_schema().facts if thing.startswith("function ")
    ]
    # A generated column goes with its function, and cannot come back to its place.
    generating = " ".join(
        value for facts in relations.values() for value in facts.values() if " GENERATED " in value
    )
    match what:
        case "functions":
            gone = [each for each in functions if each.partition("(")[0] not in generating]
            return [f"DROP ROUTINE IF EXISTS {each} CASCADE" for each in gone]
        case "owners":
            return [
                *(f"ALTER ROUTINE {each} OWNER TO CURRENT_USER" for each in functions),
                *(f"ALTER TABLE {name} OWNER TO CURRENT_USER" for name in relations),
            ]
        case "executors":
            return [f"REVOKE ALL ON ROUTINE {each} FROM PUBLIC, selene_app" for each in functions]
        case "readers":
            return [f"REVOKE ALL ON {name} FROM selene_app, selene_readonly" for name in relations]
        case "row security":
            return [f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY" for name in relations]
        case "policies":
            return [f"DROP POLICY {part} ON {name}" for name, kind, part, _ in parts if kind == "policy"]
        case "triggers":
            return [f"DROP TRIGGER {part} ON {name}" for name, kind, part, _ in parts if kind == "trigger"]
        case "constraints":
            return [
                f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {part} CASCADE"
                for name, kind, part, _ in parts
                if kind == "constraint"
            ]
        case _:
            return [
                f"DROP INDEX {name.partition('.')[0]}.{part}"
                for name, kind, part, facts in parts
                if kind == "index" and f"constraint {part}" not in facts
            ]


@pytest.mark.parametrize(
    "what",
    [
        "functions",
        "owners",
        "executors",
        "readers",
        "row security",
        "policies",
        "triggers",
        "constraints",
        "indexes",
    ],
)
def test_doctor__mends_what_everything_has_lost(database: Database, what: str) -> None:
    """Of every table and function there is: none has to be thought of here."""
    statements = lost(what)
    assert statements
    run_all(database, statements)
    mend(database, doctor(database.admin_url))
    mended = doctor(database.app_url)
    assert mended["faults"] == []
    assert mended["healthy"]


COMPARE = "compare with selene-core sql"


def check_named(told: dict[str, Any], words: str, remedy: str = "") -> None:
    """Check that a fault is told, and that no statement says how to fix it."""
    named = [each for each in told["faults"] if words in each["what"]]
    assert named, told
    assert [each["sql"] for each in named] == [None] * len(named)
    assert all(remedy in each["command"] and each["command"] for each in named)


def check_script_takes_nothing(database: Database, told: dict[str, Any]) -> None:
    """Run what is printed; it runs, whatever is missing, and leaves what only an operator can fix."""
    statements = [each["sql"] for each in told["faults"] if each["sql"]]
    for statement in statements:
        assert not re.search(
            r"DROP (TABLE|COLUMN|SCHEMA|TYPE|VIEW|MATER)|CREATE TABLE|ADD COLUMN|RENAME|SET SCHEMA", statement
        )
    run_all(database, statements)
    left = doctor(database.app_url)
    assert not left["healthy"]
    assert [each["sql"] for each in left["faults"] if each["sql"]] == []


@pytest.mark.parametrize("fault", NAMED)
def test_doctor__names_what_has_no_statement(database: Database, fault: str) -> None:
    plant, *words = NAMED[fault]
    run_all(database, [plant])
    told = doctor(database.app_url)
    for each in words:
        check_named(told, each)
    check_script_takes_nothing(database, told)
    for each in words:
        check_named(doctor(database.app_url), each)


def test_doctor__tables_come_before_what_may_need_them(database: Database) -> None:
    """While a column is missing, properties are fixed, and no definition is made anew."""
    renamed = f"ALTER TABLE {LEDGER} RENAME COLUMN tenant_id TO tenant"
    run_all(database, [renamed, FAULTS["FORCE off"][0], f"DROP POLICY tenant_confine ON {CURRENT}"])
    told = doctor(database.app_url)
    check_named(
        told, f"policy tenant_confine of relation {CURRENT} is missing", "tables and columns in order"
    )
    check_script_takes_nothing(database, told)
    left = doctor(database.app_url)
    assert [each for each in left["faults"] if "is not forced" in each["what"]] == []
    run_all(database, [f"ALTER TABLE {LEDGER} RENAME COLUMN tenant TO tenant_id"])
    mend(database, doctor(database.app_url))
    assert doctor(database.app_url)["healthy"]


# What takes data along, or has: only a backup or the operator's decision helps.
LOSSES = {
    "column added": (f"ALTER TABLE {CURRENT} ADD COLUMN mine text", "column mine of", COMPARE),
    "column dropped": (
        f"ALTER TABLE {LEDGER} DROP COLUMN correlation_id CASCADE",
        "column correlation_id of relation os_core.work_order_ledger is missing",
        "from a backup",
    ),
    "column of another type in its stead": (
        f"ALTER TABLE {CURRENT} DROP COLUMN turn_id CASCADE; ALTER TABLE {CURRENT} ADD COLUMN turn text",
        "column turn_id of relation os_core.work_orders_current is missing",
        "from a backup",
    ),
    "two columns of its type": (
        f"ALTER TABLE {CURRENT} RENAME COLUMN turn_id TO turn; ALTER TABLE {CURRENT} ADD COLUMN mine bigint",
        "column turn_id of relation os_core.work_orders_current is missing",
        "from a backup",
    ),
    "column of a type that holds more": (
        f"ALTER TABLE {CURRENT} ALTER COLUMN last_state_change_seq TYPE numeric",
        "column last_state_change_seq of relation os_core.work_orders_current is 'numeric NOT NULL'",
        COMPARE,
    ),
    "table dropped": (
        f"DROP TABLE {CURRENT} CASCADE",
        "relation os_core.work_orders_current is missing",
        "selene-core rebuild for every tenant",
    ),
    "tables dropped": (
        f"DROP TABLE {LEDGER}, {CURRENT} CASCADE",
        "relation os_core.work_order_ledger is missing",
        "from a backup",
    ),
    "table renamed and changed": (
        f"ALTER TABLE {LEDGER} RENAME TO events; ALTER TABLE os_core.events DROP COLUMN payload CASCADE",
        "relation os_core.events must not be there",
        COMPARE,
    ),
    "table of selene_owner's elsewhere": (
        f"CREATE TABLE public.mine (LIKE {LEDGER}, x bigserial);"
        "ALTER TABLE public.mine OWNER TO selene_owner",
        "selene_owner owns table public.mine, outside our schemas: it may show or change our rows",
        "give it to an owner who is no superuser",
    ),
    "copy of selene_owner's elsewhere": (
        f"CREATE MATERIALIZED VIEW public.mine AS SELECT text FROM {TURNS};"
        "ALTER MATERIALIZED VIEW public.mine OWNER TO selene_owner",
        "selene_owner owns materialized view public.mine",
        "give it to an owner who is no superuser",
    ),
    "view of selene_owner's elsewhere, with rules": (
        f"CREATE VIEW public.mine AS SELECT 1 AS x; ALTER VIEW public.mine OWNER TO selene_owner;"
        f"CREATE RULE mine AS ON INSERT TO public.mine DO INSTEAD DELETE FROM {CURRENT}",
        "selene_owner owns view public.mine, outside our schemas: it may show or change our rows",
        "give it to an owner who is no superuser",
    ),
    "table copied elsewhere, twice": (
        f"CREATE TABLE public.work_order_ledger (LIKE {LEDGER}); CREATE SCHEMA old;"
        f"CREATE TABLE old.work_order_ledger (LIKE {LEDGER}); DROP TABLE {LEDGER} CASCADE",
        "relation os_core.work_order_ledger is missing",
        "from a backup",
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_doctor__never_takes_data_away(database: Database, loss: str) -> None:
    """It makes nothing empty where data was, drops nothing that has some, and says what is to be done."""
    plant, words, remedy = LOSSES[loss]
    run_all(database, [plant])
    told = doctor(database.app_url)
    check_named(told, words, remedy)
    check_script_takes_nothing(database, told)


PARENT = (
    'CREATE TABLE public.parent (tenant_id text COLLATE "C" NOT NULL, text text COLLATE "C" NOT NULL);'
    f"ALTER TABLE {TURNS} INHERIT public.parent; GRANT SELECT ON public.parent TO PUBLIC"
)


def test_doctor__a_parent_that_shows_what_was_said_is_named(database: Database) -> None:
    """Whoever queries a parent needs no privilege on its children, and meets none of their policies."""
    say(database, "for nobody else")
    run_all(database, [PARENT])
    with database.engine("app").connect() as conn:
        assert conn.exec_driver_sql("SELECT text FROM public.parent").scalars().all() == ["for nobody else"]
    check_named(doctor(database.app_url), f"relation {TURNS} has parent public.parent", COMPARE)


def test_doctor__a_view_that_shows_what_was_said_is_named(database: Database) -> None:
    """A view reads with its owner's rights: the columns that nobody else may read, hidden turns too."""
    say(database, "for nobody else")
    run_all(database, [NAMED["view of selene_owner's elsewhere"][0]])
    with tenant_scope(database.engine("app"), "acme") as conn:
        assert conn.exec_driver_sql("TABLE public.said").scalars().all() == ["for nobody else"]
    check_named(doctor(database.app_url), "selene_owner owns view public.said, outside our schemas")


def say(database: Database, text: str) -> None:
    """Append a turn."""
    with tenant_scope(database.engine("app"), "acme") as conn:
        IdentityRepository(conn).register_identity("ann")
        ConversationRepository(conn).append(
            correlation_id=CONVERSATION,
            turn_id=1,
            user_id="ann",
            role="USER",
            source="TYPED_TEXT",
            text=text,
            privacy_scope="PRIVATE_DELIVERY",
        )


def test_doctor__service_that_owns_the_database(database: Database, login: str) -> None:
    run_all(database, [f"CREATE ROLE {login}_team", f"GRANT {login}_team TO {login}"])
    try:
        for owner, words in ((login, "owns"), (f"{login}_team", f"can become {login}_team, which owns")):
            run_all(database, [f"ALTER DATABASE {database.name} OWNER TO {owner}"])
            (fault,) = doctor(database.app_url)["faults"]
            assert fault["what"].startswith(
                f"role {login}, a member of selene_app, selene_readonly or selene_feed, {words} this database"
            )
            assert fault["command"].startswith(f"ALTER DATABASE {database.name} OWNER TO the migrator")
    finally:
        run_all(database, [f"ALTER DATABASE {database.name} OWNER TO CURRENT_USER"])
    assert doctor(database.app_url)["healthy"]


@pytest.fixture(scope="module")
def server_of_its_own(server: Server) -> Iterator[Server]:
    """Start a server whose settings concern no other test."""
    with ExitStack() as stack:
        yield embedded_server(stack, server.version if server.kind == "embedded" else None)


@pytest.fixture
def database_apart(server_of_its_own: Server) -> Iterator[Database]:
    """Make a migrated database on that server."""
    with server_of_its_own.new_database("apart") as database:
        upgrade(database.admin_url)
        server_of_its_own.make_login_roles()
        yield database
        with admin(database) as conn:
            conn.exec_driver_sql("ALTER SYSTEM RESET ALL")
        reload(database)


def reload(database: Database) -> None:
    """Let the server read its files, and wait until new sessions start with what they say."""
    loaded = "SELECT pg_conf_load_time()"
    with admin(database) as conn:
        before = conn.exec_driver_sql(loaded).scalar_one()
        conn.exec_driver_sql("SELECT pg_reload_conf()")

    def is_loaded() -> bool:
        with admin(database) as conn:
            return bool(conn.exec_driver_sql(loaded).scalar_one() > before)

    wait_until(is_loaded, "the server has read its files")


FOR_THE_SERVER = {
    "selene.tenant_id": ("acme", "whoever sets no tenant is in that one"),
    "session_replication_role": ("replica", "foreign keys are not kept where it is replica"),
    "row_security": ("off", "reading fails where it is off"),
}


@pytest.mark.parametrize("role", ["admin", "app"])
@pytest.mark.parametrize("name", FOR_THE_SERVER)
def test_doctor__setting_of_the_whole_server(database_apart: Database, name: str, role: Any) -> None:
    value, harm = FOR_THE_SERVER[name]
    assert doctor(database_apart.url(role))["healthy"]
    with admin(database_apart) as conn:
        conn.exec_driver_sql("SET selene.tenant_id = ''")  # before 17 it has to be known
        conn.exec_driver_sql(f"ALTER SYSTEM SET {name} = '{value}'")
    reload(database_apart)
    told = doctor(database_apart.url(role))
    (fault,) = told["faults"]
    assert fault["what"].startswith(f"the server sets {name} for every session: {harm}")
    assert fault["sql"] is None
    assert f"ALTER SYSTEM RESET {name}" in fault["command"]
    with admin(database_apart) as conn:
        conn.exec_driver_sql(f"ALTER SYSTEM RESET {name}")
    reload(database_apart)
    assert doctor(database_apart.url(role))["healthy"]


@pytest.mark.parametrize("name", FOR_THE_SERVER)
def test_doctor__setting_of_a_file(database_apart: Database, name: str) -> None:
    """Whoever asks; it stays told until the server has read the file without it."""
    assert database_apart.server.local is not None
    file = database_apart.server.local.data_directory / "postgresql.conf"
    before = file.read_text()
    with file.open("a") as end:
        end.write(f"\n{name.upper()} = {FOR_THE_SERVER[name][0]}\n")
    try:
        reload(database_apart)
        for url in (database_apart.admin_url, database_apart.app_url):
            (fault,) = doctor(url)["faults"]
            assert fault["what"].startswith(f"the server sets {name} for every session")
            assert fault["sql"] is None
            assert "take it out of postgresql.conf" in fault["command"]
    finally:
        file.write_text(before)
    (fault,) = doctor(database_apart.admin_url)["faults"]
    assert "reload or restart the server" in fault["command"]
    reload(database_apart)
    assert doctor(database_apart.admin_url)["healthy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_THE_SERVER)
def test_doctor__setting_of_the_command_line(server: Server, name: str) -> None:
    value, _ = FOR_THE_SERVER[name]
    version = server.version if server.kind == "embedded" else None
    with local_server(version=version, settings={name: value}) as local:
        upgrade(local.admin_url)
        (fault,) = doctor(sa.make_url(local.admin_url))["faults"]
        assert fault["what"].startswith(f"the server sets {name} for every session")
        assert "off the command line" in fault["command"]


def test_doctor__setting_nearer_than_the_servers(database_apart: Database) -> None:
    """What holds for the login alone is not taken for the server's, nor for the absence of one."""
    with admin(database_apart) as conn:
        conn.exec_driver_sql("ALTER SYSTEM SET row_security = 'off'")
    reload(database_apart)
    nearer = {"options": "-c row_security=on -c selene.tenant_id=acme"}
    for url in (database_apart.app_url, database_apart.admin_url):
        told = doctor(url.update_query_dict(nearer))
        assert told["faults"] == []
        assert [line.partition(":")[0] for line in told["unseen"]] == [
            "what the server sets row_security to",
            "what the server sets selene.tenant_id to",
        ]
        assert not told["healthy"]
    (fault,) = doctor(database_apart.admin_url)["faults"]
    assert fault["what"].startswith("the server sets row_security for every session")


def test_doctor__setting_of_the_session(database: Database) -> None:
    """As one that came before behind a pooler has left it."""
    with database.engine("app").connect() as conn:
        conn.exec_driver_sql("SET selene.tenant_id = 'acme'")
        conn.exec_driver_sql("SET row_security = off")
        assert [fault for fault in examine(conn).faults if "for every session" in fault.what] == []
        settings = "SELECT current_setting('selene.tenant_id'), current_setting('row_security')"
        assert conn.exec_driver_sql(settings).one() == ("acme", "off")


@pytest.mark.slow
def test_doctor__a_member_by_making_the_role_is_no_service(server: Server) -> None:
    """As some services' first user is: everybody who makes a role is made a member of it."""
    with ExitStack() as stack:
        cluster = embedded_server(stack, server.version if server.kind == "embedded" else None)
        database = stack.enter_context(cluster.new_database("cloud"))
        run_all(
            database, ["CREATE ROLE mig LOGIN CREATEROLE", f"ALTER DATABASE {database.name} OWNER TO mig"]
        )
        url = cluster.url_for("mig", database.name)
        joins = "GRANT selene_owner, selene_app, selene_readonly, orders_service TO mig"
        if cluster.version >= 16:
            joins = "SELECT 1"
            run_all(database, ["ALTER ROLE mig SET createrole_self_grant = 'set, inherit'"])
        upgrade(url)
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as conn:
            conn.exec_driver_sql("CREATE ROLE orders_service LOGIN IN ROLE selene_app")
            conn.exec_driver_sql(joins)
            assert conn.exec_driver_sql("SELECT pg_has_role('selene_app', 'USAGE')").scalar_one()
        assert doctor(url)["healthy"]
        assert doctor(database.admin_url)["healthy"]
        check_script_leaves_what_an_upgrade_needs(database, url)


# Who migrates, and is a service by its memberships, or by its name.
MIGRATORS = {
    "member of both": "CREATE ROLE mig LOGIN IN ROLE selene_app, selene_owner",
    "member of both, by a team": "CREATE ROLE team IN ROLE selene_owner;"
    "CREATE ROLE mig LOGIN IN ROLE team, selene_readonly",
    "member by grace of another service": "CREATE ROLE team LOGIN IN ROLE selene_app;"
    "GRANT selene_owner TO team WITH ADMIN OPTION; CREATE ROLE mig LOGIN;"
    "SET ROLE team; GRANT selene_owner TO mig; RESET ROLE",
    "superuser": "CREATE ROLE mig LOGIN SUPERUSER IN ROLE selene_app",
    "with CREATEROLE": "CREATE ROLE mig LOGIN CREATEROLE IN ROLE selene_app; GRANT selene_owner TO mig",
    "the owner itself": "ALTER ROLE selene_owner LOGIN",
}


@pytest.mark.parametrize("who", MIGRATORS)
def test_doctor__leaves_what_the_next_upgrade_needs(database_apart: Database, who: str) -> None:
    login = "selene_owner" if who == "the owner itself" else "mig"
    run_all(database_apart, [MIGRATORS[who]])
    try:
        assert doctor(database_apart.admin_url)["faults"]
        url = database_apart.server.url_for(login, database_apart.name)
        check_script_leaves_what_an_upgrade_needs(database_apart, url)
    finally:
        run_all(database_apart, ["ALTER ROLE selene_owner NOLOGIN", "DROP ROLE IF EXISTS mig"])
        run_all(database_apart, ["DROP ROLE IF EXISTS team"])


def check_script_leaves_what_an_upgrade_needs(database: Database, migrator: sa.URL) -> None:
    """Run what doctor prints, whole, then migrate."""
    address = database.admin_url.render_as_string(hide_password=False)
    ran = psql(database, CliRunner().invoke(cli, ["doctor", "--url", address]).stdout)
    assert ran.returncode == 0, ran.stderr
    downgrade(migrator, BEFORE_HEAD)
    upgrade(migrator)
    assert stands_at(database) == HEAD


def test_doctor__several_faults_at_once(database: Database) -> None:
    statements = [plant for name, (plant, _) in FAULTS.items() if name in _TOGETHER]
    assert len(statements) == len(_TOGETHER)
    run_all(database, statements)
    told = doctor(database.app_url)
    for name in _TOGETHER:
        assert [each for each in told["faults"] if FAULTS[name][1] in each["what"]], name
    mend(database, told)
    assert doctor(database.app_url)["healthy"]


_TOGETHER = (
    "policy dropped",
    "FORCE off",
    "trigger disabled",
    "trigger not ALWAYS",
    "grant to PUBLIC",
    "TRUNCATE granted",
    "function body changed",
    "function owned by a superuser",
    "index dropped",
    "sequence changed",
)


def test_doctor__index_of_a_failed_concurrent_build(database: Database) -> None:
    """A duplicate ends the build after the index is in the catalogue: it stays there, invalid."""
    append_events(database.engine("app"), "acme", [created(), created()])
    with pytest.raises(psycopg.errors.UniqueViolation):
        run_all(database, [f"CREATE UNIQUE INDEX CONCURRENTLY half_made ON {CURRENT} (turn_id)"])
    told = doctor(database.app_url)
    (fault,) = told["faults"]
    assert fault["what"] == f"index half_made of relation {CURRENT} must not be there, and is invalid"
    mend(database, told)
    assert doctor(database.app_url)["healthy"]


def test_doctor__behind(database: Database) -> None:
    downgrade(database.admin_url, BEFORE_HEAD)
    told = doctor(database.admin_url)
    (fault,) = told["faults"]
    assert f"stands at revision {BEFORE_HEAD}, 1 behind {HEAD}" in fault["what"]
    assert told["revision"] == BEFORE_HEAD
    mend(database, told)
    assert doctor(database.app_url)["healthy"]


def test_doctor__nothing_is_wrong_with_any_older_revision(database: Database) -> None:
    for behind, revision in enumerate(expected_schema().revisions[-2::-1], 1):
        downgrade(database.admin_url, revision)
        (fault,) = doctor(database.admin_url)["faults"]
        assert f"stands at revision {revision}, {behind} behind {HEAD}" in fault["what"]


def test_doctor__not_migrated(empty_database: Database) -> None:
    told = doctor(empty_database.admin_url)
    (fault,) = told["faults"]
    assert "has no revision" in fault["what"]
    mend(empty_database, told)
    assert doctor(empty_database.admin_url)["healthy"]


def test_doctor__ahead(database: Database) -> None:
    upgrade_further(database, "op.execute('CREATE TABLE os_core.tomorrow (tenant_id text)')")
    told = doctor(database.app_url)
    (fault,) = told["faults"]
    assert "which this version of selene-core does not know" in fault["what"]
    assert fault["command"] == "pip install --upgrade selene-os-core"


# What can be judged at any revision, and what must be said of it.
AT_ANY_REVISION = {
    name: (FAULTS | NAMED)[name]
    for name in (
        "policy dropped",
        "FORCE off",
        "row security off",
        "trigger disabled",
        "trigger not ALWAYS",
        "trigger dropped",
        "grant to PUBLIC",
        "TRUNCATE granted",
        "column granted",
        "function executable by PUBLIC",
        "schema open to PUBLIC",
        "child of a table",
        "child of a table elsewhere",
        "function of selene_owner's elsewhere",
    )
}


@pytest.mark.parametrize("fault", AT_ANY_REVISION)
@pytest.mark.parametrize("revision", ["behind", "ahead"])
def test_doctor__at_another_revision(database: Database, revision: str, fault: str) -> None:
    if revision == "behind":
        downgrade(database.admin_url, BEFORE_HEAD)
    else:
        upgrade_further(database, "op.execute('CREATE TABLE os_core.tomorrow (tenant_id text)')")
    plant, *words = AT_ANY_REVISION[fault]
    run_all(database, [plant])
    told = doctor(database.admin_url)
    for each in words:
        assert [found for found in told["faults"] if each in found["what"]], told
    run_all(database, [each["sql"] for each in told["faults"] if each["sql"]])
    still = doctor(database.admin_url)
    (left,) = [found for found in still["faults"] if not any(each in found["what"] for each in words)]
    for each in words if fault in NAMED else ():
        check_named(still, each)
    assert left["command"] == (
        "selene-core upgrade" if revision == "behind" else "pip install --upgrade selene-os-core"
    )


@pytest.mark.parametrize("stamp", [BEFORE_HEAD, "ffff", None])
@pytest.mark.parametrize("fault", ["policy dropped", "TRUNCATE granted", "trigger disabled"])
def test_doctor__wrong_revision_and_another_fault(database: Database, stamp: str | None, fault: str) -> None:
    plant, words = FAULTS[fault]
    stamped = "DELETE FROM os_core.alembic_version"
    if stamp:
        stamped = f"UPDATE os_core.alembic_version SET version_num = '{stamp}'"
    run_all(database, [plant, stamped])
    told = doctor(database.app_url)
    assert [each for each in told["faults"] if words in each["what"]], told
    check_named(told, f"but its schema is that of {HEAD}", "into os_core.alembic_version")
    run_all(database, [each["sql"] for each in told["faults"] if each["sql"]])
    run_all(database, STAMPED)
    assert doctor(database.app_url)["healthy"]


STAMPED = [
    "DELETE FROM os_core.alembic_version",
    f"INSERT INTO os_core.alembic_version VALUES ('{HEAD}')",
]


def test_doctor__two_revisions_of_an_older_schema(database: Database) -> None:
    downgrade(database.admin_url, BEFORE_HEAD)
    run_all(database, [f"INSERT INTO os_core.alembic_version VALUES ('{HEAD}')"])
    told = doctor(database.admin_url)
    (fault,) = told["faults"]
    assert fault["what"].startswith(
        f"the database stands at revision {BEFORE_HEAD} and {HEAD}, but it can stand"
    )
    check_named(told, "it can stand at one only", "into os_core.alembic_version")
    run_all(database, [f"DELETE FROM os_core.alembic_version WHERE version_num = '{HEAD}'"])
    told = doctor(database.admin_url)
    assert [each["what"].partition(":")[0] for each in told["faults"]] == [
        f"the database stands at revision {BEFORE_HEAD}, 1 behind {HEAD}"
    ]
    mend(database, told)
    assert doctor(database.app_url)["healthy"]


def test_doctor__several_unknown_revisions(database: Database) -> None:
    upgrade_further(database, "op.execute('CREATE TABLE os_core.tomorrow (tenant_id text)')")
    run_all(database, ["INSERT INTO os_core.alembic_version VALUES ('x''y')"])
    (fault,) = doctor(database.admin_url)["faults"]
    assert "it can stand at one only" in fault["what"]
    assert fault["sql"] is None


@pytest.mark.parametrize("stamp", ["abcdef012345", HEAD, BEFORE_HEAD])
def test_doctor__schema_of_another_product(empty_database: Database, stamp: str) -> None:
    run_all(
        empty_database,
        [
            "CREATE SCHEMA os_core",
            "CREATE TABLE os_core.alembic_version (version_num varchar(32) NOT NULL)",
            f"INSERT INTO os_core.alembic_version VALUES ('{stamp}')",
        ],
    )
    told = doctor(empty_database.admin_url)
    assert [fault for fault in told["faults"] if "none of our tables is there" in fault["what"]], told
    assert [fault["sql"] for fault in told["faults"]] == [None]


def test_doctor__no_revision_and_tables_missing(database: Database) -> None:
    run_all(database, [f"DROP TABLE {CURRENT} CASCADE", "DROP TABLE os_core.alembic_version"])
    (fault,) = doctor(database.admin_url)["faults"]
    assert "has no revision, but tables of ours are there" in fault["what"]
    assert "put the revision" in fault["command"]


@pytest.mark.parametrize("role", ["admin", "app", "readonly"])
def test_doctor__healthy_is_one_line(database: Database, role: Any) -> None:
    url = database.url(role)
    assert doctor(url)["healthy"]
    if [*server_faults(release(database.server.release))]:
        return  # then it says so
    command = ["doctor", "--url", url.render_as_string(hide_password=False)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0
    assert done.stdout.startswith("-- Healthy: PostgreSQL ")
    assert done.stdout.partition("\n")[2].startswith("-- Note: PUBLIC may connect to this database")
    run_all(
        database,
        [
            f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {database.name} TO selene_app, selene_readonly",
        ],
    )
    done = CliRunner().invoke(cli, command)
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)


def test_doctor__its_output_is_a_script_that_mends(database: Database) -> None:
    """psql runs it as it is printed; no name in a comment can end that comment."""
    evil = 'CREATE ROLE "x\nDROP TABLE os_core.work_order_ledger CASCADE; --"'
    name = evil.removeprefix("CREATE ROLE ")
    run_all(database, [FAULTS["function body changed"][0], FAULTS["policy dropped"][0], evil])
    try:
        run_all(database, [f"GRANT SELECT ON {LEDGER} TO {name}"])
        address = database.app_url.render_as_string(hide_password=False)
        done = CliRunner().invoke(cli, ["doctor", "--url", address])
        assert done.exit_code == 1
        ran = psql(database, done.stdout)
        assert ran.returncode == 0, ran.stderr
        assert doctor(database.app_url)["healthy"]
    finally:
        run_all(database, [f"DROP OWNED BY {name}", f"DROP ROLE {name}"])


def test_doctor__no_name_steers_the_terminal(database: Database) -> None:
    """A name may have an escape sequence or the end of a line in it; its statement still finds it."""
    evil = '"\x1b[2Jx\n\\d""; \x9b\u202e-- "'
    run_all(
        database,
        [
            f"CREATE POLICY {evil} ON {LEDGER} USING (TRUE)",
            f"CREATE VIEW os_core.{evil} AS SELECT 1 AS x",
            f'CREATE SEQUENCE os_core.{evil[:-1]}seq"',
        ],
    )
    address = database.app_url.render_as_string(hide_password=False)
    done = CliRunner().invoke(cli, ["doctor", "--url", address])
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    ran = psql(database, done.stdout)
    assert ran.returncode == 0, ran.stderr
    assert [fault["what"].partition(" ")[0] for fault in doctor(database.app_url)["faults"]] == [
        "relation",
        "sequence",
    ]


def test_doctor__not_null_for_new_rows_only(database: Database) -> None:
    for_new_rows = f"ALTER TABLE {CURRENT} ADD CONSTRAINT mine NOT NULL turn_id NOT VALID"
    if database.server.version < 18:
        with pytest.raises(psycopg.errors.SyntaxError):  # a NOT NULL is always valid there
            run_all(database, [for_new_rows])
        return
    run_all(database, [f"ALTER TABLE {CURRENT} ALTER turn_id DROP NOT NULL", for_new_rows])
    told = doctor(database.app_url)
    (fault,) = told["faults"]
    assert fault["what"].startswith("column turn_id of relation os_core.work_orders_current is 'bigint'")
    assert (fault["sql"], fault["command"]) == (None, COMPARE)


def test_doctor__sequence_behind_its_table(database: Database) -> None:
    append_events(database.engine("app"), "acme", [created(), created()])
    run_all(database, [f"ALTER SEQUENCE {EVENT_IDS} RESTART"])
    assert doctor(database.app_url)["healthy"]  # it does not see the rows
    told = doctor(database.admin_url)
    (fault,) = told["faults"]
    assert fault["what"].startswith(f"sequence {EVENT_IDS} gives 1 next")
    mend(database, told)
    assert doctor(database.admin_url)["healthy"]
    append_events(database.engine("app"), "acme", [created()])


def test_doctor__what_is_harmless_is_a_note(database: Database) -> None:
    run_all(
        database,
        [
            f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {database.name} TO selene_app",
            f"CREATE INDEX mine ON {CURRENT} (tenant_id, turn_id)",
            f"ALTER TABLE {LEDGER} SET (autovacuum_vacuum_scale_factor = 0.01)",
            f"ALTER TABLE {LEDGER} ALTER COLUMN turn_id SET STATISTICS 1000",
            "CREATE STATISTICS public.mine ON user_id, session_id FROM conversation.conversation_ledger",
            "CREATE INDEX mine ON conversation.conversation_ledger (turn_id) WHERE role = 'user'::text",
            f"CREATE VIEW public.mine AS SELECT * FROM {CURRENT}",
            "CREATE FUNCTION public.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            f"CREATE TRIGGER mine AFTER UPDATE ON {CURRENT} FOR EACH ROW EXECUTE FUNCTION public.mine()",
            f"GRANT SELECT ON {CURRENT} TO pg_monitor",
            f"GRANT REFERENCES (tenant_id) ON {LEDGER} TO pg_monitor",
        ],
    )
    told = doctor(database.app_url)
    assert told["healthy"]
    assert sorted(note.partition(" with the rights of")[0] for note in told["notes"]) == [
        "extended statistics public.mine of relation conversation.conversation_ledger is not ours",
        "index mine of relation conversation.conversation_ledger is not ours",
        f"index mine of relation {CURRENT} is not ours",
        f"options of relation {LEDGER} is not ours",
        f"pg_monitor has REFERENCES on tenant_id of relation {LEDGER}",
        f"pg_monitor has SELECT on relation {CURRENT}",
        f"statistics target of turn_id of relation {LEDGER} is 1000, not the default",
        f"trigger mine of relation {CURRENT} is not ours",
        "view public.mine shows our tables",
    ]


@pytest.fixture
def stranger(database: Database) -> Iterator[sa.URL]:
    """Address the database as a login that has no rights in our schemas."""
    name = f"stranger_of_{database.name}"
    run_all(database, [f"CREATE ROLE {name} LOGIN PASSWORD 'selene-test'"])
    yield database.server.url_for(name, database.name)
    run_all(database, [f"DROP OWNED BY {name}", f"DROP ROLE {name}"])


UNCOMPARED = "what else the schema has to have: that is the revision's to say"


def test_doctor__older_revision_that_it_cannot_see(database: Database, stranger: sa.URL) -> None:
    """Nothing is told as missing that a newer revision makes."""
    for revision in expected_schema().revisions[-2::-1]:
        downgrade(database.admin_url, revision)
        told = doctor(stranger)
        assert told["faults"] == [], revision
        assert told["unseen"] == ["the revision: permission denied for schema os_core", UNCOMPARED]


def test_doctor__older_revision_that_the_application_cannot_see(database: Database) -> None:
    downgrade(database.admin_url, "0009")
    told = doctor(database.app_url)
    assert told["faults"] == []
    assert told["unseen"] == ["the revision: permission denied for table alembic_version", UNCOMPARED]


@pytest.mark.parametrize("fault", ["policy dropped", "TRUNCATE granted", "child of a table elsewhere"])
@pytest.mark.parametrize("revision", [HEAD, BEFORE_HEAD])
def test_doctor__revision_that_it_cannot_see_and_a_fault(
    database: Database, stranger: sa.URL, revision: str, fault: str
) -> None:
    downgrade(database.admin_url, revision)
    plant, words = (FAULTS | NAMED)[fault]
    run_all(database, [plant])
    told = doctor(stranger)
    assert [each for each in told["faults"] if words in each["what"]], told
    if fault in NAMED:
        check_named(told, words)
        return
    mend(database, told)
    assert doctor(stranger)["faults"] == []


def test_doctor__says_what_it_cannot_see(stranger: sa.URL) -> None:
    told = doctor(stranger)
    assert told["faults"] == []
    assert told["unseen"] == ["the revision: permission denied for schema os_core"]
    assert not told["healthy"]


def test_doctor__while_a_migration_is_under_way(database: Database) -> None:
    with held(database, f"ALTER TABLE {CURRENT} ADD COLUMN mine text"):
        told = doctor(database.app_url)
    assert told["faults"] == []
    assert told["unseen"] == ["the schema: a table is locked, as by a migration that is under way"]
    assert doctor(database.app_url)["healthy"]


def test_doctor__changes_nothing(database: Database) -> None:
    state = sa.text("SELECT pg_current_xact_id_if_assigned(), (SELECT max(xmin::text::bigint) FROM pg_class)")
    with admin(database) as conn:
        before = conn.execute(state).all()
        doctor(database.app_url)
        assert conn.execute(state).all() == before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (140022, "PostgreSQL 14 is not supported"),
        (150003, "CVE-2023-39418"),
        (150009, "ALTER ROLE ... SET role"),
        (160005, "ALTER ROLE ... SET role"),
        (170000, "CVE-2024-10976"),
        (170005, "CVE-2025-8713"),
    ],
)
def test_server_faults__releases_that_are_not_to_be_used(number: int, words: str) -> None:
    (fault,) = server_faults(number)
    assert words in fault.what
    assert fault.command is not None


@pytest.mark.parametrize("number", [150014, 150018, 160010, 170006, 180000, 180006])
def test_server_faults__good_releases(number: int) -> None:
    assert [*server_faults(number)] == []
