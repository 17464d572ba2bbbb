"""Publish the event contract as JSON Schema (contract §3).

`python -m selene_core.contract.json_schema` writes selene_core/work_order_event.schema.json.
"""

import json
from pathlib import Path
from typing import Any, Final

from selene_core.contract.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.contract.events import WorkOrderLedgerEventInput
from selene_core.contract.frozen_json import MAX_INT64, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_DEPTH, MIN_INT64
from selene_core.contract.rules import (
    ENVELOPE_RULES,
    EVENT_RULES,
    PAYLOAD_RULES,
    TEXT_PATTERN,
    EnvelopeRules,
    PayloadRules,
)

SCHEMA_PATH: Final = Path(__file__).parents[1] / "work_order_event.schema.json"

_TEXT = f"^{TEXT_PATTERN}$"
_JSON = {"$ref": "#/$defs/json"}


def work_order_event_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one event as append takes it."""
    fields = WorkOrderLedgerEventInput.model_fields
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:selene-core:work-order-event:1",
        "title": "Work order event",
        "description": "One event for os_core.append_work_order_events.",
        "$comment": (
            "Not expressed here, and refused all the same: a payload over "
            f"{MAX_PAYLOAD_BYTES} bytes as jsonb text or over {MAX_PAYLOAD_DEPTH} levels deep; "
            "days that no calendar has; times outside the years 1 to 9999 of UTC; "
            "1.0 where an integer is asked for."
        ),
        "type": "object",
        "properties": {name: _property(name, required=info.is_required()) for name, info in fields.items()},
        "required": [name for name, info in fields.items() if info.is_required()],
        "additionalProperties": False,
        "allOf": [_case(kind) for kind in WorkOrderEventType if kind in PAYLOAD_RULES],
        "$defs": {
            "json": {
                "type": ["null", "boolean", "number", "string", "array", "object"],
                "minimum": MIN_INT64,
                "maximum": MAX_INT64,
                "pattern": _TEXT,
                "items": _JSON,
                "propertyNames": {"pattern": _TEXT},
                "additionalProperties": _JSON,
            }
        },
    }


def _property(name: str, *, required: bool) -> dict[str, Any]:
    if name == "payload":
        return {"type": "object", **_JSON, "default": {}}
    schema = {"description": EVENT_RULES[name].sentence, **EVENT_RULES[name].schema}
    return schema if required else {**_optional(schema), "default": None}


def _case(kind: WorkOrderEventType) -> dict[str, Any]:
    """Say what an event of this type must be besides."""
    then: dict[str, Any] = {"properties": {"payload": _payload(PAYLOAD_RULES[kind])}}
    required = ["payload"] if PAYLOAD_RULES[kind].required else []
    if envelope := ENVELOPE_RULES.get(kind):
        then["properties"] |= {name: _given(name, envelope) for name in envelope.required}
        required += envelope.required
        if "work_order_status" not in envelope.required:
            then["properties"]["work_order_status"] = _optional(envelope.status.schema)
        if "reason_code" not in envelope.required:
            then |= _when("work_order_status", WorkOrderStatus.CANCELED, _must_give("reason_code"))
    return _when("event_type", kind, {**then, "required": required} if required else then)


def _when(name: str, value: str, then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {name: {"const": str(value)}}, "required": [name]}, "then": then}


def _must_give(name: str) -> dict[str, Any]:
    return {"properties": {name: EVENT_RULES[name].schema}, "required": [name]}


def _given(name: str, envelope: EnvelopeRules) -> dict[str, Any]:
    return envelope.status.schema if name == "work_order_status" else EVENT_RULES[name].schema


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _payload(rules: PayloadRules) -> dict[str, Any]:
    known = {**rules.required, **rules.optional}
    return {
        "properties": {key: rule.schema for key, rule in known.items()},
        "required": list(rules.required),
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the schema as the published file holds it."""
    return json.dumps(work_order_event_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
