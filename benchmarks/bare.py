"""The yardstick: copies of the two tables, written by plain statements.

Schema `bench`, where the application may write, has the same indexes, CHECKs and foreign key, but no policies
and no guards. A bare writer has to know what the append function finds out: an event's work_order_seq, and
what it means for fields_json.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from psycopg.sql import SQL, Identifier

from benchmarks.events import TENANT, append_all, batches, created

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.databases import Connection, Database
    from benchmarks.events import Event, Order

_COPY: Final = """
    CREATE SCHEMA bench;
    CREATE TABLE bench.work_order_ledger (LIKE os_core.work_order_ledger INCLUDING ALL EXCLUDING CONSTRAINTS);
    CREATE SEQUENCE bench.event_ids OWNED BY bench.work_order_ledger.work_order_event_id;
    ALTER TABLE bench.work_order_ledger
      ALTER COLUMN work_order_event_id SET DEFAULT nextval('bench.event_ids'),
      ALTER COLUMN event_hash SET DEFAULT sha256(''),
      -- It takes the row, and LIKE copies no such CHECK.
      ADD CHECK (os_core.is_event_row(work_order_ledger));
    CREATE TABLE bench.work_orders_current (LIKE os_core.work_orders_current INCLUDING ALL);
    ALTER TABLE bench.work_orders_current
      ADD FOREIGN KEY (tenant_id, work_order_id, last_event_id)
      REFERENCES bench.work_order_ledger (tenant_id, work_order_id, work_order_event_id)
"""
# A CHECK calls its functions as whoever writes the row.
_GRANT: Final = """
    GRANT USAGE ON SCHEMA bench TO {login};
    GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA bench TO {login};
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA bench TO {login};
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA os_core TO {login}
"""
_FILL: Final = """
    INSERT INTO bench.work_order_ledger SELECT * FROM os_core.work_order_ledger;
    INSERT INTO bench.work_orders_current SELECT * FROM os_core.work_orders_current;
    SELECT setval('bench.event_ids', (SELECT max(work_order_event_id) FROM bench.work_order_ledger));
    VACUUM ANALYZE os_core.work_order_ledger, os_core.work_orders_current;
    VACUUM ANALYZE bench.work_order_ledger, bench.work_orders_current;
    CHECKPOINT
"""
_UNEQUAL: Final = """
    SELECT work_order_id, ours.last_seq, bare.last_seq
    FROM os_core.work_orders_current AS ours
    FULL JOIN bench.work_orders_current AS bare USING (tenant_id, work_order_id)
    LEFT JOIN (SELECT work_order_id, count(*) FROM os_core.work_order_ledger GROUP BY 1) AS our_events
      USING (work_order_id)
    LEFT JOIN (SELECT work_order_id, count(*) FROM bench.work_order_ledger GROUP BY 1) AS bare_events
      USING (work_order_id)
    WHERE (greatest(ours.last_seq, bare.last_seq), ours.last_seq, bare.last_seq)
      IS DISTINCT FROM (%(last_seq)s, our_events.count, bare_events.count)
"""

# One FIELD_SET: one statement, one round trip.
SET_FIELD: Final = """
    WITH event AS (
      INSERT INTO bench.work_order_ledger (
        tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type, work_order_status,
        reason_code, step_id, step_input_hash, payload, idempotency_key, occurred_at
      )
      VALUES (
        %(tenant_id)s, %(work_order_id)s, CAST(%(work_order_seq)s AS bigint),
        CAST(%(correlation_id)s AS uuid), CAST(%(turn_id)s AS bigint), %(event_type)s, %(work_order_status)s,
        CAST(%(reason_code)s AS bigint), NULL, NULL, CAST(%(payload)s AS jsonb), %(idempotency_key)s,
        CAST(%(occurred_at)s AS timestamptz)
      )
      RETURNING work_order_event_id, work_order_seq, created_at
    )
    UPDATE bench.work_orders_current AS current
    SET
      turn_id = CAST(%(turn_id)s AS bigint),
      work_order_status = %(work_order_status)s,
      last_event_id = event.work_order_event_id,
      last_seq = event.work_order_seq,
      last_reason_code = CAST(%(reason_code)s AS bigint),
      last_updated_at = event.created_at,
      updated_bucket = date_bin('5 min', event.created_at, '2000-01-01 00:00:00+00'),
      step_id = NULL,
      step_input_hash = NULL,
      fields_json = current.fields_json || CAST(%(patch)s AS jsonb),
      last_state_change_seq = event.work_order_seq
    FROM event
    WHERE current.tenant_id = %(tenant_id)s
      AND current.work_order_id = %(work_order_id)s
      AND current.last_seq = event.work_order_seq - 1
    RETURNING event.work_order_event_id, event.work_order_seq, event.created_at
