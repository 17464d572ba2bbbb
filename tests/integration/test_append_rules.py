"""Appending: every rule of contract §3 and §4, for an event alone and for one within a batch."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from selene_core.contract.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.contract.rules import EVENT_RULES
from tests.support.calls import TERMINAL, Appended, Event, Refusal, Tenant, append, refused
from tests.support.factories import correlation_of, new_id, wire
from tests.support.servers import Database
from tests.support.sessions import Sessions

OPEN = tuple(status.value for status in WorkOrderStatus if status not in TERMINAL)
NOT_CREATED = tuple(
    kind.value for kind in WorkOrderEventType if not kind.startswith(("WORK_ORDER_CREATED", "LEASE_"))
)
ANSWERS = ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "EXTERNAL_APPROVAL_RESOLVED")
CANCELERS = ("WORK_ORDER_CANCELED", "STATUS_CHANGED")
LEASE_TOKEN = "t" * 32


# Hundreds of tests: they share the sessions too, which have their plans by then.
@pytest.fixture(scope="module")
def shared_sessions(shared_database: Database) -> Iterator[Sessions]:
    """Open sessions on this module's database."""
    with closing(Sessions(shared_database.app_url, shared_database.admin_url)) as sessions:
        yield sessions


@pytest.fixture(scope="module")
def connected(shared_sessions: Sessions) -> Tenant:
    """Return the connections that the tests share."""
    return shared_sessions.tenant("first")


@pytest.fixture
def acme(connected: Tenant) -> Tenant:
    """Return a tenant of the test's own."""
    return Tenant(new_id("acme"), connected.app, connected.admin)


class Lane:
    """A way for one event into the ledger; `index` is where in its call the event stands."""

    index = 0

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant

    def before(self) -> list[Event]:
        """Return the events that go before the one which is tested, in one call."""
        return []

    def send(self, event: Event) -> Appended:
        """Append the event and return its row of the result."""
        return self.tenant.append(*self.before(), event)[-1]

    @contextmanager
    def refuses(self, sqlstate: str) -> Iterator[Refusal]:
        """Expect that the block's call is refused and leaves nothing behind."""
        before = self.tenant.everything()
        with refused(sqlstate) as refusal:
            yield refusal
        assert self.tenant.everything() == before
        assert refusal.facts.get("event_index", self.index) == self.index
        assert "another tenant" not in refusal.message

    def refused(self, sqlstate: str, event: Event) -> Event:
        """Send an event that is refused and leaves nothing behind; return the facts without its index."""
        with self.refuses(sqlstate) as refusal:
            self.send(event)
        return {name: fact for name, fact in refusal.facts.items() if name != "event_index"}


class Batch(Lane):
    """The last event of a batch, after one of another work order."""

    index = 1

    def before(self) -> list[Event]:
        return [wire("WORK_ORDER_CREATED")]


@pytest.fixture(params=[Lane, Batch], ids=["single", "batch"])
def lane(request: pytest.FixtureRequest, acme: Tenant) -> Iterator[Lane]:
    """Send events alone, and as the last of a batch."""
    lane: Lane = request.param(acme)
    yield lane
    assert acme.verify() == {}
    assert acme.unsound() == []


def field_set(order: str, field_key: str = "place", value: Any = "Oslo", **given: Any) -> Event:
    """Compose a FIELD_SET."""
    return {**wire("FIELD_SET", order, payload={"field_key": field_key, "value": value}), **given}


def prompt(order: str, field_key: str, dedupe_key: str) -> Event:
    """Compose a FIELD_PROMPTED."""
    return wire("FIELD_PROMPTED", order, payload={"field_key": field_key, "prompt_dedupe_key": dedupe_key})


def status(order: str, to: str, previous: str | None = None, **given: Any) -> Event:
    """Compose a STATUS_CHANGED."""
    payload = {} if previous is None else {"previous_status": previous}
    return wire("STATUS_CHANGED", order, work_order_status=to, payload=payload, **given)


# --- the contract (section 3)


@pytest.mark.parametrize("event_type", NOT_CREATED)
def test_contract__every_event_type_is_kept_as_given(lane: Lane, event_type: str) -> None:
    order = lane.tenant.order()
    if event_type in ANSWERS:
        lane.tenant.append(wire("EXTERNAL_APPROVAL_REQUESTED", order))
    seq = len(lane.tenant.ledger(order)) + 1
    event = wire(
        event_type,
        order,
        correlation_id=str(uuid4()),
        turn_id=2**63 - 1,
        reason_code=2**32 - 1,
        step_id="step/1",
        step_input_hash="sha256: x",
        idempotency_key="a key",
        occurred_at="2024-02-29T23:59:59.999999-05:30",
        expected_seq=seq - 1,
    )
    result = lane.send(event)
    stored = lane.tenant.ledger(order)[-1]
    event.pop("expected_seq")
    assert stored == {
        **event,
        "tenant_id": lane.tenant.id,
        "correlation_id": stored["correlation_id"],
        "occurred_at": datetime.fromisoformat(event["occurred_at"]),
        "work_order_event_id": result.work_order_event_id,
        "work_order_seq": seq,
        "created_at": result.created_at,
        "lease_owner_id": None,
        "lease_token_hash": None,
        "lease_expires_at": None,
        "event_hash": stored["event_hash"],
    }
    assert str(stored["correlation_id"]) == event["correlation_id"]
    assert (result.work_order_seq, result.replayed) == (seq, False)


def test_contract__what_may_be_left_out(lane: Lane) -> None:
    event = wire("WORK_ORDER_CREATED")
    del event["payload"]
    lane.send(event)
    stored = lane.tenant.ledger(event["work_order_id"])[0]
    assert stored["payload"] == {}
    optional = ("step_id", "step_input_hash", "idempotency_key", "occurred_at")
    assert [stored[name] for name in optional] == [None] * 4


def test_contract__null_is_the_same_as_left_out(lane: Lane) -> None:
    order = lane.tenant.order()
    optional = (
        "step_id",
        "step_input_hash",
        "idempotency_key",
        "occurred_at",
        "expected_seq",
        "lease_token",
    )
    seqs = [lane.send({**field_set(order), name: None}).work_order_seq for name in optional]
    assert seqs == [2, 3, 4, 5, 6, 7]


DEEP: Any = 0
for _ in range(32):
    DEEP = [DEEP]
REQUEST = {"request_id": "ask-1", "target_user_id": "alice"}

