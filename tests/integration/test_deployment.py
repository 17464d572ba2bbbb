"""The how-to guides of operators, step by step: their commands and statements are run as they stand there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from selene_core import (
    AppendResult,
    LeaseRepository,
    StepAttemptRepository,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from selene_core.local import server_user
from selene_core.migrations import upgrade
from tests.integration.test_documents import guides_block
from tests.migrations.runs import catalogue_of, run_all
from tests.support.commands import selene_core
from tests.support.factories import created, event
from tests.support.races import wait_until
from tests.support.servers import Database, Server, embedded_server
from tests.support.workers import LIMITS

pytestmark = pytest.mark.slow

TENANTS = ("acme", "globex")


def statements(name: str) -> list[str]:
    """Return the SQL statements of a guide's block; none has a semicolon inside."""
    return [part.strip() for part in guides_block(name, "sql").split(";") if part.strip()]


def environment(server: Server, user: str | None = None, **others: str) -> dict[str, str]:
    """Compose what PostgreSQL's programs, and ours, need to reach a server."""
    address = server.admin_url()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "SELENE_"))}
    place = {
        "PGHOST": address.host or str(address.query["host"]),
        "PGPORT": str(address.port or address.query.get("port", 5432)),
        "PGUSER": user or address.username or "postgres",
        "PGPASSWORD": address.password or "",
    }
    programs = [str(server.binaries), str(Path(sys.executable).parent), kept["PATH"]]
    return {**kept, **place, "PATH": os.pathsep.join(programs), **others}


