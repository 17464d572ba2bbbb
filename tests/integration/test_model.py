"""Random histories: after every step the projection is, column by column, what the model of SPEC.md says."""

import json
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg.types.json import Jsonb, set_json_loads

from selene_core import WorkOrder, decide_prompt
from selene_core.continuity import may_be_asked
from tests.calls import Appended, Event, Row, Tenant, refused
from tests.factories import new_id, wire
from tests.model import Model, Refused, State, equal, exact, fold
from tests.sessions import Sessions

JSON_COLUMNS = (
    "fields_json",
    "asked_fields_json",
    "resolved_fields_json",
    "conflicts_json",
    "prompt_dedupe_keys_json",
)
ORDERS, FIELDS = ("a", "b", "c"), ("who", "when", "where")
PENDING = ("DRAFT", "CLARIFY", "CONFIRM", "EXECUTING")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 1.0, 0.5, "1", "", "é"),
    *([], {}, [1, {"x": 1.0}], {"x": [1, 2]}, {"x": [1, 2.0]}),
)


def rarely(*values: Any, among: int = 12) -> st.SearchStrategy[Any]:
    """Draw None, and now and then one of the values."""
    return st.sampled_from((None,) * among + values)


fields = st.sampled_from(FIELDS)
values = st.sampled_from(VALUES)
requests = st.sampled_from(("ask-1", "ask-2"))
payloads: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "WORK_ORDER_CREATED": st.fixed_dictionaries(
        {},
        optional={
            "fields": st.dictionaries(fields, values, max_size=3),
            "requester_user_id": st.sampled_from(("alice", "bob")),
        },
    ),
    "FIELD_SET": st.fixed_dictionaries({"field_key": fields, "value": values}),
    "FIELD_PROMPTED": st.fixed_dictionaries(
        {"field_key": fields, "prompt_dedupe_key": st.sampled_from(("x#1", "y#1", "z#1", "z#2"))}
    ),
    "FIELD_CONFLICT_DETECTED": st.fixed_dictionaries(
        {"field_key": fields}, optional={"candidates": st.lists(values, max_size=2)}
    ),
    "FIELD_CONFLICT_RESOLVED": st.fixed_dictionaries({"field_key": fields, "value": values}),
    "STATUS_CHANGED": st.fixed_dictionaries(
        {}, optional={"previous_status": st.sampled_from(PENDING), "note": st.just("so")}
    ),
    "STEP_STARTED": st.dictionaries(st.sampled_from(("resource", "field_key", "value")), values, max_size=2),
    "STEP_FINISHED": st.just({}),
    "STEP_FAILED": st.just({"previous_status": "DONE"}),
    "STEP_RETRY_SCHEDULED": st.just({"next_retry_at": "2999-01-01T00:00:00Z"}),
    "EXTERNAL_APPROVAL_REQUESTED": st.fixed_dictionaries(
        {"request_id": requests, "target_user_id": st.sampled_from(("carol", "dave"))},
        optional={
            "expires_at": st.sampled_from(("2001-01-01T00:00:00+02:00", "2999-12-31T23:59:59.5-08:00"))
        },
    ),
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": st.fixed_dictionaries({"request_id": requests}),
    "EXTERNAL_APPROVAL_RESOLVED": st.fixed_dictionaries(
        {"request_id": requests, "outcome": st.sampled_from(("APPROVED", "REJECTED", "EXPIRED"))}
    ),
    "WORK_ORDER_CANCELED": st.just({}),
}
# What the projection is most about comes most.
TYPES = (
    *payloads,
    *("FIELD_SET", "FIELD_PROMPTED", "FIELD_CONFLICT_DETECTED", "FIELD_CONFLICT_RESOLVED") * 3,
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Draw an event of one of three orders; `thread` and `order` are to be made unique."""
    event_type = draw(st.sampled_from(TYPES))
    match event_type:
        case "WORK_ORDER_CANCELED":
            statuses = ["CANCELED"]
        case "WORK_ORDER_CREATED":
            statuses = [*PENDING]
        case "STATUS_CHANGED":
            statuses = [*PENDING, *PENDING, "DONE", "CANCELED"]
        case _:
            statuses = [*PENDING * 6, "FAILED", "REFUSED", "DONE", "CANCELED"]
    order = draw(st.sampled_from(ORDERS))
    return {
        "work_order_id": order,
        "correlation_id": draw(rarely("shared", *ORDERS)) or order,
        "turn_id": draw(st.integers(1, 3)),
        "event_type": event_type,
        "work_order_status": draw(st.sampled_from(statuses)),
        "reason_code": draw(st.integers(1, 2)),
        "payload": draw(payloads[event_type]),
        "step_id": draw(rarely("one", "two")),
        "step_input_hash": draw(rarely("h")),
        "idempotency_key": draw(rarely("k1", "k2", "k3", among=3)),
        "expected_seq": draw(rarely(0, 1, 2, 3, 4)),
        "lease_token": draw(rarely("t" * 16, among=40)),
    }


def thread(drawn: str | UUID) -> UUID:
    """Return the correlation that a drawn name stands for."""
    return drawn if isinstance(drawn, UUID) else uuid5(NAMESPACE_OID, drawn)


class Histories(RuleBasedStateMachine):
    """One tenant a history; everything that happens to it happens to the model too."""

    def __init__(self, connected: Tenant) -> None:
        super().__init__()
        self.tenant = Tenant(new_id("acme"), connected.app, connected.admin)
        self.prefix = new_id()
        self.model = Model()
        self.answered: list[tuple[list[Event], list[Appended]]] = []

    def call(self, *drawn: Event) -> bool:
        """Append, compare the answer with the model's, and tell whether it was accepted."""
        batch = [
            {
                **event,
                "work_order_id": f"{self.prefix}-{event['work_order_id']}",
                "correlation_id": str(thread(event["correlation_id"])),
            }
            for event in drawn
        ]
        plan = self.model.plan(batch)
        if isinstance(plan, Refused):
            with refused(plan.sqlstate) as refusal:
                self.tenant.append(*batch)
            assert refusal.facts.get("event_index") == plan.index
            return False
        rows = self.tenant.append(*batch)
        assert [(row.work_order_seq, row.replayed) for row in rows] == [
            (answer.seq, answer.replay) for answer in plan
        ]
        self.model.record(batch, rows)
        self.answered.append((batch, rows))
        return True

    @initialize(statuses=st.lists(st.sampled_from(PENDING), min_size=1, max_size=2))
    def create(self, statuses: list[str]) -> None:
        """Begin with an order or two."""
        for order, status in zip(ORDERS, statuses, strict=False):
            created = wire("WORK_ORDER_CREATED", order, work_order_status=status)
            self.call({**created, "correlation_id": order})

    @rule(event=events())
    def append(self, event: Event) -> None:
        """Append one event."""
        self.call(event)

    @rule(batch=st.lists(events(), min_size=2, max_size=5))
    def append_batch(self, batch: list[Event]) -> None:
        """Append several."""
        self.call(*batch)

    @rule(order=st.sampled_from(ORDERS), types=st.permutations(["WORK_ORDER_CANCELED", "STATUS_CHANGED"] * 2))
    def cancel(self, order: str, types: list[str]) -> None:
        """Cancel an order by two or three events in one batch."""
        pair = [wire(event_type, order, work_order_status="CANCELED", payload={}) for event_type in types[:3]]
        self.call(*({**event, "correlation_id": order} for event in pair[: 2 + (types[3] == types[0])]))

    @rule(order=st.sampled_from(ORDERS), required=st.lists(fields, min_size=1, max_size=3, unique=True))
    def ask(self, order: str, required: list[str]) -> None:
        """Ask by the policy: what it decides the database accepts, and what it passes over it refuses."""
        row = self.tenant.projections().get(f"{self.prefix}-{order}")
        if row is None or row["work_order_status"] not in PENDING:
            return
        current = WorkOrder(**row)
        decided = decide_prompt(current, required)
        for key in required:
            attempts = row["asked_fields_json"].get(key, {"attempts": 0})["attempts"]
            prompt = wire(
                "FIELD_PROMPTED",
                order,
                payload={"field_key": key, "prompt_dedupe_key": f"{key}#{attempts + 1}"},
                work_order_status=row["work_order_status"],
            )
            prompt["correlation_id"] = current.correlation_id
            accepted = self.call(prompt)
            assert accepted is (not current.external_approval_pending and may_be_asked(current, key))
            if accepted:
                assert (decided.field_key, decided.prompt_dedupe_key) == (key, f"{key}#{attempts + 1}")
                return
        assert decided.field_key is None

    @rule(which=st.integers(0, 99))
    def replay(self, which: int) -> None:
        """Send what was answered once more, whatever has happened since; only what has a key."""
        if self.answered:
            batch, rows = self.answered[which % len(self.answered)]
            keyed = [
                ({**event, "expected_seq": 99}, row)
                for event, row in zip(batch, rows, strict=True)
                if event.get("idempotency_key")
            ]
            if keyed:
                again = self.tenant.append(*(event for event, _ in keyed))
                assert all(row.replayed for row in again)
                for row, (_, original) in zip(again, keyed, strict=True):
                    assert (row.work_order_event_id, row.work_order_seq, row.created_at) == (
                        original.work_order_event_id,
                        original.work_order_seq,
                        original.created_at,
                    )

    @rule(limit=st.integers(1, 4))
    def rebuild(self, limit: int) -> None:
        """Rebuild what is sound."""
        rebuilt = self.tenant.rebuild(limit)
        known = [order for order in self.model.orders.values() if order.events]
        assert (rebuilt.work_orders, rebuilt.events, rebuilt.changed) == (
            len(known),
            sum(len(order.events) for order in known),
            0,
        )

    @rule(order=st.sampled_from(ORDERS), how=st.sampled_from(["DELETE FROM", "UPDATE"]))
    def damage_and_rebuild(self, order: str, how: str) -> None:
        """Damage a row and have it mended."""
        what = "SET fields_json = '{}', last_seq = 1, turn_id = 9" if how == "UPDATE" else ""
        damaged = self.tenant.damage(
            f"{how} os_core.work_orders_current {what} WHERE work_order_id = %s", f"{self.prefix}-{order}"
        )
        assert len(self.tenant.verify()) == damaged
        assert self.tenant.rebuild().changed == damaged

    @rule(order=st.sampled_from(ORDERS), which=st.integers(0, 99))
    def as_of(self, order: str, which: int) -> None:
        """Look back at a state that once was."""
        order = f"{self.prefix}-{order}"
        model = self.model.orders.get(order)
        assert self.tenant.as_of(order, seq=0) is None
        if model is not None and model.events:
            which %= len(model.events)
            event, state = model.events[which], model.states[which]
            self.compare(self.tenant.as_of(order, seq=which + 1), state)
            self.compare(self.tenant.as_of(order, event_id=event["work_order_event_id"]), state)
            # Two events of one call may have been created in the same microsecond.
            at = event["created_at"]
            last = max(n for n, each in enumerate(model.events) if each["created_at"] <= at)
            self.compare(self.tenant.as_of(order, at=at), model.states[last])
        else:
            assert self.tenant.as_of(order, seq=10**9) is None

    def compare(self, row: State | None, state: State) -> None:
        """Compare every column."""
        assert row is not None
        expected = {**state, "tenant_id": self.tenant.id}
        assert row.keys() == expected.keys()
        for name, value in row.items():
            if name in JSON_COLUMNS:
                assert exact(value) == exact(expected[name]), name
            else:
                assert value == expected[name], name

    @invariant()
    def agree(self) -> None:
        """Compare all rows, and let the database compare them too."""
        rows = self.tenant.projections()
        known = {name: order for name, order in self.model.orders.items() if order.state}
        assert rows.keys() == known.keys()
        for name, order in known.items():
            assert order.state is not None
            self.compare(rows[name], order.state)
        assert self.tenant.verify() == {}
        assert len(self.tenant.ledger()) == sum(len(order.events) for order in known.values())


def test_model__agrees_with_the_database(sessions: Sessions) -> None:
    tenant = sessions.tenant("of-no-history")
    for conn in (tenant.app, tenant.admin):
        set_json_loads(partial(json.loads, parse_float=Decimal), conn)

    class HistoriesHere(Histories):
        def __init__(self) -> None:
            super().__init__(tenant)

    run_state_machine_as_test(
        HistoriesHere,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a history takes minutes
        ),
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ([1], [1.0], True),
        ({}, [], False),
    ],
)
def test_model__compares_as_jsonb_does(sessions: Sessions, one: Any, other: Any, same: bool) -> None:
    query = "SELECT %s::jsonb = %s::jsonb"
    assert sessions.admin.execute(query, (json.dumps(one), json.dumps(other))).fetchone() == (same,)
    assert equal(one, other) is same