# For an event type and a column: values that break the contract.
BAD_COLUMNS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("WORK_ORDER_CREATED", "work_order_id"): (
        "",
        " ",
        "a b",
        "é",
        ".a",
        "a\n",
        "x" * 129,
        None,
        5,
        ["a"],
        {},
    ),
    ("WORK_ORDER_CREATED", "correlation_id"): ("", "x", uuid4().hex, f"{{{uuid4()}}}", None, 5),
    ("WORK_ORDER_CREATED", "turn_id"): (0, -1, 1.5, 2**63, "1", None, True),
    ("WORK_ORDER_CREATED", "reason_code"): (0, -1, 1.5, 2**32, "1", None, True),
    ("WORK_ORDER_CREATED", "event_type"): ("", "created", "WORK_ORDER_DONE", None, 5),
    # Only the lease functions write these.
    ("FIELD_SET", "event_type"): ("LEASE_ACQUIRED", "LEASE_RENEWED", "LEASE_RELEASED"),
    ("FIELD_SET", "work_order_status"): ("", "draft", "OPEN", 5),
    ("STATUS_CHANGED", "work_order_status"): (None,),
    ("WORK_ORDER_CANCELED", "reason_code"): (None,),
    ("FIELD_SET", "correlation_id"): ("", "x", 5, [str(uuid4())]),
    ("FIELD_SET", "turn_id"): (0, 1.5, 2**63, "1", True, [1]),
    ("FIELD_SET", "reason_code"): (0, 1.5, 2**32, "1", True, [1]),
    ("WORK_ORDER_CREATED", "work_order_status"): TERMINAL,
    ("WORK_ORDER_CANCELED", "work_order_status"): (*OPEN, "DONE", "REFUSED", "FAILED"),
    ("FIELD_SET", "step_id"): ("", " ", "a\tb", "x" * 97, 5, []),
    ("FIELD_SET", "step_input_hash"): ("", " x", "x ", "a\u0085b", "x" * 129, 5, {}),
    ("FIELD_SET", "idempotency_key"): ("", " k", "k\u3000", "\x7f", "k" * 129, 5, False),
    ("FIELD_SET", "occurred_at"): (
        "",
        "now",
        "today",
        "epoch",
        "infinity",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01 00:00:00Z",
        "2024-02-30T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:00:60Z",
        "2024-01-01T00:00:00.1234567Z",
        "2024-01-01T00:00:00+99:00",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        5,
    ),
    ("FIELD_SET", "expected_seq"): (-1, 1.5, 2**63, "1", True),
    ("FIELD_SET", "lease_token"): ("", "short", "x" * 129, "x" * 16 + " ", "x" * 16 + "é", 5),
    # What the database says itself, and what nobody says.
    ("FIELD_SET", "work_order_event_id"): (5, None),
    ("FIELD_SET", "work_order_seq"): (2, None),
    ("FIELD_SET", "created_at"): ("2024-01-01T00:00:00Z", None),
    ("FIELD_SET", "tenant_id"): ("acme", None),
    ("FIELD_SET", "lease_owner_id"): ("me", None),
    ("FIELD_SET", "lease_token_hash"): ("x", None),
    ("FIELD_SET", "lease_expires_at"): ("2024-01-01T00:00:00Z", None),
    ("FIELD_SET", "replayed"): (True,),
    ("FIELD_SET", ""): (1,),
    ("WORK_ORDER_CREATED", "payload"): (None, 5, "x", [], [{}], {"x": 1}, {"fields": {}, "note": ""}),
    ("FIELD_SET", "payload"): ({}, {"field_key": "a"}, {"value": 1}, {"field_key": "a", "value": 1, "x": 1}),
    ("FIELD_CONFLICT_RESOLVED", "payload"): ({}, {"field_key": "a"}, {"value": 1}),
    ("FIELD_PROMPTED", "payload"): ({}, {"field_key": "a"}, {"prompt_dedupe_key": "a"}),
    ("FIELD_CONFLICT_DETECTED", "payload"): ({}, {"candidates": []}, {"field_key": "a", "value": 1}),
    ("STATUS_CHANGED", "payload"): ({"reason": "x"},),
    ("WORK_ORDER_CANCELED", "payload"): ({"previous_status": "DRAFT"},),
    ("EXTERNAL_APPROVAL_REQUESTED", "payload"): ({}, {"request_id": "a"}, {**REQUEST, "outcome": "APPROVED"}),
    ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "payload"): ({}, REQUEST),
    ("EXTERNAL_APPROVAL_RESOLVED", "payload"): ({}, {"request_id": "a"}, {"outcome": "APPROVED"}),
    ("STEP_STARTED", "payload"): (
        {"x": "x" * 16_384},
        {"x": DEEP},
        {"x": 2**63},
        {"x": -(2**63) - 1},
        {"x": [10**400]},
    ),
}
# For an event type, the rest of its payload and a key in it: values that break the contract.
BAD_PAYLOADS: dict[tuple[str, str], tuple[Event, tuple[Any, ...]]] = {
    ("WORK_ORDER_CREATED", "fields"): ({}, (None, [], "x", {"": 1}, {"a b": 1}, {"é": 1}, {"x" * 65: 1})),
    ("WORK_ORDER_CREATED", "requester_user_id"): ({}, (None, "", " ", "a b", "x" * 129, 5)),
    ("FIELD_SET", "field_key"): ({"value": 1}, ("", "a b", "a/b", "é", "x" * 65, 5, None)),
    ("FIELD_CONFLICT_RESOLVED", "field_key"): ({"value": 1}, ("", None)),
    ("FIELD_CONFLICT_DETECTED", "field_key"): ({}, ("", None)),
    ("FIELD_CONFLICT_DETECTED", "candidates"): ({"field_key": "a"}, (None, {}, "x")),
    ("FIELD_PROMPTED", "field_key"): ({"prompt_dedupe_key": "a"}, ("", None)),
    ("FIELD_PROMPTED", "prompt_dedupe_key"): ({"field_key": "a"}, ("", " a", "a\n", "x" * 129, None, 5)),
    ("STATUS_CHANGED", "previous_status"): ({}, ("", "OPEN", None, 5)),
    ("STATUS_CHANGED", "note"): ({}, ("x" * 4097, None, 5)),
    ("WORK_ORDER_CANCELED", "note"): ({}, ("x" * 4097, None, 5)),
    ("EXTERNAL_APPROVAL_REQUESTED", "request_id"): (REQUEST, ("", " ", None, 5)),
    ("EXTERNAL_APPROVAL_REQUESTED", "target_user_id"): (REQUEST, ("", "a b", None, 5)),
    ("EXTERNAL_APPROVAL_REQUESTED", "expires_at"): (REQUEST, ("infinity", "now", "2024-01-01", None, 5)),
    ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "request_id"): ({}, ("", None)),
    ("EXTERNAL_APPROVAL_RESOLVED", "request_id"): ({"outcome": "APPROVED"}, ("", None)),
    ("EXTERNAL_APPROVAL_RESOLVED", "outcome"): ({"request_id": "a"}, ("", "approved", "PENDING", None)),
}


@pytest.mark.parametrize(("event_type", "column"), BAD_COLUMNS)
def test_contract__refuses_a_column_and_names_it(lane: Lane, event_type: str, column: str) -> None:
    order = lane.tenant.order()
    for value in BAD_COLUMNS[event_type, column]:
        work_order_id = new_id() if event_type == "WORK_ORDER_CREATED" else order
        facts = lane.refused("SL001", {**wire(event_type, work_order_id), column: value})
        assert facts["field"].partition(".")[0] == column, value
        assert facts["rule"], value


@pytest.mark.parametrize(("event_type", "key"), BAD_PAYLOADS)
def test_contract__refuses_a_payload_and_names_the_key(lane: Lane, event_type: str, key: str) -> None:
    order = lane.tenant.order()
    rest, values = BAD_PAYLOADS[event_type, key]
    for value in values:
        work_order_id = new_id() if event_type == "WORK_ORDER_CREATED" else order
        facts = lane.refused("SL001", wire(event_type, work_order_id, payload={**rest, key: value}))
        assert facts["field"] == f"payload.{key}", value
        assert facts["rule"], value


