"""What a listed difference must not hide: whatever is tried, no row changes, goes, or is another tenant's."""

import json
from typing import Any

import psycopg
import pytest

from tests.acceptance.test_every_table import (
    EVERY_LEDGER,
    EVERY_TABLE,
    FOREIGN_KEYS,
    LEDGERS,
    REPLICA,
    TABLES,
    World,
    nothing_is_left,
    rewriting,
    run,
    world,
)
from tests.support.raw import Connection

__all__ = ["nothing_is_left", "world"]
pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]


def tried(conn: Connection, tenant_id: str | None, *statements: str) -> int | None:
    """Run statements for a tenant and commit; return the last one's count of rows, or None if refused."""
    try:
        with conn.transaction():
            if tenant_id is not None:
                run(conn, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
            return [run(conn, each).rowcount for each in statements][-1]
    except psycopg.Error:
        return None


@EVERY_LEDGER
def test_ledger__is_as_it_was_whatever_is_tried(world: World, table: str) -> None:
    for tenant_id in (None, "acme", "nobody"):
        for each in (*rewriting(table), *met(table)):
            assert tried(world.owner, tenant_id, each) in (None, 0), each
            assert tried(world.admin, tenant_id, each) in (None, 0), each
            assert tried(world.admin, tenant_id, REPLICA.replace("SET", "SET LOCAL"), each) in (None, 0), each


def met(table: str) -> list[str]:
    """Return statements that Citus sends to one node."""
    other: Any = [column.name for column in TABLES[table].columns if column.computed is None][-1]
    return [
        f"{change} WHERE tenant_id = '{tenant_id}'"
        for change in (f"UPDATE {table} SET {other} = {other}", f"DELETE FROM {table}")
        for tenant_id in ("acme", "rival")
    ]


@EVERY_TABLE
def test_isolation__no_row_of_another_tenant_is_written(world: World, table: str) -> None:
    columns = [column.name for column in TABLES[table].columns if column.computed is None]
    others = ", ".join(name for name in columns if name != "tenant_id")
    for each in (
        f"INSERT INTO {table} (tenant_id, {others}) SELECT 'rival', {others} FROM {table}",
        f"INSERT INTO {table} (tenant_id) VALUES ('rival')",
        f"UPDATE {table} SET tenant_id = 'rival'",
        f"UPDATE {table} SET {columns[-1]} = {columns[-1]} WHERE tenant_id = 'rival'",
        f"DELETE FROM {table} WHERE tenant_id = 'rival'",
    ):
        assert tried(world.owner, "acme", each) in (None, 0), each
    assert table in LEDGERS or tried(world.owner, "nobody", f"DELETE FROM {table}") in (None, 0)


def test_foreign_keys__are_on_every_part(world: World) -> None:
    """And the guards, armed for replicas too."""
    asked = """
        SELECT json_object_agg(found.name, found.parts) FROM (
          SELECT regexp_replace(conname, '_[0-9]+$', '') AS name, count(*) AS parts FROM pg_constraint
          WHERE contype = 'f' AND convalidated AND conname ~ '_[0-9]+$' GROUP BY 1
          UNION ALL
          SELECT 'unarmed', count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'A'
            AND tgfoid::regproc::text LIKE 'os_core.%'
          UNION ALL
          SELECT 'tables', count(*) FROM pg_class
          WHERE relkind = 'r' AND relname ~ '^work_order_ledger_[0-9]+$'
        ) AS found
    """
    answers = run(world.admin, "SELECT result FROM run_command_on_workers(%s)", asked).fetchall()
    assert len(answers) > 1
    for (answer,) in answers:
        parts = json.loads(answer)
        unarmed, tables = parts.pop("unarmed"), parts.pop("tables")
        assert (unarmed, tables > 0) == (0, True)
        assert parts == dict.fromkeys(FOREIGN_KEYS, tables)
