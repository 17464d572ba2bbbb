"""The rules of the event contract: each as a sentence, a check and JSON Schema (contract §2 and §3).

EVENT_RULES has a rule for each key of an event, PAYLOAD_RULES the keys of each event type's payload.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from selene_core.contract.enums import (
    TERMINAL_STATUSES,
    ApprovalOutcome,
    ConversationRole,
    ConversationSource,
    IdentityStatus,
    PrivacyScope,
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import ContractViolation
from selene_core.contract.frozen_json import MAX_INT64, jsonb_order, label

T_co = TypeVar("T_co", covariant=True)
E = TypeVar("E", bound=StrEnum)

MAX_TENANT_ID: Final = 64
MAX_ID: Final = 128
MAX_STEP_ID: Final = 96
MAX_STEP_INPUT_HASH: Final = 128
MAX_IDEMPOTENCY_KEY: Final = 128
MAX_PROMPT_DEDUPE_KEY: Final = 128
MAX_FIELD_KEY: Final = 64
MAX_NOTE: Final = 4096
MIN_LEASE_TOKEN: Final = 16
MAX_LEASE_TOKEN: Final = 128
MAX_LEASE_TTL_MS: Final = 3_600_000
MAX_MAX_RETRIES: Final = 1024
MAX_STEP_MS: Final = 31_536_000_000  # 365 days
MAX_LANGUAGE_TAG: Final = 35
MAX_DEVICE_TYPE: Final = 64
MAX_AUDIO_PROFILE_REF: Final = 256
MAX_TURN_TEXT_BYTES: Final = 65_536
MAX_REASON_CODE: Final = 2**32 - 1
MIN_TIMESTAMP: Final = datetime.min.replace(tzinfo=UTC)
MAX_TIMESTAMP: Final = datetime.max.replace(tzinfo=UTC)

# Each pattern holds for the whole text, and means the same to Python, PostgreSQL and JSON Schema (ECMA-262).
# First Unicode's control characters and the surrogates, then its other white space.
_CONTROL = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_BLANK = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"
FIELD_KEY_PATTERN: Final = r"[A-Za-z0-9_.:-]+"
PRINTABLE_PATTERN: Final = r"[!-~]+"
TEXT_PATTERN: Final = r"[^\x00\ud800-\udfff]*"
TRIMMED_PATTERN: Final = rf"[^{_CONTROL}{_BLANK}]([^{_CONTROL}]*[^{_CONTROL}{_BLANK}])?"
LANGUAGE_PATTERN: Final = r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*"
UUID_PATTERN: Final = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
TIMESTAMP_PATTERN: Final = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
    r"(Z|[+-](0[0-9]|1[0-5]):[0-5][0-9])"
)


@dataclass(frozen=True, slots=True)
class Rule(Generic[T_co]):
    """What a value must be; `parse` raises ValueError for any other value."""

    sentence: str
    schema: dict[str, Any]
    parse: Callable[[Any], T_co]

    def check(self, field: str, value: object) -> T_co:
        """Return the value in its own type; raises ContractViolation, which never shows the value."""
        try:
            return self.parse(value)
        except ValueError:
            raise ContractViolation(field=field, rule=self.sentence) from None

    def check_optional(self, field: str, value: object) -> T_co | None:
        """Return the value in its own type, or None for None; raises ContractViolation."""
        return None if value is None else self.check(field, value)


def text(sentence: str, pattern: str, *, longest: int, shortest: int = 1) -> Rule[str]:
    """Require text of this length that the whole pattern matches."""
    compiled = re.compile(pattern, re.ASCII)
    schema = {"type": "string", "minLength": shortest, "maxLength": longest, "pattern": f"^{pattern}$"}
    if pattern != TEXT_PATTERN:
        schema["not"] = {"pattern": r"\n"}  # in some validators $ also matches before a last newline

    def parse(value: object) -> str:
        if not (isinstance(value, str) and shortest <= len(value) <= longest and compiled.fullmatch(value)):
            raise ValueError
        return str.__str__(value)

    return Rule(sentence, schema, parse)


def identifier(longest: int) -> Rule[str]:
    """Require an id (contract §2, Ids)."""
    sentence = f"must be 1..{longest} ASCII letters, digits or ._:/@+-, starting with a letter or digit"
    return text(sentence, ID_PATTERN, longest=longest)


def trimmed(longest: int) -> Rule[str]:
    """Require text in one line, without white space at either end."""
    sentence = (
        f"must be 1..{longest} characters, without control characters, and without white space at either end"
    )
    return text(sentence, TRIMMED_PATTERN, longest=longest)


def integer(least: int, most: int) -> Rule[int]:
    """Require an integer in a range; booleans and floats are refused."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError
        return int.__int__(value)

    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Rule(f"must be an integer from {least} to {most}", schema, parse)