@pytest.mark.parametrize(
    "missing",
    ["work_order_id", "correlation_id", "turn_id", "event_type", "work_order_status", "reason_code"],
)
def test_contract__refuses_an_event_without_a_column(lane: Lane, missing: str) -> None:
    event = wire("WORK_ORDER_CREATED")
    del event[missing]
    assert lane.refused("SL001", event)["field"] == missing


@pytest.mark.parametrize("bad", [5, "x", None, True, [], [1], {}], ids=repr)
def test_contract__refuses_what_is_no_event(lane: Lane, bad: Any) -> None:
    lane.refused("SL001", bad)


@pytest.mark.parametrize(("escape", "sqlstate"), [("\\u0000", "22P05"), ("\\ud800", "22P02")])
def test_contract__jsonb_has_no_nul_and_no_lone_surrogate(acme: Tenant, escape: str, sqlstate: str) -> None:
    with refused(sqlstate):
        acme.app.execute(
            "SELECT os_core.append_work_order_events(%s, %s::jsonb)", (acme.id, f'[{{"x": "{escape}"}}]')
        )


def test_contract__accepts_what_is_just_inside(lane: Lane) -> None:
    order = lane.tenant.order()
    for payload in (
        {"x": DEEP[0]},
        {"x": [2**63 - 1, -(2**63), 0.1, 1.5e-300, "\ud7ff\U0010ffff", True, None]},
        {"x": "x" * (16_384 - len('{"x": ""}'))},
    ):
        lane.send(wire("STEP_STARTED", order, payload=payload))
        assert lane.tenant.ledger(order)[-1]["payload"] == payload
    lane.send(wire("STATUS_CHANGED", order, payload={"note": "é" * 4096}))
    lane.send(
        wire(
            "WORK_ORDER_CREATED", new_id().ljust(128, "x"), payload={"fields": {"x" * 64: None, "A-z0.:_": 1}}
        )
    )


@pytest.mark.parametrize("events", [None, "null", "{}", '"x"', "5", "[]"])
def test_contract__takes_an_array_of_events(acme: Tenant, events: str | None) -> None:
    with refused("SL001") as refusal:
        acme.app.execute("SELECT os_core.append_work_order_events(%s, %s::jsonb)", (acme.id, events))
    assert refusal.facts["field"] == "events"


def test_contract__takes_a_thousand_events_and_no_more(acme: Tenant) -> None:
    events = [wire("WORK_ORDER_CREATED") for _ in range(1001)]
    with refused("SL001") as refusal:
        acme.append(*events)
    assert refusal.facts["field"] == "events"
    assert acme.ledger() == []
    assert len(acme.append(*events[:1000])) == 1000
    assert len(acme.ledger()) == 1000


# --- the tenant


@pytest.mark.parametrize("tenant_id", [None, "", " ", "a b", "x" * 65, "é", "a'b", "-a"])
def test_tenant__must_be_an_id(acme: Tenant, tenant_id: str | None) -> None:
    with refused("SL001") as refusal:
        append(acme.app, tenant_id, wire("WORK_ORDER_CREATED"))
    assert refusal.facts["field"] == "tenant_id"


def test_tenant__is_set_for_the_transaction_when_none_is(acme: Tenant) -> None:
    setting = "SELECT nullif(current_setting('selene.tenant_id', TRUE), '')"
    acme.order()
    assert acme.app.execute(setting).fetchone() == (None,)
    with acme.app.transaction():
        acme.order()
        assert acme.app.execute(setting).fetchone() == (acme.id,)
        assert acme.app.execute("SELECT count(*) FROM os_core.work_order_ledger").fetchone() == (2,)
    assert acme.app.execute("SELECT count(*) FROM os_core.work_order_ledger").fetchone() == (0,)


def test_tenant__another_one_is_refused(acme: Tenant) -> None:
    rival = Tenant(new_id("rival"), acme.app, acme.admin)
    with refused("SL002"), acme.app.transaction():
        acme.app.execute(f"SET LOCAL selene.tenant_id = '{rival.id}'".encode())
        acme.order()
    with refused("SL002") as refusal, acme.app.transaction():
        rival.order()
        acme.order()
    assert rival.id not in str(refusal)
    assert acme.ledger() == rival.ledger() == []


def test_tenant__a_setting_of_the_session_counts(acme: Tenant, sessions: Sessions) -> None:
    session = sessions.open()
    session.conn.execute("SET selene.tenant_id = 'rival'")
    with refused("SL002"):
        session.append(acme.id, wire("WORK_ORDER_CREATED"))
    assert session.append("rival", wire("WORK_ORDER_CREATED"))[0].work_order_seq == 1


# --- step 2: idempotency


def test_idempotency__replay_returns_the_original_and_writes_nothing(lane: Lane) -> None:
    order = lane.tenant.order()
    event = field_set(order, idempotency_key="k")
    original = lane.send(event)
    before = lane.tenant.ledger(order), lane.tenant.projection(order)
    again = lane.send(event)
    assert (original.replayed, again.replayed) == (False, True)
    assert (again.work_order_event_id, again.work_order_seq, again.created_at) == (
        original.work_order_event_id,
        original.work_order_seq,
        original.created_at,
    )
    assert (lane.tenant.ledger(order), lane.tenant.projection(order)) == before


@pytest.mark.parametrize("end", TERMINAL)
def test_idempotency__replay_on_a_terminal_order(lane: Lane, end: str) -> None:
    order = new_id()
    events = [
        wire("WORK_ORDER_CREATED", order, idempotency_key="c"),
        field_set(order, idempotency_key="k"),
        status(order, end, "CLARIFY", idempotency_key="e"),
    ]
    originals = [lane.send(event).work_order_event_id for event in events]
    again = [lane.send(event) for event in events]
    assert [one.work_order_event_id for one in again] == originals
    assert all(one.replayed for one in again)
    assert len(lane.tenant.ledger(order)) == 3


OTHER_CONTENT: dict[str, tuple[Any, ...]] = {
    "correlation_id": (str(uuid4()),),
    "turn_id": (2,),
    "event_type": ("FIELD_CONFLICT_RESOLVED",),
    "work_order_status": ("CONFIRM", "DONE"),
    "reason_code": (2,),
    "payload": ({"field_key": "place", "value": "Rome"}, {"field_key": "where", "value": "Oslo"}),
    "step_id": ("b", None),
    "step_input_hash": ("b", None),
}


@pytest.mark.parametrize("column", OTHER_CONTENT)
@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_idempotency__other_content_is_a_conflict(lane: Lane, column: str, ended: bool) -> None:
    order = lane.tenant.order()
    event = field_set(order, idempotency_key="k", step_id="a", step_input_hash="a")
    original = lane.send(event)
    if ended:
        lane.send(wire("WORK_ORDER_CANCELED", order))
    for value in OTHER_CONTENT[column]:
        assert lane.refused("SL005", {**event, column: value}) == {
            "work_order_id": order,
            "idempotency_key": "k",
            "work_order_event_id": original.work_order_event_id,
        }


NOT_CONTENT: Event = {
    "occurred_at": "2024-01-01T00:00:00Z",
    "expected_seq": 77,
    "lease_token": LEASE_TOKEN,
}


