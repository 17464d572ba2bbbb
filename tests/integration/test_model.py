"""Random histories: after each step the projection is, column by column, what a model of the contract has."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any, ClassVar
from uuid import NAMESPACE_OID, UUID, uuid5

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg.types.json import Jsonb, set_json_loads

from selene_core import WorkOrder, decide_prompt
from selene_core.contract.prompts import may_be_asked
from soak.checker.model import (
    ENVELOPE,
    JSON_COLUMNS,
    TERMINAL,
    Model,
    Order,
    Refused,
    State,
    equal,
    exact,
    fold,
    required,
)
from tests.support.calls import Appended, Event, Row, Tenant, refused
from tests.support.factories import new_id, wire
from tests.support.sessions import Sessions
from tests.support.workers import attempts, claim, finish, new_token, release, start, wait_past

ORDERS, FIELDS = ("a", "b", "c"), ("who", "when", "where")
REQUESTS, OUTCOMES = ("ask-1", "ask-2"), ("APPROVED", "REJECTED", "EXPIRED")
LONG_AGO, FAR_OFF = "2001-01-01T00:00:00+02:00", "2999-12-31T23:59:59.5-08:00"
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
requests = st.sampled_from(REQUESTS)
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
        optional={"expires_at": st.sampled_from((LONG_AGO, FAR_OFF))},
    ),
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": st.fixed_dictionaries({"request_id": requests}),
    "EXTERNAL_APPROVAL_RESOLVED": st.fixed_dictionaries(
        {"request_id": requests, "outcome": st.sampled_from(OUTCOMES)}
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
            statuses = [*PENDING * 6, *sorted(TERMINAL)]
    order = draw(st.sampled_from(ORDERS))
    event = {
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
    given = draw(st.sets(st.sampled_from(sorted(ENVELOPE)))) if draw(st.booleans()) else {*ENVELOPE}
    return without(event, {*ENVELOPE} - given, as_null=draw(st.booleans()))


def without(event: Event, names: set[str], *, as_null: bool) -> Event:
    """Leave out of the envelope what the event may leave out of these."""
    left_out = names - required(event)
    kept = {name: value for name, value in event.items() if name not in left_out}
    return {**kept, **dict.fromkeys(left_out)} if as_null else kept


def sequel(luck: Random, order: str, state: State) -> Event:
    """Return an event that the state of an order suggests: no question is answered by luck alone."""
    event_type, payload = luck.choice([*suggestions(luck, state)])
    event = wire(event_type, order, payload=payload, turn_id=luck.randint(1, 3))
    status = luck.choice((*PENDING, "DONE", "FAILED")) if luck.random() < 0.1 else state["work_order_status"]
    optional = {
        "step_id": luck.choice((None, "one", "two")),
        "idempotency_key": luck.choice((None, None, f"after-{state['last_seq']}")),
        "expected_seq": luck.choice((None, None, state["last_seq"])),
    }
    sequel = {
        **event,
        **optional,
        "correlation_id": state["correlation_id"],
        "work_order_status": "CANCELED" if event_type == "WORK_ORDER_CANCELED" else status,
    }
    left_out = {name for name in ENVELOPE if luck.random() < 0.3}
    return without(sequel, left_out, as_null=luck.random() < 0.5)


def suggestions(luck: Random, state: State) -> Iterator[tuple[str, Event]]:
    """Return what may well come next; what is rare by itself more than once."""
    known, conflicts = sorted(state["fields_json"]), sorted(state["conflicts_json"])
    asked = sorted({*state["asked_fields_json"]} - {*known})
    for keys in ([*FIELDS], asked):
        for key in luck.sample(keys, min(1, len(keys))):
            yield "FIELD_SET", {"field_key": key, "value": luck.choice(VALUES)}
    for keys in (sorted({*FIELDS} - {*known}), conflicts, conflicts):
        for key in luck.sample(keys, min(1, len(keys))):
            attempts = state["asked_fields_json"].get(key, {"attempts": 0})["attempts"]
            number = attempts + luck.choice((1, 1, 0))
            yield "FIELD_PROMPTED", {"field_key": key, "prompt_dedupe_key": f"{key}#{number}"}
    for key in known[:1]:
        yield "FIELD_CONFLICT_DETECTED", {"field_key": key, "candidates": [luck.choice(VALUES)]}
    for key in conflicts[:1]:
        yield "FIELD_CONFLICT_RESOLVED", {"field_key": key, "value": luck.choice(VALUES)}
    yield "STATUS_CHANGED", {"previous_status": state["work_order_status"]}
    yield "STEP_STARTED", {}
    if not state["external_approval_pending"] or luck.random() < 0.2:
        expiry = luck.choice(({}, {"expires_at": LONG_AGO}, {"expires_at": FAR_OFF}))
        request = {"request_id": luck.choice(REQUESTS), "target_user_id": "carol", **expiry}
        yield "EXTERNAL_APPROVAL_REQUESTED", request
    if state["external_approval_pending"]:
        request = {"request_id": state["external_approval_request_id"]}
        yield from [("EXTERNAL_APPROVAL_WAIT_NOTIFIED", request)] * 3
        yield from [("EXTERNAL_APPROVAL_RESOLVED", {**request, "outcome": each}) for each in OUTCOMES]
        yield "WORK_ORDER_CANCELED", {}


def situation_of(state: State, event: Event) -> str | None:
    """Say which of the situations that sections 6 and 7 are about an event comes into."""
    payload, pending = event["payload"], state["external_approval_pending"]
    is_asked = pending and payload.get("request_id") == state["external_approval_request_id"]
    match event["event_type"]:
        case "FIELD_PROMPTED" if pending:
            return "a prompt while an approval is pending"
        case "FIELD_PROMPTED" if payload["field_key"] in state["conflicts_json"]:
            return "a prompt about a conflict"
        case "FIELD_PROMPTED":
            return "a prompt"
        case "FIELD_CONFLICT_RESOLVED" if payload["field_key"] in state["conflicts_json"]:
            return "a conflict's resolution"
        case "FIELD_SET" if {payload["field_key"]} & (
            {*state["asked_fields_json"]} - {*state["fields_json"]}
        ):
            return "an answer"
        case "EXTERNAL_APPROVAL_REQUESTED":
            return "a second request" if pending else "a request"
        case "EXTERNAL_APPROVAL_WAIT_NOTIFIED" if is_asked:
            return "a first notice" if state["external_approval_notices"] == 0 else "one more notice"
        case "EXTERNAL_APPROVAL_RESOLVED" if is_asked:
            return f"a request's end as {payload['outcome']}"
        case "STEP_STARTED" | "WORK_ORDER_CANCELED" as event_type if pending:
            return f"{event_type} while an approval is pending"
    return None


SITUATIONS = {
    "a prompt while an approval is pending: SL009",
    "a prompt about a conflict: accepted",
    "a prompt about a conflict: SL008",
    "a prompt: accepted",
    "a prompt: SL008",
    "a conflict's resolution: accepted",
    "an answer: accepted",
    "a second request: SL009",
    "a request: accepted",
    "a first notice: accepted",
    "one more notice: SL008",
    "a request's end as APPROVED: accepted",
    "a request's end as REJECTED: accepted",
    "a request's end as EXPIRED: accepted",
    "a request's end as EXPIRED: SL007",
    "STEP_STARTED while an approval is pending: SL009",
    "WORK_ORDER_CANCELED while an approval is pending: accepted",
}


def thread(drawn: str | UUID) -> UUID:
    """Return the correlation that a drawn name stands for."""
    return drawn if isinstance(drawn, UUID) else uuid5(NAMESPACE_OID, drawn)


def threads(event: Event) -> Event:
    """Return the event's correlation, if it gives one."""
    drawn = event.get("correlation_id")
    return {} if drawn is None else {"correlation_id": str(thread(drawn))}


