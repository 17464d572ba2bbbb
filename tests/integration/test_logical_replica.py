"""A second server that follows by logical replication: erasures and removals arrive (contract §18)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from selene_core.migrations import upgrade
from selene_core.store import removal
from selene_core.store.removal import remove_tenant
from selene_core.store.tables import METADATA
from tests.support.calls import refused
from tests.support.races import wait_until
from tests.support.raw import Connection, connect
from tests.support.servers import Database, Server, embedded_server
from tests.support.writes import CALLS, statement

pytestmark = pytest.mark.slow

TABLES = [table.fullname for table in METADATA.sorted_tables]
STAY = {"os_core.tenant_removals", "os_core.work_order_feed_heads"}
ERASED = ("os_core.subjects", "os_core.subject_values", "conversation.turn_texts")


@contextmanager
def migrated(server: Server) -> Iterator[Database]:
    """Start a server of the test's own, with a migrated database."""
    with ExitStack() as stack:
        own = embedded_server(stack, server.version if server.kind == "embedded" else None)
        database = stack.enter_context(own.new_database("replicated"))
        upgrade(database.admin_url)
        own.make_login_roles()
        yield database


@contextmanager
def followed(publisher: Connection, source: Database, subscriber: Connection) -> Iterator[None]:
    """Publish every table to the other server, as docs/howto/replicas.md says, until the block ends."""
    local = source.server.local
    assert local is not None
    port = f" port={source.server.address.query['port']}" if "port" in source.server.address.query else ""
    place = f"host={local.socket_directory} user=postgres dbname={source.name}{port}"
    as_owner = ", run_as_owner = true" if source.server.version >= 16 else ""
    publisher.execute(f"CREATE PUBLICATION selene FOR TABLE {', '.join(TABLES)}".encode())
    subscriber.execute(
        f"CREATE SUBSCRIPTION selene CONNECTION '{place}' PUBLICATION selene"
        f" WITH (copy_data = false{as_owner})".encode()
    )
    try:
        yield
    finally:
        subscriber.execute("DROP SUBSCRIPTION selene")


def caught_up(publisher: Connection) -> None:
    """Wait until the subscriber has applied all that is committed."""
    now = publisher.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert now is not None
    applied = (
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'selene' AND replay_lsn >= %s"
    )
    wait_until(lambda: publisher.execute(applied, now).fetchone() == (1,), "the subscriber has it all")


def rows(admin: Connection, tenant_id: str) -> dict[str, list[Any]]:
    """Return the tenant's rows by table, of the tables that have any."""
    query = "SELECT row::text FROM {0} AS row WHERE tenant_id = %s ORDER BY 1"
    found = {table: admin.execute(query.format(table).encode(), (tenant_id,)).fetchall() for table in TABLES}
    return {table: held for table, held in found.items() if held}


def test_replica__follows_erasures_and_removals(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 3)
    with (
        migrated(server) as source,
        migrated(server) as copy,
        connect(source.admin_url, autocommit=True) as publisher,
        connect(copy.admin_url, autocommit=True) as subscriber,
        connect(source.app_url, autocommit=True) as app,
        followed(publisher, source, subscriber),
    ):
        for tenant_id in ("acme", "rival"):
            for call in CALLS.values():
                app.execute(statement(call, tenant_id).encode())
        caught_up(publisher)
        for tenant_id in ("acme", "rival"):
            there = rows(subscriber, tenant_id)
            assert set(ERASED) <= set(there)
            assert there == rows(publisher, tenant_id)

        app.execute("SELECT os_core.erase_subject('acme', 'acme-user', 7)")
        caught_up(publisher)
        assert rows(subscriber, "acme") == rows(publisher, "acme")
        assert not set(ERASED) & set(rows(subscriber, "acme"))

        # The publisher's record opens nothing for a session of the subscriber.
        with publisher.transaction():
            publisher.execute("SET LOCAL ROLE selene_owner")
            publisher.execute("SELECT os_core.open_tenant_removal('acme')")
        caught_up(publisher)
        before = rows(subscriber, "acme")
        for table in ("os_core.work_order_ledger", "os_core.work_order_leases", "os_core.subject_erasures"):
            for role in ("origin", "replica"):
                with refused("SL003"), subscriber.transaction():
                    subscriber.execute(f"SET LOCAL session_replication_role = {role}".encode())
                    subscriber.execute(f"DELETE FROM {table} WHERE tenant_id = 'acme'".encode())
        assert rows(subscriber, "acme") == before

        assert remove_tenant(source.engine("admin"), "acme").resumed
        caught_up(publisher)
        assert set(rows(subscriber, "acme")) == STAY
        assert rows(subscriber, "rival") == rows(publisher, "rival")

        # It goes on, also for the same tenant anew.
        for call in CALLS.values():
            app.execute(statement(call, "acme").encode())
        caught_up(publisher)
        assert rows(subscriber, "acme") == rows(publisher, "acme")
        errors = "SELECT apply_error_count FROM pg_stat_subscription_stats"
        assert subscriber.execute(errors).fetchone() == (0,)