def test_idempotency__every_key_is_content_or_is_not() -> None:
    """A new key of an event is decided here, and in os_core.same_content."""
    assert {*EVENT_RULES, "payload"} == {*OTHER_CONTENT, *NOT_CONTENT, "work_order_id", "idempotency_key"}


@pytest.mark.parametrize("key", NOT_CONTENT)
def test_idempotency__what_is_not_content(lane: Lane, key: str) -> None:
    given = {key: NOT_CONTENT[key]}
    order = lane.tenant.order()
    event = field_set(order, idempotency_key="k", occurred_at="2023-01-01T00:00:00Z", expected_seq=1)
    original = lane.send(event)
    for again in ({**event, **given}, {**event, **dict.fromkeys(given)}):
        result = lane.send(again)
        assert (result.work_order_event_id, result.replayed) == (original.work_order_event_id, True)
    assert lane.tenant.ledger(order)[-1]["occurred_at"] == datetime(2023, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1.0", True),
        ("100", "1e2", True),
        ('{"a": 1, "b": 2}', '{"b": 2.00, "a": 1}', True),
        ('{"a": 1, "a": 2}', '{"a": 2}', True),
        ('"\\u00e9"', '"é"', True),
        ('"é"', '"e\\u0301"', False),
        ("1", '"1"', False),
        ("0", "false", False),
        ("null", '"null"', False),
        ("[1, 2]", "[2, 1]", False),
        ("{}", "[]", False),
    ],
)
def test_idempotency__payloads_compare_as_jsonb(lane: Lane, one: str, other: str, same: bool) -> None:
    order = lane.tenant.order()

    def replayed(value: str) -> bool:
        # As text: the driver would normalise the value.
        events = json.dumps([*lane.before(), field_set(order, value="value", idempotency_key="k")])
        rows = lane.tenant.app.execute(
            "SELECT replayed FROM os_core.append_work_order_events(%s, %s::jsonb)",
            (lane.tenant.id, events.replace('"value": "value"', f'"value": {value}')),
        ).fetchall()
        return bool(rows[-1][0])

    assert not replayed(one)
    if same:
        assert replayed(other)
    else:
        with lane.refuses("SL005"):
            replayed(other)


def test_idempotency__a_key_belongs_to_one_work_order(lane: Lane) -> None:
    one, other = lane.tenant.order(), lane.tenant.order()
    assert not lane.send(field_set(one, idempotency_key="k")).replayed
    assert not lane.send(field_set(other, "other", idempotency_key="k")).replayed
    lane.refused("SL005", field_set(one, "other", idempotency_key="k"))


def test_idempotency__a_key_belongs_to_one_tenant(acme: Tenant) -> None:
    rival = Tenant(new_id("rival"), acme.app, acme.admin)
    for tenant in (acme, rival):
        assert not tenant.append(wire("WORK_ORDER_CREATED", new_id(), idempotency_key="k"))[0].replayed


def test_idempotency__without_a_key_everything_is_new(lane: Lane) -> None:
    order = lane.tenant.order()
    assert [lane.send(field_set(order)).work_order_seq for _ in range(3)] == [2, 3, 4]


def test_idempotency__a_refused_event_does_not_use_up_its_key(lane: Lane) -> None:
    order = lane.tenant.order()
    lane.refused("SL006", field_set(order, idempotency_key="k", expected_seq=5))
    assert not lane.send(field_set(order, value="Rome", idempotency_key="k")).replayed


@pytest.mark.parametrize("end", ["EXECUTING", "DONE"])
def test_idempotency__comes_before_every_refusal(lane: Lane, end: str) -> None:
    order = lane.tenant.order()
    used = field_set(order, idempotency_key="k")
    moved = status(order, end, "CLARIFY", idempotency_key="moved")
    originals = [lane.send(event).work_order_event_id for event in (used, moved)]
    # By now expected_seq and previous_status are wrong, the order may have ended, and nobody holds a lease.
    for event, original in zip((used, moved), originals, strict=True):
        hopeless = {**event, "expected_seq": 77, "lease_token": LEASE_TOKEN}
        again = lane.send(hopeless)
        assert (again.work_order_event_id, again.replayed) == (original, True)
        lane.refused("SL005", {**hopeless, "turn_id": 9})


def test_idempotency__created_replays(lane: Lane) -> None:
    created = wire("WORK_ORDER_CREATED", idempotency_key="c", expected_seq=0)
    assert not lane.send(created).replayed
    assert lane.send(created).replayed
    assert lane.send({**created, "expected_seq": None}).replayed
    lane.refused("SL005", {**created, "work_order_status": "CLARIFY"})


def test_idempotency__same_key_twice_in_one_batch(acme: Tenant) -> None:
    order, other = acme.order(), acme.order()
    twice = field_set(order, idempotency_key="k")
    rows = acme.append(
        twice,
        field_set(other, idempotency_key="k"),
        field_set(order, "b"),
        {**twice, "expected_seq": 9, "lease_token": LEASE_TOKEN},
    )
    assert [row.replayed for row in rows] == [False, False, False, True]
    assert [row.work_order_seq for row in rows] == [2, 2, 3, 2]
    assert rows[3].work_order_event_id == rows[0].work_order_event_id
    assert rows[3].created_at == rows[0].created_at
    assert len(acme.ledger(order)) == 3
    assert acme.verify() == {}


@pytest.mark.parametrize("column", OTHER_CONTENT)
def test_idempotency__same_key_twice_in_one_batch_with_other_content(acme: Tenant, column: str) -> None:
    order = acme.order()
    event = field_set(order, idempotency_key="k", step_id="a", step_input_hash="a")
    with refused("SL005") as refusal:
        acme.append(event, field_set(order, "b"), {**event, column: OTHER_CONTENT[column][0]})
    # Without an event id: that of the first of the two leads nowhere, it is not there either.
    assert refusal.facts == {"work_order_id": order, "idempotency_key": "k", "event_index": 2}
    assert len(acme.ledger(order)) == 1


def test_idempotency__a_batch_mixes_replays_and_new_events(acme: Tenant) -> None:
    order = new_id()
    events = [wire("WORK_ORDER_CREATED", order, idempotency_key="k0")]
    events += [field_set(order, f"f{n}", n, idempotency_key=f"k{n}") for n in range(1, 10)]
    originals = acme.append(events[0], *events[3:6])
    # What is new gets the next numbers, wherever it stands.
    mixed = acme.append(*events)
    assert [row.work_order_seq for row in mixed] == [1, 5, 6, 2, 3, 4, 7, 8, 9, 10]
    assert [row for row in mixed if row.replayed] == [
        Appended(row.work_order_event_id, row.work_order_seq, True, row.created_at) for row in originals
    ]
    again = acme.append(*events)
    assert all(row.replayed for row in again)
    assert [row.work_order_event_id for row in again] == [row.work_order_event_id for row in mixed]
    assert len(acme.ledger(order)) == 10
    assert acme.verify() == {}


