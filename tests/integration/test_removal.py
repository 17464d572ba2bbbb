"""The removal of a tenant: all of its rows and no other's, whatever happens meanwhile (contract §18)."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from selene_core.store import removal
from selene_core.store.removal import count_tenant, remove_tenant
from selene_core.store.tables import METADATA
from tests.integration.test_documents import guides_block
from tests.support.calls import refused
from tests.support.commands import selene_core
from tests.support.factories import new_id, wire
from tests.support.plans import listening
from tests.support.races import wait_until
from tests.support.raw import Connection, connect
from tests.support.servers import Database
from tests.support.sessions import Sessions
from tests.support.writes import CALLS, statement

TABLES = [table.fullname for table in METADATA.sorted_tables]
STAY = {"os_core.tenant_removals", "os_core.work_order_feed_heads"}
GONE = [table for table in TABLES if table not in STAY]
GUARDED = [
    "os_core.work_order_ledger",
    "conversation.conversation_ledger",
    "os_core.subject_erasures",
    "os_core.work_order_leases",
    "os_core.work_order_step_attempts",
    "conversation.turn_texts",
    "os_core.subject_values",
    "os_core.subjects",
]


def rows(admin: Connection, tenant_id: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of a tenant and where each lies."""
    query = "SELECT ctid::text, row::text FROM {0} AS row WHERE tenant_id = %s ORDER BY 2"
    return {table: admin.execute(query.format(table).encode(), (tenant_id,)).fetchall() for table in TABLES}


def held(admin: Connection, tenant_id: str) -> set[str]:
    return {table for table, found in rows(admin, tenant_id).items() if found}


@pytest.fixture
def admin(database: Database) -> Iterator[Connection]:
    """Return a superuser's session, after acme and rival have written to every table."""
    with (
        connect(database.admin_url, autocommit=True) as admin,
        connect(database.app_url, autocommit=True) as app,
    ):
        for tenant_id in ("acme", "rival"):
            fill(app, tenant_id)
        yield admin


def fill(app: Connection, tenant_id: str) -> None:
    for call in CALLS.values():
        app.execute(statement(call, tenant_id).encode())


@pytest.fixture
def owner(admin_engine: sa.Engine) -> sa.Engine:
    """Return an engine whose login may act as selene_owner."""
    return admin_engine


def owners(database: Database, tenant_id: str, *statements: str) -> None:
    """Run statements as the owner in one transaction of a tenant."""
    with closing(connect(database.admin_url)) as conn:
        conn.execute("SET LOCAL ROLE selene_owner")
        conn.execute(f"SET LOCAL selene.tenant_id = '{tenant_id}'".encode())
        for each in statements:
            conn.execute(each.encode())
        conn.commit()


OPEN = "SELECT os_core.open_tenant_removal('acme')"
CLOSE = "SELECT os_core.close_tenant_removal('acme')"


def test_remove__deletes_every_row_of_the_tenant_and_no_others(
    admin: Connection, owner: sa.Engine, database: Database
) -> None:
    assert held(admin, "acme") >= set(GUARDED)
    others = rows(admin, "rival")
    counted = count_tenant(owner, "acme")
    report = remove_tenant(owner, "acme")
    assert report.removed == counted
    assert held(admin, "acme") <= STAY
    assert rows(admin, "rival") == others
    records = "SELECT removal_state, recorded_by FROM os_core.tenant_removals ORDER BY removal_id"
    assert admin.execute(records).fetchall() == [("OPENED", "postgres"), ("CLOSED", "postgres")]
    # The same id again: a tenant like any other, that nobody can delete from.
    with connect(database.app_url, autocommit=True) as app:
        fill(app, "acme")
    for table in GUARDED:
        with refused("SL003"):
            owners(database, "acme", f"DELETE FROM {table}")
    assert remove_tenant(owner, "acme").rows == report.rows


@pytest.mark.parametrize("table", GUARDED)
def test_guard__opens_delete_for_the_transactions_tenant_alone(
    admin: Connection, database: Database, table: str
) -> None:
    before = rows(admin, "rival")
    delete = f"DELETE FROM {table}"
    for each in (delete, f"{delete} WHERE FALSE"):
        with refused("SL003"):  # the record is not committed yet
            owners(database, "acme", OPEN, each)
    owners(database, "acme", OPEN)
    for tenant_id in ("rival", "nobody"):
        for each in (delete, f"{delete} WHERE FALSE", f"{delete} WHERE tenant_id = 'acme'"):
            with refused("SL003"):
                owners(database, tenant_id, each)
    for each in (
        f"UPDATE {table} SET tenant_id = 'x'",
        f"TRUNCATE {table} CASCADE",
        *([f"UPDATE {table} SET tenant_id = 'x' WHERE FALSE"] if "work_order_" not in table else []),
    ):
        with refused("SL003"):
            owners(database, "acme", each)
    # A superuser sees all tenants: the statement is acme's, and rival's rows are not.
    for settings in ((), ("SET LOCAL session_replication_role = replica",)):
        cases: list[tuple[str | None, str]] = [
            ("acme", delete),
            ("rival", delete),
            (None, delete),
            (None, f"{delete} WHERE FALSE"),
        ]
        for of_tenant, sql in cases:
            with refused("SL003"), admin.transaction():
                for setting in settings:
                    admin.execute(setting)
                if of_tenant is not None:
                    admin.execute(f"SET LOCAL selene.tenant_id = '{of_tenant}'".encode())
                admin.execute(sql.encode())
    assert rows(admin, "rival") == before
    for each in (
        "DELETE FROM os_core.tenant_removals",
        "UPDATE os_core.tenant_removals SET removal_state = 'CLOSED'",
    ):
        with refused("SL003"):
            owners(database, "acme", each)
    owners(database, "acme", "SELECT os_core.remove_tenant_rows('acme', 1000)", CLOSE)
    with refused("SL003"):
        owners(database, "acme", f"{delete} WHERE FALSE")