"""
SET_FIELD_NAMES: Final = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", SET_FIELD)))
PREPARE_SET_FIELD: Final = "PREPARE set_field AS " + re.sub(
    r"%\((\w+)\)s", lambda found: f"${SET_FIELD_NAMES.index(found[1]) + 1}", SET_FIELD
)
# The same with SQLAlchemy's parameters.
SET_FIELD_TEXT: Final[str] = SET_FIELD.replace("%(", ":").replace(")s", "")

_INSERT_EVENTS: Final = """
      INSERT INTO bench.work_order_ledger (
        tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type, work_order_status,
        reason_code, step_id, step_input_hash, payload, idempotency_key, occurred_at
      )
      SELECT
        %(tenant_id)s, input.work_order_id, input.work_order_seq, input.correlation_id, input.turn_id,
        input.event_type, input.work_order_status, input.reason_code, input.step_id, input.step_input_hash,
        input.payload, input.idempotency_key, input.occurred_at
      FROM jsonb_to_recordset(CAST(%(events)s AS jsonb)) AS input (
        work_order_id text, work_order_seq bigint, correlation_id uuid, turn_id bigint, event_type text,
        work_order_status text, reason_code bigint, step_id text, step_input_hash text, payload jsonb,
        idempotency_key text, occurred_at timestamptz
      )
      RETURNING *
"""
# One FIELD_SET each on many orders.
SET_FIELDS: Final = f"""
    WITH event AS ({_INSERT_EVENTS})
    UPDATE bench.work_orders_current AS current
    SET
      turn_id = event.turn_id,
      work_order_status = event.work_order_status,
      last_event_id = event.work_order_event_id,
      last_seq = event.work_order_seq,
      last_reason_code = event.reason_code,
      last_updated_at = event.created_at,
      updated_bucket = date_bin('5 min', event.created_at, '2000-01-01 00:00:00+00'),
      step_id = event.step_id,
      step_input_hash = event.step_input_hash,
      fields_json = current.fields_json
        || jsonb_build_object(event.payload ->> 'field_key', event.payload -> 'value'),
      last_state_change_seq = event.work_order_seq
    FROM event
    WHERE current.tenant_id = event.tenant_id
      AND current.work_order_id = event.work_order_id
      AND current.last_seq = event.work_order_seq - 1
    RETURNING event.work_order_event_id, event.work_order_seq, event.created_at
"""
# The first event each of many orders.
CREATE_ORDERS: Final = f"""
    WITH event AS ({_INSERT_EVENTS})
    INSERT INTO bench.work_orders_current (
      work_order_id, tenant_id, correlation_id, turn_id, work_order_status, last_event_id, last_seq,
      last_reason_code, last_updated_at, created_at, requester_user_id, step_id, step_input_hash, fields_json,
      asked_fields_json, resolved_fields_json, conflicts_json, prompt_dedupe_keys_json,
      external_approval_pending, external_approval_notices, last_state_change_seq, updated_bucket, queued_at,
      steps_due_at
    )
    SELECT
      event.work_order_id, event.tenant_id, event.correlation_id, event.turn_id, event.work_order_status,
      event.work_order_event_id, event.work_order_seq, event.reason_code, event.created_at, event.created_at,
      event.payload ->> 'requester_user_id', event.step_id, event.step_input_hash,
      COALESCE(event.payload -> 'fields', '{{}}'), '{{}}', '{{}}', '{{}}', '{{}}', FALSE, 0,
      event.work_order_seq, date_bin('5 min', event.created_at, '2000-01-01 00:00:00+00'), event.created_at,
      event.created_at
    FROM event
    RETURNING last_event_id, last_seq, created_at
"""


def make_copies(database: Database, orders: Sequence[Order], batch: int) -> None:
    """Create the orders through the append function, and the copies with the same rows."""
    with database.admin() as admin, database.app() as app:
        append_all(app, batches(map(created, orders), batch))
        copy_tables(admin, database.app_url.username or "")


def copy_tables(admin: Connection, login: str) -> None:
    """Make the copies, with the rows that are there."""
    admin.execute(_COPY)
    admin.execute(SQL(_GRANT).format(login=Identifier(login)))
    for statement in _FILL.split(";"):  # VACUUM runs alone
        admin.execute(statement.encode())


def check_equal_work(database: Database, *, events: int) -> None:
    """Raise unless each order got `events` after its creation, here or there, and shows the last of them."""
    with database.admin() as admin:
        wrong = admin.execute(_UNEQUAL, {"last_seq": events + 1}).fetchall()
    if wrong:
        raise RuntimeError(f"{len(wrong)} orders did not get {events} events, the first of them {wrong[0]}")


def arguments(item: Event) -> dict[str, Any]:
    """Compose the parameters of SET_FIELD."""
    payload = item["payload"]
    return {
        **item,
        "tenant_id": TENANT,
        "work_order_seq": item["turn_id"],
        "payload": json.dumps(payload),
        "patch": json.dumps({payload["field_key"]: payload["value"]}),
    }


def set_arguments(items: Sequence[Event]) -> dict[str, Any]:
    """Compose the parameters of SET_FIELDS and CREATE_ORDERS."""
    return {
        "tenant_id": TENANT,
        "events": json.dumps([{**item, "work_order_seq": item["turn_id"]} for item in items]),
    }