def test_idempotency__a_whole_batch_replays_after_its_orders_have_ended(acme: Tenant) -> None:
    batch = [
        event
        for order in [new_id() for _ in range(20)]
        for event in (
            wire("WORK_ORDER_CREATED", order, idempotency_key="c"),
            field_set(order, idempotency_key="f"),
            wire("WORK_ORDER_CANCELED", order, idempotency_key="x"),
            status(order, "CANCELED", idempotency_key="y"),
        )
    ]
    originals = acme.append(*batch)
    again = acme.append(*batch)
    assert [row.work_order_event_id for row in again] == [row.work_order_event_id for row in originals]
    assert all(row.replayed for row in again)
    assert len(acme.ledger()) == 80


# --- step 3: expected_seq


def test_expected_seq__must_be_the_last_one(lane: Lane) -> None:
    order = lane.tenant.order()
    for seq in (1, 2, 3):
        for wrong in {0, 1, 2, 3, 4, 2**63 - 1} - {seq}:
            assert lane.refused("SL006", field_set(order, expected_seq=wrong)) == {
                "work_order_id": order,
                "expected_seq": wrong,
                "last_seq": seq,
            }
        assert lane.send(field_set(order, expected_seq=seq)).work_order_seq == seq + 1


def test_expected_seq__zero_is_an_order_that_does_not_exist(lane: Lane) -> None:
    assert lane.refused("SL006", wire("WORK_ORDER_CREATED", expected_seq=1))["last_seq"] == 0
    created = wire("WORK_ORDER_CREATED", expected_seq=0)
    assert lane.send(created).work_order_seq == 1
    lane.refused("SL006", created)


def test_expected_seq__sees_the_events_before_it_in_the_batch(acme: Tenant) -> None:
    order = new_id()
    batch = [wire("WORK_ORDER_CREATED", order, expected_seq=0)]
    batch += [field_set(order, value=n, expected_seq=n) for n in (1, 2, 3)]
    with refused("SL006") as refusal:
        acme.append(*batch, field_set(order, expected_seq=0))
    assert refusal.facts == {"work_order_id": order, "expected_seq": 0, "last_seq": 4, "event_index": 4}
    assert acme.ledger() == []
    assert [row.work_order_seq for row in acme.append(*batch)] == [1, 2, 3, 4]


def test_expected_seq__is_judged_before_the_state(lane: Lane) -> None:
    lane.refused("SL006", field_set(new_id(), expected_seq=1))
    lane.refused("SL006", wire("WORK_ORDER_CREATED", lane.tenant.order(), expected_seq=0))
    lane.refused("SL006", field_set(lane.tenant.order("DONE"), expected_seq=1))
    lane.refused("SL006", wire("WORK_ORDER_CANCELED", lane.tenant.order("DONE"), expected_seq=1))


# --- step 4: state

EXTRAS: tuple[Event, ...] = ({}, {"idempotency_key": "new"}, {"lease_token": LEASE_TOKEN})


@pytest.mark.parametrize("event_type", NOT_CREATED)
def test_state__nothing_but_created_comes_first(lane: Lane, event_type: str) -> None:
    order = new_id()
    for extra in (*EXTRAS, {"expected_seq": 0}):
        assert lane.refused("SL016", wire(event_type, order, **extra)) == {"work_order_id": order}


def test_state__an_order_of_another_tenant_is_as_unknown_as_any(acme: Tenant) -> None:
    rival = Tenant(new_id("rival"), acme.app, acme.admin)
    theirs, nobodys = rival.order(), new_id()
    for order in (theirs, nobodys):
        with refused("SL016") as refusal:
            acme.append(field_set(order))
        assert refusal.facts == {"work_order_id": order, "event_index": 0}
        assert refusal.message.replace(order, "…") == "work order … does not exist"


@pytest.mark.parametrize("now", [*OPEN, *TERMINAL])
def test_state__created_comes_once(lane: Lane, now: str) -> None:
    order = lane.tenant.order(now)
    for extra in EXTRAS:
        assert lane.refused("SL007", wire("WORK_ORDER_CREATED", order, **extra)) == {
            "work_order_id": order,
            "work_order_status": now,
            "event_type": "WORK_ORDER_CREATED",
        }


def test_state__created_comes_once_in_a_batch(acme: Tenant) -> None:
    created = wire("WORK_ORDER_CREATED")
    with refused("SL007") as refusal:
        acme.append(created, created)
    assert refusal.facts["event_index"] == 1
    assert acme.ledger() == []


@pytest.mark.parametrize("end", TERMINAL)
def test_state__nothing_follows_a_terminal_status(lane: Lane, end: str) -> None:
    order = lane.tenant.order(end)
    for event_type in NOT_CREATED:
        if event_type != "WORK_ORDER_CANCELED":
            for then in ("EXECUTING", "DONE"):
                event = wire(event_type, order, work_order_status=then, lease_token=LEASE_TOKEN)
                assert lane.refused("SL007", event) == {
                    "work_order_id": order,
                    "work_order_status": end,
                    "event_type": event_type,
                }


@pytest.mark.parametrize("now", OPEN)
def test_state__every_status_may_follow_an_open_one(lane: Lane, now: str) -> None:
    for then in (*OPEN, *TERMINAL):
        order = lane.tenant.order(now)
        lane.send(status(order, then))
        assert lane.tenant.projection(order)["work_order_status"] == then


def test_state__every_event_may_end_an_order(lane: Lane) -> None:
    for event_type in NOT_CREATED:
        if event_type != "WORK_ORDER_CANCELED":
            order = lane.tenant.order()
            if event_type in ANSWERS:
                lane.tenant.append(wire("EXTERNAL_APPROVAL_REQUESTED", order))
            lane.send(wire(event_type, order, work_order_status="FAILED"))
            lane.refused("SL007", field_set(order))


@pytest.mark.parametrize("event_type", [name for name in NOT_CREATED if name not in CANCELERS])
def test_cancel__only_by_two_event_types(lane: Lane, event_type: str) -> None:
    for now in ("DRAFT", "DONE", "CANCELED"):
        order = lane.tenant.order(now)
        event = wire(event_type, order, work_order_status="CANCELED", lease_token=LEASE_TOKEN)
        assert lane.refused("SL004", event) == {"work_order_id": order, "work_order_status": now}


@pytest.mark.parametrize("event_type", CANCELERS)
def test_cancel__of_an_open_order(lane: Lane, event_type: str) -> None:
    for now in OPEN:
        order = lane.tenant.order(now)
        lane.send(wire(event_type, order, work_order_status="CANCELED"))
        row = lane.tenant.projection(order)
        assert (row["work_order_status"], row["last_state_change_seq"]) == ("CANCELED", 2)


@pytest.mark.parametrize("event_type", CANCELERS)
@pytest.mark.parametrize("end", TERMINAL)
def test_cancel__of_a_terminal_order_is_refused(lane: Lane, event_type: str, end: str) -> None:
    order = lane.tenant.order(end)
    for extra in EXTRAS:
        event = wire(event_type, order, work_order_status="CANCELED", **extra)
        assert lane.refused("SL004", event) == {"work_order_id": order, "work_order_status": end}


