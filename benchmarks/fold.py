"""The fold as a client would write it: for the naive writer, and to compare the database's speed with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

State = dict[str, Any]
_BUCKET, _BUCKETS_FROM = timedelta(minutes=5), datetime(2000, 1, 1, tzinfo=UTC)


def fold(state: State | None, event: Mapping[str, Any]) -> State:
    """Return the state after one more event; knows the event types that the benchmarks write."""
    seq, payload, event_type = event["work_order_seq"], event["payload"], event["event_type"]
    changed = False
    if state is None:
        state = {
            "work_order_id": event["work_order_id"],
            "tenant_id": event["tenant_id"],
            "created_at": event["created_at"],
            "requester_user_id": payload.get("requester_user_id"),
            "lease_owner_id": None,
            "lease_token_hash": None,
            "lease_expires_at": None,
            "fields_json": dict(payload.get("fields", {})),
            "asked_fields_json": {},
            "resolved_fields_json": {},
            "conflicts_json": {},
            "prompt_dedupe_keys_json": {},
            "external_approval_pending": False,
            "external_approval_request_id": None,
            "external_approval_target_user_id": None,
            "external_approval_expires_at": None,
            "external_approval_notices": 0,
            "queued_at": event["created_at"],
            "steps_due_at": event["created_at"],
        }
        changed = True
    elif event_type == "FIELD_SET":
        key, value = payload["field_key"], payload["value"]
        fields, resolved = state["fields_json"], state["resolved_fields_json"]
        if key not in fields or fields[key] != value:
            fields[key] = value
            changed = True
        if key in state["asked_fields_json"] and resolved.get(key, {}).get("value") != value:
            resolved[key] = {"value": value, "resolved_at": _json_time(event["created_at"]), "seq": seq}
    elif event_type == "FIELD_PROMPTED":
        key, asked = payload["field_key"], state["asked_fields_json"]
        attempts = asked.get(key, {}).get("attempts", 0) + 1
        asked[key] = {"asked_at": _json_time(event["created_at"]), "attempts": attempts, "seq": seq}
        state["prompt_dedupe_keys_json"][payload["prompt_dedupe_key"]] = seq
    elif event_type == "STATUS_CHANGED":
        changed = state["work_order_status"] != event["work_order_status"]
    elif not event_type.startswith("STEP_"):
        raise NotImplementedError(event_type)
    state["correlation_id"] = event["correlation_id"]
    state["turn_id"] = event["turn_id"]
    state["work_order_status"] = event["work_order_status"]
    state["last_event_id"] = event["work_order_event_id"]
    state["last_seq"] = seq
    state["last_reason_code"] = event["reason_code"]
    state["last_updated_at"] = event["created_at"]
    state["updated_bucket"] = event["created_at"] - (event["created_at"] - _BUCKETS_FROM) % _BUCKET
    state["step_id"] = event["step_id"]
    state["step_input_hash"] = event["step_input_hash"]
    if changed:
        state["last_state_change_seq"] = seq
    return state


def _json_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
