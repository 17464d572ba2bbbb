"""The published JSON Schema: it is current, and it accepts and refuses what the Python contract does."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from selene_core.contract.enums import WorkOrderEventType
from selene_core.contract.errors import ContractViolation
from selene_core.contract.events import WorkOrderLedgerEventInput
from selene_core.contract.json_schema import SCHEMA_PATH, schema_text, work_order_event_schema

VALIDATOR = Draft202012Validator(work_order_event_schema())

ENVELOPE: dict[str, Any] = {
    "work_order_id": "wo_1",
    "correlation_id": "12345678-1234-1234-1234-123456789abc",
    "turn_id": 1,
    "work_order_status": "DRAFT",
    "reason_code": 1,
}
PAYLOADS: dict[str, dict[str, Any]] = {
    "WORK_ORDER_CREATED": {"fields": {"city": "Graz"}, "requester_user_id": "alice"},
    "FIELD_SET": {"field_key": "city", "value": None},
    "FIELD_PROMPTED": {"field_key": "city", "prompt_dedupe_key": "city#1"},
    "FIELD_CONFLICT_DETECTED": {"field_key": "city", "candidates": ["Graz", "Wien"]},
    "FIELD_CONFLICT_RESOLVED": {"field_key": "city", "value": "Wien"},
    "STATUS_CHANGED": {"previous_status": "DRAFT", "note": "why"},
    "STEP_STARTED": {"resource": "printer", "attempt_index": 1},
    "STEP_FINISHED": {},
    "STEP_FAILED": {"code": -1.5},
    "STEP_RETRY_SCHEDULED": {"next_retry_at": "2026-07-01T10:00:00Z"},
    "EXTERNAL_APPROVAL_REQUESTED": {
        "request_id": "r1",
        "target_user_id": "bob",
        "expires_at": "2026-07-01T10:00:00+02:00",
    },
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": {"request_id": "r1"},
    "EXTERNAL_APPROVAL_RESOLVED": {"request_id": "r1", "outcome": "EXPIRED"},
    "WORK_ORDER_CANCELED": {"note": ""},
}


def valid_event(event_type: str) -> dict[str, Any]:
    status = "CANCELED" if event_type == "WORK_ORDER_CANCELED" else "DRAFT"
    return ENVELOPE | {"event_type": event_type, "work_order_status": status, "payload": PAYLOADS[event_type]}


def accepted(wire: object) -> bool:
    try:
        WorkOrderLedgerEventInput.from_mapping(wire)
    except ContractViolation:
        return False
    return True


def test_schema__the_published_file_is_current() -> None:
    current = SCHEMA_PATH.read_text(encoding="utf-8")
    assert current == schema_text(), "run python -m selene_core.contract.json_schema"
    assert json.loads(schema_text()) == work_order_event_schema()


def test_schema__is_valid_draft_2020_12() -> None:
    Draft202012Validator.check_schema(work_order_event_schema())
    assert work_order_event_schema()["$id"] == "urn:selene-core:work-order-event:1"


@pytest.mark.parametrize("event_type", WorkOrderEventType)
def test_schema__takes_the_types_that_append_takes(event_type: WorkOrderEventType) -> None:
    assert (event_type in PAYLOADS) == (not event_type.startswith("LEASE_"))
    wire = ENVELOPE | {"event_type": event_type.value, "payload": PAYLOADS.get(event_type, {})}
    if event_type == "WORK_ORDER_CANCELED":
        wire["work_order_status"] = "CANCELED"
    assert VALIDATOR.is_valid(wire) == accepted(wire) == (event_type in PAYLOADS)


@pytest.mark.parametrize("event_type", PAYLOADS)
def test_schema__takes_what_to_wire_gives(event_type: str) -> None:
    wire = valid_event(event_type) | {
        "step_id": "s1",
        "step_input_hash": "ab12",
        "idempotency_key": "k 1",
        "occurred_at": "2026-07-01T10:00:00.5-03:30",
        "expected_seq": 0,
        "lease_token": "0123456789abcdef",
    }
    VALIDATOR.validate(WorkOrderLedgerEventInput.from_mapping(wire).to_wire())


BROKEN_TEXT = ["", " ", "a\n", "\n", "a b", "a\0", "\ud800", "a\x85", "\u2003", "ä", "٣", "-a", "x" * 5000]
WORDS = [
    *BROKEN_TEXT,
    *("a", "wo_1", "x" * 64, "x" * 65, "x" * 96, "x" * 97, "x" * 128, "x" * 129, "x" * 4096, "x" * 4097),
    *("0123456789abcde", "0123456789abcdef", "city#1", "city", "DRAFT", "draft", "CANCELED", "APPROVED"),
    *("LEASE_ACQUIRED", "FIELD_SET", "STEP_FAILED", "WORK_ORDER_CREATED", "WORK_ORDER_CANCELED"),
    *("12345678123412341234123456789abc", "{12345678-1234-1234-1234-123456789abc}"),
    *("12345678-1234-1234-1234-123456789ABC", "12345678-1234-1234-1234-123456789abc\n"),
    *(
        "2026-07-01T10:00:00Z",
        "2026-07-01T10:00:00.123456+15:59",
        "2026-07-01T10:00:00Z\n",
        "now",
        "infinity",
    ),
    *("2026-07-01T10:00:00", "2026-07-01T10:00:00.1234567Z", "2026-07-01t10:00:00z", "2026-07-01T24:00:00Z"),
    *("2026-07-01T10:00:00+16:00", "2026-07-01 10:00:00Z", "2026-07-01T10:00:00٠Z"),
]
NUMBERS = [0, 1, -1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 0.5, 1.5e300, 1e15, 2.0**63]
values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(WORDS) | st.sampled_from(NUMBERS),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "city", "a b", "a\0"]), inner)
    ),
    max_leaves=5,
)
ENVELOPE_KEYS = [*WorkOrderLedgerEventInput.model_fields, "lease_owner_id", "created_at", "tenant_id"]
PAYLOAD_KEYS = sorted({key for payload in PAYLOADS.values() for key in payload} | {"other"})


def is_stated_exception(wire: dict[str, Any]) -> bool:
    """Tell whether a float stands where an integer should: JSON Schema takes 1.0, and says so."""
    return any(isinstance(wire.get(key), float) for key in ("turn_id", "reason_code", "expected_seq"))


@settings(max_examples=500)
@given(
    st.sampled_from(sorted(PAYLOADS)),
    st.dictionaries(st.sampled_from(ENVELOPE_KEYS), values, max_size=2),
    st.dictionaries(st.sampled_from(PAYLOAD_KEYS), values, max_size=2),
    st.sets(st.sampled_from([*ENVELOPE, "event_type", "payload", *PAYLOAD_KEYS]), max_size=1),
)
def test_schema__agrees_with_the_model(
    event_type: str, changes: dict[str, Any], payload_changes: dict[str, Any], removed: set[str]
) -> None:
    if is_stated_exception(changes):
        return
    wire = valid_event(event_type)
    wire["payload"] = {k: v for k, v in (wire["payload"] | payload_changes).items() if k not in removed}
    wire = {key: value for key, value in (wire | changes).items() if key not in removed}
    assert VALIDATOR.is_valid(wire) == accepted(wire), wire


EVERY_VALUE: list[Any] = [*WORDS, *NUMBERS, None, True, [], {}, {"a b": 1}, {"a": "\0"}, {"a\0": 1}]


@pytest.mark.parametrize("event_type", PAYLOADS)
def test_schema__agrees_with_the_model_on_what_may_be_left_out(event_type: str) -> None:
    for key in WorkOrderLedgerEventInput.model_fields:
        wire = {name: value for name, value in valid_event(event_type).items() if name != key}
        assert VALIDATOR.is_valid(wire) == accepted(wire), key
    for key in PAYLOADS[event_type]:
        wire = valid_event(event_type)
        wire["payload"] = {name: value for name, value in wire["payload"].items() if name != key}
        assert VALIDATOR.is_valid(wire) == accepted(wire), key


@pytest.mark.parametrize("key", WorkOrderLedgerEventInput.model_fields)
def test_schema__agrees_with_the_model_on_each_key(key: str) -> None:
    for value in EVERY_VALUE:
        wire = valid_event("STEP_STARTED") | {key: value}
        if not is_stated_exception(wire):
            assert VALIDATOR.is_valid(wire) == accepted(wire), wire


@pytest.mark.parametrize("event_type", PAYLOADS)
@pytest.mark.parametrize("key", PAYLOAD_KEYS)
def test_schema__agrees_with_the_model_on_each_key_of_a_payload(event_type: str, key: str) -> None:
    for value in EVERY_VALUE:
        wire = valid_event(event_type)
        wire["payload"] = wire["payload"] | {key: value}
        assert VALIDATOR.is_valid(wire) == accepted(wire), wire


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": {"resource": "x" * 17_000}},
        {"payload": json.loads('{"a":' * 33 + "1" + "}" * 33)},
        {"occurred_at": "2026-02-30T10:00:00Z"},
        {"occurred_at": "0001-01-01T10:00:00+11:00"},
        {"turn_id": 1.0},
    ],
    ids=["size", "depth", "calendar", "range", "integer"],
)
def test_schema__states_what_only_the_model_refuses(changes: dict[str, Any]) -> None:
    wire = valid_event("STEP_STARTED") | changes
    assert VALIDATOR.is_valid(wire)
    assert not accepted(wire)


@pytest.mark.parametrize("wire", [None, 7, "text", [], {}], ids=repr)
def test_schema__refuses_what_is_no_event(wire: object) -> None:
    assert not VALIDATOR.is_valid(wire)
    assert not accepted(wire)