@pytest.mark.parametrize(("one", "two"), [CANCELERS, CANCELERS[::-1]])
def test_cancel__both_events_in_one_batch(acme: Tenant, one: str, two: str) -> None:
    order, other = acme.order(), acme.order()
    first = wire(one, order, work_order_status="CANCELED")
    second = wire(two, order, work_order_status="CANCELED", turn_id=7, reason_code=70, step_id="s")
    for third in (first, second):
        with refused("SL004") as refusal:
            acme.append(first, field_set(other), second, third)
        assert refusal.facts["event_index"] == 3
    with refused("SL004"):
        acme.append(first, first)
    with refused("SL007"):
        acme.append(first, second, field_set(order))
    rows = acme.append(first, field_set(other), second)
    assert [row.work_order_seq for row in rows] == [2, 2, 3]
    before, after = acme.as_of(order, seq=2), acme.projection(order)
    assert before is not None
    assert {name for name in after if before[name] != after[name]} == {
        "turn_id",
        "last_event_id",
        "last_seq",
        "last_reason_code",
        "last_updated_at",
        "step_id",
    }
    assert after["last_state_change_seq"] == 2
    for event in (first, second):
        with refused("SL004"):
            acme.append(event)
    assert acme.verify() == {}


def test_cancel__the_counterpart_does_not_come_in_a_later_call(lane: Lane) -> None:
    order = lane.tenant.order()
    lane.send(wire("WORK_ORDER_CANCELED", order))
    lane.refused("SL004", status(order, "CANCELED"))


def test_cancel__the_pair_needs_an_open_order_too(acme: Tenant) -> None:
    order = acme.order()
    for event_type in CANCELERS:
        with refused("SL004") as refusal:
            acme.append(status(order, "DONE"), wire(event_type, order, work_order_status="CANCELED"))
        assert refusal.facts == {"work_order_id": order, "work_order_status": "DONE", "event_index": 1}
    assert len(acme.ledger(order)) == 1


def test_cancel__of_one_order_does_not_open_another(acme: Tenant) -> None:
    one, other = acme.order(), acme.order("CANCELED")
    with refused("SL004") as refusal:
        acme.append(wire("WORK_ORDER_CANCELED", one), status(other, "CANCELED"))
    assert refusal.facts["work_order_id"] == other


def test_cancel__in_the_batch_that_creates_the_order(acme: Tenant) -> None:
    order = new_id()
    rows = acme.append(
        wire("WORK_ORDER_CREATED", order),
        status(order, "CANCELED", "DRAFT"),
        wire("WORK_ORDER_CANCELED", order, payload={"note": "no longer wanted"}),
    )
    assert [row.work_order_seq for row in rows] == [1, 2, 3]
    assert acme.projection(order)["last_state_change_seq"] == 2
    assert acme.verify() == {}


@pytest.mark.parametrize("now", OPEN)
def test_previous_status__must_be_true(lane: Lane, now: str) -> None:
    order = lane.tenant.order(now)
    for claimed in {*OPEN, *TERMINAL} - {now}:
        for then in ("DRAFT", "DONE", "CANCELED"):
            assert lane.refused("SL007", status(order, then, claimed)) == {
                "work_order_id": order,
                "work_order_status": now,
                "event_type": "STATUS_CHANGED",
            }
    assert lane.send(status(order, "CONFIRM", now)).work_order_seq == 2


def test_previous_status__sees_the_events_before_it_in_the_batch(acme: Tenant) -> None:
    order = acme.order()
    asking, move = field_set(order, work_order_status="CLARIFY"), status(order, "CONFIRM", "CLARIFY")
    with refused("SL007"):
        acme.append(move, asking)
    assert len(acme.append(asking, move)) == 2


def test_previous_status__means_nothing_to_other_events(lane: Lane) -> None:
    order = lane.tenant.order()
    assert lane.send(wire("STEP_STARTED", order, payload={"previous_status": "DONE"})).work_order_seq == 2


# --- step 5: leases


@pytest.mark.parametrize("event_type", ["WORK_ORDER_CREATED", *NOT_CREATED])
def test_lease__a_token_without_a_lease_is_lost(lane: Lane, event_type: str) -> None:
    order = new_id() if event_type == "WORK_ORDER_CREATED" else lane.tenant.order()
    with lane.refuses("SL011") as refusal:
        lane.send(wire(event_type, order, lease_token=LEASE_TOKEN))
    assert refusal.facts["work_order_id"] == order
    assert LEASE_TOKEN not in str(refusal)


# --- the bounds of section 2


def past_the_bound(lane: Lane, event: Event, column: str, limit: int) -> None:
    """Send an event that would exceed a bound."""
    order = event["work_order_id"]
    assert lane.refused("SL013", event) == {"work_order_id": order, "bound": column, "limit": limit}


def test_bound__fields_at_creation(lane: Lane) -> None:
    fields = {f"f{n}": n for n in range(64)}
    created = wire("WORK_ORDER_CREATED", idempotency_key="k", payload={"fields": {**fields, "f64": 64}})
    past_the_bound(lane, created, "fields_json", 64)
    assert lane.send({**created, "payload": {"fields": fields}}).work_order_seq == 1


@pytest.mark.parametrize("event_type", ["FIELD_SET", "FIELD_CONFLICT_RESOLVED"])
def test_bound__fields(lane: Lane, event_type: str) -> None:
    order = lane.tenant.order(fields={f"f{n}": n for n in range(63)})

    def event(field_key: str, value: Any) -> Event:
        return wire(event_type, order, payload={"field_key": field_key, "value": value})

    lane.send(event("f63", 63))
    past_the_bound(lane, event("f64", 64), "fields_json", 64)
    past_the_bound(lane, event("f64", None), "fields_json", 64)
    assert lane.send(event("f63", None)).work_order_seq == 3
    assert lane.send(event("f0", {"new": 1})).work_order_seq == 4


def test_bound__asked_fields(lane: Lane) -> None:
    order = lane.tenant.order()
    lane.tenant.append(*(prompt(order, f"f{n}", f"f{n}#1") for n in range(63)))
    lane.send(prompt(order, "f63", "f63#1"))
    past_the_bound(lane, prompt(order, "f64", "f64#1"), "asked_fields_json", 64)
    lane.tenant.append(field_set(order))  # a state change: from here on it may be asked again
    assert lane.send(prompt(order, "f0", "f0#2")).work_order_seq == 67


def test_bound__conflicts(lane: Lane) -> None:
    order = lane.tenant.order()

    def conflict(field_key: str) -> Event:
        return wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": field_key})

    lane.tenant.append(*(conflict(f"f{n}") for n in range(63)))
    lane.send(conflict("f63"))
    past_the_bound(lane, conflict("f64"), "conflicts_json", 64)
    assert lane.send(conflict("f0")).work_order_seq == 66
    lane.send(wire("FIELD_CONFLICT_RESOLVED", order, payload={"field_key": "f0", "value": 1}))
    assert lane.send(conflict("f64")).work_order_seq == 68


def test_bound__dedupe_keys(lane: Lane) -> None:
    order = lane.tenant.order()

    def asked_anew(n: int, key: str) -> list[Event]:
        # After a state change, or else it would be asked twice.
        return [field_set(order, value=n), prompt(order, f"f{n % 64}", key)]

    lane.tenant.append(*(event for n in range(500) for event in asked_anew(n, f"key {n}")))
    lane.tenant.append(*(event for n in range(500, 512) for event in asked_anew(n, f"key {n}")))
    lane.tenant.append(field_set(order, value=512))
    past_the_bound(lane, prompt(order, "f0", "key 512"), "prompt_dedupe_keys_json", 512)
    assert lane.send(prompt(order, "f0", "key 0")).work_order_seq == 1 + 2 * 512 + 2


