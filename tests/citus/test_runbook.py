"""docs/howto/citus.md to its last block: a filled database becomes a cluster, and one database again."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from selene_core import migrations
from selene_core.migrations import citus as profile
from selene_core.schema.doctor import examine
from selene_core.store.tables import METADATA
from tests.citus.cluster import Cluster, distribute, empty_database, make_cluster, move, rows_of, shown
from tests.integration.test_deployment import environment, shell, statements
from tests.support.calls import append, verify, verify_chain
from tests.support.factories import new_id, wire
from tests.support.feeds import advance, problems
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.writes import CALLS, make

pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]

TENANTS = ["acme", "rival"]
TOKEN = "lease-token-of-{}"
REMOVED = "removed"


def test_runbook__brings_a_filled_database_to_a_cluster_and_back(database: Database, tmp_path: Path) -> None:
    with empty_database() as cluster:
        migrations.upgrade(cluster.url)
        with cluster.connect() as admin:
            fill(admin)
            before = rows(admin)
            assert before["acme"].keys() == before["rival"].keys()
            assert before["acme"].keys() == {table.fullname for table in METADATA.sorted_tables} - {
                "os_core.tenant_removals"
            }

        make_cluster(cluster)
        distribute(cluster)
        with cluster.connect() as admin, cluster.app() as app:
            assert rows(admin) == before
            judge(app)
            for place in range(3):
                go_on(app, f"cluster-{place}")
                move(admin, TENANTS, place)
            judge(app)
            go_on(app, "moved")
            judge(app)
            assert profile.check(cluster.url) == []
            distributed = rows(admin)

        copy_back(cluster, database, tmp_path)
        with (
            connect(database.admin_url, autocommit=True) as admin,
            connect(database.app_url, autocommit=True) as app,
        ):
            assert rows(admin) == distributed
            with database.engine("admin").connect() as conn:
                assert examine(conn).faults == ()
            judge(app)
            go_on(app, "home")
            judge(app)
            kept = rows(admin)
            for tenant_id in TENANTS:
                for table in (
                    "os_core.work_order_ledger",
                    "conversation.conversation_ledger",
                    "os_core.subject_erasures",
                ):
                    assert {*distributed[tenant_id][table]} < {*kept[tenant_id][table]}


def rows(admin: psycopg.Connection[Any]) -> dict[str, dict[str, list[str]]]:
    return {tenant_id: rows_of(admin, tenant_id) for tenant_id in (*TENANTS, REMOVED)}


def fill(admin: psycopg.Connection[Any]) -> None:
    """Write to every table, for two tenants; one more has been removed."""
    for tenant_id in TENANTS:
        for call in CALLS.values():
            make(admin, call.replace("60000", "3600000"), tenant_id)  # the leases hold to the end
        append(admin, tenant_id, *(wire("WORK_ORDER_CREATED", new_id()) for _ in range(20)))
        admin.execute("SELECT * FROM os_core.take_feed(%s, 'billing', 3)", (tenant_id,))
    for function in ("open", "close"):
        with admin.transaction():
            admin.execute("SET LOCAL ROLE selene_owner")
            admin.execute(f"SELECT os_core.{function}_tenant_removal(%s)".encode(), (REMOVED,))


def go_on(app: psycopg.Connection[Any], key: str) -> None:
    """Write on to what is there, under the leases that are held, and to the feed."""
    for tenant_id in TENANTS:
        order, token = f"{tenant_id}-order", TOKEN.format(tenant_id)
        personal = {
            "field_key": "name",
            "value": {"$personal": {"subject": f"{tenant_id}-user", "value": key}},
        }
        append(app, tenant_id, wire("FIELD_SET", order, lease_token=token, payload=personal))
        append(app, tenant_id, *(wire("WORK_ORDER_CREATED", new_id()) for _ in range(3)))
        step = f"'{key}', 1000, 1, 1000, '{key}'"
        for call in (
            f"os_core.start_step_attempt('{{tenant}}', '{order}', {step}, '{token}')",
            f"conversation.append_turn('{{tenant}}', '{uuid4()}', 1, '{tenant_id}-user', 'USER',"
            f" 'TYPED_TEXT', 'Hello', 'PUBLIC_CHAT', NULL, NULL, '{key}')",
            f"os_core.erase_subject('{{tenant}}', '{tenant_id}-{key}', 7)",
            "os_core.poll_feed('{tenant}', 'billing')",
            "os_core.take_feed('{tenant}', 'billing', 5)",
        ):
            make(app, call, tenant_id)


def judge(app: psycopg.Connection[Any]) -> None:
    """Hold what is there to what every function that verifies says, and to the feed's own count."""
    for tenant_id in TENANTS:
        assert verify(app, tenant_id) == {}
        assert verify_chain(app, tenant_id) == {}
        while advance(app, tenant_id):
            pass
        assert problems(app, tenant_id) == []


def copy_back(cluster: Cluster, database: Database, folder: Path) -> None:
    """Run the guide's blocks of the way back."""
    places = {"OLD": shown(cluster.url), "NEW": shown(database.admin_url), "COPIES": str(folder)}
    shell("citus-way-back", folder, environment(database.server, **places))
    with connect(database.admin_url, autocommit=True) as admin:
        for statement in statements("citus-sequences"):
            admin.execute(statement.encode())
