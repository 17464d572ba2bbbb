"""The event to append: a validated, immutable input (contract §3 and §14). Its rules are in rules.py."""

import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from selene_core.contract.enums import (
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import ContractViolation
from selene_core.contract.frozen_json import freeze_object, jsonb_order, label, thaw
from selene_core.contract.personal import check_personal
from selene_core.contract.rules import ENVELOPE_RULES, EVENT_RULES, PAYLOAD_RULES, TENANT_ID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:

    def uuid7() -> UUID:
        """Make a UUID version 7; rand_a is the millisecond's fraction (RFC 9562 section 6.2, method 3)."""
        milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
        fraction = (nanoseconds << 12) // 1_000_000
        return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62))


def check_tenant_id(value: object) -> str:
    """Return the value as a tenant id; raises ContractViolation (contract §2, Ids)."""
    return TENANT_ID.check("tenant_id", value)


def check_work_order_id(value: object) -> str:
    """Return the value as a work order id; raises ContractViolation (contract §2, Ids)."""
    checked: str = EVENT_RULES["work_order_id"].check("work_order_id", value)
    return checked


def new_work_order_id() -> str:
    """Make a work order id. Ids sort by the time when they were made."""
    return f"wo_{uuid7()}"


class WorkOrderLedgerEventInput(BaseModel):
    """An event to append: validated and immutable, its payload too (contract §3 and §14).

    An event that breaks the contract raises ContractViolation: `field` names the key, `rule` says what it
    must be. If the event is part of another pydantic model, it is a line of that model's ValidationError,
    with its place in `loc`. No error shows a value.

    `correlation_id`, `turn_id`, `work_order_status` and `reason_code` may be left out: they are then the
    order's own when the event is recorded. WORK_ORDER_CREATED gives all four, STATUS_CHANGED its status, a
    cancel its reason_code. A status that was read before and is given here undoes what others set since.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    work_order_id: str
    correlation_id: UUID | None = None
    turn_id: int | None = None
    event_type: WorkOrderEventType
    work_order_status: WorkOrderStatus | None = None
    reason_code: int | None = None
    # default= by name: otherwise type checkers do not see it.
    payload: SkipValidation[Mapping[str, Any]] = Field(default={}, validate_default=True)
    step_id: str | None = None
    step_input_hash: str | None = None
    idempotency_key: str | None = None
    occurred_at: datetime | None = None
    expected_seq: int | None = None
    lease_token: str | None = Field(default=None, repr=False)

    if not TYPE_CHECKING:  # type checkers derive the constructor from the fields

        def __init__(self, /, **data: Any) -> None:
            """Build the event; raises ContractViolation."""
            with _contract_violations():
                super().__init__(**data)

        # pydantic marks its own __init__ like this. Without the mark, an event inside a host's model would be
        # built by this one, and raise ContractViolation instead of a line of ValidationError.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Build the event as pydantic's method does, but raise ContractViolation."""
        with _contract_violations():
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Build the event as pydantic's method does, but raise ContractViolation."""
        with _contract_violations():
            return super().model_validate_json(json_data, **options)

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:
        """Build the event as pydantic's method does, but raise ContractViolation."""
        with _contract_violations():
            return super().model_validate_strings(obj, **options)

    @classmethod
    def from_mapping(cls, mapping: object) -> Self:
        """Build the event from its JSON object, such as a line of an import; raises ContractViolation."""
        return cls.model_validate(dict(mapping) if isinstance(mapping, Mapping) else mapping)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object that os_core.append_work_order_events takes (contract §4)."""
        return {name: _to_json(value) for name, value in self if value is not None}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy. Unlike pydantic's method, this one validates the updated values."""
        return self.from_mapping({**dict(self), **update}) if update else self

    @field_validator("*", mode="before")
    @classmethod
    def _check_value(cls, value: object, info: ValidationInfo) -> object:
        return cls._checked(info.field_name or "", value)

    @classmethod
    def _checked(cls, name: str, value: object) -> object:
        if value is None and name != "payload" and not cls.model_fields[name].is_required():
            return None
        try:
            if name == "payload":
                return freeze_object(value, field=name)
            return EVENT_RULES[name].check(name, value)
        except ContractViolation as exc:
            raise _custom_error(exc.field, exc.rule) from None

    @model_validator(mode="wrap")
    @classmethod
    def _check_event(cls, data: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            event = build(data)
            if envelope := ENVELOPE_RULES.get(event.event_type):
                envelope.check(event.event_type, dict(event))
            if rules := PAYLOAD_RULES.get(event.event_type):
                rules.check(event.event_type, event.payload)
            check_personal(event.payload)
        except ValidationError as exc:
            found = [_without_input(error) for error in exc.errors(include_url=False)]
            if first := cls._first_violation(data):
                found = [first, *(line for line in found if line.get("loc") != first.get("loc"))]
        except ContractViolation as exc:
            found = [_line(_custom_error(exc.field, exc.rule), _place(exc.field))]
        else:
            return event
        # If the event is part of another model, pydantic adds these lines to that model's error.
        raise ValidationError.from_exception_data(cls.__name__, found)

    @classmethod
    def _first_violation(cls, data: object) -> InitErrorDetails | None:
        """Find the violation that os_core.event_violation finds: known keys in order, then unknown ones."""
        if not isinstance(data, dict):
            return _line(_custom_error("event", "must be an object"), ())
        for name, info in cls.model_fields.items():
            try:
                if name in data:
                    cls._checked(name, data[name])
                elif info.is_required():
                    return _line(_custom_error(name, "is required"), (name,))
            except PydanticCustomError as exc:
                return _line(exc, _place((exc.context or {})["field"]))
        unknown = sorted((str(key) for key in data if key not in cls.model_fields), key=jsonb_order)
        if not unknown:
            return None
        shown = label(unknown[0])
        return _line(_custom_error(shown, "is not a key of an event"), (shown,))


_CONTRACT: Final = "event_contract"
"""The type of our own lines in pydantic's ValidationError."""

_HIDDEN: Final = "…"  # stands for every value: a payload or lease token must not be shown

_PYDANTIC_RULES: Final = {"json_invalid": "must be JSON"}


def _custom_error(field: str | None, rule: str | None) -> PydanticCustomError:
    # The sentence is passed as a value: in the template, its braces would be taken for placeholders.
    return PydanticCustomError(_CONTRACT, "{rule}", {"field": field, "rule": rule})


def _line(kind: str | PydanticCustomError, loc: tuple[int | str, ...], **context: Any) -> InitErrorDetails:
    return InitErrorDetails(type=kind, loc=loc, input=_HIDDEN, ctx=context)


def _place(field: str | None) -> tuple[str, ...]:
    """Split payload.x[0] into the event's key and the rest."""
    return tuple((field or "").split(".", 1))


def _without_input(error: ErrorDetails) -> InitErrorDetails:
    """Copy a line of pydantic's error without the input, so that it can be shown."""
    context = error.get("ctx", {})
    if error["type"] == _CONTRACT:
        return _line(_custom_error(context["field"], context["rule"]), _place(context["field"]))
    place = tuple(part if isinstance(part, int) else label(part) for part in error["loc"])
    return _line(error["type"], place, **context)


@contextmanager
def _contract_violations() -> Iterator[None]:
    """Raise the first line of pydantic's error as ContractViolation."""
    try:
        yield
    except ValidationError as exc:
        raise _contract_violation(exc) from None


def _contract_violation(exc: ValidationError) -> ContractViolation:
    first = exc.errors(include_url=False, include_input=False)[0]
    if first["type"] == _CONTRACT:
        return ContractViolation(**first["ctx"])
    key = ".".join(str(part) for part in first["loc"]) or "event"
    return ContractViolation(field=key, rule=_PYDANTIC_RULES.get(first["type"], first["msg"]))


def rfc3339(at: datetime) -> str:
    """Write a time as the contract has it in JSON: UTC, six digits, Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _to_json(value: Any) -> Any:
    match value:
        case UUID() | StrEnum():
            return str(value)
        case datetime():
            return rfc3339(value)
        case _:
            return thaw(value)


# The encoder writes frozen values and enums by itself, and asks for the others. No event is circular.
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False, default=_to_json
)


def events_to_json(events: Sequence[WorkOrderLedgerEventInput]) -> str:
    """Write events as the JSON array of their to_wire()."""
    return _ENCODER.encode(
        [{name: value for name, value in vars(event).items() if value is not None} for event in events]
    )
