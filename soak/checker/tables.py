"""The tables as a superuser reads them, in one snapshot."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

Row = dict[str, Any]
Place = tuple[str, str]

ORDER_TABLES = {
    "ledger": ("os_core.work_order_ledger", "work_order_event_id"),
    "current": ("os_core.work_orders_current", "work_order_id"),
    "leases": ("os_core.work_order_leases", "fence"),
    "attempts": ("os_core.work_order_step_attempts", "step_attempt_id"),
}


@dataclass(slots=True)
class Order:
    """All that is stored about one work order."""

    ledger: list[Row] = field(default_factory=list)
    current: list[Row] = field(default_factory=list)
    leases: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class Tables:
    """The work orders and conversations of some tenants."""

    orders: defaultdict[Place, Order] = field(default_factory=lambda: defaultdict(Order))
    turns: defaultdict[Place, list[Row]] = field(default_factory=lambda: defaultdict(list))


def read_tables(conn: psycopg.Connection[Any], prefix: str) -> Tables:
    """Read what belongs to work orders and sessions whose ids begin with a prefix; conn is a superuser's."""
    set_json_loads(partial(json.loads, parse_float=Decimal), conn)
    tables = Tables()
    pattern = prefix.replace("_", r"\_") + "%"
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for name, (table, sorted_by) in ORDER_TABLES.items():
            if exists(conn, table):
                query = f"SELECT * FROM {table} WHERE work_order_id LIKE %s ORDER BY {sorted_by}"
                for row in cursor.execute(query.encode(), [pattern]):
                    getattr(tables.orders[row["tenant_id"], row["work_order_id"]], name).append(row)
        if exists(conn, "conversation.conversation_ledger"):
            query = (
                "SELECT turn.*, CASE turn.source WHEN 'TOMBSTONE' THEN '' ELSE said.text END AS text"
                " FROM conversation.conversation_ledger AS turn"
                " LEFT JOIN conversation.turn_texts AS said USING (tenant_id, conversation_turn_id)"
                " WHERE turn.user_id LIKE %s ORDER BY turn.conversation_turn_id"
            )
            for row in cursor.execute(query.encode(), [pattern]):
                tables.turns[row["tenant_id"], str(row["correlation_id"])].append(row)
    return tables


def exists(conn: psycopg.Connection[Any], table: str) -> bool:
    """Tell whether there is such a table: the run may not have come to its revision."""
    return conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone() == (True,)