@pytest.mark.parametrize(
    ("event_type", "column"),
    [
        ("FIELD_SET", "fields_json"),
        # What was asked stands in both, and is longer here.
        ("FIELD_SET", "resolved_fields_json"),
        ("FIELD_CONFLICT_RESOLVED", "resolved_fields_json"),
    ],
)
def test_bound__bytes(lane: Lane, event_type: str, column: str) -> None:
    order = lane.tenant.order()
    if column == "resolved_fields_json" and event_type == "FIELD_SET":
        lane.tenant.append(*(prompt(order, f"f{n}", f"f{n}#1") for n in range(5)))

    def event(n: int, value: str) -> Event:
        return wire(event_type, order, payload={"field_key": f"f{n}", "value": value})

    def size() -> int:
        row = lane.tenant.admin.execute(
            f"SELECT octet_length({column}::text) FROM os_core.work_orders_current"
            " WHERE work_order_id = %s".encode(),
            (order,),
        ).fetchone()
        assert row is not None
        return int(row[0])

    # From event 10 on, so that the numbers of the events in resolved_fields_json keep their length.
    lane.tenant.append(*(wire("STEP_STARTED", order) for _ in range(10)))
    lane.tenant.append(*(event(n, "é" * 8000) for n in range(4)), event(4, ""))
    room = 65_536 - size()
    assert 0 < room < 16_000
    past_the_bound(lane, event(4, "x" * (room + 1)), column, 65_536)
    lane.send(event(4, "x" * room))
    assert size() == 65_536
    past_the_bound(lane, event(3, "é" * 8000 + "x"), column, 65_536)
    lane.send(event(3, "x" * 16_000))
    assert size() == 65_536
    lane.send(event(3, "x"))
    assert size() == 65_536 - 15_999


COUNTED = {
    "fields_json": 64,
    "asked_fields_json": 64,
    "resolved_fields_json": 64,
    "conflicts_json": 64,
    "prompt_dedupe_keys_json": 512,
}


