"""The event contract: what it takes, what it refuses in which words, and that nothing changes it later."""

import copy
import json
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError, validate_call
from sqlalchemy import Table

from selene_core.contract.enums import (
    PENDING_STATUSES,
    TERMINAL_STATUSES,
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import IDEMPOTENCY_REPLAY_CODE, ContractViolation
from selene_core.contract.events import (
    WorkOrderLedgerEventInput,
    check_tenant_id,
    check_work_order_id,
    events_to_json,
    new_work_order_id,
)
from selene_core.contract.frozen_json import MAX_PAYLOAD_BYTES, FrozenDict, FrozenList
from selene_core.contract.rows import AppendResult, WorkOrder, WorkOrderEvent
from selene_core.store.tables import work_order_ledger, work_orders_current

CORRELATION_ID = UUID("12345678-1234-1234-1234-123456789abc")
TOKEN = "0123456789abcdef"
REQUIRED: dict[str, Any] = {
    "work_order_id": "wo_1",
    "correlation_id": CORRELATION_ID,
    "turn_id": 1,
    "event_type": WorkOrderEventType.STEP_STARTED,
    "work_order_status": WorkOrderStatus.EXECUTING,
    "reason_code": 1,
}


def short(value: object) -> str:
    return ascii(value)[:30]


def pairs(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def event(**changes: Any) -> WorkOrderLedgerEventInput:
    return WorkOrderLedgerEventInput(**(REQUIRED | changes))


def refusal(**changes: Any) -> ContractViolation:
    with pytest.raises(ContractViolation) as caught:
        event(**changes)
    return caught.value


# --- words


def test_vocabulary__is_that_of_the_specification() -> None:
    assert list(WorkOrderEventType) == [
        *("WORK_ORDER_CREATED", "FIELD_SET", "FIELD_PROMPTED"),
        *("FIELD_CONFLICT_DETECTED", "FIELD_CONFLICT_RESOLVED", "STATUS_CHANGED"),
        *("STEP_STARTED", "STEP_FINISHED", "STEP_FAILED", "STEP_RETRY_SCHEDULED"),
        *("LEASE_ACQUIRED", "LEASE_RENEWED", "LEASE_RELEASED"),
        *("EXTERNAL_APPROVAL_REQUESTED", "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "EXTERNAL_APPROVAL_RESOLVED"),
        "WORK_ORDER_CANCELED",
    ]
    assert [*WorkOrderStatus] == (
        ["DRAFT", "CLARIFY", "CONFIRM", "EXECUTING", "DONE", "REFUSED", "FAILED", "CANCELED"]
    )
    assert {"DRAFT", "CLARIFY", "CONFIRM"} == PENDING_STATUSES
    assert {"DONE", "REFUSED", "FAILED", "CANCELED"} == TERMINAL_STATUSES


# --- ids

BAD_IDS = [
    *("", " ", "a b", " a", "a ", "a\n", "\n", "a\t", "a\0", "\0", "-a", ".a", "_a", "a%", "a'", 'a"', "a\\"),
    *("é", "ａ", "а", "٣", "a\u200b", "a\u00a0", "a\ud800", "x" * 129),
    *(None, 5, True, 1.0, b"a", ["a"], {"a": 1}),
]
GOOD_IDS = ["a", "Z", "9", "a._:/@+-", "x" * 128]


@pytest.mark.parametrize("value", GOOD_IDS)
def test_check_work_order_id__takes(value: str) -> None:
    assert check_work_order_id(value) == value


@pytest.mark.parametrize("value", BAD_IDS, ids=short)
def test_check_work_order_id__refuses(value: object) -> None:
    with pytest.raises(ContractViolation) as caught:
        check_work_order_id(value)
    assert caught.value.field == "work_order_id"
    assert str(caught.value) == (
        "work_order_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit"
    )


def test_check_tenant_id__is_at_most_64_characters() -> None:
    assert check_tenant_id("t" * 64) == "t" * 64
    with pytest.raises(ContractViolation, match=r"^tenant_id: must be 1\.\.64 "):
        check_tenant_id("t" * 65)


def test_check_tenant_id__returns_plain_text() -> None:
    checked = check_tenant_id(WorkOrderStatus.DRAFT)
    assert (checked, type(checked)) == ("DRAFT", str)


@pytest.mark.parametrize("value", BAD_IDS, ids=short)
def test_check_tenant_id__refuses(value: object) -> None:
    with pytest.raises(ContractViolation, match="tenant_id: "):
        check_tenant_id(value)


def test_new_work_order_id__is_a_uuid_version_7() -> None:
    before, minted, after = time.time_ns() // 10**6, new_work_order_id(), time.time_ns() // 10**6
    uuid = UUID(check_work_order_id(minted).removeprefix("wo_"))
    assert minted == f"wo_{uuid}"
    assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
    assert before <= uuid.int >> 80 <= after


def test_new_work_order_id__sorts_by_time() -> None:
    earlier = new_work_order_id()
    turned = time.time_ns() + 2_000_000
    while time.time_ns() < turned:
        pass
    assert earlier < new_work_order_id()


if sys.version_info < (3, 14):  # from then on the standard library mints it, and counts instead

    def test_uuid7__fills_its_fields_up_to_the_last_nanosecond(monkeypatch: pytest.MonkeyPatch) -> None:
        for nanoseconds, fraction in [(0, 0), (244, 0), (245, 1), (500_000, 2048), (999_999, 4095)]:
            monkeypatch.setattr(time, "time_ns", lambda ns=nanoseconds: 1_700_000_000_000 * 10**6 + ns)
            uuid = UUID(new_work_order_id().removeprefix("wo_"))
            assert (uuid.int >> 80, uuid.int >> 64 & 0xFFFF) == (1_700_000_000_000, 7 << 12 | fraction)


def test_new_work_order_id__does_not_repeat() -> None:
    assert len({new_work_order_id() for _ in range(10_000)}) == 10_000


# --- the envelope


def test_event__has_the_defaults_of_the_specification() -> None:
    assert dict(event()) == REQUIRED | {
        "payload": {},
        **dict.fromkeys(OPTIONAL),
    }


@pytest.mark.parametrize("key", ["work_order_id", "event_type"])
def test_event__needs(key: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        WorkOrderLedgerEventInput(**{name: value for name, value in REQUIRED.items() if name != key})
    assert (caught.value.field, caught.value.rule) == (key, "is required")


ENVELOPE = ["correlation_id", "turn_id", "work_order_status", "reason_code"]


@pytest.mark.parametrize("key", ENVELOPE)
def test_envelope__may_be_left_out(key: str) -> None:
    made = WorkOrderLedgerEventInput(**{name: value for name, value in REQUIRED.items() if name != key})
    assert made == event(**{key: None})
    assert key not in made.to_wire()
    bare = WorkOrderLedgerEventInput(work_order_id="wo_1", event_type=WorkOrderEventType.STEP_STARTED)
    assert list(bare.to_wire()) == ["work_order_id", "event_type", "payload"]


@pytest.mark.parametrize(
    ("changes", "key", "rule"),
    [
        *(({"event_type": "WORK_ORDER_CREATED", key: None}, key, "WORK_ORDER_CREATED") for key in ENVELOPE),
        ({"event_type": "STATUS_CHANGED", "work_order_status": None}, "work_order_status", "STATUS_CHANGED"),
        (
            {"event_type": "STATUS_CHANGED", "work_order_status": "CANCELED", "reason_code": None},
            "reason_code",
            "STATUS_CHANGED to CANCELED",
        ),
        (
            {"event_type": "WORK_ORDER_CANCELED", "work_order_status": "CANCELED", "reason_code": None},
            "reason_code",
            "WORK_ORDER_CANCELED",
        ),
    ],
    ids=short,
)
def test_envelope__is_required_by(changes: dict[str, Any], key: str, rule: str) -> None:
    refused = refusal(**changes)
    assert (refused.field, refused.rule) == (key, f"is required by {rule}")


def test_envelope__a_cancel_needs_no_status() -> None:
    made = event(event_type="WORK_ORDER_CANCELED", work_order_status=None)
    assert made.work_order_status is None


@pytest.mark.parametrize(
    "key",
    [
        *("tenant_id", "work_order_event_id", "work_order_seq", "created_at", "Turn_id", "turn_id "),
        *("lease_owner_id", "lease_token_hash", "lease_expires_at"),
    ],
)
def test_event__refuses_the_key(key: str) -> None:
    refused = refusal(**{key: None})
    assert (refused.field, refused.rule) == (key, "is not a key of an event")


@pytest.mark.parametrize(
    ("key", "shown"), [("x" * 500, "x" * 39 + "…"), ("a\nb\x85", "a?b?")], ids=["long", "control"]
)
def test_event__shows_an_unknown_key_short_and_printable(key: str, shown: str) -> None:
    assert refusal(**{key: 1}).field == shown
    assert refusal(**of_type("STATUS_CHANGED", {key: 1})).field == f"payload.{shown}"
    assert refusal(payload={key: b""}).field == f"payload.{shown}"


def test_event__refuses_a_key_with_a_lone_surrogate() -> None:
    assert str(refusal(**{"\ud800": 1})) == "?: is not a key of an event"


OPTIONAL = ["step_id", "step_input_hash", "idempotency_key", "occurred_at", "expected_seq", "lease_token"]
TAKEN: dict[str, list[Any]] = {
    "work_order_id": GOOD_IDS,
    "turn_id": [1, 2**63 - 1],
    "reason_code": [1, 2**32 - 1],
    "expected_seq": [0, 2**63 - 1],
    "step_id": ["s", "s" * 96],
    "step_input_hash": ["h", "a b", "h" * 128, "ä 漢 😀", "sha256:ab/+="],
    "idempotency_key": ["k", "a b", "k" * 128, "ä\u00a0漢", "😀" * 128],
    "lease_token": ["t" * 16, "t" * 128, "!~" * 8],
}


@pytest.mark.parametrize(("field", "value"), [*pairs(TAKEN), *((name, None) for name in OPTIONAL)], ids=short)
def test_event__takes(field: str, value: object) -> None:
    assert getattr(event(**{field: value}), field) == value


NO_INTEGERS = [True, False, 1.0, 0.5, "1", b"1", Decimal(1), [1], float("nan")]
SIZE_RULE = "must be at most 16384 bytes as jsonb text, and nested at most 32 levels deep"
NO_LINES = ["a\0", "a\n", "a\tb", "\x1f", "a\x7f", "a\x85b", "a\x9f", "a\ud800", 5, b"h"]
BLANKS = ["", " ", "  ", "\u00a0", "\u2003\u3000", "\u2028"]
REFUSED: dict[str, list[Any]] = {
    "work_order_id": BAD_IDS,
    "turn_id": [*NO_INTEGERS, 0, -1, 2**63],
    "reason_code": [*NO_INTEGERS, 0, -1, 2**32],
    "expected_seq": [*NO_INTEGERS, -1, 2**63],
    "step_id": [*(value for value in BAD_IDS if value is not None), "s" * 97],
    "step_input_hash": [*NO_LINES, *BLANKS, " h", "h ", "h" * 129],
    "idempotency_key": [*NO_LINES, *BLANKS, " k", "k ", "k\u00a0", "k" * 129],
    "lease_token": [
        "",
        "t" * 15,
        "t" * 129,
        "t" * 16 + " ",
        "t" * 16 + "\n",
        "ä" * 16,
        "t" * 16 + "\x7f",
        10**20,
    ],
    "event_type": [None, "", "UNKNOWN", "field_set", "FIELD_SET ", 1, [], "DRAFT"],
    "work_order_status": ["", "PENDING", "draft", "DRAFT\n", 1, [], {}],
    "payload": [None, [], "{}", 1, b"{}", (("a", 1),)],
}


@pytest.mark.parametrize(("field", "value"), pairs(REFUSED), ids=short)
def test_event__refuses(field: str, value: object) -> None:
    refused = refusal(**{field: value})
    assert refused.field == field
    assert str(refused) == f"{field}: {refused.rule}"
    assert (refused.rule or "").startswith("must be ")


def test_event__refuses_an_integer_too_long_to_print() -> None:
    assert refusal(turn_id=10**5000).field == "turn_id"
    assert refusal(payload={"x": 10**5000}).field == "payload.x"


@pytest.mark.parametrize("event_type", ["LEASE_ACQUIRED", "LEASE_RENEWED", "LEASE_RELEASED"])
def test_event__leaves_leases_to_the_lease_functions(event_type: str) -> None:
    for given_type in (event_type, WorkOrderEventType(event_type)):
        refused = refusal(event_type=given_type)
        assert refused.field == "event_type"
        assert (refused.rule or "").endswith("; LEASE_* are written by the lease functions only")


@pytest.mark.parametrize("status", WorkOrderStatus)
def test_event__creates_in_a_status_that_is_not_terminal(status: WorkOrderStatus) -> None:
    created = {"event_type": "WORK_ORDER_CREATED", "work_order_status": status}
    if status in TERMINAL_STATUSES:
        assert (
            refusal(**created).rule
            == "must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING in WORK_ORDER_CREATED"
        )
    else:
        assert event(**created).work_order_status is status


@pytest.mark.parametrize("status", WorkOrderStatus)
def test_event__cancels_with_the_status_canceled(status: WorkOrderStatus) -> None:
    canceled = {"event_type": "WORK_ORDER_CANCELED", "work_order_status": status}
    if status is WorkOrderStatus.CANCELED:
        assert event(**canceled).work_order_status is status
    else:
        refused = refusal(**canceled)
        assert (refused.field, refused.rule) == (
            "work_order_status",
            "must be CANCELED in WORK_ORDER_CANCELED",
        )


def test_event__leaves_other_uses_of_canceled_to_the_database() -> None:
    assert event(event_type="STEP_FINISHED", work_order_status="CANCELED").work_order_status == "CANCELED"


def test_event__takes_enums_by_their_text() -> None:
    given_text = event(event_type="STEP_STARTED", work_order_status="EXECUTING")
    assert given_text == event()
    assert given_text.event_type is WorkOrderEventType.STEP_STARTED
    assert given_text.work_order_status is WorkOrderStatus.EXECUTING


@pytest.mark.parametrize("value", [str(CORRELATION_ID), str(CORRELATION_ID).upper(), CORRELATION_ID])
def test_event__takes_the_correlation_id(value: object) -> None:
    assert event(correlation_id=value).correlation_id == CORRELATION_ID


@pytest.mark.parametrize(
    "value",
    [
        *(CORRELATION_ID.hex, CORRELATION_ID.urn, f"{{{CORRELATION_ID}}}", f"{CORRELATION_ID}\n", ""),
        *(CORRELATION_ID.int, CORRELATION_ID.bytes, "1234567-81234-1234-1234-123456789abc", "٣" + "1" * 35),
    ],
    ids=short,
)
def test_event__refuses_the_correlation_id(value: object) -> None:
    assert refusal(correlation_id=value).field == "correlation_id"


# --- timestamps

MORNING = datetime(2026, 7, 1, 10, tzinfo=UTC)
EAST = timezone(timedelta(hours=15))
WEST = timezone(-timedelta(hours=15))


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-07-01T10:00:00Z", MORNING),
        ("2026-07-01T10:00:00.5+02:00", datetime(2026, 7, 1, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-07-01T23:59:59.123456-15:59", datetime(2026, 7, 2, 15, 58, 59, 123_456, tzinfo=UTC)),
        ("2024-02-29T00:00:00-00:00", datetime(2024, 2, 29, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime.min.replace(tzinfo=UTC)),
        ("0001-01-01T13:00:00+13:00", datetime.min.replace(tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
        ("9999-12-31T11:59:59.999999-12:00", datetime.max.replace(tzinfo=UTC)),
        (datetime(2026, 7, 1, 10, tzinfo=EAST), datetime(2026, 6, 30, 19, tzinfo=UTC)),
    ],
    ids=str,
)
def test_occurred_at__is_kept_in_utc(value: object, moment: datetime) -> None:
    kept = event(occurred_at=value).occurred_at
    assert kept == moment
    assert kept is not None
    assert kept.tzinfo is UTC


BAD_TIMESTAMPS: list[Any] = [
    *("", "now", "infinity", "-infinity", "epoch", "today", "2026-07-01", "10:00:00Z", "2026-07-01T10:00:00"),
    *("2026-07-01t10:00:00Z", "2026-07-01T10:00:00z", "2026-07-01 10:00:00Z", "2026-07-01T10:00Z"),
    *("2026-07-01T10:00:00Z\n", " 2026-07-01T10:00:00Z", "2026-07-01T10:00:00.Z", "2026-07-01T10:00:00,5Z"),
    *("2026-07-01T10:00:00.1234567Z", "2026-07-01T24:00:00Z", "2026-07-01T23:59:60Z", "2026-07-01T23:60:00Z"),
    *("2026-07-01T10:00:00+16:00", "2026-07-01T10:00:00+0200", "2026-07-01T10:00:00+02", "20260701T100000Z"),
    *(
        "2026-02-30T10:00:00Z",
        "2025-02-29T10:00:00Z",
        "2026-13-01T10:00:00Z",
        "2026-00-01T10:00:00Z",
        "2026-01-00T10:00:00Z",
    ),
    *("0000-01-01T10:00:00Z", "0000-12-31T23:59:59Z", "9999-12-31T24:00:00Z", "10000-01-01T00:00:00Z"),
    *(
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59.999999-00:01",
        "２026-07-01T10:00:00Z",
        "\0",
        "\ud800",
    ),
    *("0001-01-01T00:00:00+15:59", "9999-12-31T23:59:59-15:59"),
]


@pytest.mark.parametrize(
    "value",
    [
        *BAD_TIMESTAMPS,
        *(1751364000, 1751364000.5, True, b"2026-07-01T10:00:00Z", MORNING.date()),
        *(MORNING.replace(tzinfo=None), datetime.min.replace(tzinfo=EAST), datetime.max.replace(tzinfo=WEST)),
    ],
    ids=short,
)
def test_occurred_at__refuses(value: object) -> None:
    refused = refusal(occurred_at=value)
    assert (refused.field, refused.rule) == (
        "occurred_at",
        "must be a time with an offset as in RFC 3339, in the years 1 to 9999 of UTC",
    )


# --- payloads by event type

PAYLOADS: list[tuple[str, dict[str, Any]]] = [
    ("WORK_ORDER_CREATED", {}),
    ("WORK_ORDER_CREATED", {"fields": {}}),
    ("WORK_ORDER_CREATED", {"fields": {"a.b:c-d_9": [1], "f" * 64: None}, "requester_user_id": "u" * 128}),
    ("FIELD_SET", {"field_key": "f", "value": None}),
    ("FIELD_SET", {"field_key": "f", "value": {"any": ["thing", 1, 1.5, True, None]}}),
    ("FIELD_PROMPTED", {"field_key": "f", "prompt_dedupe_key": "d" * 128}),
    ("FIELD_PROMPTED", {"field_key": "f", "prompt_dedupe_key": "f#1"}),
    ("FIELD_CONFLICT_DETECTED", {"field_key": "f"}),
    ("FIELD_CONFLICT_DETECTED", {"field_key": "f", "candidates": []}),
    ("FIELD_CONFLICT_DETECTED", {"field_key": "f", "candidates": [1, None]}),
    ("FIELD_CONFLICT_RESOLVED", {"field_key": "f", "value": None}),
    ("STATUS_CHANGED", {}),
    ("STATUS_CHANGED", {"previous_status": "DRAFT", "note": "n" * 4096}),
    ("STATUS_CHANGED", {"previous_status": WorkOrderStatus.DRAFT, "note": "line\nline"}),
    *((f"STEP_{what}", {"resource": "r", "x": [1]}) for what in ("STARTED", "FINISHED", "FAILED")),
    ("STEP_RETRY_SCHEDULED", {}),
    ("EXTERNAL_APPROVAL_REQUESTED", {"request_id": "r" * 128, "target_user_id": "u" * 128}),
    (
        "EXTERNAL_APPROVAL_REQUESTED",
        {"request_id": "r", "target_user_id": "u", "expires_at": "2026-07-01T10:00:00+02:00"},
    ),
    ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", {"request_id": "r"}),
    *(
        ("EXTERNAL_APPROVAL_RESOLVED", {"request_id": "r", "outcome": o})
        for o in ("APPROVED", "REJECTED", "EXPIRED")
    ),
    ("WORK_ORDER_CANCELED", {}),
    ("WORK_ORDER_CANCELED", {"note": ""}),
]


def of_type(event_type: str, payload: Any) -> dict[str, Any]:
    status = "CANCELED" if event_type == "WORK_ORDER_CANCELED" else "DRAFT"
    return {"event_type": event_type, "work_order_status": status, "payload": payload}


@pytest.mark.parametrize(("event_type", "payload"), PAYLOADS)
def test_payload__takes(event_type: str, payload: dict[str, Any]) -> None:
    assert event(**of_type(event_type, payload)).payload == payload


BAD_KEYS: list[Any] = ["", " ", "a b", "a\n", "é", "a/b", "a@b", "f" * 65]
BAD_PAYLOADS: dict[str, dict[str, list[Any]]] = {
    "WORK_ORDER_CREATED": {
        "fields": [None, [], "f", 1, *({key: 1} for key in BAD_KEYS)],
        "requester_user_id": ["", " ", "a b", "u" * 129, None, 1],
    },
    "FIELD_SET": {"field_key": [*BAD_KEYS, "a\0", None, 1, ["f"]]},
    "FIELD_PROMPTED": {
        "field_key": [*BAD_KEYS, None],
        "prompt_dedupe_key": ["", "d" * 129, " d", "d ", "d\n", "\0", "\ud800", None, 1],
    },
    "FIELD_CONFLICT_DETECTED": {"field_key": [*BAD_KEYS, None], "candidates": [None, {}, "a", 1]},
    "FIELD_CONFLICT_RESOLVED": {"field_key": [*BAD_KEYS, None]},
    "STATUS_CHANGED": {"previous_status": ["draft", "", None, 1, []], "note": ["n" * 4097, None, 1, ["n"]]},
    "EXTERNAL_APPROVAL_REQUESTED": {
        "request_id": ["", "a b", "r" * 129, None, 1],
        "target_user_id": ["", "a\n", "u" * 129, None, 1],
        "expires_at": [*BAD_TIMESTAMPS, None, 1751364000],
    },
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": {"request_id": ["", "-a", None]},
    "EXTERNAL_APPROVAL_RESOLVED": {
        "request_id": ["", "-a", None],
        "outcome": ["", "approved", "PENDING", None, 1, {}],
    },
    "WORK_ORDER_CANCELED": {"note": ["n" * 4097, None, 1, ["n"]]},
}
FULL = {event_type: payload for event_type, payload in PAYLOADS if payload}


@pytest.mark.parametrize(
    ("event_type", "key", "value"),
    [(event_type, *pair) for event_type, table in BAD_PAYLOADS.items() for pair in pairs(table)],
    ids=short,
)
def test_payload__refuses(event_type: str, key: str, value: Any) -> None:
    refused = refusal(**of_type(event_type, FULL.get(event_type, {}) | {key: value}))
    assert (refused.field or "").startswith(f"payload.{key}")
    assert (refused.rule or "").startswith("must ")


NEEDED: dict[str, list[Any]] = {
    "FIELD_SET": ["field_key", "value"],
    "FIELD_PROMPTED": ["field_key", "prompt_dedupe_key"],
    "FIELD_CONFLICT_DETECTED": ["field_key"],
    "FIELD_CONFLICT_RESOLVED": ["field_key", "value"],
    "EXTERNAL_APPROVAL_REQUESTED": ["request_id", "target_user_id"],
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": ["request_id"],
    "EXTERNAL_APPROVAL_RESOLVED": ["request_id", "outcome"],
}


@pytest.mark.parametrize(("event_type", "key"), pairs(NEEDED))
def test_payload__needs(event_type: str, key: str) -> None:
    payload = {name: value for name, value in FULL[event_type].items() if name != key}
    refused = refusal(**of_type(event_type, payload))
    assert (refused.field, refused.rule) == (f"payload.{key}", f"is required by {event_type}")


@pytest.mark.parametrize("event_type", [kind for kind, _ in PAYLOADS if not kind.startswith("STEP_")])
def test_payload__refuses_unknown_keys(event_type: str) -> None:
    refused = refusal(**of_type(event_type, FULL.get(event_type, {}) | {"extra": 1}))
    assert (refused.field, refused.rule) == ("payload.extra", f"is not a key of {event_type}")


def test_payload__may_be_left_out_only_where_nothing_is_required() -> None:
    assert event(event_type="STATUS_CHANGED").payload == {}
    assert refusal(event_type="FIELD_SET").field == "payload.field_key"


# --- payloads as JSON


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -(2**63),
        2**63 - 1,
        0.1,
        -0.0,
        1e-300,
        1e18,
        "",
        "ä漢😀\n\x01\x7f",
        [],
        {},
        [[{}]],
    ],
    ids=short,
)
def test_json__takes(value: object) -> None:
    kept = event(payload={"x": value}).payload["x"]
    assert (kept, type(kept) in (FrozenDict, FrozenList, type(value))) == (value, True)


@pytest.mark.parametrize(
    "value",
    [
        *((), (1,), {1}, frozenset(), b"x", bytearray(b"x"), Decimal(1), 1j, object(), print, range(2)),
        *(MORNING, CORRELATION_ID),
        *(
            float("nan"),
            float("inf"),
            float("-inf"),
            2**63,
            -(2**63) - 1,
            10**5000,
            1e300,
            2.0**63,
            -(2.0**64),
        ),
        *("\0", "a\0b", "\ud800", "\udfff", "\ude00\ud83d"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: [1, v], lambda v: {"k": v}], ids=["", "list", "dict"]
)
def test_json__refuses(value: object, wrap: Callable[[object], object]) -> None:
    refused = refusal(payload={"x": wrap(value)})
    assert (refused.field or "").removesuffix("[1]").removesuffix(".k") == "payload.x"


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), b"a", "\0", "\ud800"], ids=short)
def test_json__refuses_the_key(key: object) -> None:
    assert refusal(payload={key: 1}).field == "payload"
    assert refusal(payload={"x": [{key: 1}]}).field == "payload.x[0]"


def nested(levels: int, kind: type, inside: Any = 1) -> Any:
    for _ in range(levels):
        inside = [inside] if kind is list else {"k": inside}
    return inside


@pytest.mark.parametrize("kind", [list, dict])
def test_json__is_at_most_32_levels_deep(kind: type) -> None:
    for deepest in (nested(31, kind), nested(30, kind, []), nested(30, kind, {})):
        assert event(payload={"x": deepest}).payload["x"] == deepest
    for too_deep in (nested(32, kind), nested(31, kind, []), nested(31, kind, {}), nested(100_000, kind)):
        refused = refusal(payload={"x": too_deep})
        assert (refused.field, refused.rule) == ("payload", SIZE_RULE)


def test_json__refuses_a_cycle() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    assert refusal(payload=loop).rule == SIZE_RULE


def test_json__gives_up_early_on_shared_branches() -> None:
    value: list[Any] = []
    for _ in range(30):
        value = [value, value]
    assert refusal(payload={"x": value}).rule == SIZE_RULE


@pytest.mark.parametrize(
    ("value", "jsonb_text"),
    [
        *((None, "null"), (True, "true"), (False, "false"), (0, "0"), (-(2**63), "-9223372036854775808")),
        *((1.5, "1.5"), (1.0, "1.0"), (-0.0, "0.0"), (1e-7, "0.0000001"), (1.5e-10, "0.00000000015")),
        *((1e16, "10000000000000000"), (-1e18, "-1000000000000000000"), (5e-324, "0." + "0" * 323 + "5")),
        *(("", '""'), ("a/b", '"a/b"'), ('"\\', r'"\"\\"'), ("\b\f\n\r\t", r'"\b\f\n\r\t"')),
        *(("\x01\x1f", r'"\u0001\u001f"'), ("\x7f\x85\u2028", '"\x7f\x85\u2028"'), ("é漢😀", '"é漢😀"')),
        *(([], "[]"), ({}, "{}"), ([[], {}], "[[], {}]"), ({"a": 1, "b": [1, 2]}, '{"a": 1, "b": [1, 2]}')),
    ],
    ids=short,
)
def test_json__is_at_most_16384_bytes_as_postgresql_prints_it(value: object, jsonb_text: str) -> None:
    fits = MAX_PAYLOAD_BYTES - len(f'{{"x": {jsonb_text}, "pad": ""}}'.encode())
    event(payload={"x": value, "pad": "." * fits})
    refused = refusal(payload={"x": value, "pad": "." * (fits + 1)})
    assert (refused.field, refused.rule) == ("payload", SIZE_RULE)


@pytest.mark.parametrize("huge", ["x" * 10**7, [0] * 10**6, {str(i): i for i in range(10**5)}])
def test_json__refuses_what_is_huge(huge: object) -> None:
    assert refusal(payload={"x": huge}).rule == SIZE_RULE


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(-9e18, 9e18, allow_nan=False)
    | texts
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
payloads = st.dictionaries(texts, json_values, max_size=4)


# --- immutability


@given(payloads)
def test_event__round_trips(payload: dict[str, Any]) -> None:
    original = event(payload=payload, occurred_at="2026-07-01T10:00:00.5Z", lease_token=TOKEN)
    twins = [
        WorkOrderLedgerEventInput.from_mapping(original.to_wire()),
        WorkOrderLedgerEventInput.from_mapping(json.loads(json.dumps(original.to_wire()))),
        WorkOrderLedgerEventInput.model_validate_json(original.model_dump_json()),
        WorkOrderLedgerEventInput(**dict(original)),
        pickle.loads(pickle.dumps(original)),
        copy.copy(original),
        copy.deepcopy(original),
        original.model_copy(),
    ]
    for twin in twins:
        assert twin == original
        assert hash(twin) == hash(original)
        assert twin.payload == payload
        assert type(twin.payload) is FrozenDict


def test_event__does_not_follow_its_callers_objects() -> None:
    payload: dict[str, Any] = {"list": [1], "dict": {"a": 1}}
    made = event(payload=payload)
    payload["list"].append(2)
    payload["dict"]["b"] = 2
    payload["more"] = 3
    assert made.payload == {"list": [1], "dict": {"a": 1}}


def test_event__does_not_share_its_default_payload() -> None:
    event().to_wire()["payload"]["x"] = 1
    assert event().payload == {}


def test_event__cannot_be_assigned_to() -> None:
    with pytest.raises(ValidationError):
        event().turn_id = 2  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", 1),
        lambda d: d.__delitem__("d"),
        lambda d: d.__ior__({"a": 1}),
        lambda d: d.clear(),
        lambda d: d.pop("d"),
        lambda d: d.popitem(),
        lambda d: d.setdefault("a", 1),
        lambda d: d.update(a=1),
        lambda d: d["d"].update(a=1),
        lambda d: d["l"].__setitem__(0, 1),
        lambda d: d["l"].__delitem__(0),
        lambda d: d["l"].__iadd__([1]),
        lambda d: d["l"].__imul__(2),
        lambda d: d["l"].append(1),
        lambda d: d["l"].clear(),
        lambda d: d["l"].extend([1]),
        lambda d: d["l"].insert(0, 1),
        lambda d: d["l"].pop(),
        lambda d: d["l"].remove(3),
        lambda d: d["l"].reverse(),
        lambda d: d["l"].sort(),
    ],
)
@pytest.mark.parametrize("again", [lambda e: e, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_payload__cannot_be_changed(change: Callable[[Any], object], again: Callable[[Any], Any]) -> None:
    made = again(event(payload={"d": {"x": 1}, "l": [3, 2]}))
    with pytest.raises(TypeError, match="cannot be changed"):
        change(made.payload)
    assert made.payload == {"d": {"x": 1}, "l": [3, 2]}


def test_payload__keeps_plain_values_only() -> None:
    class Reason(int):
        pass

    kept = event(
        payload={"s": WorkOrderStatus.DRAFT, "i": Reason(5), "f": type("F", (float,), {})(0.5)}
    ).payload
    assert [type(value) for value in kept.values()] == [str, int, float]
    assert kept == {"s": "DRAFT", "i": 5, "f": 0.5}


def test_event__validates_what_a_copy_updates() -> None:
    assert event().model_copy(update={"turn_id": 2}) == event(turn_id=2)
    with pytest.raises(ContractViolation, match="turn_id: "):
        event().model_copy(update={"turn_id": 0})


# --- the wire


def test_to_wire__is_what_the_function_takes() -> None:
    made = event(
        event_type="FIELD_SET",
        payload={"field_key": "f", "value": [{"a": None}]},
        step_id="s",
        step_input_hash="h",
        idempotency_key="k",
        occurred_at="0985-07-01T12:00:00+02:00",
        expected_seq=0,
        lease_token=TOKEN,
    )
    wire = made.to_wire()
    assert wire == {
        "work_order_id": "wo_1",
        "correlation_id": str(CORRELATION_ID),
        "turn_id": 1,
        "event_type": "FIELD_SET",
        "work_order_status": "EXECUTING",
        "reason_code": 1,
        "payload": {"field_key": "f", "value": [{"a": None}]},
        "step_id": "s",
        "step_input_hash": "h",
        "idempotency_key": "k",
        "occurred_at": "0985-07-01T10:00:00.000000Z",
        "expected_seq": 0,
        "lease_token": TOKEN,
    }
    assert {type(value) for value in wire.values()} == {str, int, dict}
    assert type(wire["payload"]["value"]) is list
    assert type(wire["payload"]["value"][0]) is dict


def test_to_wire__leaves_out_what_is_none() -> None:
    assert list(event().to_wire()) == [*REQUIRED, "payload"]


@pytest.mark.parametrize("value", [None, [], "text", 7, [("turn_id", 1)]], ids=short)
def test_from_mapping__refuses_what_is_no_object(value: object) -> None:
    with pytest.raises(ContractViolation, match=r"^event: must be an object$"):
        WorkOrderLedgerEventInput.from_mapping(value)


@pytest.mark.parametrize("key", [1, None, ("a",), "extra"], ids=short)
def test_from_mapping__refuses_the_key(key: object) -> None:
    with pytest.raises(ContractViolation):
        WorkOrderLedgerEventInput.from_mapping(REQUIRED | {key: 1})


def test_from_mapping__takes_null_for_what_is_optional() -> None:
    assert (
        WorkOrderLedgerEventInput.from_mapping(REQUIRED | {"step_id": None, "expected_seq": None}) == event()
    )


def test_model_validate__speaks_of_the_contract_too() -> None:
    with pytest.raises(ContractViolation, match="turn_id: "):
        WorkOrderLedgerEventInput.model_validate(REQUIRED | {"turn_id": 0})
    with pytest.raises(ContractViolation, match="turn_id: "):
        WorkOrderLedgerEventInput.model_validate_json(json.dumps(event().to_wire() | {"turn_id": 0}))


@pytest.mark.parametrize("text", ["", "{", "null", '{"turn_id": NaN}', "[1]"])
def test_model_validate_json__refuses_what_is_no_event(text: str) -> None:
    with pytest.raises(ContractViolation):
        WorkOrderLedgerEventInput.model_validate_json(text)


# --- as a part of a host's models


class Form(BaseModel):
    events: list[WorkOrderLedgerEventInput]


class Envelope(BaseModel):
    form: Form | None = None
    either: int | WorkOrderLedgerEventInput | None = None
    named: dict[str, tuple[WorkOrderLedgerEventInput, ...]] = {}


@dataclass
class Record:
    event: WorkOrderLedgerEventInput


@validate_call
def taken(event: WorkOrderLedgerEventInput) -> WorkOrderLedgerEventInput:
    return event


EVENT_TYPE: TypeAdapter[WorkOrderLedgerEventInput] = TypeAdapter(WorkOrderLedgerEventInput)
HOSTS: dict[str, tuple[Callable[[Any], object], tuple[str | int, ...]]] = {
    "constructor": (lambda data: Form(events=[data]), ("events", 0)),
    "model_validate": (lambda data: Form.model_validate({"events": [event(), data]}), ("events", 1)),
    "nested": (lambda data: Envelope(form={"events": [data]}), ("form", "events", 0)),
    "mapping": (lambda data: Envelope(named={"a": (data,)}), ("named", "a", 0)),
    "dataclass": (lambda data: TypeAdapter(Record).validate_python({"event": data}), ("event",)),
    "call": (lambda data: taken(data), (0,)),
    "type": (EVENT_TYPE.validate_python, ()),
    "list": (lambda data: TypeAdapter(list[WorkOrderLedgerEventInput]).validate_python([data]), (0,)),
    "json": (lambda data: EVENT_TYPE.validate_json(json.dumps(data)), ()),
    "json, nested": (lambda data: Form.model_validate_json(json.dumps({"events": [data]})), ("events", 0)),
    "attributes": (lambda data: EVENT_TYPE.validate_python(data, from_attributes=True), ()),
}
WIRE: dict[str, Any] = event(event_type="FIELD_SET", payload={"field_key": "f", "value": 1}).to_wire()
FAULTS: dict[str, tuple[Any, list[tuple[str, ...]]]] = {
    "a value": (WIRE | {"turn_id": 0}, [("turn_id",)]),
    "two values": (WIRE | {"turn_id": 0, "reason_code": -1}, [("turn_id",), ("reason_code",)]),
    "a key that is missing": ({k: v for k, v in WIRE.items() if k != "event_type"}, [("event_type",)]),
    "a key that is unknown": (WIRE | {"extra": 1}, [("extra",)]),
    "no object": (7, [()]),
    "null": (WIRE | {"payload": None}, [("payload",)]),
    "a payload's value": (WIRE | {"payload": {"field_key": " ", "value": 1}}, [("payload", "field_key")]),
    "a payload's missing key": (WIRE | {"payload": {"field_key": "f"}}, [("payload", "value")]),
    "inside a payload": (WIRE | {"payload": {"x": [{"y": 2**63}]}}, [("payload", "x[0].y")]),
    "a status": (WIRE | {"event_type": "WORK_ORDER_CANCELED", "payload": {}}, [("work_order_status",)]),
    "a lease event": (WIRE | {"event_type": "LEASE_RENEWED"}, [("event_type",)]),
    "braces in a key": (WIRE | {"payload": {"{x}": "\0"}}, [("payload", "{x}")]),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_host__gets_its_own_error_with_the_place(host: str, fault: str) -> None:
    validate, place = HOSTS[host]
    data, faults = FAULTS[fault]
    with pytest.raises(ValidationError) as caught:
        validate(data)
    lines = caught.value.errors()
    assert [line["loc"] for line in lines] == [(*place, *inside) for inside in faults]
    assert {line["input"] for line in lines} == {"…"}
    if isinstance(data, dict):
        refused = ours(data)
        assert (refused.field or "") == ".".join(faults[0])
        assert refused.rule == lines[0]["msg"] or lines[0]["type"] in ("missing", "extra_forbidden")
    json.dumps(lines, allow_nan=False).encode()


def ours(data: dict[str, Any]) -> ContractViolation:
    """Return what our own constructor says to the same."""
    with pytest.raises(ContractViolation) as caught:
        WorkOrderLedgerEventInput(**data)
    return caught.value


@pytest.mark.parametrize("host", HOSTS)
def test_host__takes_what_is_an_event(host: str) -> None:
    HOSTS[host][0](WIRE)


def test_host__in_a_union_the_other_members_are_tried() -> None:
    assert Envelope.model_validate({"either": WIRE}).either == WorkOrderLedgerEventInput(**WIRE)
    assert Envelope.model_validate({"either": 7}).either == 7
    with pytest.raises(ValidationError) as caught:
        Envelope.model_validate({"either": WIRE | {"turn_id": 0}})
    assert {(line["loc"][0], line["loc"][-1]) for line in caught.value.errors()} == {
        ("either", "int"),
        ("either", "turn_id"),
    }


def test_host__keeps_an_event_that_is_one() -> None:
    made = event()
    assert Form(events=[made]).events[0] is made
    again = Form.model_validate_json(Form(events=[made]).model_dump_json())
    assert again.events == [made]
    assert pickle.loads(pickle.dumps(again)) == again
    assert copy.deepcopy(again) == again


def test_host__may_have_a_subclass() -> None:
    class Ours(WorkOrderLedgerEventInput):
        """An event of the host's."""

    with pytest.raises(ContractViolation, match="turn_id: "):
        Ours(**WIRE | {"turn_id": 0})
    with pytest.raises(ValidationError):
        TypeAdapter(list[Ours]).validate_python([WIRE | {"turn_id": 0}])


@pytest.mark.parametrize(
    "changes", [{}, {"turn_id": 0}, {"extra": 1}, {"payload": {"x": b""}}, {"event_type": ...}]
)
@pytest.mark.parametrize("host", [name for name in HOSTS if "json" not in name])
def test_host__is_shown_no_value(host: str, changes: dict[str, Any]) -> None:
    secret = "secret token with blanks" if not changes else "secret-token-no-blanks"
    data = WIRE | {"lease_token": secret} | changes
    with pytest.raises(ValidationError) as caught:
        HOSTS[host][0]({name: value for name, value in data.items() if value is not ...})
    assert "secret" not in str(caught.value) + "".join(traceback.format_exception(caught.value))


def test_model_json_schema__works_for_those_who_embed_the_model() -> None:
    assert set(WorkOrderLedgerEventInput.model_json_schema()["required"]) == {"work_order_id", "event_type"}


# --- secrets


def test_lease_token__is_not_shown() -> None:
    made = event(lease_token=TOKEN)
    assert TOKEN not in repr(made) + str(made)
    assert made.to_wire()["lease_token"] == TOKEN


@pytest.mark.parametrize("changes", [{}, {"turn_id": 0}, {"extra": 1}, {"payload": {"x": b""}}])
def test_lease_token__is_in_no_error(changes: dict[str, Any]) -> None:
    secret = "secret token with blanks" if not changes else "secret-token-no-blanks"
    refused = refusal(lease_token=secret, **changes)
    assert "secret" not in repr(refused) + "".join(traceback.format_exception(refused))


@given(st.sampled_from(sorted(WorkOrderLedgerEventInput.model_fields)), texts)
def test_error__does_not_show_the_value(field: str, value: str) -> None:
    marked = f"\n{value}MARK"
    assert "MARK" not in repr(refusal(**{field: marked}))


def test_events_to_json__writes_what_to_wire_returns() -> None:
    values: list[Any] = [
        None,
        True,
        False,
        0,
        -(2**63),
        1e15,
        -0.0,
        'é\u2028\U0001f600"\\',
        [],
        {},
        [{"a": [None]}],
    ]
    events = [
        event(event_type="STEP_STARTED", payload={"value": value}, occurred_at="2026-01-13T08:40:25+02:00")
        for value in values
    ]
    events.append(WorkOrderLedgerEventInput(work_order_id="w", event_type=WorkOrderEventType.STEP_STARTED))
    wires = [made.to_wire() for made in events]
    assert events_to_json(events) == json.dumps(wires, ensure_ascii=False, separators=(",", ":"))


# --- rows


def test_append_result__has_a_code_when_replayed() -> None:
    result = AppendResult(1, 1, False, MORNING)
    assert result.code is None
    assert AppendResult(1, 1, True, result.created_at).code == IDEMPOTENCY_REPLAY_CODE


@pytest.mark.parametrize(
    ("row", "table"), [(WorkOrder, work_orders_current), (WorkOrderEvent, work_order_ledger)]
)
def test_row__has_the_columns_of_its_table(row: type[Any], table: Table) -> None:
    """Not their order: a table's own is what costs least to write."""
    assert sorted(column.name for column in fields(row)) == sorted(column.name for column in table.columns)


@pytest.mark.parametrize("row", [WorkOrder, WorkOrderEvent])
def test_row__is_frozen_and_hides_the_token_hash(row: Any) -> None:
    made = row(*(column.name for column in fields(row)))
    assert "lease_token_hash" not in repr(made)
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(FrozenInstanceError):
        made.turn_id = 2
    with pytest.raises((TypeError, AttributeError)):
        made.other = 2
