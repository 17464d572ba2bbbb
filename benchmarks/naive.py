"""What a service does without the append function: a transaction, and the fold in the client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from benchmarks.events import TENANT
from benchmarks.fold import fold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from benchmarks.databases import Connection

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


def append_by_sqlalchemy(engine: Engine, arguments: Mapping[str, Any]) -> None:
    """Append one event to the copies, through an engine."""
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