@pytest.mark.parametrize("column", COUNTED)
def test_bound__keys_are_counted_in_each_column(acme: Tenant, column: str) -> None:
    """Every resolved field is a field too: no event gets past the bound of that column alone."""
    order, limit = acme.order(), COUNTED[column]
    acme.append(prompt(order, "f", "k"), field_set(order, "f", 0))
    acme.append(wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": "f"}))
    (entry,) = acme.projection(order)[column].values()  # as short as the fold makes one
    bounds = f"SELECT os_core.exceeded_bound({', '.join(f'%({name})s' for name in COUNTED)})".encode()
    for count, exceeded in ((limit, None), (limit + 1, f"{column} keys {limit}")):
        keys = Jsonb({f"{n:x}": entry for n in range(count)})
        documents = {**dict.fromkeys(COUNTED, Jsonb({})), column: keys}
        assert acme.admin.execute(bounds, documents).fetchone() == (exceeded,)


def test_bound__an_order_at_every_bound_stays_usable(lane: Lane) -> None:
    order, names = lane.tenant.order(), [f"f{n}" for n in range(64)]
    for n in range(8):
        prompts = (prompt(order, name, f"{name}#{n}") for name in names)
        lane.tenant.append(status(order, "CONFIRM"), *prompts)  # a change: from here on they may come again
    lane.tenant.append(*(field_set(order, name) for name in names))
    lane.tenant.append(
        *(wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": name}) for name in names)
    )
    row = lane.tenant.projection(order)
    assert {column: len(row[column]) for column in COUNTED} == COUNTED
    past_the_bound(lane, field_set(order, "f64"), "fields_json", 64)
    past_the_bound(lane, prompt(order, "f0", "f0#8"), "prompt_dedupe_keys_json", 512)
    for event in (
        prompt(order, "f0", "f0#0"),
        field_set(order, "f0", "Bergen"),
        wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": "f0"}),
        wire("FIELD_CONFLICT_RESOLVED", order, payload={"field_key": "f0", "value": "Oslo"}),
        wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": "f0"}),
        wire("EXTERNAL_APPROVAL_REQUESTED", order),
        wire("EXTERNAL_APPROVAL_WAIT_NOTIFIED", order),
        wire("EXTERNAL_APPROVAL_RESOLVED", order),
        status(order, "EXECUTING"),
        wire("STEP_STARTED", order),
        wire("STEP_FAILED", order),
        wire("STEP_RETRY_SCHEDULED", order),
        wire("STEP_FINISHED", order),
        wire("WORK_ORDER_CANCELED", order),
    ):
        lane.send(event)
        assert lane.tenant.ledger(order)[-1]["event_type"] == event["event_type"]
    row = lane.tenant.projection(order)
    assert {column: len(row[column]) for column in COUNTED} == COUNTED  # nothing is evicted


def test_bound__within_one_batch(acme: Tenant) -> None:
    order = new_id()
    batch = [wire("WORK_ORDER_CREATED", order), *(field_set(order, f"f{n}", n) for n in range(65))]
    with refused("SL013") as refusal:
        acme.append(*batch)
    assert refusal.facts == {
        "work_order_id": order,
        "bound": "fields_json",
        "limit": 64,
        "event_index": 65,
    }
    assert acme.ledger() == []
    assert len(acme.append(*batch[:-1])) == 65


def test_bound__is_judged_last(lane: Lane) -> None:
    order = lane.tenant.order(fields={f"f{n}": n for n in range(63)})
    last = field_set(order, "f63", 63, idempotency_key="k")
    lane.send(last)
    assert lane.send(last).replayed
    lane.refused("SL005", {**last, "payload": {"field_key": "f64", "value": 64}})
    lane.refused("SL006", field_set(order, "f64", expected_seq=1))
    lane.refused("SL011", field_set(order, "f64", lease_token=LEASE_TOKEN))
    lane.send(status(order, "DONE"))
    lane.refused("SL007", field_set(order, "f64"))


# --- step 7: what is written


def test_written__created_at_is_the_databases(lane: Lane) -> None:
    order = new_id()

    def now() -> datetime:
        row = lane.tenant.admin.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        at: datetime = row[0]
        return at

    times = [now()]
    times.append(lane.send(wire("WORK_ORDER_CREATED", order, occurred_at="1999-01-01T00:00:00Z")).created_at)
    times += [lane.send(field_set(order, occurred_at="2999-01-01T00:00:00Z")).created_at for _ in range(5)]
    times.append(now())
    assert times == sorted(times)
    assert [event["created_at"] for event in lane.tenant.ledger(order)] == times[1:-1]


def test_written__created_at_is_not_that_of_the_transactions_start(acme: Tenant) -> None:
    with acme.app.transaction():
        order = acme.order()
        started = acme.app.execute("SELECT now()").fetchone()
        rows = acme.append(field_set(order), field_set(order))
        assert started is not None
        assert started[0] < rows[0].created_at <= rows[1].created_at


def test_written__created_at_never_runs_backwards(lane: Lane) -> None:
    # The server's clock was an hour ahead when it wrote the last event.
    order = lane.tenant.order()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    lane.tenant.damage(
        """
        INSERT INTO os_core.work_order_ledger (
          tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type,
          work_order_status, reason_code, payload, created_at, event_hash
        )
        VALUES (%s, %s, 2, %s, 1, 'STEP_STARTED', 'EXECUTING', 1, '{}', %s, sha256(''))
        """,
        lane.tenant.id,
        order,
        correlation_of(order),
        ahead,
    )
    assert lane.tenant.rebuild().changed == 1
    assert [lane.send(field_set(order, value=n)).created_at for n in range(3)] == [ahead] * 3
    rows = lane.tenant.append(field_set(order), field_set(order), field_set(order))
    assert {row.created_at for row in rows} == {ahead}
    state = lane.tenant.as_of(order, at=ahead)
    assert state is not None
    assert state["last_seq"] == 8


def test_written__rows_come_back_in_the_order_of_the_events(acme: Tenant) -> None:
    orders = [f"{letter}-{new_id()}" for letter in "zamqb"]
    batch = [wire("WORK_ORDER_CREATED", order, idempotency_key="c") for order in orders]
    batch += [
        field_set(order, f"f{n}", n, idempotency_key=f"k{n}") for n in range(3) for order in reversed(orders)
    ]
    for replayed in (False, True):
        rows = acme.append(*batch)
        stored = {event["work_order_event_id"]: event for event in acme.ledger()}
        for row, event in zip(rows, batch, strict=True):
            written = stored[row.work_order_event_id]
            assert row.replayed is replayed
            assert {name: written[name] for name in ("work_order_id", "idempotency_key")} == {
                name: event[name] for name in ("work_order_id", "idempotency_key")
            }
            assert (written["work_order_seq"], written["created_at"]) == (
                row.work_order_seq,
                row.created_at,
            )
        batch.reverse()
    assert acme.unsound() == []


def test_written__a_batch_is_all_or_nothing(acme: Tenant) -> None:
    order, ended = acme.order(), acme.order("DONE")
    before = acme.everything()
    good = [wire("WORK_ORDER_CREATED"), field_set(order), wire("WORK_ORDER_CREATED")]
    for sqlstate, bad in (
        ("SL001", field_set(order, turn_id=0)),
        ("SL004", wire("WORK_ORDER_CANCELED", ended)),
        ("SL006", field_set(order, expected_seq=0)),
        ("SL007", field_set(ended)),
        ("SL011", field_set(order, lease_token=LEASE_TOKEN)),
        ("SL013", wire("WORK_ORDER_CREATED", payload={"fields": {f"f{n}": n for n in range(65)}})),
        ("SL014", wire("WORK_ORDER_CREATED", correlation_id=str(correlation_of(order)))),
        ("SL016", field_set(new_id())),
    ):
        for position in range(len(good) + 1):
            with refused(sqlstate) as refusal:
                acme.append(*good[:position], bad, *good[position:])
            assert refusal.facts.get("event_index", position) == position
            assert acme.everything() == before


@pytest.mark.parametrize(
    ("column", "value"), [("step_id", "-"), ("idempotency_key", ""), ("work_order_id", "z z")]
)
def test_written__a_batch_is_judged_by_the_contract_before_anything_else(
    acme: Tenant, column: str, value: str
) -> None:
    order, ended = acme.order(), acme.order("DONE")
    used = field_set(order, idempotency_key="k")
    acme.append(used)
    before = acme.everything()
    for refused_too in (
        [],
        [field_set(ended)],
        [{**used, "turn_id": 9}],
        [wire("WORK_ORDER_CREATED", payload={"fields": {f"f{n}": n for n in range(65)}})],
        [wire("WORK_ORDER_CREATED", correlation_id=str(correlation_of(order)))],
        [field_set(new_id())],
    ):
        # The first in the call is named, not the first by id: the second one's order comes before.
        bad = [{**wire("WORK_ORDER_CREATED", f"{letter}-{new_id()}"), column: value} for letter in "za"]
        with refused("SL001") as refusal:
            acme.append(*refused_too, used, *bad)
        assert refusal.facts["field"] == column
        assert refusal.facts["event_index"] == len(refused_too) + 1
        assert acme.everything() == before


def test_written__a_refusal_leaves_the_rest_of_the_transaction(acme: Tenant) -> None:
    order = acme.order()
    with acme.app.transaction():
        acme.append(field_set(order))
        for _ in range(3):
            with refused("SL016"), acme.app.transaction():  # a savepoint
                acme.append(field_set(order), field_set(new_id()))
        acme.append(field_set(order))
    assert [event["work_order_seq"] for event in acme.ledger(order)] == [1, 2, 3]
    assert acme.verify() == {}


def test_written__ids_are_told_apart_by_their_bytes(acme: Tenant) -> None:
    ids = [new_id(), new_id("Order"), "a-b", "a_b", "A-B", "a.b", "a", "aa", "a-"]
    rows = acme.append(*(wire("WORK_ORDER_CREATED", each) for each in ids))
    assert [row.work_order_seq for row in rows] == [1] * len(ids)


# --- a projection that is not the fold of its ledger

DAMAGES = {
    "missing": "DELETE FROM os_core.work_orders_current WHERE work_order_id = %s",
    "one behind": "UPDATE os_core.work_orders_current SET last_seq = last_seq - 1 WHERE work_order_id = %s",
    "far behind": "UPDATE os_core.work_orders_current SET last_seq = 1 WHERE work_order_id = %s",
    "ahead": "UPDATE os_core.work_orders_current SET last_seq = last_seq + 5 WHERE work_order_id = %s",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged__append_refuses_until_it_is_rebuilt(lane: Lane, kind: str) -> None:
    order, sound = lane.tenant.order(), lane.tenant.order()
    used = field_set(order, idempotency_key="k")
    for event in (used, field_set(order), field_set(order)):
        lane.send(event)
    lane.tenant.damage(DAMAGES[kind], order)
    events = [field_set(order), field_set(order, idempotency_key="new"), status(order, "DONE")]
    if kind == "missing":
        events += [wire("WORK_ORDER_CREATED", order, **extra) for extra in EXTRAS[:2]]
        events += [field_set(order, expected_seq=seq) for seq in (0, 4)]
    for event in events:
        assert lane.refused("SL017", event) == {"work_order_id": order}
    if kind == "missing":
        assert lane.refused("SL017", used) == {"work_order_id": order}
    else:
        assert lane.send(used).replayed
    assert lane.send(field_set(sound)).work_order_seq == 2
    assert [*lane.tenant.verify()] == [order]
    assert lane.tenant.rebuild().changed == 1
    assert lane.send(used).replayed
    assert lane.send(field_set(order)).work_order_seq == 5


@pytest.mark.parametrize("letter", "az")
def test_damaged__is_named_by_a_batch_that_creates_orders_too(acme: Tenant, letter: str) -> None:
    order = f"{letter}-{new_id()}"
    acme.append(wire("WORK_ORDER_CREATED", order), field_set(order))
    acme.damage(DAMAGES["one behind"], order)
    with refused("SL017") as refusal:
        acme.append(
            wire("WORK_ORDER_CREATED", f"m-{new_id()}"),
            field_set(order),
            wire("WORK_ORDER_CREATED", f"m-{new_id()}"),
        )
    assert refusal.facts == {"work_order_id": order}
    assert len(acme.ledger()) == 2