# --- what random histories come to never: events that older rules accepted still replay


def told(acme: Tenant, *events: tuple[str, Event]) -> list[State]:
    """Smuggle events into the ledger of a new order; return the states, which are the model's too."""
    order = acme.order()
    state: State = fold(None, _with_text(acme.ledger(order)[0]))
    states = []
    for seq, (event_type, payload) in enumerate(events, start=2):
        event = wire(event_type, order, payload=payload, work_order_seq=seq)
        names = ", ".join(event)
        acme.damage(
            f"INSERT INTO os_core.work_order_ledger (tenant_id, {names})"
            f" SELECT %s, {names} FROM jsonb_populate_record(NULL::os_core.work_order_ledger, %s)",
            acme.id,
            Jsonb(event),
        )
        state = fold(state, _with_text(acme.ledger(order)[-1]))
        states.append(state)
        assert acme.as_of(order, seq=seq) == {**state, "tenant_id": acme.id}
    return states


def _with_text(event: Row) -> Row:
    return {**event, "correlation_id": str(event["correlation_id"])}


def asked(field_key: str) -> tuple[str, Event]:
    return "FIELD_PROMPTED", {"field_key": field_key, "prompt_dedupe_key": f"{field_key}#1"}


def answered(event_type: str, value: str) -> tuple[str, Event]:
    return event_type, {"field_key": "place", "value": value}


