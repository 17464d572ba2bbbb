"""Never ask twice: decide whether to ask the user for a field, and for which one (contract §6).

This only proposes a prompt. The database decides whether it is recorded: see
alembic/sql/continuity/continuity_refusal_v01.sql.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from selene_core.contract.enums import PromptAction, PromptReason
from selene_core.contract.errors import ContractViolation
from selene_core.contract.rows import AppendResult, WorkOrder
from selene_core.contract.rules import FIELD_KEY

MAX_REQUIRED_FIELDS: Final = 64
MAX_PREFILLED_FIELDS: Final = 4096


@dataclass(frozen=True, slots=True)
class PromptDecision:
    """What to do now. Field and key are set if something is asked, `prompt` if it was recorded."""

    decision: PromptAction
    field_key: str | None
    prompt_dedupe_key: str | None
    reason: PromptReason
    prompt: AppendResult | None = None


def check_required_fields(values: object) -> tuple[str, ...]:
    """Return 1..64 field keys as a tuple; raises ContractViolation (contract §6)."""
    return _field_keys("required_fields", values, 1, MAX_REQUIRED_FIELDS)


def check_prefilled_fields(values: object) -> tuple[str, ...]:
    """Return up to 4096 field keys as a tuple; raises ContractViolation."""
    return _field_keys("prefilled_fields", values, 0, MAX_PREFILLED_FIELDS)


def _field_keys(field: str, values: object, least: int, most: int) -> tuple[str, ...]:
    keys = None
    if isinstance(values, Iterable) and not isinstance(values, str):
        keys = tuple(islice(values, most + 1))  # it may have no end
    if keys is None or not least <= len(keys) <= most:
        raise ContractViolation(field=field, rule=f"must be {least}..{most} field keys")
    return tuple(FIELD_KEY.check(f"{field}[{index}]", key) for index, key in enumerate(keys))


def decide_prompt(
    current: WorkOrder, required_fields: Iterable[str], prefilled_fields: Iterable[str] = ()
) -> PromptDecision:
    """Decide on at most one prompt: the first of the 1..64 required fields that may be asked (contract §6).

    `prefilled_fields` are those that the caller knows. Pure: no clock, no database. Raises ContractViolation
    for invalid field keys.
    """
    required = check_required_fields(required_fields)
    prefilled = set(check_prefilled_fields(prefilled_fields))
    if current.external_approval_pending:
        return PromptDecision(PromptAction.WAIT, None, None, PromptReason.POLICY_APPROVAL_PENDING)

    suppressed = False
    for key in required:
        if key in prefilled or _is_known(current, key):
            continue
        if not may_be_asked(current, key):
            suppressed = True
        elif key in current.conflicts_json:
            return _ask(current, key, PromptAction.ASK, PromptReason.POLICY_CONFLICT_REQUIRES_ONE_ASK)
        elif suppressed:
            return _ask(current, key, PromptAction.ASK_DIFFERENT_FIELD, PromptReason.POLICY_ALREADY_ASKED)
        else:
            return _ask(current, key, PromptAction.ASK, PromptReason.POLICY_NEXT_FIELD)
    if suppressed:
        return PromptDecision(PromptAction.STOP, None, None, PromptReason.POLICY_ALREADY_ASKED)
    return PromptDecision(PromptAction.SKIP, None, None, PromptReason.POLICY_FIELD_ALREADY_KNOWN)


def may_be_asked(current: WorkOrder, key: str) -> bool:
    """Tell whether the database would record a prompt for a field now. Tests compare the two."""
    last_change = current.last_state_change_seq
    if current.prompt_dedupe_keys_json.get(_dedupe_key(current, key), 0) > last_change:
        return False
    if key in current.conflicts_json:
        return not current.conflicts_json[key]["asked"]
    asked = current.asked_fields_json.get(key)
    return not _is_known(current, key) and (asked is None or asked["seq"] <= last_change)


def _is_known(current: WorkOrder, key: str) -> bool:
    has_value = key in current.fields_json or key in current.resolved_fields_json
    return has_value and key not in current.conflicts_json


def _dedupe_key(current: WorkOrder, key: str) -> str:
    asked = current.asked_fields_json.get(key)
    return f"{key}#{1 if asked is None else asked['attempts'] + 1}"


def _ask(current: WorkOrder, key: str, decision: PromptAction, reason: PromptReason) -> PromptDecision:
    return PromptDecision(decision, key, _dedupe_key(current, key), reason)
