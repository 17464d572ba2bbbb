"""More than one server: several databases with a directory of tenants, and the way back from a cluster."""

from contextlib import closing
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import WorkOrderRepository, tenant_scope
from selene_core.citus import VERSION_TABLE, as_on_one_node
from selene_core.schema.doctor import examine
from selene_core.schema.drift import expected_schema
from selene_core.store.tables import METADATA
from tests.integration.test_deployment import environment, shell, statements
from tests.integration.test_documents import guides_block
from tests.migrations.runs import psql
from tests.support.calls import Tenant
from tests.support.commands import selene_core
from tests.support.factories import created
from tests.support.raw import connect
from tests.support.servers import Database, Server
from tests.support.writes import CALLS, STORY, known, run


def rows(database: Database) -> dict[str, list[str]]:
    """Return the rows of every table, as text."""
    with database.engine("admin").connect() as conn:
        return {
            str(table): [*conn.exec_driver_sql(f"SELECT row::text FROM {table} AS row ORDER BY 1").scalars()]
            for table in METADATA.sorted_tables
        }


@pytest.mark.slow
def test_way_back__copies_every_row_and_goes_on(
    database: Database, server: Server, template_database: str, tmp_path: Path
) -> None:
    app = connect(database.app_url, autocommit=True)
    with closing(app), closing(connect(database.admin_url, autocommit=True)) as admin:
        for call in (
            STORY | {f"and {name}": call for name, call in CALLS.items() if name == "erase"}
        ).values():
            run(app, call, "acme", known(admin, "acme"))
        # The ids of another node: the sequences of the copy go on above them.
        for sequence in (
            "os_core.work_order_ledger_work_order_event_id_seq",
            "os_core.subject_erasures_erasure_id_seq",
        ):
            admin.execute("SELECT setval(%s, %s)", (sequence, 3 << 48))
        run(app, CALLS["create"], "globex", known(admin, "globex"))
    with server.new_database("copy", template_database) as copy:
        old, new = (
            each.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
            for each in (database, copy)
        )
        shell("citus-way-back", tmp_path, environment(server, OLD=old, NEW=new, COPIES=str(tmp_path)))
        assert rows(copy) == rows(database)
        assert psql(copy, guides_block("citus-sequences", "sql")).returncode == 0
        with copy.engine("admin").connect() as conn:
            assert examine(conn).faults == ()
        with (
            closing(connect(copy.app_url, autocommit=True)) as app,
            closing(connect(copy.admin_url)) as admin,
        ):
            acme = Tenant("acme", app, admin)
            assert acme.verify() == {}
            assert acme.verify_chain() == {}
            order = acme.order()
            assert acme.verify(order) == {}
            assert app.execute("SELECT * FROM os_core.verify_feed('acme')").fetchall() == []


def test_directory__sends_each_tenant_to_its_database(
    database: Database, server: Server, template_database: str
) -> None:
    example: dict[str, Any] = {}
    exec(guides_block("several-databases", "python"), example)  # noqa: S102  # the guide's own words
    with server.new_database("second", template_database) as second:
        directory = database.engine("admin")
        with directory.begin() as conn:
            for statement in statements("tenant-directory"):
                conn.exec_driver_sql(statement)
        urls = {"first": database.app_url, "second": second.app_url}
        databases = example["Databases"](directory, urls)
        try:
            with pytest.raises(KeyError):
                databases.of("acme")
            with pytest.raises(KeyError):
                databases.assign("acme", "third")
            asked = [Thread(target=databases.assign, args=("acme", place)) for place in urls]
            for thread in asked:
                thread.start()
            for thread in asked:
                thread.join()
            other = {"first": "second", "second": "first"}[place_of(directory, "acme")]
            databases.assign("globex", other)
            for tenant_id in ("acme", "globex"):
                with tenant_scope(databases.of(tenant_id), tenant_id) as conn:
                    WorkOrderRepository(conn).append(created())
            assert databases.of("acme") is databases.assign("acme", other) is not databases.of("globex")
        finally:
            databases.dispose()
        assert [tenants(database), tenants(second)] in ([["acme"], ["globex"]], [["globex"], ["acme"]])


def place_of(directory: sa.Engine, tenant_id: str) -> str:
    """Return what the directory says."""
    with directory.connect() as conn:
        return str(
            conn.exec_driver_sql("SELECT place FROM tenants WHERE tenant_id = %s", (tenant_id,)).scalar_one()
        )


def tenants(database: Database) -> list[str]:
    """Return the tenants that have work orders in a database."""
    with database.engine("admin").connect() as conn:
        return [*conn.exec_driver_sql("SELECT DISTINCT tenant_id FROM os_core.work_order_ledger").scalars()]


@pytest.mark.parametrize("command", ["upgrade", "check"])
def test_citus__refuses_a_database_without_it(database: Database, command: str) -> None:
    before = rows(database)
    url = database.admin_url.render_as_string(hide_password=False)
    ran = selene_core("citus", command, SELENE_DATABASE_URL=url)
    assert ran.returncode == 1
    assert "the database has no Citus" in ran.stdout + ran.stderr
    assert rows(database) == before
    assert selene_core("doctor", SELENE_DATABASE_URL=url).returncode == 0


def test_profile__is_no_drift_and_anything_else_is() -> None:
    expected = expected_schema().facts
    found = deepcopy(expected)
    ledger, append = (
        "relation os_core.work_order_ledger",
        "function os_core.append_work_order_events(text,jsonb)",
    )
    found["role selene_owner"]["attributes"] = "LOGIN"
    found[f"relation os_core.{VERSION_TABLE}"] = {"kind": "TABLE"}
    found[ledger]["column tenant_id"] = 'text COLLATE "default" NOT NULL'
    found[ledger]["constraint pk_work_order_ledger"] = "PRIMARY KEY (tenant_id, work_order_event_id)"
    check = f"CHECK (os_core.is_event_row({expected[ledger]['columns']}))"
    found[ledger]["constraint ck_work_order_ledger_contract"] = check
    as_on_one_node(found, expected)
    assert found == expected
    found[ledger]["constraint pk_work_order_ledger"] = "PRIMARY KEY (tenant_id, work_order_id)"
    found[append]["body"] = "another"
    as_on_one_node(found, expected)
    assert found != expected
    assert found[append]["body"] == "another"
