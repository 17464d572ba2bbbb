"""The schema as a whole: its catalogue, and rules for all tables and functions (contract §2, §10, §11)."""

import difflib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.support.catalogue import CATALOGUE_FILE, catalogue, catalogue_text
from tests.support.catalogue_rules import RULES, UNPINNED_FUNCTIONS, violations
from tests.support.servers import Server

NEW_TABLE = (
    'CREATE TABLE os_core.new (tenant_id text COLLATE "C" NOT NULL, note_id text COLLATE "C" NOT NULL)'
)
LEDGER = "os_core.work_order_ledger"
CURRENT = "os_core.work_orders_current"
EVENT_IDS = "os_core.work_order_ledger_work_order_event_id_seq"
USING = "tenant_id = current_setting('selene.tenant_id', TRUE)"

# A rule, by its first words, what breaks it, and what must be said of that.
BREACHES = [
    ("tables: row-level", NEW_TABLE, "os_core.new has no forced row-level security"),
    ("tables: row-level", "CREATE TABLE conversation.new (x int)", "conversation.new has no forced"),
    ("tables: row-level", f"ALTER TABLE {LEDGER} NO FORCE ROW LEVEL SECURITY", "has no forced"),
    ("tables: row-level", f"ALTER TABLE {CURRENT} DISABLE ROW LEVEL SECURITY", "has no forced"),
    (
        "tables: row-level",
        "CREATE TABLE os_core.new (x int) PARTITION BY LIST (x);"
        "ALTER TABLE os_core.new ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE TABLE os_core.part PARTITION OF os_core.new DEFAULT",
        "os_core.part has no forced",
    ),
    ("tables: a permissive", NEW_TABLE, "os_core.new has no permissive"),
    ("tables: a permissive", f"DROP POLICY tenant_confine ON {LEDGER}", "has no restrictive"),
    ("tables: a permissive", f"DROP POLICY tenant_admit ON {CURRENT}", "has no permissive"),
    ("tables: a permissive", f"ALTER POLICY tenant_confine ON {LEDGER} USING (TRUE)", "has no restrictive"),
    ("tables: a permissive", f"ALTER POLICY tenant_confine ON {LEDGER} WITH CHECK ({USING})", "restrictive"),
    ("tables: a permissive", f"ALTER POLICY tenant_confine ON {LEDGER} TO selene_app", "has no restrictive"),
    (
        "tables: a permissive",
        f"DROP POLICY tenant_confine ON {LEDGER};"
        f"CREATE POLICY tenant_confine ON {LEDGER} AS RESTRICTIVE FOR SELECT USING ({USING})",
        "has no restrictive",
    ),
    ("tables: tenant_id", "CREATE TABLE os_core.new (x int)", "os_core.new has no tenant_id"),
    ("tables: tenant_id", "CREATE TABLE os_core.new (tenant_id text)", "os_core.new has no tenant_id"),
    ("tables: a unique", NEW_TABLE, "os_core.new has no unique index"),
    (
        "tables: a unique",
        NEW_TABLE.replace("note_id", "PRIMARY KEY (note_id, tenant_id), note_id"),
        "os_core.new",
    ),
    (
        "tables: a unique",
        f"{NEW_TABLE}; CREATE UNIQUE INDEX ON os_core.new (tenant_id, note_id) WHERE note_id > 'a'",
        "os_core.new has no",
    ),
    (
        "tables: a unique",
        "CREATE TABLE os_core.new (tenant_id text NOT NULL, x int, UNIQUE (tenant_id, x))",
        "os_core.new has no",
    ),
    (
        "tables: foreign",
        f"{NEW_TABLE}; ALTER TABLE os_core.new ADD FOREIGN KEY (note_id)"
        f" REFERENCES {CURRENT} (work_order_id)",
        "is not led by tenant_id",
    ),
    (
        "tables: foreign",
        f"{NEW_TABLE}; ALTER TABLE os_core.new ADD FOREIGN KEY (tenant_id, note_id)"
        f" REFERENCES {CURRENT} (tenant_id, work_order_id) ON DELETE CASCADE",
        "cascades",
    ),
    (
        "tables: foreign",
        f"{NEW_TABLE}; ALTER TABLE os_core.new ADD FOREIGN KEY (tenant_id, note_id)"
        f" REFERENCES {CURRENT} (tenant_id, work_order_id) ON UPDATE SET NULL",
        "cascades",
    ),
    (
        "tables: foreign",
        f"ALTER TABLE {CURRENT} ALTER CONSTRAINT fk_work_orders_current_last_event DEFERRABLE",
        "is deferrable",
    ),
    ("guards:", "CREATE TABLE conversation.new (x int)", "conversation.new lacks the row trigger of"),
    ("guards:", NEW_TABLE, "os_core.new lacks the statement trigger of os_core.reject_mutation"),
    (
        "guards:",
        f"{NEW_TABLE};"
        "CREATE TRIGGER guard_row BEFORE UPDATE OR DELETE ON os_core.new"
        " FOR EACH ROW EXECUTE FUNCTION os_core.guard_lease();"
        "ALTER TABLE os_core.new ENABLE ALWAYS TRIGGER guard_row",
        "os_core.new lacks the row trigger of os_core.reject_mutation",
    ),
    ("guards:", f"ALTER TABLE {LEDGER} DISABLE TRIGGER reject_mutation_row", "lacks the row trigger"),
    ("guards:", f"ALTER TABLE {LEDGER} ENABLE TRIGGER reject_mutation_statement", "the statement trigger"),
    (
        "guards:",
        "ALTER TABLE os_core.work_order_step_attempts ENABLE REPLICA TRIGGER guard_row",
        "os_core.work_order_step_attempts lacks the row trigger of os_core.guard_step_attempt",
    ),
    (
        "guards:",
        "DROP TRIGGER guard_statement ON os_core.work_order_leases",
        "os_core.work_order_leases lacks the statement trigger of os_core.guard_lease",
    ),
    (
        "guards:",
        "ALTER TABLE os_core.sessions RENAME TO session_history",
        "os_core.session_history lacks the row trigger",
    ),
    ("guards:", "ALTER TABLE os_core.sessions RENAME TO other", "os_core.sessions is no table"),
    (
        "guards:",
        f"CREATE OR REPLACE TRIGGER reject_mutation_statement BEFORE UPDATE OR DELETE ON {LEDGER}"
        " FOR EACH STATEMENT EXECUTE FUNCTION os_core.reject_mutation();"
        f"ALTER TABLE {LEDGER} ENABLE ALWAYS TRIGGER reject_mutation_statement",
        "the statement trigger",
    ),
    (
        "guards:",
        f"CREATE OR REPLACE TRIGGER reject_mutation_row BEFORE UPDATE OF payload OR DELETE ON {LEDGER}"
        " FOR EACH ROW EXECUTE FUNCTION os_core.reject_mutation();"
        f"ALTER TABLE {LEDGER} ENABLE ALWAYS TRIGGER reject_mutation_row",
        "the row trigger",
    ),
    (
        "guards:",
        f"CREATE OR REPLACE TRIGGER reject_mutation_row BEFORE UPDATE OR DELETE ON {LEDGER}"
        " FOR EACH ROW WHEN (OLD.turn_id > 1) EXECUTE FUNCTION os_core.reject_mutation();"
        f"ALTER TABLE {LEDGER} ENABLE ALWAYS TRIGGER reject_mutation_row",
        "the row trigger",
    ),
    ("tables: text", "CREATE TABLE os_core.new (note_id text)", 'os_core.new.note_id is not collated "C"'),
    ("tables: none", "CREATE UNLOGGED TABLE os_core.new (x int)", "os_core.new is unlogged"),
    ("tables: none", f"CREATE RULE quiet AS ON INSERT TO {LEDGER} DO INSTEAD NOTHING", "has rule quiet"),
    (
        "tables: none",
        f"CREATE VIEW os_core.all_events AS SELECT * FROM {LEDGER}",
        "os_core.all_events is nei",
    ),
    ("sequences:", "CREATE SEQUENCE os_core.new CACHE 20", "os_core.new is not a bigint sequence"),
    ("sequences:", "CREATE SEQUENCE os_core.new AS integer", "os_core.new is not a bigint sequence"),
    ("sequences:", "CREATE SEQUENCE os_core.new CYCLE", "os_core.new is not a bigint sequence"),
    ("owner:", NEW_TABLE, "relation os_core.new belongs to"),
    (
        "owner:",
        "CREATE FUNCTION os_core.new() RETURNS int LANGUAGE sql RETURN 1",
        "function os_core.new() belongs",
    ),
    ("owner:", "CREATE TYPE conversation.mood AS ENUM ('good')", "type conversation.mood belongs to"),
    ("owner:", "ALTER SCHEMA conversation OWNER TO CURRENT_USER", "schema conversation belongs to"),
    (
        "privileges: the roles read tables",
        f"GRANT INSERT ON {LEDGER} TO selene_app",
        "selene_app has INSERT on",
    ),
    (
        "privileges: the roles read tables",
        f"GRANT UPDATE (payload) ON {LEDGER} TO selene_app",
        "selene_app has UPDATE on",
    ),
    (
        "privileges: the roles read tables",
        f"GRANT TRUNCATE ON {CURRENT} TO selene_readonly",
        "selene_readonly has TRUNCATE",
    ),
    (
        "privileges: the roles read tables",
        f"GRANT TRIGGER ON {CURRENT} TO PUBLIC",
        "selene_app has TRIGGER on",
    ),
    (
        "privileges: the roles read tables",
        f"GRANT REFERENCES ON {CURRENT} TO selene_app",
        "selene_app has REFERENCES on",
    ),
    (
        "privileges: the roles read tables",
        "GRANT CREATE ON SCHEMA conversation TO selene_app",
        "selene_app may create in",
    ),
    (
        "privileges: the roles read tables",
        f"GRANT USAGE ON SEQUENCE {EVENT_IDS} TO selene_app",
        "selene_app has USAGE on",
    ),
    ("privileges: nobody", f"GRANT SELECT ON {LEDGER} TO PUBLIC", "PUBLIC has SELECT on os_core"),
    ("privileges: nobody", "GRANT USAGE ON SCHEMA os_core TO PUBLIC", "PUBLIC has USAGE on os_core"),
    ("privileges: nobody", f"GRANT SELECT (payload) ON {LEDGER} TO PUBLIC", "PUBLIC has SELECT on os_core"),
    ("privileges: nobody", f"GRANT SELECT ON {LEDGER} TO selene_app WITH GRANT OPTION", "with grant option"),
    ("privileges: nobody", f"GRANT SELECT ON {LEDGER} TO pg_monitor", "pg_monitor has SELECT on"),
    (
        "privileges: nobody",
        "CREATE FUNCTION os_core.new() RETURNS int LANGUAGE sql RETURN 1",
        "PUBLIC has EXECUTE on os_core.new()",
    ),
    (
        "privileges: nobody",
        "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner"
        " GRANT INSERT ON TABLES TO selene_app WITH GRANT OPTION",
        "selene_app has INSERT with grant option on what selene_owner will make",
    ),
    (
        "privileges: what",
        "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC may execute what selene_owner will make",
    ),
    (
        "functions: selene_app",
        "GRANT EXECUTE ON FUNCTION os_core.no_tenant(text) TO selene_app",
        "selene_app may execute os_core.no_tenant(text)",
    ),
    (
        "functions: selene_app",
        "GRANT EXECUTE ON FUNCTION os_core.touch_session(text, text) TO selene_readonly",
        "selene_readonly may execute os_core.touch_session(text,text)",
    ),
    (
        "functions: selene_app",
        "REVOKE EXECUTE ON FUNCTION conversation.read_turns(text, uuid, bigint, integer)"
        " FROM selene_readonly",
        "selene_readonly may not execute conversation.read_turns(text,uuid,bigint,integer)",
    ),
    (
        "privileges: the roles read every",
        "GRANT SELECT (text) ON conversation.turn_texts TO selene_app",
        "selene_app may read conversation.turn_texts.text",
    ),
    (
        "privileges: the roles read every",
        "GRANT SELECT ON conversation.turn_texts TO selene_readonly",
        "selene_readonly may read conversation.turn_texts.text",
    ),
    (
        "privileges: the roles read every",
        "GRANT pg_read_all_data TO selene_readonly",
        "selene_readonly may read conversation.turn_texts.text",
    ),
    ("privileges: the roles read every", NEW_TABLE, "selene_app may not read os_core.new.note_id"),
    (
        "privileges: the roles read every",
        "ALTER TABLE conversation.turn_texts RENAME COLUMN text TO said",
        "conversation.turn_texts.text is no column",
    ),
    (
        "privileges: selene_feed",
        "GRANT SELECT ON os_core.work_order_feed_heads TO selene_feed",
        "selene_feed may read os_core.work_order_feed_heads.tenant_id",
    ),
    (
        "privileges: selene_feed",
        "GRANT SELECT (fence) ON os_core.work_order_feed_consumers TO selene_feed",
        "selene_feed may read os_core.work_order_feed_consumers.fence",
    ),
    (
        "privileges: selene_feed",
        "GRANT UPDATE ON os_core.work_order_feed_consumers TO selene_feed",
        "selene_feed has UPDATE on os_core.work_order_feed_consumers",
    ),
    (
        "privileges: selene_feed",
        "GRANT EXECUTE ON FUNCTION os_core.read_feed(text, bigint, integer) TO selene_feed",
        "selene_feed may execute os_core.read_feed",
    ),
    (
        "privileges: selene_feed",
        "CREATE POLICY feed_list ON os_core.work_order_feed FOR SELECT TO selene_feed USING (TRUE)",
        "os_core.work_order_feed has policy feed_list for some roles only",
    ),
    (
        "functions: selene_app",
        "REVOKE EXECUTE ON FUNCTION os_core.require_tenant(text) FROM selene_app",
        "selene_app may not execute os_core.require_tenant(text)",
    ),
    (
        "functions: selene_app",
        "DROP FUNCTION os_core.work_order_as_of(text, text, bigint, bigint, timestamptz)",
        "selene_app may not execute os_core.work_order_as_of",
    ),
    (
        "functions: the public ones name",
        "DROP FUNCTION os_core.touch_session(text, text);"
        "CREATE FUNCTION os_core.touch_session(text, text) RETURNS SETOF os_core.sessions"
        " LANGUAGE sql AS 'TABLE os_core.sessions'",
        "os_core.touch_session(text,text) returns the row type of os_core.sessions",
    ),
    (
        "functions: the public ones run",
        "ALTER FUNCTION os_core.append_work_order_events(text, jsonb) SECURITY INVOKER",
        "append_work_order_events(text,jsonb) is not SECURITY DEFINER",
    ),
    (
        "functions: the public ones run",
        "ALTER FUNCTION os_core.no_tenant(text) SECURITY DEFINER",
        "no_tenant(text) is SECURITY DEFINER",
    ),
    (
        "functions: the search",
        "ALTER FUNCTION os_core.append_work_order_events(text, jsonb) RESET search_path",
        "append_work_order_events(text,jsonb) has no search_path",
    ),
    (
        "functions: the search",
        "ALTER FUNCTION os_core.no_tenant(text) SET search_path = public",
        "no_tenant(text) has no search_path",
    ),
    (
        "functions: what tables",
        f"ALTER TABLE {LEDGER} ADD CONSTRAINT new CHECK (os_core.is_label(step_id, 9))",
        f"constraint new on table {LEDGER} calls os_core.is_label(text,integer)",
    ),
    (
        "functions: what tables",
        f"CREATE INDEX new ON {LEDGER} (tenant_id, os_core.token_hash(step_id))",
        "index os_core.new calls os_core.token_hash(text)",
    ),
    ("functions: none", "ALTER FUNCTION os_core.no_tenant(text) LEAKPROOF", "no_tenant(text) is leakproof"),
    ("functions: none", "ALTER FUNCTION os_core.require_tenant(text) IMMUTABLE", "is IMMUTABLE"),
    ("roles:", "ALTER ROLE selene_app LOGIN", "selene_app can log in"),
    ("roles:", "ALTER ROLE selene_owner SUPERUSER", "selene_owner is a superuser"),
    ("roles:", "ALTER ROLE selene_owner BYPASSRLS", "selene_owner bypasses"),
    ("roles:", "GRANT selene_owner TO selene_app", "selene_app is a member of selene_owner"),
    (
        "roles:",
        "GRANT pg_write_all_data TO selene_readonly",
        "selene_readonly is a member of pg_write_all_data",
    ),
]