def test_close__only_when_nothing_is_left(admin: Connection, owner: sa.Engine, database: Database) -> None:
    owners(database, "acme", OPEN, CLOSE)
    state = "SELECT removal_state FROM os_core.tenant_removals ORDER BY removal_id DESC LIMIT 1"
    assert admin.execute(state).fetchone() == ("OPENED",)
    assert remove_tenant(owner, "acme").resumed
    assert admin.execute(state).fetchone() == ("CLOSED",)


@pytest.mark.parametrize("after", range(0, 30, 3))
def test_remove__killed_at_any_point_and_run_again(
    admin: Connection, owner: sa.Engine, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The backend is ended by the server after so many statements of the removal."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 2)
    others = rows(admin, "rival")
    left = after

    def kill(conn: Any, cursor: Any, *_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", (cursor.connection.info.backend_pid,))

    with listening(owner, "before_cursor_execute", kill):
        try:
            remove_tenant(owner, "acme")
            done = True
        except sa.exc.DBAPIError:
            done = False
    assert done is (after == 0)
    assert rows(admin, "rival") == others
    remove_tenant(owner, "acme")
    assert held(admin, "acme") <= STAY
    assert rows(admin, "rival") == others


def test_remove__while_a_forgotten_writer_goes_on(
    admin: Connection, owner: sa.Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes is deleted, or whole: its orders verify."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 3)
    others = rows(admin, "rival")
    stop, started = Event(), Event()

    def write() -> int:
        written = 0
        with connect(database.app_url, autocommit=True) as app:
            while not stop.is_set():
                order = new_id()
                first = wire(
                    "WORK_ORDER_CREATED",
                    order,
                    payload={"fields": {"a": {"$personal": {"subject": "x", "value": written}}}},
                )
                step = wire("STEP_STARTED", order)
                lease = "SELECT os_core.acquire_lease('acme', %s, 'me', %s, 60000)"
                for sql, given in (
                    ("SELECT os_core.append_work_order_events('acme', %s::jsonb)", (json.dumps([first]),)),
                    ("SELECT os_core.append_work_order_events('acme', %s::jsonb)", (json.dumps([step]),)),
                    (lease, (order, f"token-of-{order}")),
                    ("SELECT os_core.register_identity('acme', %s)", (order,)),
                    (
                        "SELECT conversation.append_turn('acme', gen_random_uuid(), 1, %s, 'USER',"
                        " 'TYPED_TEXT', 'hi', 'PUBLIC_CHAT')",
                        (order,),
                    ),
                ):
                    try:
                        app.execute(sql.encode(), given)
                        written += 1
                    except psycopg.Error as exc:
                        if exc.sqlstate not in ("SL016", "SL017", "SL020"):  # order or user is gone already
                            raise
                started.set()
        return written

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        started.wait(60)
        rounds = 0

        def progress(_: object) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 40:
                stop.set()

        remove_tenant(owner, "acme", progress)
        stop.set()
        assert sum(each.result() for each in writers) > 0
    assert rows(admin, "rival") == others
    with connect(database.app_url, autocommit=True) as app:
        assert app.execute("SELECT * FROM os_core.verify_work_orders('acme')").fetchall() == []
    orphans = admin.execute(
        "SELECT count(*) FROM conversation.conversation_ledger"
        " LEFT JOIN conversation.turn_texts AS said USING (tenant_id, conversation_turn_id)"
        " WHERE tenant_id = 'acme' AND said.text IS NULL"
    )
    assert orphans.fetchone() == (0,)
    remove_tenant(owner, "acme")
    assert held(admin, "acme") <= STAY


def test_remove__waits_for_an_open_transaction_and_takes_what_it_wrote(
    admin: Connection, owner: sa.Engine, database: Database
) -> None:
    with (
        closing(Sessions(database.app_url, database.admin_url)) as sessions,
        ThreadPoolExecutor(1) as pool,
    ):
        writer = sessions.open(autocommit=False)
        writer.append("acme", wire("FIELD_SET", "acme-order"))
        future = pool.submit(remove_tenant, owner, "acme")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"

        def blocked() -> bool:
            row = admin.execute(waiting, (writer.pid,)).fetchone()
            return row is not None and row[0] > 0

        wait_until(blocked, "the removal waits")
        writer.conn.commit()
        future.result(60)
    assert held(admin, "acme") <= STAY


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_remove__is_not_for_services(database: Database, role: Any) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="permission denied to set role"):
        remove_tenant(database.engine(role), "acme")
    with (
        pytest.raises(sa.exc.DBAPIError, match="permission denied for function"),
        database.engine(role).begin() as conn,
    ):
        conn.exec_driver_sql(OPEN)


# --- the commands


def command(database: Database, *arguments: str, role: Any = "admin", answer: str = "") -> Any:
    url = database.url(role).render_as_string(hide_password=False)
    return selene_core(*arguments, answer=answer, SELENE_DATABASE_URL=url)


def test_command__asks_for_the_name_again(admin: Connection, database: Database) -> None:
    before = rows(admin, "acme")
    for answer in ("\n", "rival\n"):
        ran = command(database, "remove-tenant", "acme", answer=answer)
        assert ran.returncode == 2
        assert "os_core.work_order_ledger" in ran.stderr
        assert "nothing was deleted" in ran.stderr
    assert command(database, "remove-tenant", "acme", "--confirm", "x").returncode == 2
    assert rows(admin, "acme") == before
    ran = command(database, "remove-tenant", "acme", answer="acme\n")
    assert (ran.returncode, "nothing is left" in ran.stdout) == (0, True), ran.stderr
    assert held(admin, "acme") <= STAY
    ran = command(database, "remove-tenant", "rival", "--confirm", "rival", "--json")
    assert json.loads(ran.stdout)["removed"]["os_core.work_order_ledger"] > 0
    assert command(database, "remove-tenant", "acme", "--confirm", "acme", role="app").returncode == 1


def test_command__exports_and_erases_a_person(admin: Connection, database: Database) -> None:
    ran = command(database, "export-subject", "acme", "acme-user", role="app")
    assert ran.returncode == 0, ran.stderr
    held_about = json.loads(ran.stdout)
    assert held_about["identity"]["user_id"] == "acme-user"
    assert [each["value"] for each in held_about["values"]] == ["Anna"]
    assert [turn["text"] for turn in held_about["turns"]] == [None, "Good day", ""]
    assert [each["event_type"] for each in held_about["events"]] == ["FIELD_SET"]
    named = {each["work_order_id"] for each in held_about["events"]}
    assert {each["work_order_id"] for each in held_about["work_orders"]} == named
    assert len(held_about["devices"]) == len(held_about["sessions"]) == 1
    assert "rival" not in ran.stdout
    ran = command(database, "erase-subject", "acme", "acme-user", "--reason-code", "9", role="app")
    assert (ran.returncode, ran.stdout.count("1 value and 2 texts")) == (0, 1)
    ran = command(database, "erase-subject", "acme", "acme-user", "--reason-code", "9", "--json", role="app")
    assert json.loads(ran.stdout)["replayed"] is True
    after = json.loads(command(database, "export-subject", "acme", "acme-user", role="app").stdout)
    assert (after["values"], [turn["text"] for turn in after["turns"]]) == ([], [None, None, ""])
    assert after["erasures"][0]["reason_code"] == 9
    assert "drawn_event_id" not in after["erasures"][0]
    assert command(database, "erase-subject", "acme", "a b", "--reason-code", "9", role="app").returncode == 1


def test_guide__is_run_as_it_stands(admin: Connection, database: Database) -> None:
    """docs/howto/privacy.md, for a person and a tenant of its own."""
    with connect(database.app_url, autocommit=True) as app:
        payload = {"fields": {"name": {"$personal": {"subject": "user_17", "value": "Anna"}}}}
        events = json.dumps([wire("WORK_ORDER_CREATED", payload=payload)])
        app.execute("SELECT os_core.append_work_order_events('acme', %s::jsonb)", (events,))

    def run(name: str, role: Any) -> str:
        program, *arguments = guides_block(name, "sh").split()
        assert program == "selene-core"
        ran = command(database, *arguments, role=role)
        assert ran.returncode == 0, ran.stderr
        out: str = ran.stdout
        return out

    assert [each["value"] for each in json.loads(run("export-subject", "app"))["values"]] == ["Anna"]
    assert "1 value and 0 texts of user_17" in run("erase-subject", "app")
    assert json.loads(run("export-subject", "app"))["values"] == []
    for each in guides_block("vacuum-erased", "sql").split(";"):
        if each.strip():
            admin.execute(each.encode())
    records = admin.execute(guides_block("erasure-record", "sql").encode()).fetchall()
    assert [row[:4] for row in records][-1] == ("user_17", 7, 1, 0)
    assert "nothing is left" in run("remove-tenant", "admin")
    assert held(admin, "acme") <= STAY
