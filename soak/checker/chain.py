"""The chain of hashes, computed from the columns alone."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

from soak.checker.tables import Order, Row

FIRST = bytes(32)
# Format 1: its number, then these.
COLUMNS = (
    "work_order_event_id",
    "tenant_id",
    "work_order_id",
    "work_order_seq",
    "correlation_id",
    "turn_id",
    "event_type",
    "work_order_status",
    "reason_code",
    "step_id",
    "step_input_hash",
    "lease_owner_id",
    "lease_token_hash",
    "lease_expires_at",
    "payload",
    "idempotency_key",
    "occurred_at",
    "created_at",
)


def check_chain(order: Order) -> Iterator[tuple[str, str]]:
    """Find every event whose hash is not that of its columns and of the event before."""
    before = FIRST
    for event in order.ledger:
        if (stored := event.get("event_hash")) is None:
            return  # the run has not come to this revision, or a saved finding left it out
        stored = bytes.fromhex(stored) if isinstance(stored, str) else stored
        if event_hash(before, event) != stored:
            yield "chain", f"seq {event['work_order_seq']} has another hash than its columns"
        before = stored


def event_hash(before: bytes, event: Row) -> bytes:
    """Return the hash of an event, given that of the event before."""
    columns = ", ".join(["1", *(_written(event[name]) for name in COLUMNS)])
    return sha256(before + f"[{columns}]".encode()).digest()


def _written(value: Any) -> str:
    """Write a column as PostgreSQL does inside JSON: times in UTC without a zone."""
    if isinstance(value, datetime):
        text = value.astimezone(UTC).replace(tzinfo=None).isoformat()
        return f'"{text.rstrip("0") if "." in text else text}"'
    return _json(value) if isinstance(value, Mapping | int | str | None) else f'"{value}"'


def _json(value: Any) -> str:
    """Write JSON as jsonb prints it: keys by length, then by bytes; numbers in full."""
    match value:
        case Mapping():
            keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
            return "{" + ", ".join(f"{_json(key)}: {_json(value[key])}" for key in keys) + "}"
        case list():
            return "[" + ", ".join(map(_json, value)) + "]"
        case Decimal():
            return f"{value:f}"
        case _:
            return json.dumps(value, ensure_ascii=False)