@pytest.fixture(scope="module")
def unchanged(server: Server, template_database: str) -> Iterator[sa.Engine]:
    """Return a superuser's engine on a clone that is only changed in transactions which are rolled back."""
    with server.new_database("unchanged", template_database) as database:
        yield database.engine("admin")


def rule_called(start: str) -> str:
    (name,) = (rule for rule in RULES if rule.startswith(start))
    return name


def test_catalogue__is_what_catalogue_txt_says(unchanged: sa.Engine) -> None:
    expected = CATALOGUE_FILE.read_text(encoding="utf-8").splitlines()
    with unchanged.connect() as conn:
        found = catalogue_text(conn).splitlines()
    difference = "\n".join(
        difflib.unified_diff(expected, found, "catalogue.txt", "the database", lineterm="", n=2)
    )
    assert not difference, f"{difference}\n\nIf it is meant: python -m tests.support.catalogue"


@pytest.mark.parametrize("rule", RULES)
def test_rule__holds(unchanged: sa.Engine, rule: str) -> None:
    with unchanged.connect() as conn:
        assert violations(conn, rule) == []


@pytest.mark.parametrize(("start", "breach", "told"), BREACHES)
def test_rule__reports_a_breach(unchanged: sa.Engine, start: str, breach: str, told: str) -> None:
    with unchanged.connect() as conn:
        conn.exec_driver_sql(breach)
        found = violations(conn, rule_called(start))
        conn.rollback()
    assert [violation for violation in found if told in violation], found


