"""decide_prompt: the walk through the required fields (contract §6)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from selene_core import (
    ContractViolation,
    PromptAction,
    PromptDecision,
    PromptReason,
    WorkOrder,
    WorkOrderStatus,
    decide_prompt,
)

EPOCH = datetime.fromtimestamp(0, UTC)
NOTHING = WorkOrder(
    work_order_id="order",
    tenant_id="acme",
    correlation_id=UUID(int=1),
    turn_id=1,
    work_order_status=WorkOrderStatus.CLARIFY,
    last_event_id=9,
    last_seq=9,
    last_reason_code=1,
    last_updated_at=EPOCH,
    created_at=EPOCH,
    requester_user_id=None,
    step_id=None,
    step_input_hash=None,
    lease_owner_id=None,
    lease_token_hash=None,
    lease_expires_at=None,
    fields_json={},
    asked_fields_json={},
    resolved_fields_json={},
    conflicts_json={},
    prompt_dedupe_keys_json={},
    external_approval_pending=False,
    external_approval_request_id=None,
    external_approval_target_user_id=None,
    external_approval_expires_at=None,
    external_approval_notices=0,
    last_state_change_seq=5,
    queued_at=EPOCH,
    steps_due_at=None,
)
ASK, OTHER = PromptAction.ASK, PromptAction.ASK_DIFFERENT_FIELD
NEXT, CONFLICT = PromptReason.POLICY_NEXT_FIELD, PromptReason.POLICY_CONFLICT_REQUIRES_ONE_ASK
ASKED, KNOWN = PromptReason.POLICY_ALREADY_ASKED, PromptReason.POLICY_FIELD_ALREADY_KNOWN
STOPPED = PromptDecision(PromptAction.STOP, None, None, ASKED)
SKIPPED = PromptDecision(PromptAction.SKIP, None, None, KNOWN)


def asked(seq: int, attempts: int = 1) -> dict[str, Any]:
    return {"asked_at": "1970-01-01T00:00:00.000000Z", "attempts": attempts, "seq": seq}


def conflict(asked: bool) -> dict[str, Any]:
    return {"seq": 4, "asked": asked}


def resolved(value: Any) -> dict[str, Any]:
    return {"value": value, "resolved_at": "1970-01-01T00:00:00.000000Z", "seq": 4}


STATES: list[tuple[dict[str, Any], list[str], PromptDecision]] = [
    ({}, ["a"], PromptDecision(ASK, "a", "a#1", NEXT)),
    ({"fields_json": {"a": None}}, ["a"], SKIPPED),
    ({"resolved_fields_json": {"a": resolved(1)}}, ["a"], SKIPPED),
    ({"fields_json": {"a": 1}}, ["a", "b"], PromptDecision(ASK, "b", "b#1", NEXT)),
    # Asked before the last state change: again, by the next number. After it: suppressed.
    ({"asked_fields_json": {"a": asked(5)}}, ["a"], PromptDecision(ASK, "a", "a#2", NEXT)),
    ({"asked_fields_json": {"a": asked(4, 7)}}, ["a"], PromptDecision(ASK, "a", "a#8", NEXT)),
    ({"asked_fields_json": {"a": asked(6)}}, ["a"], STOPPED),
    ({"asked_fields_json": {"a": asked(6)}}, ["a", "b"], PromptDecision(OTHER, "b", "b#1", ASKED)),
    ({"asked_fields_json": {"b": asked(6)}}, ["a", "b"], PromptDecision(ASK, "a", "a#1", NEXT)),
    ({"asked_fields_json": {"a": asked(6)}, "fields_json": {"b": 1}}, ["a", "b"], STOPPED),
    ({"asked_fields_json": {"a": asked(6), "b": asked(7)}}, ["a", "b"], STOPPED),
    # The key of the prompt that would come was used after the change, by whomever.
    ({"prompt_dedupe_keys_json": {"a#1": 6}}, ["a"], STOPPED),
    ({"prompt_dedupe_keys_json": {"a#1": 5}}, ["a"], PromptDecision(ASK, "a", "a#1", NEXT)),
    # A conflict allows one prompt, for a known field too, in the field's turn.
    (
        {"fields_json": {"a": 1}, "conflicts_json": {"a": conflict(False)}},
        ["a"],
        PromptDecision(ASK, "a", "a#1", CONFLICT),
    ),
    (
        {"conflicts_json": {"a": conflict(False)}, "asked_fields_json": {"a": asked(3, 2)}},
        ["a"],
        PromptDecision(ASK, "a", "a#3", CONFLICT),
    ),
    ({"fields_json": {"a": 1}, "conflicts_json": {"a": conflict(True)}}, ["a"], STOPPED),
    (
        {"fields_json": {"a": 1}, "conflicts_json": {"a": conflict(True)}},
        ["a", "b"],
        PromptDecision(OTHER, "b", "b#1", ASKED),
    ),
    (
        {"asked_fields_json": {"a": asked(6)}, "conflicts_json": {"b": conflict(False)}},
        ["a", "b"],
        PromptDecision(ASK, "b", "b#1", CONFLICT),
    ),
    ({"conflicts_json": {"b": conflict(False)}}, ["a", "b"], PromptDecision(ASK, "a", "a#1", NEXT)),
    # A field that is not required is nobody's concern.
    ({"conflicts_json": {"z": conflict(False)}, "fields_json": {"a": 1}}, ["a"], SKIPPED),
    (
        {"external_approval_pending": True, "external_approval_request_id": "r"},
        ["a"],
        PromptDecision(PromptAction.WAIT, None, None, PromptReason.POLICY_APPROVAL_PENDING),
    ),
]


@pytest.mark.parametrize(("state", "required", "decision"), STATES)
def test_decide_prompt__walks_the_required_fields(
    state: dict[str, Any], required: list[str], decision: PromptDecision
) -> None:
    current = replace(NOTHING, **state)
    assert decide_prompt(current, required) == decision
    assert decide_prompt(current, iter(required)) == decision
    assert current == replace(NOTHING, **state)


@pytest.mark.parametrize("prefilled", [["a"], {"a": "by the caller"}, ("b", "a"), iter(["a"])])
def test_decide_prompt__what_the_caller_knows_is_known(prefilled: Any) -> None:
    open_conflict = replace(NOTHING, conflicts_json={"a": conflict(False)})
    assert decide_prompt(open_conflict, ["a"], prefilled_fields=prefilled) == SKIPPED


def test_decide_prompt__takes_64_fields_and_asks_for_one() -> None:
    keys = [f"f{n}" for n in range(64)]
    known = replace(NOTHING, fields_json=dict.fromkeys(keys[:-1]))
    assert decide_prompt(known, keys) == PromptDecision(ASK, "f63", "f63#1", NEXT)


@pytest.mark.parametrize("required", [[], "a", None, 1, ["a"] * 65, [""], ["a b"], ["x" * 65], [None], ["é"]])
def test_decide_prompt__refuses_what_are_no_field_keys(required: Any) -> None:
    with pytest.raises(ContractViolation) as refusal:
        decide_prompt(NOTHING, required)
    assert (refusal.value.field or "").startswith("required_fields")


@pytest.mark.parametrize("prefilled", ["a", None, 1, [""], ["a b"], [None]])
def test_decide_prompt__refuses_a_prefilled_context_that_is_none(prefilled: Any) -> None:
    with pytest.raises(ContractViolation) as refusal:
        decide_prompt(NOTHING, ["a"], prefilled)
    assert (refusal.value.field or "").startswith("prefilled_fields")