def flag() -> Rule[bool]:
    """Require a boolean."""

    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("must be true or false", {"type": "boolean"}, parse)


def time_span(most: timedelta) -> Rule[timedelta]:
    """Require a positive time span; it has no JSON form."""

    def parse(value: object) -> timedelta:
        if not isinstance(value, timedelta) or not timedelta(0) < value <= most:
            raise ValueError
        return value

    return Rule(f"must be a positive timedelta of at most {most.days} days", {}, parse)


def choice(kind: type[E], *, without: frozenset[E] = frozenset(), because: str = "") -> Rule[E]:
    """Require a member of an enum, or its exact text."""
    members = [member for member in kind if member not in without]

    def parse(value: object) -> E:
        member = kind(value) if isinstance(value, str) else None
        if member not in members:
            raise ValueError
        return member

    names = [member.value for member in members]
    listed = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return Rule(f"must be {listed}{because}", {"enum": names}, parse)


def _parse_uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(_UUID_TEXT.parse(value))


def _parse_timestamp(value: object) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(_TIMESTAMP_TEXT.parse(value))
    if moment.utcoffset() is None or not MIN_TIMESTAMP <= moment <= MAX_TIMESTAMP:
        raise ValueError
    return moment.astimezone(UTC)


def _parse_timestamp_text(value: object) -> str:
    written = _TIMESTAMP_TEXT.parse(value)
    _parse_timestamp(written)
    return written


