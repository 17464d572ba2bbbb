"""os_core.ask_field and its pure twin decide_prompt: one decision, and the same words (contract §6)."""

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from selene_core import ContractViolation, WorkOrder, decide_prompt
from selene_core.contract.prompts import check_prefilled_fields, check_required_fields
from tests.support.calls import Tenant, refused
from tests.support.factories import new_id, wire
from tests.support.sessions import Sessions

FIELDS = ("a", "b", "c", "d")
SEQS = st.integers(1, 9)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw an object with some of the fields."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values))


# States that no ledger leads to are among them: the two must agree on every row.
states = st.fixed_dictionaries(
    {
        "external_approval_pending": st.sampled_from([False, False, False, True]),
        "last_state_change_seq": SEQS,
        "fields_json": some(st.sampled_from([None, 1, "x", {}])),
        "asked_fields_json": some(
            st.fixed_dictionaries({"asked_at": st.just("now"), "attempts": st.integers(1, 3), "seq": SEQS})
        ),
        "resolved_fields_json": some(st.fixed_dictionaries({"value": st.none(), "seq": SEQS})),
        "conflicts_json": some(st.fixed_dictionaries({"seq": SEQS, "asked": st.booleans()})),
        "prompt_dedupe_keys_json": st.dictionaries(
            st.sampled_from([f"{key}#{number}" for key in FIELDS for number in (1, 2, 3, 4)]), SEQS
        ),
    }
)
lists = st.lists(st.sampled_from(FIELDS), max_size=6)


def test_decide_prompt__and_its_twin_decide_alike(sessions: Sessions) -> None:
    blank = dict.fromkeys(WorkOrder.__dataclass_fields__)

    @settings(max_examples=600, deadline=None, suppress_health_check=[*HealthCheck])
    @given(states, lists.filter(bool), lists)
    def agree(state: dict[str, Any], required: list[str], prefilled: list[str]) -> None:
        current: Any = {**blank, **state}
        ours = decide_prompt(WorkOrder(**current), required, prefilled)
        theirs = sessions.admin.execute(
            "SELECT decision, field_key, prompt_dedupe_key, reason FROM os_core.decide_prompt("
            "jsonb_populate_record(NULL::os_core.work_orders_current, %s), %s, %s)",
            (Jsonb(state), required, prefilled),
        ).fetchone()
        assert theirs == (ours.decision, ours.field_key, ours.prompt_dedupe_key, ours.reason)

    agree()


BAD: list[tuple[str, Any]] = [
    *(("required_fields", value) for value in ([], ["a"] * 65, [""], ["a", "b c"], ["a", None], ["x" * 65])),
    *(("prefilled_fields", value) for value in (["a"] * 4097, ["é"], ["a"] * 10 + ["a\n"])),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=range(len(BAD)))
def test_ask_field__refuses_lists_in_the_same_words(acme: Tenant, field: str, value: Any) -> None:
    order = acme.order()
    check = {"required_fields": check_required_fields, "prefilled_fields": check_prefilled_fields}[field]
    with pytest.raises(ContractViolation) as ours:
        check(value)
    required, prefilled = (value, []) if field == "required_fields" else (["a"], value)
    with refused("SL001") as theirs:
        acme.app.execute(
            "SELECT * FROM os_core.ask_field(%s, %s, %s::text[], %s)", (acme.id, order, required, prefilled)
        )
    assert (theirs.facts["field"], theirs.facts["rule"]) == (ours.value.field, ours.value.rule)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("NULL", "required_fields"),
        ("'{{a,b},{c,d}}'", "required_fields"),
        ("'{a}', '{{a},{b}}'", "prefilled_fields"),
        ("'{a}', NULL, 0", "turn_id"),
        ("'{a}', NULL, NULL, 4294967296", "reason_code"),
        ("'{a}', NULL, NULL, NULL, ' k'", "idempotency_key"),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["asks", "asks nothing"])
def test_ask_field__refuses_an_argument_whatever_it_would_decide(
    acme: Tenant, arguments: str, field: str, known: bool
) -> None:
    order = acme.order(fields={"a": 1} if known else {})
    before = acme.everything()
    with pytest.raises(psycopg.Error) as caught:
        acme.app.execute(f"SELECT * FROM os_core.ask_field(%s, %s, {arguments})".encode(), (acme.id, order))
    assert caught.value.sqlstate == "SL001"
    assert json.loads(caught.value.diag.message_detail or "")["field"] == field
    assert acme.everything() == before


def test_ask_field__is_one_statement_in_autocommit(acme: Tenant) -> None:
    order = new_id()
    acme.append(wire("WORK_ORDER_CREATED", order, turn_id=3, work_order_status="CLARIFY", reason_code=30))
    ask = "SELECT * FROM os_core.ask_field(%s, %s, '{a,b}', NULL, %s, %s, %s)"
    first = acme.app.execute(ask, (acme.id, order, None, None, "k")).fetchone()
    assert first is not None
    assert first[:4] == ("ASK", "a", "a#1", "POLICY_NEXT_FIELD")
    assert first[5:7] == (2, False)
    recorded = acme.ledger(order)[-1]
    assert (recorded["turn_id"], recorded["work_order_status"], recorded["reason_code"]) == (3, "CLARIFY", 30)
    second = acme.app.execute(ask, (acme.id, order, 4, 40, None)).fetchone()
    assert second is not None
    assert second[:4] == ("ASK_DIFFERENT_FIELD", "b", "b#1", "POLICY_ALREADY_ASKED")
    recorded = acme.ledger(order)[-1]
    assert (recorded["turn_id"], recorded["reason_code"]) == (4, 40)
    # The key returns what it recorded, whatever came since; also when the order has ended.
    acme.append(wire("WORK_ORDER_CANCELED", order))
    again = acme.app.execute(ask, (acme.id, order, None, None, "k")).fetchone()
    assert again == (*first[:6], True, first[7])
    with refused("SL007"):
        acme.append(wire("FIELD_SET", order))
    # Nothing to ask is an answer; asking on an order that has ended is refused.
    known = acme.app.execute(
        "SELECT decision, work_order_event_id FROM os_core.ask_field(%s, %s, '{a}', '{a}')", (acme.id, order)
    ).fetchone()
    assert known == ("SKIP", None)
    with refused("SL007"):
        acme.app.execute("SELECT * FROM os_core.ask_field(%s, %s, '{c}')", (acme.id, order))
    assert acme.verify() == {}
