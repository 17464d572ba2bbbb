"""The hash of an event, as anybody can make it from the columns in plain Python; and how to tamper."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from tests.support.raw import Connection

FIRST = bytes(32)
COLUMNS = (
    *(
        "work_order_event_id",
        "tenant_id",
        "work_order_id",
        "work_order_seq",
        "correlation_id::text",
        "turn_id",
    ),
    *("event_type", "work_order_status", "reason_code", "step_id", "step_input_hash", "lease_owner_id"),
    *(
        "lease_token_hash",
        "lease_expires_at",
        "payload::text",
        "idempotency_key",
        "occurred_at",
        "created_at",
    ),
)
"""What format 1 hashes, in its order; the payload as PostgreSQL writes it."""


def event_hash(before: bytes, columns: dict[str, Any]) -> bytes:
    """Return the hash of an event by format 1; `before` is that of the event before, or FIRST."""
    written = ["1"]
    for name in COLUMNS:
        value = columns[name]
        if name == "payload::text":
            written.append(value)
        elif isinstance(value, datetime):
            time = value.astimezone(UTC).replace(tzinfo=None).isoformat()
            written.append(f'"{time.rstrip("0") if "." in time else time}"')
        else:
            written.append(json.dumps(value, ensure_ascii=False))
    return sha256(before + f"[{', '.join(written)}]".encode()).digest()


def differing(conn: Connection, tenant_id: str) -> list[tuple[str, int]]:
    """Return the events of a tenant whose hash is not what Python makes of the columns."""
    rows = conn.execute(
        f"SELECT event_hash, {', '.join(COLUMNS)} FROM os_core.work_order_ledger WHERE tenant_id = %s"
        " ORDER BY work_order_id, work_order_seq".encode(),
        (tenant_id,),
    ).fetchall()
    found, before, last = [], FIRST, None
    for stored, *values in rows:
        columns = dict(zip(COLUMNS, values, strict=True))
        if columns["work_order_id"] != last:
            before, last = FIRST, columns["work_order_id"]
        if event_hash(before, columns) != stored:
            found.append((columns["work_order_id"], columns["work_order_seq"]))
        before = stored
    return found


@contextmanager
def tampering(admin: Connection) -> Iterator[None]:
    """Let a superuser do in one transaction what nobody should: in replica mode, with every trigger off."""
    ledger = "os_core.work_order_ledger"
    with admin.transaction():
        admin.execute("SET LOCAL session_replication_role = replica")
        admin.execute(f"ALTER TABLE {ledger} DISABLE TRIGGER ALL".encode())
        yield
        admin.execute(f"ALTER TABLE {ledger} ENABLE TRIGGER ALL".encode())
        for trigger in ("reject_mutation_row", "reject_mutation_statement"):
            admin.execute(f"ALTER TABLE {ledger} ENABLE ALWAYS TRIGGER {trigger}".encode())


def tamper(admin: Connection, *statements: str) -> None:
    """Do statements with every trigger off; each changes something."""
    with tampering(admin):
        for statement in statements:
            assert admin.execute(statement.encode()).rowcount >= 1, statement


def rehash(admin: Connection, work_order_id: str) -> None:
    """Make all hashes of an order anew, as a superuser can who knows the formula."""
    ledger, before = "os_core.work_order_ledger", None
    query = f"SELECT work_order_seq FROM {ledger} WHERE work_order_id = %s ORDER BY 1"
    with tampering(admin):
        for (seq,) in admin.execute(query.encode(), (work_order_id,)).fetchall():
            row = admin.execute(
                f"UPDATE {ledger} AS l SET event_hash = os_core.event_hash(%s, l)"
                " WHERE work_order_id = %s AND work_order_seq = %s RETURNING event_hash".encode(),
                (before, work_order_id, seq),
            ).fetchone()
            assert row is not None
            before = row[0]