def test_rule__maintain_is_reported_from_17_on(server: Server, unchanged: sa.Engine) -> None:
    with unchanged.connect() as conn:
        if server.version < 17:
            assert violations(conn, rule_called("privileges: the roles read tables")) == []
            return
        conn.exec_driver_sql(f"GRANT MAINTAIN ON {LEDGER} TO selene_app")
        found = violations(conn, rule_called("privileges: the roles read tables"))
        conn.rollback()
    assert found == [f"selene_app has MAINTAIN on {LEDGER}"]


def test_rules__each_has_a_breach() -> None:
    """A rule that nothing is known to break proves nothing."""
    assert {rule_called(start) for start, _, _ in BREACHES} == set(RULES)


def test_rules__exceptions_are_still_needed(unchanged: sa.Engine) -> None:
    unpinned = sa.text(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'os_core'::regnamespace"
        " AND NOT coalesce(array_to_string(proconfig, ' ') LIKE '%search_path%', FALSE)"
    )
    with unchanged.connect() as conn:
        assert set(conn.scalars(unpinned)) == set(UNPINNED_FUNCTIONS)


@pytest.mark.parametrize("change", ["COMMENT ON SCHEMA os_core IS 'x'", f"ANALYZE {LEDGER}"])
def test_catalogue__what_does_not_matter(admin_engine: sa.Engine, change: str) -> None:
    with admin_engine.connect() as conn:
        before = catalogue(conn)
        conn.exec_driver_sql(change)
        conn.commit()
        assert catalogue(conn) == before