def shell(name: str, folder: Path, variables: dict[str, str]) -> str:
    """Run a block of a guide."""
    ran = subprocess.run(
        ["/bin/sh", "-e", "-c", guides_block(name, "sh")],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def program(server: Server, *arguments: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs."""
    return subprocess.run(
        [*arguments], env=environment(server, user), capture_output=True, text=True, check=False
    )


def fill(engine: sa.Engine) -> None:
    """Append a little for two tenants."""
    for tenant in TENANTS:
        append_events(engine, tenant, [created(f"{tenant}-order"), event("FIELD_SET", f"{tenant}-order")])


def check_goes_on(engine: sa.Engine) -> None:
    """Check that all is there and clean, and that appends go on where they stopped."""
    for tenant in TENANTS:
        with tenant_scope(engine, tenant) as conn:
            orders = WorkOrderRepository(conn)
            before = [row.work_order_event_id for row in orders.events(f"{tenant}-order")]
            assert len(before) == 2
            assert orders.verify() == []
            assert orders.verify_chain() == []
        (appended,) = append_events(engine, tenant, [event("STATUS_CHANGED", f"{tenant}-order")])
        assert isinstance(appended, AppendResult)
        assert appended.work_order_seq == 3
        assert appended.work_order_event_id > max(before)


def app_of(database: Database) -> sa.Engine:
    """Make a service's login on a server of the test's own, and return its engine."""
    with database.server.admin() as conn:
        conn.execute("DROP ROLE IF EXISTS restored_service")
        conn.execute("CREATE ROLE restored_service LOGIN IN ROLE selene_app")
    return sa.create_engine(database.server.url_for("restored_service", database.name), poolclass=sa.NullPool)


@pytest.fixture
def cluster(fresh_server: Server) -> Iterator[Server]:
    """Return a cluster on which nobody has any of the guide's roles."""
    roles = ("orders_service", "restored_service", "migrator", "selene_backup")

    def forget() -> None:
        with fresh_server.admin() as conn:
            for role in roles:
                if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None:
                    conn.execute(f"DROP OWNED BY {role} CASCADE".encode())
                    conn.execute(f"DROP ROLE {role}".encode())

    forget()
    yield fresh_server
    forget()


# --- roles


def run_as(url: sa.URL, script: list[str]) -> None:
    """Run statements as a login."""
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as conn:
        for statement in script:
            conn.exec_driver_sql(statement)


@pytest.mark.parametrize("way", ["roles-createrole", "roles-beforehand"])
def test_roles__as_in_the_guide(server: Server, way: str) -> None:
    """On a cluster that knows nothing of us, like a new managed service."""
    with ExitStack() as stack:
        cluster = embedded_server(stack, server.version if server.kind == "embedded" else None)
        with cluster.admin() as conn:
            # What such a service gives: no superuser, but CREATEROLE and a database of one's own.
            conn.execute("CREATE ROLE administrator LOGIN CREATEROLE CREATEDB")
            conn.execute("CREATE DATABASE selene OWNER administrator")
        administrator, migrator = (cluster.url_for(role, "selene") for role in ("administrator", "migrator"))
        run_as(administrator, statements(way))
        with sa.create_engine(migrator, poolclass=sa.NullPool).connect() as conn:
            [question] = statements("own-attributes")
            told = conn.exec_driver_sql(question).one()
        assert told == (False, way == "roles-createrole", False)
        upgrade(migrator)
        # Who made the roles may grant them.
        granter = migrator if way == "roles-createrole" else administrator
        run_as(granter, statements("second-migrator"))
        upgrade(cluster.url_for("colleague", "selene"))
        run_as(granter, statements("service"))
        service = sa.create_engine(cluster.url_for("orders_service", "selene"), poolclass=sa.NullPool)
        fill(service)
        check_goes_on(service)
        with service.connect() as conn:
            assert conn.exec_driver_sql("SHOW statement_timeout").scalar_one() == "30s"
            with pytest.raises(DBAPIError, match="permission denied"):
                conn.exec_driver_sql("SET ROLE selene_owner")


# --- backup and restore


@pytest.fixture
def filled(cluster: Server) -> Iterator[Database]:
    """Return a database with rows, on a cluster where a test may make roles."""
    with cluster.new_database("filled") as database:
        upgrade(database.admin_url)
        fill(app_of(database))
        with cluster.admin() as conn:
            conn.execute("CREATE ROLE migrator LOGIN CREATEDB IN ROLE selene_owner")
            for statement in statements("backup-role"):
                conn.execute(statement.encode())
        yield database


@pytest.mark.parametrize("target", ["the same cluster", "another cluster"])
def test_backup__is_restored_by_the_guides_commands(filled: Database, tmp_path: Path, target: str) -> None:
    source = filled.server
    shell("backup", tmp_path, environment(source, "selene_backup", SELENE_DB=filled.name))
    with ExitStack() as stack:
        goal = source if target == "the same cluster" else embedded_server(stack, source.version)
        restored = stack.enter_context(closing(Database(goal, f"{filled.name}_restored")))
        names = {"RESTORED_DB": restored.name, "SELENE_DATABASE_URL": rendered(restored.admin_url)}
        shell("restore", tmp_path, environment(goal, **names))
        stack.callback(drop, restored)
        assert catalogue_of(restored) == catalogue_of(filled)
        assert shell("verify", tmp_path, environment(goal, **names)).count("Clean") == 2 * len(TENANTS)
        check_goes_on(app_of(restored))


# --- seals


@pytest.fixture
def seals(filled: Database, tmp_path: Path) -> Path:
    """Return a folder where the guide's commands have made a key and a seal of what is there."""
    shell("seal-keys", tmp_path, environment(filled.server))
    url = rendered(app_of(filled).url)
    shell("seal", tmp_path, environment(filled.server, SELENE_DATABASE_URL=url))
    return tmp_path


def check_seals(database: Database, folder: Path) -> str:
    """Check the seals by the guide's commands, as a service's login."""
    url = rendered(app_of(database).url)
    return shell("check-seals", folder, environment(database.server, SELENE_DATABASE_URL=url))


@pytest.mark.needs("openssl")
def test_seals__are_made_and_checked_by_the_guides_commands(filled: Database, seals: Path) -> None:
    assert check_seals(filled, seals).count("Clean") == 2
    assert "Signature Verified Successfully" in shell("check-signature", seals, environment(filled.server))
    assert (seals / "seal.key").stat().st_mode & 0o077 == 0


@pytest.mark.needs("openssl")
def test_seals__hold_in_a_restored_dump(filled: Database, seals: Path) -> None:
    server = filled.server
    shell("backup", seals, environment(server, "selene_backup", SELENE_DB=filled.name))
    with closing(Database(server, f"{filled.name}_restored")) as restored, ExitStack() as stack:
        stack.callback(drop, restored)
        shell("restore", seals, environment(server, RESTORED_DB=restored.name))
        assert check_seals(restored, seals).count("Clean") == 2
        append_events(app_of(restored), "acme", [event("STATUS_CHANGED", "acme-order")])
        url = rendered(app_of(restored).url)
        told = shell("seal", seals, environment(server, SELENE_DATABASE_URL=url))
        assert told.startswith("00000002.seal: 1 work order")
        assert check_seals(restored, seals).count("Clean") == 2


@pytest.mark.needs("openssl")
def test_seals__name_what_a_restore_to_the_past_has_lost(filled: Database, seals: Path) -> None:
    server = filled.server
    shell("backup", seals, environment(server, "selene_backup", SELENE_DB=filled.name))
    append_events(app_of(filled), "acme", [event("STATUS_CHANGED", "acme-order"), created("late")])
    shell("seal", seals, environment(server, SELENE_DATABASE_URL=rendered(app_of(filled).url)))
    with closing(Database(server, f"{filled.name}_restored")) as restored, ExitStack() as stack:
        stack.callback(drop, restored)
        shell("restore", seals, environment(server, RESTORED_DB=restored.name))
        url = rendered(app_of(restored).url)
        arguments = ("acme", str(seals / "seals/acme"), "--public-key", str(seals / "seal.pub"))
        told = selene_core("check-seals", *arguments, SELENE_DATABASE_URL=url)
        assert told.returncode == 1
        assert told.stdout.splitlines()[:2] == [
            "acme-order, event 3 in seal 2: was cut after event 2",
            "late, event 1 in seal 2: was deleted",
        ]


@pytest.mark.needs("openssl")
def test_seals__hold_on_a_logical_replica(filled: Database, seals: Path) -> None:
    server = filled.server
    with server.new_database("subscriber") as other, server.admin(other.name) as subscriber:
        upgrade(other.admin_url)
        as_owner = ", run_as_owner = true" if server.version >= 16 else ""
        with subscribed(filled, subscriber, as_owner):
            wait_until(lambda: subscriber.execute(LEDGER_ROWS).fetchone() == (4,), "the rows are copied")
        assert check_seals(other, seals).count("Clean") == 2


def takes_columns_of(old: Server, new: Server) -> bool:
    """Tell whether a server knows the options of another's columns: 15.20 keeps one that 18.6 refuses."""
    with old.admin() as conn:
        options = conn.execute(
            "SELECT DISTINCT split_part(option, '=', 1) FROM pg_attribute, unnest(attoptions) AS option"
        ).fetchall()
    with new.admin() as conn:
        conn.execute("CREATE TEMPORARY TABLE any_table (x text)")
        try:
            for (option,) in options:
                conn.execute(f"ALTER TABLE any_table ALTER x SET ({option} = 1)".encode())
        except psycopg.errors.InvalidParameterValue:
            return False
    return True


@pytest.mark.needs("openssl")
@pytest.mark.needs("PostgreSQL 15")
@pytest.mark.needs("PostgreSQL 18")
def test_seals__hold_after_pg_upgrade(tmp_path: Path) -> None:
    with ExitStack() as stack:
        old, new = (embedded_server(stack, version) for version in (15, 18))
        if not takes_columns_of(old, new):
            # From 18 to 18 it takes the same steps.
            old = embedded_server(stack, 18)
        assert old.local is not None
        assert new.local is not None
        before, after = (stack.enter_context(closing(Database(each, "postgres"))) for each in (old, new))
        upgrade(before.admin_url)
        service = app_of(before)
        fill(service)
        shell("seal-keys", tmp_path, environment(old))
        shell("seal", tmp_path, environment(old, SELENE_DATABASE_URL=rendered(service.url)))
        for server in (old, new):
            server.local.stop()  # type: ignore[union-attr] # both are embedded
        # From 18 on a new cluster has checksums; pg_upgrade wants both alike.
        with_checksums = [each.local for each in (old, new) if each.version >= 18 and each.local]
        user = server_user()
        for arguments in (
            *(["pg_checksums", "--disable", f"--pgdata={each.data_directory}"] for each in with_checksums),
            [
                *("pg_upgrade", "--username=postgres", f"--old-bindir={old.local.binaries}"),
                f"--old-datadir={old.local.data_directory}",
                f"--new-datadir={new.local.data_directory}",
            ],
        ):
            ran = subprocess.run(
                [new.local.binaries / arguments[0], *arguments[1:]],
                cwd=new.local.socket_directory,
                env={**environment(new), "LC_ALL": "C"},
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=[] if user else None,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stdout
        new.local.start()
        assert check_seals(after, tmp_path).count("Clean") == 2
        check_goes_on(app_of(after))
        assert "00000002.seal" in shell(
            "seal", tmp_path, environment(new, SELENE_DATABASE_URL=rendered(app_of(after).url))
        )
        assert check_seals(after, tmp_path).count("Clean") == 2


def rendered(url: sa.URL) -> str:
    """Write a URL as an operator would."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def drop(database: Database) -> None:
    """Drop what a program of PostgreSQL has made."""
    with database.server.admin() as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)".encode())


def test_dump__as_the_owner_fails_and_never_leaves_rows_out_unasked(filled: Database, tmp_path: Path) -> None:
    file = str(tmp_path / "dump")
    dump = ["pg_dump", "--format=custom", f"--file={file}", filled.name]
    refused = program(filled.server, *dump, user="migrator")
    assert refused.returncode == 1
    assert "query would be affected by row-level security policy" in refused.stderr
    assert program(filled.server, *dump, "--enable-row-security", user="migrator").returncode == 0
    listed = program(filled.server, "pg_restore", "--data-only", "--file=-", file).stdout
    assert "COPY os_core.work_order_ledger" in listed
    assert "acme" not in listed


def test_restore__as_a_migrator(filled: Database, tmp_path: Path) -> None:
    server, file = filled.server, str(tmp_path / "dump")
    assert program(server, "pg_dump", "--format=custom", f"--file={file}", filled.name).returncode == 0
    restored = Database(server, f"{filled.name}_restored")
    assert program(server, "createdb", "--template=template0", restored.name, user="migrator").returncode == 0
    try:
        ran = program(
            server, "pg_restore", "--exit-on-error", f"--dbname={restored.name}", file, user="migrator"
        )
        assert ran.returncode == 0, ran.stderr
        assert catalogue_of(restored) == catalogue_of(filled)
        check_goes_on(app_of(restored))
    finally:
        restored.close()
        drop(restored)


def test_restore__data_alone_into_a_migrated_database(filled: Database, tmp_path: Path) -> None:
    server, file = filled.server, str(tmp_path / "dump")
    left_out = "--exclude-table=os_core.alembic_version"
    dump = ["pg_dump", "--format=custom", "--data-only", left_out, f"--file={file}", filled.name]
    assert program(server, *dump, user="selene_backup").returncode == 0
    with server.new_database("data") as other:
        upgrade(other.admin_url)
        restore = ["pg_restore", "--exit-on-error", f"--dbname={other.name}", file]
        refused = program(server, *restore, user="migrator")
        assert "query would be affected by row-level security policy" in refused.stderr
        assert program(server, *restore).returncode == 0
        assert catalogue_of(other) == catalogue_of(filled)
        check_goes_on(app_of(other))


def test_restore__disable_triggers_is_what_the_monitoring_finds(filled: Database, tmp_path: Path) -> None:
    server, file = filled.server, str(tmp_path / "dump")
    left_out = "--exclude-table=os_core.alembic_version"
    program(server, "pg_dump", "--format=custom", "--data-only", left_out, f"--file={file}", filled.name)
    with server.new_database("spoilt") as spoilt:
        upgrade(spoilt.admin_url)
        assert alarms(spoilt) == []
        assert (
            program(
                server, "pg_restore", "--data-only", "--disable-triggers", f"--dbname={spoilt.name}", file
            ).returncode
            == 0
        )
        assert {row["tgenabled"] for row in alarms(spoilt)} == {"O"}


# --- monitoring


def alarms(database: Database) -> list[dict[str, object]]:
    """Return every row of the guide's queries."""
    with database.engine("admin", poolclass=sa.NullPool).connect() as conn:
        return [
            dict(row)
            for query in statements("monitor")
            for row in conn.execute(sa.text(query.replace(":", r"\:"))).mappings()
        ]


def test_monitoring__is_silent_when_all_is_well(database: Database, engine: sa.Engine) -> None:
    fill(engine)
    assert len(statements("monitor")) == 4
    assert alarms(database) == []


@pytest.mark.parametrize(
    ("damage", "column"),
    [
        ("ALTER TABLE os_core.work_order_ledger DISABLE TRIGGER reject_mutation_row", "tgenabled"),
        ("ALTER TABLE os_core.work_orders_current NO FORCE ROW LEVEL SECURITY", "not_isolated"),
        ("ALTER TABLE os_core.work_order_ledger DISABLE ROW LEVEL SECURITY", "not_isolated"),
    ],
)
def test_monitoring__finds(database: Database, admin_engine: sa.Engine, damage: str, column: str) -> None:
    with admin_engine.begin() as conn:
        conn.exec_driver_sql(damage)
    assert [list(row) for row in alarms(database) if column in row] != []


def test_monitoring__finds_privileged_logins(filled: Database) -> None:
    run_all(filled, ["ALTER ROLE restored_service BYPASSRLS"])
    assert [row["privileged"] for row in alarms(filled)] == ["restored_service"]


def test_stats__the_guides_queries_say_what_the_command_says(database: Database, engine: sa.Engine) -> None:
    fill(engine)
    append_events(engine, "acme", [created(order := "numbers")])
    with tenant_scope(engine, "acme") as conn:
        held = LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=3_600_000)
        attempts = StepAttemptRepository(conn)
        first = attempts.start(
            order, "book", **{**LIMITS, "retry_backoff_ms": 1}, idempotency_key="b", lease_token=held.token
        )
        attempts.finish(
            first.step_attempt_id, outcome="FAILED", reason_code=1, retryable=True, lease_token=held.token
        )

    def due() -> object:
        with tenant_scope(engine, "acme") as conn:
            return StepAttemptRepository(conn).due_retries()

    wait_until(due, "the retry is due")
    setting, *queries = statements("stats")
    found: dict[str, Any] = {}
    for login in ("app", "readonly"):
        for query in queries[: 4 if login == "app" else 3]:
            with database.engine(login).begin() as conn:
                conn.exec_driver_sql(setting)
                rows = [dict(row) for row in conn.exec_driver_sql(query).mappings()]
            if "work_order_status" in rows[0]:
                found["work_orders"] = {row["work_order_status"]: row["work_orders"] for row in rows}
            else:
                found |= rows[0]
    url = database.app_url.render_as_string(hide_password=False)
    told = json.loads(selene_core("stats", "acme", "--json", "--url", url).stdout)
    assert {name: count for name, count in told["work_orders"].items() if count} == found["work_orders"]
    for name in "active_leases", "expired_leases", "due_retries":
        assert told[name] == found[name]
    assert (found["active_leases"], found["due_retries"]) == (1, 1)
    assert 0 <= found["oldest_pending_seconds"] <= told["oldest_pending"]["seconds"]


# --- logical replication


@contextmanager
def subscribed(source: Database, subscriber: psycopg.Connection[Any], options: str) -> Iterator[None]:
    """Subscribe to a database of the same cluster, until the block ends."""
    server = source.server
    with server.admin(source.name) as publisher:
        publisher.execute(
            "CREATE PUBLICATION selene FOR TABLE os_core.work_order_ledger, os_core.work_orders_current"
        )
        # The slot is made first: CREATE SUBSCRIPTION would wait for its own transaction in one cluster.
        publisher.execute("SELECT pg_create_logical_replication_slot('selene', 'pgoutput')")
    known = environment(server)
    place = " ".join(f"{name}={known[f'PG{name.upper()}']}" for name in ("host", "port", "user"))
    subscriber.execute(
        f"CREATE SUBSCRIPTION selene CONNECTION '{place} dbname={source.name}' PUBLICATION selene"
        f" WITH (create_slot = false{options})".encode()
    )
    try:
        yield
    finally:
        # Dropped while a worker makes a slot, it would wait for a slot that waits for all transactions.
        subscriber.execute("ALTER SUBSCRIPTION selene DISABLE")
        with server.admin(source.name) as publisher:
            active = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE '%selene%'"
            active += " OR application_name LIKE 'pg_%_sync_%'"
            wait_until(lambda: publisher.execute(active).fetchone() == (0,), "its workers end")
        subscriber.execute("DROP SUBSCRIPTION selene")


LEDGER_ROWS = "SELECT count(*) FROM os_core.work_order_ledger"


def test_logical_replication__follows_and_takes_over(filled: Database) -> None:
    server = filled.server
    with server.new_database("subscriber") as other, server.admin(other.name) as subscriber:
        upgrade(other.admin_url)
        as_owner = ", run_as_owner = true" if server.version >= 16 else ""
        with subscribed(filled, subscriber, as_owner):
            wait_until(lambda: subscriber.execute(LEDGER_ROWS).fetchone() == (4,), "the rows are copied")
            append_events(app_of(filled), "acme", [created("later")])
            wait_until(lambda: subscriber.execute(LEDGER_ROWS).fetchone() == (5,), "an append follows")
            later = "SELECT count(*) FROM os_core.work_orders_current WHERE work_order_id = 'later'"
            wait_until(lambda: subscriber.execute(later).fetchone() == (1,), "its projection too")
        service = app_of(other)
        with pytest.raises(DBAPIError, match="the sequence of work_order_event_id is behind") as caught:
            append_events(service, "globex", [created("first")])
        assert isinstance(caught.value.orig, psycopg.Error)
        hint = caught.value.orig.diag.message_hint or ""
        subscriber.execute(hint.partition(": ")[2].encode())
        check_goes_on(service)


def test_logical_replication__without_run_as_owner(filled: Database) -> None:
    """Row-level security stops the copy from 16 on, which applies as the table's owner; before, it runs."""
    server = filled.server
    failed = "SELECT sync_error_count > 0 FROM pg_stat_subscription_stats"
    with server.new_database("subscriber") as other, server.admin(other.name) as subscriber:
        upgrade(other.admin_url)
        with subscribed(filled, subscriber, ""):
            if server.version >= 16:
                wait_until(lambda: subscriber.execute(failed).fetchone() == (True,), "the copy fails")
                assert subscriber.execute(LEDGER_ROWS).fetchone() == (0,)
            else:
                wait_until(lambda: subscriber.execute(LEDGER_ROWS).fetchone() == (4,), "the rows are copied")
