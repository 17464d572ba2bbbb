"""What a service does without the append function: a transaction, and the fold in the client.

Three times the same work: by psycopg; by SQLAlchemy from SQL texts; by SQLAlchemy Core from Table objects,
which is how a service with SQLAlchemy is usually written.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import sqlalchemy as sa
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from benchmarks.events import TENANT
from benchmarks.fold import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from benchmarks.databases import Connection
    from benchmarks.events import Event

_SET_TENANT: Final = f"SET LOCAL selene.tenant_id = '{TENANT}'"
_LOCK: Final = """
    SELECT *
    FROM bench.work_orders_current
    WHERE tenant_id = %(tenant_id)s AND work_order_id = %(work_order_id)s
    FOR UPDATE
"""
_INSERT: Final = """
    INSERT INTO bench.work_order_ledger (
      tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type, work_order_status,
      reason_code, step_id, step_input_hash, payload, idempotency_key, occurred_at
    )
    VALUES (
      %(tenant_id)s, %(work_order_id)s, %(last_seq)s + 1, %(correlation_id)s, %(turn_id)s, %(event_type)s,
      %(work_order_status)s, %(reason_code)s, NULL, NULL, %(payload)s, %(idempotency_key)s, %(occurred_at)s
    )
    RETURNING *
"""
_UPDATE: Final = """
    UPDATE bench.work_orders_current
    SET
      turn_id = %(turn_id)s,
      work_order_status = %(work_order_status)s,
      last_event_id = %(last_event_id)s,
      last_seq = %(last_seq)s,
      last_reason_code = %(last_reason_code)s,
      last_updated_at = %(last_updated_at)s,
      updated_bucket = %(updated_bucket)s,
      step_id = %(step_id)s,
      step_input_hash = %(step_input_hash)s,
      fields_json = %(fields_json)s,
      asked_fields_json = %(asked_fields_json)s,
      resolved_fields_json = %(resolved_fields_json)s,
      conflicts_json = %(conflicts_json)s,
      prompt_dedupe_keys_json = %(prompt_dedupe_keys_json)s,
      last_state_change_seq = %(last_state_change_seq)s
    WHERE tenant_id = %(tenant_id)s AND work_order_id = %(work_order_id)s AND last_seq = %(expected_seq)s
"""
_BY_SQLALCHEMY: Final = {
    statement: sa.text(re.sub(r"%\((\w+)\)s", r":\1", statement))
    for statement in (_SET_TENANT, _LOCK, _INSERT, _UPDATE)
}


def append_by_text(engine: Engine, arguments: Mapping[str, Any]) -> None:
    """Append one event to the copies, through an engine, from SQL texts."""
    with engine.begin() as conn:
        conn.execute(_BY_SQLALCHEMY[_SET_TENANT])
        state = conn.execute(_BY_SQLALCHEMY[_LOCK], arguments).mappings().one()
        event = conn.execute(_BY_SQLALCHEMY[_INSERT], {**arguments, "last_seq": state["last_seq"]})
        after = {
            name: Jsonb(value) if isinstance(value, dict) else value
            for name, value in fold(dict(state), dict(event.mappings().one())).items()
        }
        written = conn.execute(_BY_SQLALCHEMY[_UPDATE], {**after, "expected_seq": state["last_seq"]})
        if written.rowcount != 1:
            raise LookupError(arguments["work_order_id"])


def append(conn: Connection, arguments: Mapping[str, Any]) -> None:
    """Append one event to the copies."""
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_SET_TENANT)
        state = cursor.execute(_LOCK, arguments, prepare=True).fetchone()
        if state is None:
            raise LookupError(arguments["work_order_id"])
        last_seq = state["last_seq"]
        event = cursor.execute(_INSERT, {**arguments, "last_seq": last_seq}, prepare=True).fetchone()
        if event is None:
            raise LookupError(arguments["work_order_id"])
        after = {
            name: Jsonb(value) if isinstance(value, dict) else value
            for name, value in fold(state, event).items()
        }
        cursor.execute(_UPDATE, {**after, "expected_seq": last_seq}, prepare=True)
        if cursor.rowcount != 1:
            raise LookupError(arguments["work_order_id"])


_FOLDED: Final = (
    "turn_id",
    "work_order_status",
    "last_event_id",
    "last_seq",
    "last_reason_code",
    "last_updated_at",
    "updated_bucket",
    "step_id",
    "step_input_hash",
    "fields_json",
    "asked_fields_json",
    "resolved_fields_json",
    "conflicts_json",
    "prompt_dedupe_keys_json",
    "last_state_change_seq",
)


def row(item: Event) -> dict[str, Any]:
    """Compose an event's row, in Python's types."""
    return {
        **item,
        "tenant_id": TENANT,
        "correlation_id": UUID(item["correlation_id"]),
        "occurred_at": datetime.fromisoformat(item["occurred_at"]),
        "step_id": None,
        "step_input_hash": None,
    }


def appender_by_core(engine: Engine) -> Callable[[Mapping[str, Any]], None]:
    """Make what appends the row of an event to the copies, through SQLAlchemy's Table objects."""
    tables = sa.MetaData(schema="bench")
    ledger = sa.Table("work_order_ledger", tables, autoload_with=engine)
    current = sa.Table("work_orders_current", tables, autoload_with=engine)

    def append(event: Mapping[str, Any]) -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(_SET_TENANT))
            state = conn.execute(
                sa.select(current)
                .where(
                    current.c.tenant_id == event["tenant_id"],
                    current.c.work_order_id == event["work_order_id"],
                )
                .with_for_update()
            ).one()
            given = {**event, "work_order_seq": state.last_seq + 1}
            made = conn.execute(
                sa.insert(ledger).values(given).returning(ledger.c.work_order_event_id, ledger.c.created_at)
            ).one()
            after = fold(dict(state._mapping), {**given, **made._mapping})
            written = conn.execute(
                sa.update(current)
                .where(
                    current.c.tenant_id == event["tenant_id"],
                    current.c.work_order_id == event["work_order_id"],
                    current.c.last_seq == state.last_seq,
                )
                .values({name: after[name] for name in _FOLDED})
            )
            if written.rowcount != 1:
                raise LookupError(event["work_order_id"])

    return append
