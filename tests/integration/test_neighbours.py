"""What others make around our tables: what opens them is named, what an integration needs passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from selene_core import SchemaDrifted, SchemaTooNew, append_events, check_schema
from selene_core.migrations import upgrade
from selene_core.schema.drift import expected_schema
from tests.integration.test_deployment import run_as, statements
from tests.integration.test_doctor import doctor
from tests.integration.test_documents import guides_block
from tests.migrations.runs import psql, run_all
from tests.support.factories import created
from tests.support.scratch import upgrade_further
from tests.support.servers import Database, Server

CURRENT = "os_core.work_orders_current"
LEDGER = "os_core.work_order_ledger"
TURNS = "conversation.conversation_ledger"
TEXTS = "conversation.turn_texts"
VALUES = "os_core.subject_values"
HEAD = expected_schema().head

# {host} is a role of the host's for whom the policies hold, {strong} one with BYPASSRLS.
SHOWS = f"VIEW public.leak AS SELECT tenant_id FROM {CURRENT}"
BODY = f"SELECT count(*) FROM {CURRENT}"
DEFINER = "FUNCTION public.leak() RETURNS bigint SECURITY DEFINER LANGUAGE"
TO_APP = "GRANT SELECT ON public.leak TO selene_app"
TELLS = "CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql"
ON_LEDGER = f"CREATE TRIGGER tell AFTER INSERT ON {LEDGER} FOR EACH ROW EXECUTE FUNCTION public.tell()"

# What shows a service every tenant, how it looks, and what must be said.
SHOWN = {
    "view": (f"CREATE {SHOWS}; {TO_APP}", "view public.leak shows our tables with the rights of"),
    "view, by a column": (
        f"CREATE {SHOWS}; GRANT SELECT (tenant_id) ON public.leak TO PUBLIC",
        "view public.leak",
    ),
    "view that is no invoker's": (
        f"CREATE {SHOWS}; ALTER VIEW public.leak SET (security_invoker = off, security_barrier); {TO_APP}",
        "view public.leak",
    ),
    "view of BYPASSRLS": (
        f"CREATE {SHOWS}; GRANT pg_read_all_data TO {{strong}};"
        f"ALTER VIEW public.leak OWNER TO {{strong}}; {TO_APP}",
        "view public.leak shows our tables with the rights of {strong}",
    ),
    "view over a view": (
        f"CREATE VIEW public.under AS SELECT * FROM {CURRENT};"
        f"CREATE VIEW public.between AS SELECT * FROM public.under;"
        f"CREATE VIEW public.leak AS SELECT count(*) FROM public.between HAVING count(*) > 0; {TO_APP}",
        "view public.leak",
    ),
    "view over a view of another's": (
        f"CREATE VIEW public.under AS SELECT * FROM {CURRENT}; GRANT SELECT ON public.under TO {{host}};"
        "CREATE VIEW public.leak AS SELECT * FROM public.under;"
        f"ALTER VIEW public.leak OWNER TO {{host}}; {TO_APP}",
        "view public.under",
    ),
    "materialized view": (
        f"CREATE MATERIALIZED {SHOWS}; {TO_APP}",
        "materialized view public.leak is filled from our tables with the rights of",
    ),
    "materialized view over an invoker's": (
        f"CREATE VIEW public.under WITH (security_invoker) AS SELECT * FROM {CURRENT};"
        f"CREATE MATERIALIZED VIEW public.leak AS SELECT * FROM public.under; {TO_APP}",
        "materialized view public.leak",
    ),
}
COUNTED = {
    "function by its body": (f"CREATE {DEFINER} sql BEGIN ATOMIC {BODY}; END", "function public.leak() uses"),
    "function by its body, over an invoker's view": (
        f"CREATE VIEW public.under WITH (security_invoker) AS SELECT * FROM {CURRENT};"
        f"CREATE {DEFINER} sql BEGIN ATOMIC SELECT count(*) FROM public.under; END",
        "function public.leak() uses",
    ),
    "function by its text": (f"CREATE {DEFINER} sql AS '{BODY}'", "function public.leak() uses"),
    "function by its quoted text": (
        f'CREATE {DEFINER} sql AS \'SELECT count(*) FROM "os_core" . "work_orders_current"\'',
        "function public.leak() uses",
    ),
    "function by its search_path": (
        f"CREATE {DEFINER} sql SET search_path = public, os_core"
        " AS 'SELECT count(*) FROM work_orders_current'",
        "function public.leak() uses",
    ),
    "function of BYPASSRLS": (
        f"GRANT pg_read_all_data TO {{strong}}; CREATE {DEFINER} sql AS '{BODY}';"
        "ALTER FUNCTION public.leak() OWNER TO {strong}",
        "function public.leak() uses our tables with the rights of {strong}",
    ),
}
# Where every session looks for names without a schema.
FOR_ALL = (
    "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) ||"
    " ' SET search_path = os_core, public'; END $$"
)
BARE = "plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM work_orders_current); END'"
# What opens or changes our tables otherwise.
REFUSED = {
    "function by the search_path of the database": (
        f"{FOR_ALL}; CREATE {DEFINER} {BARE}",
        "function public.leak() uses our tables with the rights of",
    ),
    "function by the search_path of a role": (
        f"ALTER ROLE {{host}} SET search_path = public, os_core; CREATE {DEFINER} {BARE}",
        "function public.leak() uses our tables with the rights of",
    ),
    "rule on a table elsewhere": (
        f"CREATE TABLE public.door (x int); GRANT INSERT ON public.door TO selene_app;"
        f"CREATE RULE door AS ON INSERT TO public.door DO ALSO UPDATE {CURRENT} SET turn_id = 9",
        "rule door on public.door uses our tables with the rights of",
    ),
    "rule on an invoker's view": (
        "CREATE VIEW public.door WITH (security_invoker) AS SELECT 1 AS x;"
        "GRANT INSERT ON public.door TO PUBLIC;"
        f"CREATE RULE door AS ON INSERT TO public.door DO INSTEAD DELETE FROM {CURRENT}",
        "rule door on public.door uses our tables",
    ),
    "procedure": (
        f"CREATE PROCEDURE public.door() SECURITY DEFINER LANGUAGE sql AS 'DELETE FROM {CURRENT}'",
        "procedure public.door() uses our tables",
    ),
    "trigger that changes our rows": (
        f"{TELLS} AS 'BEGIN UPDATE {CURRENT} SET turn_id = 9; RETURN NULL; END'; {ON_LEDGER}",
        f"trigger tell on {LEDGER} uses our tables with rights by which it could change them",
    ),
    "trigger that changes our rows as a superuser": (
        f"{TELLS} SECURITY DEFINER AS 'BEGIN DELETE FROM {CURRENT}; RETURN NULL; END'; {ON_LEDGER}",
        f"trigger tell on {LEDGER} uses our tables",
    ),
    "trigger whose code is another's": (
        f"{TELLS} AS 'BEGIN RETURN NULL; END'; {ON_LEDGER}; ALTER FUNCTION public.tell() OWNER TO {{host}}",
        f"trigger tell on {LEDGER} runs code as selene_owner that belongs to {{host}}",
    ),
    "trigger whose condition is another's": (
        f"{TELLS} AS 'BEGIN RETURN NULL; END';"
        "CREATE FUNCTION public.if(text) RETURNS boolean LANGUAGE sql RETURN TRUE;"
        "ALTER FUNCTION public.if OWNER TO {host};"
        f"CREATE TRIGGER tell AFTER INSERT ON {LEDGER} FOR EACH ROW"
        " WHEN (public.if(NEW.tenant_id)) EXECUTE FUNCTION public.tell()",
        f"trigger tell on {LEDGER} runs code as selene_owner that belongs to {{host}}",
    ),
    "index whose code is another's": (
        "CREATE FUNCTION public.key(text) RETURNS text IMMUTABLE LANGUAGE sql RETURN $1;"
        f"CREATE INDEX mine ON {CURRENT} (public.key(tenant_id));"
        "ALTER FUNCTION public.key OWNER TO {host}",
        "index os_core.mine runs code as selene_owner that belongs to {host}",
    ),
    "BEFORE trigger": (
        f'{TELLS} AS $$BEGIN RETURN NULL; END$$; CREATE TRIGGER "x AFTER " BEFORE INSERT ON {LEDGER}'
        " FOR EACH ROW EXECUTE FUNCTION public.tell()",
        f'trigger "x AFTER " of relation {LEDGER} must not be there',
    ),
    "SELECT for BYPASSRLS": (
        f"GRANT SELECT (tenant_id) ON {LEDGER} TO {{strong}}",
        f"role {{strong}} may read {LEDGER}, and row-level security does not hold for it",
    ),
    "SELECT for a group with BYPASSRLS in it": (
        f"GRANT SELECT ON {LEDGER} TO {{host}}; GRANT {{host}} TO {{strong}}",
        f"role {{strong}} may read {LEDGER} as a member of {{host}}",
    ),
    "SELECT for PUBLIC": (f"GRANT SELECT (tenant_id) ON {LEDGER} TO PUBLIC", "PUBLIC must not have SELECT"),
    "SELECT on what was said": (
        f"GRANT SELECT ON {TEXTS} TO {{host}}",
        f"{{host}} must not have SELECT on relation {TEXTS}",
    ),
    "SELECT on the text of what was said": (
        f"GRANT SELECT (text) ON {TEXTS} TO {{host}}",
        f"{{host}} must not have SELECT on text of relation {TEXTS}",
    ),
    "SELECT on personal values": (
        f"GRANT SELECT (subject_id, value) ON {VALUES} TO {{host}}",
        f"{{host}} must not have SELECT on value of relation {VALUES}",
    ),
    "SELECT on all tables, personal values included": (
        "GRANT SELECT ON ALL TABLES IN SCHEMA os_core TO {host}",
        f"{{host}} must not have SELECT on relation {VALUES}",
    ),
    "SELECT to pass on": (
        f"GRANT SELECT ON {LEDGER} TO {{host}} WITH GRANT OPTION",
        "SELECT with grant option",
    ),
    "SELECT on tables to come": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE selene_owner IN SCHEMA os_core GRANT SELECT ON TABLES TO {host}",
        "{host} must not have SELECT on TABLES by default privileges",
    ),
    "writing": (f"GRANT SELECT, UPDATE ON {CURRENT} TO {{host}}", "{host} must not have UPDATE on relation"),
    "triggers": (f"GRANT TRIGGER ON {CURRENT} TO {{host}}", "{host} must not have TRIGGER on relation"),
    "a function that writes": (
        "GRANT EXECUTE ON FUNCTION os_core.append_work_order_events(text, jsonb) TO {host}",
        "{host} must not have EXECUTE on function os_core.append_work_order_events(text,jsonb)",
    ),
    "objects in our schemas": (
        "GRANT USAGE, CREATE ON SCHEMA os_core TO {host}",
        "{host} must not have CREATE",
    ),
}
# What passes, and what doctor notes of it.
PASSES = {
    **{
        f"view, security_invoker = {value}": (
            f"CREATE VIEW public.mine WITH (check_option = local, security_invoker = {value}) AS"
            f" SELECT * FROM {CURRENT}; GRANT SELECT ON public.mine TO PUBLIC",
            "",
        )
        for value in ("true", "on", "1", "'yes'")
    },
    "view over an invoker's view": (
        f"CREATE VIEW public.under WITH (security_invoker) AS SELECT * FROM {CURRENT};"
        "CREATE VIEW public.mine AS SELECT * FROM public.under; GRANT SELECT ON public.mine TO selene_app",
        "",
    ),
    "view of one for whom the policies hold": (
        f"GRANT USAGE ON SCHEMA os_core TO {{host}}; GRANT SELECT ON {CURRENT} TO {{host}};"
        f"CREATE VIEW public.mine AS SELECT * FROM {CURRENT}; ALTER VIEW public.mine OWNER TO {{host}};"
        "CREATE VIEW public.above AS SELECT * FROM public.mine;"
        "GRANT SELECT ON public.mine, public.above TO selene_app",
        "{host} has USAGE on schema os_core",
    ),
    "view for nobody else": (
        f"CREATE VIEW public.mine AS SELECT * FROM {CURRENT}; GRANT SELECT ON public.mine TO {{strong}}",
        "view public.mine shows our tables",
    ),
    "view of other tables": (
        "CREATE VIEW public.mine AS SELECT 1 AS x; GRANT SELECT ON public.mine TO PUBLIC",
        "",
    ),
    "function for nobody else": (
        f"CREATE FUNCTION public.mine() RETURNS bigint SECURITY DEFINER LANGUAGE sql AS '{BODY}';"
        "REVOKE EXECUTE ON FUNCTION public.mine() FROM PUBLIC",
        "function public.mine() uses our tables",
    ),
    "function of the caller's rights": (
        f"CREATE FUNCTION public.mine() RETURNS bigint LANGUAGE sql AS '{BODY}'",
        "",
    ),
    "function that calls ours, beside a table of that name": (
        "CREATE TABLE public.sessions (x int); CREATE FUNCTION public.mine() RETURNS void SECURITY DEFINER"
        " LANGUAGE plpgsql AS 'BEGIN PERFORM os_core.append_work_order_events(NULL, NULL);"
        " INSERT INTO public.sessions VALUES (1); END'",
        "",
    ),
    "trigger of one who may act as selene_owner": (
        f"{TELLS} AS 'BEGIN RETURN NULL; END'; {ON_LEDGER}",
        f"trigger tell of relation {LEDGER} is not ours",
    ),
    "constraint trigger with its owner's rights": (
        f"{TELLS} SECURITY DEFINER AS 'BEGIN RETURN NULL; END';"
        "ALTER FUNCTION public.tell() OWNER TO {host};"
        f"{ON_LEDGER.replace('CREATE', 'CREATE CONSTRAINT')}",
        f"trigger tell of relation {LEDGER} is not ours",
    ),
    "foreign keys": (
        f"GRANT USAGE ON SCHEMA os_core TO {{host}}; GRANT REFERENCES ON {LEDGER} TO {{host}}",
        f"{{host}} has REFERENCES on relation {LEDGER}",
    ),
    "reading whole tables": (
        "GRANT USAGE ON SCHEMA os_core TO {host};"
        f"GRANT SELECT ON {CURRENT}, {LEDGER}, os_core.subject_erasures TO {{host}}",
        f"{{host}} has SELECT on relation {CURRENT}",
    ),
    "reading what is not hidden": (
        "GRANT USAGE ON SCHEMA conversation TO {host};"
        f"GRANT SELECT ON {TURNS} TO {{host}}; GRANT SELECT (tenant_id, text_hash) ON {TEXTS} TO {{host}};"
        f"GRANT SELECT (subject_id, value_ref) ON {VALUES} TO {{host}};"
        "GRANT EXECUTE ON FUNCTION conversation.read_turns TO {host}",
        f"{{host}} has SELECT on text_hash of relation {TEXTS}",
    ),
    "a function with a search_path of its own": (
        f"{FOR_ALL}; CREATE {DEFINER} plpgsql SET search_path = public {BARE.removeprefix('plpgsql')}",
        "",
    ),
    "the version table for BYPASSRLS": (
        "GRANT SELECT ON os_core.alembic_version TO {strong}",
        "{strong} has SELECT on relation os_core.alembic_version",
    ),
}


@pytest.fixture
def roles(database: Database) -> Iterator[dict[str, str]]:
    """Make the roles of a host that has two orders of different tenants."""
    names = {each: f"{each}_of_{database.name}" for each in ("host", "strong")}
    run_all(database, [f"CREATE ROLE {names['host']}", f"CREATE ROLE {names['strong']} BYPASSRLS"])
    for tenant in ("acme", "globex"):
        append_events(database.engine("app"), tenant, [created()])
    yield names
    run_all(database, [f"REVOKE pg_read_all_data FROM {names['strong']}"])
    run_all(database, [f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}" for name in names.values()])


def seen(database: Database, query: str) -> bool:
    """Tell whether a service without any tenant sees rows."""
    with database.engine("app").connect() as conn:
        try:
            return bool(conn.exec_driver_sql(query).scalar())
        except sa.exc.ProgrammingError:  # permission denied
            return False


def check_named(database: Database, words: str) -> None:
    """Check that a service is refused, and that doctor says why."""
    with pytest.raises(SchemaDrifted) as raised:
        check_schema(database.engine("app"))
    assert [problem for problem in raised.value.problems if words in problem], raised.value.problems
    assert [fault for fault in doctor(database.app_url)["faults"] if words in fault["what"]]


@pytest.mark.parametrize("opening", [*SHOWN, *COUNTED])
def test_neighbours__what_shows_every_tenant_is_named(
    database: Database, roles: dict[str, str], opening: str
) -> None:
    plant, words = (text.format(**roles) for text in (SHOWN | COUNTED)[opening])
    query = "SELECT public.leak()" if opening in COUNTED else "SELECT count(tenant_id) FROM public.leak"
    query = "SELECT * FROM public.leak" if opening == "view over a view" else query
    run_all(database, [plant])
    assert seen(database, query)
    check_named(database, words)
    told = doctor(database.app_url)
    assert {fault["sql"] for fault in told["faults"]} == {None}
    assert {fault["command"] for fault in told["faults"]} == {
        "see what a host may add, in docs/howto/extensions.md"
    }


@pytest.mark.parametrize("addition", REFUSED)
def test_neighbours__what_opens_or_changes_is_named(
    database: Database, roles: dict[str, str], addition: str
) -> None:
    plant, words = (text.format(**roles) for text in REFUSED[addition])
    run_all(database, [plant])
    check_named(database, words)


@pytest.mark.parametrize("addition", PASSES)
def test_neighbours__what_opens_and_changes_nothing_passes(
    database: Database, roles: dict[str, str], addition: str
) -> None:
    plant, note = (text.format(**roles) for text in PASSES[addition])
    run_all(database, [plant])
    if "public.mine AS SELECT * FROM" in plant:
        assert not seen(database, "SELECT count(*) FROM public.mine")
    assert check_schema(database.engine("app")) == HEAD
    told = doctor(database.app_url)
    assert told["healthy"], told
    noted = [line for line in told["notes"] if not line.startswith("PUBLIC may connect")]
    assert [line for line in noted if line.startswith(note)] if note else noted == []
    append_events(database.engine("app"), "acme", [created()])


def test_neighbours__at_a_newer_revision(database: Database, roles: dict[str, str]) -> None:
    upgrade_further(database, "op.execute('CREATE TABLE os_core.tomorrow (tenant_id text)')")
    run_all(database, [PASSES["view for nobody else"][0].format(**roles)])
    assert check_schema(database.engine("app"))
    run_all(database, [SHOWN["view"][0]])
    with pytest.raises(SchemaTooNew, match=r"view public\.leak shows our tables"):
        check_schema(database.engine("app"))
    assert [fault for fault in doctor(database.app_url)["faults"] if "view public.leak" in fault["what"]]


@contextmanager
def host(server: Server) -> Iterator[Database]:
    """Make a database in which the guide's host lives, with a role that owns its schema."""
    names = ("app_migrator", "reports", "migrator", "orders_service", "outsider")
    with server.new_database("host") as database:
        upgrade(database.admin_url)
        made = [*statements("service"), "CREATE ROLE migrator LOGIN", "CREATE ROLE app_migrator LOGIN"]
        try:
            run_all(
                database,
                [
                    *made,
                    "GRANT selene_owner TO migrator",
                    "CREATE ROLE outsider LOGIN IN ROLE selene_app",
                    "CREATE SCHEMA app AUTHORIZATION app_migrator",
                ],
            )
            yield database
        finally:
            run_all(database, [f"DROP OWNED BY {name} CASCADE" for name in ("app_migrator", "reports")])
            run_all(
                database, [f"REVOKE CONNECT ON DATABASE {database.name} FROM {name}" for name in names[2:4]]
            )
            run_all(database, [f"DROP ROLE {name}" for name in names])


