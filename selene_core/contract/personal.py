"""Personal values and references within a payload: how they must look (contract §18)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from selene_core.contract.errors import ContractViolation
from selene_core.contract.frozen_json import freeze_object
from selene_core.contract.rules import identifier

_RESERVED: Final = frozenset({"$personal", "$subject", "$ref", "$erased"})
_PAIR: Final = frozenset({"$subject", "$ref"})
_RULE: Final = (
    "an object whose only keys are $personal, $subject, $ref or $erased must be"
    ' {"$personal":{"subject":an id,"value":JSON without such objects}}'
    ' or {"$subject":an id,"$ref":64 hexadecimal digits}'
)
_REF: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NO_REF: Final = "0" * 64
SUBJECT: Final = identifier(128)


def check_personal(payload: Mapping[str, Any]) -> None:
    """Refuse a payload with a malformed personal value or reference; raises ContractViolation."""
    if not any(True for _ in _reserved(payload)):
        return
    # The event is stored with the references, so that must not be too long either.
    freeze_object(_referred(payload), field="payload")


def _reserved(value: Any) -> Iterator[Mapping[str, Any]]:
    match value:
        case dict():
            if value and value.keys() <= _RESERVED and (len(value) > 1 or not _PAIR & value.keys()):
                yield value
            for item in value.values():
                yield from _reserved(item)
        case list():
            for item in value:
                yield from _reserved(item)


def _referred(value: Any) -> Any:
    """Copy a payload with references in the place of its values."""
    match value:
        case dict() if next(_reserved({"": value}), None) is value:
            return {"$subject": _subject_of(value), "$ref": _NO_REF}
        case dict():
            return {key: _referred(item) for key, item in value.items()}
        case list():
            return [_referred(item) for item in value]
        case _:
            return value


def _subject_of(node: Mapping[str, Any]) -> str:
    given = node.get("$personal")
    if node.keys() == _PAIR and isinstance(node["$ref"], str) and _REF.fullmatch(node["$ref"]):
        subject = node["$subject"]
    elif (
        len(node) == 1
        and isinstance(given, dict)
        and given.keys() == {"subject", "value"}
        and next(_reserved(given["value"]), None) is None
    ):
        subject = given["subject"]
    else:
        raise ContractViolation(field="payload", rule=_RULE)
    try:
        return SUBJECT.parse(subject)
    except ValueError:
        raise ContractViolation(field="payload", rule=_RULE) from None


def holds_references(value: Mapping[str, Any]) -> bool:
    """Tell whether there is anything to resolve in a projection's JSON."""
    return any(node.keys() == _PAIR for node in _reserved(value))