def test_fold__a_field_that_is_answered_as_it_once_was_is_resolved_anew(acme: Tenant) -> None:
    *_, last = told(
        acme,
        answered("FIELD_CONFLICT_RESOLVED", "Oslo"),
        answered("FIELD_SET", "Rome"),  # nobody asked: a correction
        asked("place"),
        answered("FIELD_SET", "Oslo"),
    )
    assert last["resolved_fields_json"]["place"]["seq"] == last["last_seq"] == 5
    assert last["last_state_change_seq"] == 5


def test_fold__a_known_field_that_is_asked_and_confirmed_is_resolved_but_no_change(acme: Tenant) -> None:
    known, _, confirmed, again = told(
        acme,
        answered("FIELD_SET", "Oslo"),
        asked("place"),
        answered("FIELD_SET", "Oslo"),
        answered("FIELD_SET", "Oslo"),
    )
    assert confirmed["resolved_fields_json"]["place"]["seq"] == confirmed["last_seq"]
    assert confirmed["last_state_change_seq"] == known["last_seq"]
    assert again["resolved_fields_json"] == confirmed["resolved_fields_json"]


def test_fold__the_same_request_once_more_is_no_change(acme: Tenant) -> None:
    request = ("EXTERNAL_APPROVAL_REQUESTED", {"request_id": "ask-1", "target_user_id": "bob"})
    first, again = told(acme, request, request)
    assert again["last_state_change_seq"] == first["last_seq"]