def test_guide__what_a_host_may_add(fresh_server: Server) -> None:
    with host(fresh_server) as database:
        url, service = (
            {
                name: database.server.url_for(name, database.name)
                for name in ("app_migrator", "migrator", "reports")
            },
            sa.create_engine(database.server.url_for("orders_service", database.name), poolclass=sa.NullPool),
        )
        run_as(url["migrator"], ["SET ROLE selene_owner", *statements("host-foreign-key")])
        run_as(
            url["app_migrator"],
            [
                *statements("host-table"),
                "CREATE TABLE app.audit (tenant_id text, work_order_id text, event_type text)",
            ],
        )
        assert psql(database, guides_block("host-function", "sql"), url["app_migrator"]).returncode == 0
        run_as(url["migrator"], ["SET ROLE selene_owner", *statements("host-trigger")])
        run_all(database, statements("host-reader")[:1])
        run_as(url["migrator"], ["SET ROLE selene_owner", *statements("host-reader")[1:]])

        assert check_schema(service) == HEAD
        told = doctor(url["migrator"])
        assert told["faults"] == []
        assert {line.partition(" ")[0] for line in told["notes"]} == {
            "PUBLIC",
            "app_migrator",
            "reports",
            "trigger",
        }
        for tenant in ("acme", "globex"):
            append_events(service, tenant, [created(f"{tenant}-order")])
        booked = "INSERT INTO app.bookings (tenant_id, work_order_id) VALUES"
        run_as(url["app_migrator"], [f"{booked} ('acme', 'acme-order')"])
        with pytest.raises(sa.exc.IntegrityError):
            run_as(url["app_migrator"], [f"{booked} ('acme', 'globex-order')"])
        orders = f"SELECT work_order_id FROM {CURRENT}"
        with sa.create_engine(url["reports"], poolclass=sa.NullPool).connect() as conn:
            assert conn.exec_driver_sql(orders).scalars().all() == []
            conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
            assert conn.exec_driver_sql(orders).scalars().all() == ["acme-order"]
        with sa.create_engine(url["app_migrator"], poolclass=sa.NullPool).connect() as conn:
            audited = conn.exec_driver_sql("SELECT work_order_id FROM app.audit ORDER BY 1").scalars().all()
            assert audited == ["acme-order", "globex-order"]


def test_guide__who_may_connect(fresh_server: Server) -> None:
    """A login of another database of the cluster may append here, until CONNECT is revoked."""
    with host(fresh_server) as database:
        run_all(database, statements("host-reader")[:1])
        outsider, service = (
            sa.create_engine(database.server.url_for(name, database.name), poolclass=sa.NullPool)
            for name in ("outsider", "orders_service")
        )
        append_events(outsider, "acme", [created()])
        noted = [line for line in doctor(database.admin_url)["notes"] if "PUBLIC may connect" in line]
        assert len(noted) == 1
        run_all(
            database,
            [
                each.replace("DATABASE selene ", f"DATABASE {database.name} ")
                for each in statements("connect")
            ],
        )
        with pytest.raises(sa.exc.OperationalError, match="permission denied for database"):
            append_events(outsider, "acme", [created()])
        append_events(service, "acme", [created()])
        upgrade(database.server.url_for("migrator", database.name))
        assert doctor(database.admin_url)["notes"] == []