@contextmanager
def suppress_codes(*sqlstates: str) -> Iterator[None]:
    """Let a call be refused for one of these reasons: what it writes is the model's business, not whether."""
    try:
        yield
    except psycopg.Error as exc:
        if exc.sqlstate not in sqlstates:
            raise


class Histories(RuleBasedStateMachine):
    """One tenant a history; everything that happens to it happens to the model too."""

    connected: ClassVar[Tenant]

    def __init__(self) -> None:
        super().__init__()
        self.happened: Counter[str] = Counter()
        self.tenant = Tenant(new_id("acme"), self.connected.app, self.connected.admin)
        self.prefix = new_id()
        self.model = Model()
        self.answered: list[tuple[list[Event], list[Appended]]] = []
        self.held: list[tuple[str, str | None]] = []

    def call(self, *drawn: Event) -> bool:
        """Append, compare the answer with the model's, and tell whether it was accepted."""
        batch = [
            {**event, "work_order_id": f"{self.prefix}-{event['work_order_id']}", **threads(event)}
            for event in drawn
        ]
        plan = self.model.plan(batch)
        if len(batch) == 1:
            order = self.model.orders.get(batch[0]["work_order_id"])
            if order and order.state and (situation := situation_of(order.state, batch[0])):
                self.happened[
                    f"{situation}: {plan.sqlstate if isinstance(plan, Refused) else 'accepted'}"
                ] += 1
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

    @rule(seed=st.integers(0, 2**32), steps=st.integers(1, 4))
    def go_on(self, seed: int, steps: int) -> None:
        """Append what the states of the orders suggest; where none is open, begin another."""
        luck = Random(seed)
        for _ in range(steps):
            if states := self.open_orders():
                order = luck.choice(sorted(states))
                self.call(sequel(luck, order, states[order]))
            else:
                order = f"later-{len(self.model.orders)}"
                self.call({**wire("WORK_ORDER_CREATED", order), "correlation_id": order})
            self.agree()

    @rule(seed=st.integers(0, 2**32), size=st.integers(2, 4))
    def go_on_in_a_batch(self, seed: int, size: int) -> None:
        """Append several at once; what one brings about may be the end of the next."""
        luck = Random(seed)
        if states := self.open_orders():
            orders = luck.choices(sorted(states), k=size)
            batch = [sequel(luck, order, states[order]) for order in orders]
            self.call(*({**event, "expected_seq": None} for event in batch))

    def open_orders(self) -> dict[str, State]:
        """Return the states of the orders that have not ended, by their drawn names."""
        return {
            name.removeprefix(f"{self.prefix}-"): order.state
            for name, order in self.model.orders.items()
            if order.state and order.state["work_order_status"] in PENDING
        }

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

    @rule(order=st.integers(0, 99), which=st.integers(0, 99))
    def as_of(self, order: int, which: int) -> None:
        """Look back at a state that once was."""
        known = sorted(name for name, each in self.model.orders.items() if each.events)
        if known:
            model = self.model.orders[name := known[order % len(known)]]
            which %= len(model.events)
            event, state = model.events[which], model.states[which]
            self.compare(self.tenant.as_of(name, seq=which + 1), state)
            self.compare(self.tenant.as_of(name, event_id=event["work_order_event_id"]), state)
            # Two events of one call may have been created in the same microsecond.
            at = event["created_at"]
            last = max(n for n, each in enumerate(model.events) if each["created_at"] <= at)
            self.compare(self.tenant.as_of(name, at=at), model.states[last])
            assert self.tenant.as_of(name, seq=0) is None
        assert self.tenant.as_of(f"{self.prefix}-none", seq=10**9) is None

    @rule(statuses=st.sets(st.sampled_from(PENDING), min_size=1), ttl_ms=st.sampled_from((1, 3_600_000)))
    def claim(self, statuses: set[str], ttl_ms: int) -> None:
        """Claim: the model knows which order comes next."""
        token = new_token()
        row = claim(self.tenant.app, self.tenant.id, token, statuses=statuses, ttl_ms=ttl_ms)
        assert (row and row["work_order_id"]) == self.model.claimed(statuses)
        if row is not None:
            self.held.append((row["work_order_id"], token))
            self.follow(row["work_order_id"])
            if ttl_ms == 1:
                wait_past(self.tenant, row["lease_expires_at"])

    @rule(which=st.integers(0, 99), not_before=st.sampled_from((None, LONG_AGO, FAR_OFF)))
    def give_back(self, which: int, not_before: str | None) -> None:
        """Give a lease back, unless it was taken over."""
        if self.held:
            order, token = self.held.pop(which % len(self.held))
            with suppress_codes("SL011"):
                release(self.tenant.app, self.tenant.id, order, token, not_before)
            self.follow(order)

    @rule(
        which=st.integers(0, 99),
        step=st.sampled_from(("one", "two")),
        limits=st.fixed_dictionaries(
            {
                "timeout_ms": st.sampled_from((1, 3_600_000)),
                "max_retries": st.integers(0, 2),
                "retry_backoff_ms": st.sampled_from((1, 3_600_000)),
            }
        ),
        outcome=st.sampled_from(("SUCCEEDED", "FAILED", None)),
        retryable=st.booleans(),
    )
    def work(
        self, which: int, step: str, limits: dict[str, int], outcome: str | None, retryable: bool
    ) -> None:
        """Do a step of an order that is claimed, or of one that is not; the worker may die of it."""
        orders = [*self.held, *((order, None) for order in sorted(self.model.orders))]
        if not orders:
            return
        order, token = orders[which % len(orders)]
        with suppress_codes("SL007", "SL009", "SL010", "SL011", "SL012", "SL016"):
            attempt = start(
                self.tenant.app, self.tenant.id, order, new_id(), step=step, token=token, **limits
            )
            self.follow(order)
            if outcome:
                finish(
                    *(self.tenant.app, self.tenant.id, attempt["step_attempt_id"], outcome),
                    retryable=retryable,
                    token=token,
                )
        self.follow(order)
        for moment in self.model.orders[order].times() if order in self.model.orders else ():
            if moment < datetime.now(UTC) + timedelta(minutes=1):
                wait_past(self.tenant, moment)

    def follow(self, order: str) -> None:
        """Take over what the functions of leases and attempts have written."""
        model = self.model.orders.setdefault(order, Order())
        for event in self.tenant.ledger(order)[len(model.events) :]:
            model.add({**event, "correlation_id": str(event["correlation_id"])})
        model.attempts = attempts(self.tenant, order)

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


@pytest.fixture
def histories(sessions: Sessions) -> type[Histories]:
    """Return histories on sessions of their own."""
    tenant = sessions.tenant("of-no-history")
    for conn in (tenant.app, tenant.admin):
        set_json_loads(partial(json.loads, parse_float=Decimal), conn)

    class HistoriesHere(Histories):
        connected = tenant

    return HistoriesHere


def test_model__agrees_with_the_database(histories: type[Histories]) -> None:
    run_state_machine_as_test(
        histories,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a history takes minutes
        ),
    )


def test_model__agrees_in_every_situation(histories: type[Histories]) -> None:
    """Histories that never came to what the rules are about prove nothing: these do, the same each time."""
    happened: Counter[str] = Counter()
    for seed in range(20):
        history = histories()
        history.create(["DRAFT"])
        history.go_on(seed, steps=50)
        happened += history.happened
    assert {situation for situation, times in happened.items() if times >= 3} >= SITUATIONS


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
        event = wire(event_type, order, payload=payload, work_order_seq=seq, event_hash="\\x" + 32 * "00")
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