def _parse_list(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError
    return value


def _parse_fields(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError
    for key in value:
        FIELD_KEY.parse(key)
    return value


_ID = identifier(MAX_ID)
_STATUS = choice(WorkOrderStatus)
_UUID_TEXT = text("must be a UUID as 8-4-4-4-12 hexadecimal digits", UUID_PATTERN, longest=36)
_TIMESTAMP_TEXT = text(
    "must be a time with an offset as in RFC 3339, in the years 1 to 9999 of UTC",
    TIMESTAMP_PATTERN,
    longest=32,
)
_TIMESTAMP_SCHEMA = {**_TIMESTAMP_TEXT.schema, "format": "date-time"}
_LEASE_EVENT_TYPES = frozenset(kind for kind in WorkOrderEventType if kind.startswith("LEASE_"))

TENANT_ID: Final = identifier(MAX_TENANT_ID)

EVENT_RULES: Final[Mapping[str, Rule[Any]]] = {
    "work_order_id": _ID,
    "correlation_id": Rule(_UUID_TEXT.sentence, {**_UUID_TEXT.schema, "format": "uuid"}, _parse_uuid),
    "turn_id": integer(1, MAX_INT64),
    "event_type": choice(
        WorkOrderEventType,
        without=_LEASE_EVENT_TYPES,
        because="; LEASE_* are written by the lease functions only",
    ),
    "work_order_status": _STATUS,
    "reason_code": integer(1, MAX_REASON_CODE),
    "step_id": identifier(MAX_STEP_ID),
    "step_input_hash": trimmed(MAX_STEP_INPUT_HASH),
    "idempotency_key": trimmed(MAX_IDEMPOTENCY_KEY),
    "occurred_at": Rule(_TIMESTAMP_TEXT.sentence, _TIMESTAMP_SCHEMA, _parse_timestamp),
    "expected_seq": integer(0, MAX_INT64),
    "lease_token": text(
        f"must be {MIN_LEASE_TOKEN}..{MAX_LEASE_TOKEN} printable ASCII characters without blanks",
        PRINTABLE_PATTERN,
        shortest=MIN_LEASE_TOKEN,
        longest=MAX_LEASE_TOKEN,
    ),
}
"""The rule of every key of an event but `payload`."""

# The values in a payload have passed json_limits before these rules see them.
_JSON_SCHEMA = {"$ref": "#/$defs/json"}
_FIELD_KEY_RULE = f"1..{MAX_FIELD_KEY} ASCII letters, digits or _.:-"
FIELD_KEY: Final = text(f"must be {_FIELD_KEY_RULE}", FIELD_KEY_PATTERN, longest=MAX_FIELD_KEY)
_VALUE = Rule("must be JSON", _JSON_SCHEMA, lambda value: value)
_CANDIDATES = Rule("must be a list", {"type": "array", "items": _JSON_SCHEMA}, _parse_list)
_FIELDS = Rule(
    f"must be an object whose keys are {_FIELD_KEY_RULE}",
    {"type": "object", "propertyNames": FIELD_KEY.schema, "additionalProperties": _JSON_SCHEMA},
    _parse_fields,
)
_DEDUPE_KEY = trimmed(MAX_PROMPT_DEDUPE_KEY)
_NOTE = text(f"must be text of at most {MAX_NOTE} characters", TEXT_PATTERN, shortest=0, longest=MAX_NOTE)


class PayloadRules(NamedTuple):
    """The keys that a payload must have and may have; all others are refused."""

    required: Mapping[str, Rule[Any]] = {}
    optional: Mapping[str, Rule[Any]] = {}

    def check(self, event_type: WorkOrderEventType, payload: Mapping[str, Any]) -> None:
        """Refuse a payload that breaks these rules; raises ContractViolation."""
        known = {**self.required, **self.optional}
        for key, rule in known.items():
            if key in payload:
                rule.check(f"payload.{key}", payload[key])
            elif key in self.required:
                raise ContractViolation(field=f"payload.{key}", rule=f"is required by {event_type}")
        if unknown := sorted(payload.keys() - known.keys(), key=jsonb_order):
            raise ContractViolation(
                field=f"payload.{label(unknown[0])}", rule=f"is not a key of {event_type}"
            )


_KIND = WorkOrderEventType

PAYLOAD_RULES: Final[Mapping[WorkOrderEventType, PayloadRules]] = {
    _KIND.WORK_ORDER_CREATED: PayloadRules(optional={"fields": _FIELDS, "requester_user_id": _ID}),
    _KIND.FIELD_SET: PayloadRules({"field_key": FIELD_KEY, "value": _VALUE}),
    _KIND.FIELD_PROMPTED: PayloadRules({"field_key": FIELD_KEY, "prompt_dedupe_key": _DEDUPE_KEY}),
    _KIND.FIELD_CONFLICT_DETECTED: PayloadRules({"field_key": FIELD_KEY}, {"candidates": _CANDIDATES}),
    _KIND.FIELD_CONFLICT_RESOLVED: PayloadRules({"field_key": FIELD_KEY, "value": _VALUE}),
    _KIND.STATUS_CHANGED: PayloadRules(optional={"previous_status": _STATUS, "note": _NOTE}),
    _KIND.EXTERNAL_APPROVAL_REQUESTED: PayloadRules(
        {"request_id": _ID, "target_user_id": _ID},
        {"expires_at": Rule(_TIMESTAMP_TEXT.sentence, _TIMESTAMP_SCHEMA, _parse_timestamp_text)},
    ),
    _KIND.EXTERNAL_APPROVAL_WAIT_NOTIFIED: PayloadRules({"request_id": _ID}),
    _KIND.EXTERNAL_APPROVAL_RESOLVED: PayloadRules({"request_id": _ID, "outcome": choice(ApprovalOutcome)}),
    _KIND.WORK_ORDER_CANCELED: PayloadRules(optional={"note": _NOTE}),
}
"""The table of contract §3; STEP_*, which are not in it, take a free object."""


class EnvelopeRules(NamedTuple):
    """What an event type asks of the envelope; what it does not require is else the order's own."""

    required: tuple[str, ...]
    status: Rule[WorkOrderStatus] = _STATUS

    def check(self, event_type: WorkOrderEventType, given: Mapping[str, Any]) -> None:
        """Refuse an envelope that breaks these rules; raises ContractViolation."""
        for key in self.required:
            if given[key] is None:
                raise ContractViolation(field=key, rule=f"is required by {event_type}")
        self.status.check_optional("work_order_status", given["work_order_status"])
        if given["work_order_status"] is WorkOrderStatus.CANCELED and given["reason_code"] is None:
            raise ContractViolation(field="reason_code", rule=f"is required by {event_type} to CANCELED")


ENVELOPE: Final = ("correlation_id", "turn_id", "work_order_status", "reason_code")
"""The keys that may be left out: they are then the order's own (contract §3)."""

ENVELOPE_RULES: Final[Mapping[WorkOrderEventType, EnvelopeRules]] = {
    _KIND.WORK_ORDER_CREATED: EnvelopeRules(
        ENVELOPE, choice(WorkOrderStatus, without=TERMINAL_STATUSES, because=" in WORK_ORDER_CREATED")
    ),
    _KIND.STATUS_CHANGED: EnvelopeRules(("work_order_status",)),
    _KIND.WORK_ORDER_CANCELED: EnvelopeRules(
        ("reason_code",),
        choice(
            WorkOrderStatus,
            without=frozenset(WorkOrderStatus) - {WorkOrderStatus.CANCELED},
            because=" in WORK_ORDER_CANCELED",
        ),
    ),
}
"""The event types that require or narrow something of the envelope (contract §3)."""

# --- users, devices, sessions and turns (contract §2)


def _parse_turn_text(value: object) -> str:
    # encode() raises ValueError for lone surrogates.
    if not isinstance(value, str) or "\0" in value or len(value.encode()) > MAX_TURN_TEXT_BYTES:
        raise ValueError
    return str.__str__(value)


IDENTITY_RULES: Final[Mapping[str, Rule[Any]]] = {
    "user_id": _ID,
    "speaker_id": _ID,
    "primary_language": text(
        f"must be a language tag of at most {MAX_LANGUAGE_TAG} characters, such as de or pt-BR",
        LANGUAGE_PATTERN,
        longest=MAX_LANGUAGE_TAG,
    ),
    "status": choice(IdentityStatus),
    "device_id": _ID,
    "device_type": trimmed(MAX_DEVICE_TYPE),
    "audio_profile_ref": trimmed(MAX_AUDIO_PROFILE_REF),
    "session_id": _ID,
}
"""The rules of identities, devices and sessions."""

TURN_RULES: Final[Mapping[str, Rule[Any]]] = {
    "correlation_id": EVENT_RULES["correlation_id"],
    "turn_id": integer(1, MAX_INT64 - 1),  # the last place is left for a tombstone
    "user_id": _ID,
    "role": choice(ConversationRole),
    "source": choice(
        ConversationSource,
        without=frozenset({ConversationSource.TOMBSTONE}),
        because="; TOMBSTONE is written by tombstone_turn only",
    ),
    "text": Rule(
        f"must be text of at most {MAX_TURN_TEXT_BYTES} bytes in UTF-8, without NUL or lone surrogates",
        {"type": "string"},
        _parse_turn_text,
    ),
    "privacy_scope": choice(PrivacyScope),
    "session_id": _ID,
    "device_id": _ID,
    "idempotency_key": EVENT_RULES["idempotency_key"],
    "conversation_turn_id": integer(1, MAX_INT64),
    "reason_code": EVENT_RULES["reason_code"],
}
"""The rules of turns and tombstones."""