@pytest.mark.parametrize(
    "change",
    [
        f"ALTER TABLE {LEDGER} ALTER COLUMN step_id SET NOT NULL",
        f"ALTER TABLE {LEDGER} ALTER COLUMN created_at SET DEFAULT now()",
        f"ALTER TABLE {LEDGER} DROP CONSTRAINT ck_work_order_ledger_contract",
        f"ALTER TABLE {LEDGER} DISABLE TRIGGER ALL",
        f"ALTER TABLE {LEDGER} SET (fillfactor = 50)",
        f"ALTER TABLE {LEDGER} REPLICA IDENTITY FULL",
        f"ALTER TABLE {LEDGER} ALTER COLUMN payload SET STATISTICS 0",
        f"CREATE STATISTICS public.mine ON payload, turn_id FROM {LEDGER}",
        f"CREATE TABLE public.parent (); ALTER TABLE {LEDGER} INHERIT public.parent",
        f"ALTER SEQUENCE {EVENT_IDS} CACHE 2",
        f"ALTER SEQUENCE {EVENT_IDS} OWNED BY NONE",
        "DROP INDEX os_core.ix_work_orders_current_pending",
        "CREATE OR REPLACE FUNCTION os_core.no_tenant(p_tenant_id text) RETURNS boolean LANGUAGE sql"
        " SET search_path = pg_catalog, pg_temp RETURN FALSE",
        "ALTER FUNCTION os_core.no_tenant(text) COST 7 STABLE",
        "GRANT SELECT (text) ON conversation.extra TO selene_app",
    ],
)
def test_catalogue__what_matters(admin_engine: sa.Engine, change: str) -> None:
    with admin_engine.connect() as conn:
        conn.exec_driver_sql("CREATE TABLE conversation.extra (text text)")
        conn.commit()
        before = catalogue(conn)
        conn.exec_driver_sql(change)
        conn.commit()
        assert catalogue(conn) != before
