"""What breaks the contract is refused in Python, and in the database by itself (contract §3).

Each bad event is one JSON text. Python reads it as an import would; the database gets it from psycopg, by the
application role.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from selene_core import (
    ContractViolation,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderStatus,
    append_events,
)
from selene_core.contract.errors import BY_SQLSTATE
from selene_core.contract.frozen_json import MAX_PAYLOAD_BYTES
from selene_core.contract.rules import EVENT_RULES, PAYLOAD_RULES, TIMESTAMP_PATTERN, PayloadRules
from tests.support.factories import created, wire
from tests.support.raw import Connection, connect
from tests.support.servers import Database, Server

APPEND = "SELECT * FROM os_core.append_work_order_events(%s, %s::jsonb)"
JSON_ERRORS = {"22P02", "22P05"}  # of the jsonb parser: no JSON, or text that PostgreSQL cannot hold
MISSING = object()


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def step(payload: Any) -> str:
    return json.dumps(wire("STEP_STARTED", "order", payload=payload))


def step_raw(payload: str) -> str:
    return step("?").replace('"?"', payload)


def changed(changes: dict[str, Any], event_type: str = "WORK_ORDER_CREATED") -> str:
    event = {**wire(event_type, "order"), **changes}
    return json.dumps({name: value for name, value in event.items() if value is not MISSING})


BAD_IDS = [
    "",
    " ",
    "a b",
    " a",
    "a\t",
    "a\n",
    "\u00a0",
    "-a",
    ".a",
    "é",
    "ａ",
    "а",
    "a\u200b",
    "a%",
    "a\x01",
    5,
    True,
    ["a"],
]
BAD_LABELS = [
    "",
    " ",
    "\t",
    "\n",
    "\u00a0",
    "\u2003\u3000",
    "a\x01",
    "a\x7f",
    "a\x85",
    "a\nb",
    "x" * 129,
    5,
    True,
    {},
]
BAD_TIMES = [
    *("", "now", "today", "yesterday", "epoch", "infinity", "-infinity", "allballs", "2026-01-01"),
    *("2026-01-01T00:00:00", "2026-01-01 00:00:00+00:00", "2026-01-01T00:00:00 Z", "2026-01-01T00:00Z"),
    *("2026-01-01T00:00:00z", "2026-01-01t00:00:00Z", "2026-01-01T00:00:00Z\n", " 2026-01-01T00:00:00Z"),
    *(
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
    ),
    *("2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z", "2026-06-30T23:59:60Z"),
    *("2026-01-01T00:00:00.Z", "2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00,5Z"),
    *(
        "2026-01-01T00:00:00+16:00",
        "2026-01-01T00:00:00+0100",
        "2026-01-01T00:00:00+01",
        "2026-01-01T00:00:00+00:60",
    ),
    *("0000-01-01T00:00:00Z", "0000-12-31T23:59:59Z", "9999-12-31T24:00:00Z", "10000-01-01T00:00:00Z"),
    *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59.999999-00:01", "1900-02-29T00:00:00Z"),
    *(
        "-2026-01-01T00:00:00Z",
        "+2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00 UTC",
        "2026-01-01T00:00:00Europe/Oslo",
    ),
    *("2026-01-01T00:00:00.123456+00:00+00:00", f"2026-01-01T00:00:00Z{'Z' * 40}"),
    *("2026-01-01T00:00:00.5.0Z", "2026-01-01T00:00:00.1234560Z", "2026-01-01T00:00:00.0Z BC"),
    *("2026-+1-01T00:00:00Z", "2026-01-01T00:00: 1Z", "10000-01-01T00:00:00.5+04:40"),
    *("20260101T000000Z", "2026-W01-1T00:00:00Z", "2026-001T00:00:00Z", "٢٠٢٦-01-01T00:00:00Z"),
    *(0, 1767225600, True, {}),
]
BAD_COUNTS = [
    *(0, -1, 1.5, 1.0, "1", "", True, [1], [None], {}),
    *(2**63, 10**30, -(2**63), -(2**63) - 1, -(10**30)),
]

NO_OBJECTS: list[Any] = [None, [], "x", 5]
NO_LISTS: list[Any] = [None, {}, "x", 5]
NO_NOTES: list[Any] = [None, [], "x" * 4097, 5]

# The key, and what it must not be.
BAD_VALUES: dict[str, list[Any]] = {
    "work_order_id": [*BAD_IDS, "x" * 129, None, MISSING],
    "correlation_id": [
        *("", " ", "x", "12345678123412341234123456789abc", "{12345678-1234-1234-1234-123456789abc}"),
        *("12345678-1234-1234-1234-123456789abg", "12345678-1234-1234-1234-123456789abc\n", "urn:uuid:x"),
        *("1234-56781234-1234-1234-123456789abc", 5, True, None, MISSING),
    ],
    "turn_id": [*BAD_COUNTS, None, MISSING],
    "event_type": [
        *("", " ", "NOPE", "field_set", "FIELD_SET ", "FIELD_SET\n", 5, True, None, MISSING),
        *("LEASE_ACQUIRED", "LEASE_RENEWED", "LEASE_RELEASED"),
    ],
    "work_order_status": ["", " ", "PENDING", "draft", "DRAFT ", "DRAFT\n", 5, True, None, MISSING],
    "reason_code": [*BAD_COUNTS, 2**32, None, MISSING],
    "step_id": [*BAD_IDS, "x" * 97],
    "step_input_hash": BAD_LABELS,
    "idempotency_key": [*BAD_LABELS, " a", "a ", "\u3000a", "a\u2028"],
    "occurred_at": BAD_TIMES,
    "expected_seq": [*(value for value in BAD_COUNTS if value != 0), -0.0, ""],
    "lease_token": ["", "x" * 15, "x" * 129, " " * 16, "x" * 15 + " ", "x" * 15 + "\n", "é" * 16, 5, True],
    "payload": [None, [], "x", 5, True],
}
UNKNOWN_KEYS = [
    *("lease_owner_id", "lease_token_hash", "lease_expires_at", "work_order_event_id", "work_order_seq"),
    *("created_at", "tenant_id", "color", "", " ", "Payload", "a: b", "é", "x" * 200, "WORK_ORDER_ID"),
]
# The event type, its payload, and the key that it breaks.
BAD_PAYLOADS: list[tuple[str, dict[str, Any], str]] = [
    *(("WORK_ORDER_CREATED", {"fields": value}, "fields") for value in NO_OBJECTS),
    *(
        ("WORK_ORDER_CREATED", {"fields": {key: 1}}, "fields")
        for key in ("", " ", "a b", "é", "a/b", "a\n", "x" * 65)
    ),
    *(
        ("WORK_ORDER_CREATED", {"requester_user_id": value}, "requester_user_id")
        for value in (*BAD_IDS, None)
    ),
    *(
        (kind, {"field_key": value, "value": 1}, "field_key")
        for kind in ("FIELD_SET", "FIELD_CONFLICT_RESOLVED")
        for value in ("", " ", "a b", "é", "a/b", "a\n", "x" * 65, 5, None)
    ),
    ("FIELD_SET", {"value": 1}, "field_key"),
    ("FIELD_SET", {"field_key": "a"}, "value"),
    ("FIELD_CONFLICT_RESOLVED", {"field_key": "a"}, "value"),
    ("FIELD_PROMPTED", {"field_key": "a"}, "prompt_dedupe_key"),
    *(
        ("FIELD_PROMPTED", {"field_key": "a", "prompt_dedupe_key": value}, "prompt_dedupe_key")
        for value in ("", " ", " a", "a ", "a\n", "x" * 129, 5, None)
    ),
    ("FIELD_PROMPTED", {"prompt_dedupe_key": "a"}, "field_key"),
    ("FIELD_CONFLICT_DETECTED", {}, "field_key"),
    *(
        ("FIELD_CONFLICT_DETECTED", {"field_key": "a", "candidates": value}, "candidates")
        for value in NO_LISTS
    ),
    *(
        ("STATUS_CHANGED", {"previous_status": value}, "previous_status")
        for value in ("", "draft", "DRAFT ", 5, None)
    ),
    *(
        (kind, {"note": value}, "note")
        for kind in ("STATUS_CHANGED", "WORK_ORDER_CANCELED")
        for value in NO_NOTES
    ),
    ("EXTERNAL_APPROVAL_REQUESTED", {"request_id": "r"}, "target_user_id"),
    ("EXTERNAL_APPROVAL_REQUESTED", {"target_user_id": "u"}, "request_id"),
    *(
        ("EXTERNAL_APPROVAL_REQUESTED", {"request_id": "r", "target_user_id": value}, "target_user_id")
        for value in (*BAD_IDS, None)
    ),
    *(
        (
            "EXTERNAL_APPROVAL_REQUESTED",
            {"request_id": "r", "target_user_id": "u", "expires_at": value},
            "expires_at",
        )
        for value in (*BAD_TIMES, None)
    ),
    ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", {}, "request_id"),
    *(
        ("EXTERNAL_APPROVAL_WAIT_NOTIFIED", {"request_id": value}, "request_id")
        for value in ("", " ", 5, None)
    ),
    ("EXTERNAL_APPROVAL_RESOLVED", {"request_id": "r"}, "outcome"),
    ("EXTERNAL_APPROVAL_RESOLVED", {"outcome": "APPROVED"}, "request_id"),
    *(
        ("EXTERNAL_APPROVAL_RESOLVED", {"request_id": "r", "outcome": value}, "outcome")
        for value in ("", "approved", "APPROVED ", 5, None)
    ),
]
KNOWN_PAYLOADS = [kind.value for kind in PAYLOAD_RULES]

# The text of a bad event, and the key that it breaks.
BAD: list[tuple[str, str]] = [
    *((changed({name: value}), name) for name, values in BAD_VALUES.items() for value in values),
    *((changed({name: value}), name) for name in UNKNOWN_KEYS for value in ("x", None)),
    *(
        (changed({"work_order_status": status}), "work_order_status")
        for status in ("DONE", "REFUSED", "FAILED", "CANCELED")
    ),
    *(
        (changed({"work_order_status": status}, "WORK_ORDER_CANCELED"), "work_order_status")
        for status in ("DRAFT", "CLARIFY", "CONFIRM", "EXECUTING", "DONE", "REFUSED", "FAILED")
    ),
    *((changed({"payload": payload}, kind), f"payload.{key}") for kind, payload, key in BAD_PAYLOADS),
    *(
        (changed({"payload": {**wire(kind)["payload"], "color": 1}}, kind), "payload.color")
        for kind in KNOWN_PAYLOADS
    ),
    (step({"a": "x" * MAX_PAYLOAD_BYTES}), "payload"),
    (step({"a": nested(32)}), "payload"),
    (step({"a": nested(900)}), "payload"),
    *(
        (step_raw(f'{{"a": [{number}]}}'), "payload")
        for number in (2**63, -(2**63) - 1, 10**40, "1e19", "-1e300")
    ),
    *((step_raw(f'{{"a": {number}}}'), "payload") for number in ("1e309", "-1e309", "9" * 400)),
    ("5", "event"),
    ("null", "event"),
    ("[]", "event"),
    ('"x"', "event"),
]
# What is no JSON to PostgreSQL.
BAD_JSON = [
    *(changed({name: "a\0"}) for name in ("work_order_id", "step_id", "step_input_hash", "idempotency_key")),
    *(
        changed({name: "a\ud800"})
        for name in ("work_order_id", "step_id", "step_input_hash", "idempotency_key")
    ),
    *(step({"a": text}) for text in ("\0", "a\0b", "\ud800", "\udfff", "\udc00\ud800")),
    *(step({text: "a"}) for text in ("\0", "\ud800")),
    *(changed({"payload": {"fields": {"a": text}}}) for text in ("\0", "\ud800")),
    *(step({"a": number}) for number in (float("nan"), float("inf"), float("-inf"))),
    *(changed({"turn_id": number}) for number in (float("nan"), float("inf"))),
    changed({"a\0": 1}),
]


def refusal(text: str) -> ContractViolation:
    """Return what Python says of an event's text; fail if it is content."""
    with pytest.raises(ContractViolation) as caught:
        WorkOrderLedgerEventInput.from_mapping(json.loads(text))
    return caught.value


@pytest.fixture
def app(database: Database) -> Iterator[Connection]:
    """Return a connection of the application role, in autocommit."""
    with connect(database.app_url, autocommit=True) as conn:
        yield conn


@pytest.fixture(scope="module")
def shared_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return one database for all examples; each rolls back."""
    with server.new_database("bad_input", template_database) as database:
        yield database


@pytest.fixture(scope="module")
def shared_app(shared_database: Database) -> Iterator[Connection]:
    """Return a connection of the application role to it, on which an order exists."""
    append_events(shared_database.engine("app"), "acme", [created("order")])
    with connect(shared_database.app_url) as conn:
        yield conn


def written(database: Database) -> list[tuple[Any, ...]]:
    with database.server.admin(database.name) as admin:
        return admin.execute(
            "SELECT (SELECT count(*) FROM os_core.work_order_ledger),"
            " (SELECT count(*) FROM os_core.work_orders_current)"
        ).fetchall()


def short(text: str) -> str:
    return ascii(text)[-60:]


@pytest.mark.parametrize(("text", "key"), BAD, ids=[f"{key} {index}" for index, (_, key) in enumerate(BAD)])
def test_bad_event__is_refused_twice(shared_app: Connection, text: str, key: str) -> None:
    said = refusal(text)
    assert said.field is not None
    assert said.field == key or said.field.startswith((f"{key}.", f"{key}[", key[:20])), said.field

    good = json.dumps(wire("WORK_ORDER_CREATED", "bystander"))
    for batch, index in ((f"[{text}]", 0), (f"[{good}, {text}, {good}]", 1)):
        with pytest.raises(psycopg.Error) as caught, shared_app.transaction():
            shared_app.execute(APPEND, ["acme", batch])
        assert caught.value.sqlstate == "SL001", caught.value
        detail = json.loads(caught.value.diag.message_detail or "")
        assert detail["event_index"] == index
        assert (detail["field"], detail["rule"]) == (said.field, said.rule)
        assert caught.value.diag.message_primary == f"events[{index}].{detail['field']}: {detail['rule']}"
    with shared_app.transaction(force_rollback=True):
        assert shared_app.execute(APPEND, ["acme", f"[{good}]"]).rowcount == 1


@pytest.mark.parametrize("text", BAD_JSON, ids=short)
def test_bad_json__is_refused_twice(shared_app: Connection, text: str) -> None:
    assert refusal(text).rule
    good = json.dumps(wire("WORK_ORDER_CREATED", "bystander"))
    for batch in (f"[{text}]", f"[{good}, {text}]"):
        with pytest.raises(psycopg.DataError) as caught, shared_app.transaction():
            shared_app.execute(APPEND, ["acme", batch])
        assert caught.value.sqlstate in JSON_ERRORS
    with shared_app.transaction(force_rollback=True):
        assert shared_app.execute(APPEND, ["acme", f"[{good}]"]).rowcount == 1


@pytest.mark.parametrize("tenant_id", ["", " ", "a b", "a\n", "-a", "é", "x" * 65, "a'b", None])
def test_bad_tenant__is_refused(app: Connection, database: Database, tenant_id: str | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        app.execute(APPEND, [tenant_id, json.dumps([wire("WORK_ORDER_CREATED")])])
    assert caught.value.sqlstate == "SL001"
    assert json.loads(caught.value.diag.message_detail or "")["field"] == "tenant_id"
    assert written(database) == [(0, 0)]


@pytest.mark.parametrize(
    "batch",
    [None, "null", "{}", "5", '"x"', "[]", json.dumps([wire("WORK_ORDER_CREATED")] * 1001)],
    ids=range(7),
)
def test_bad_batch__is_refused(app: Connection, database: Database, batch: str | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        app.execute(APPEND, ["acme", batch])
    assert caught.value.sqlstate == "SL001"
    assert json.loads(caught.value.diag.message_detail or "")["field"] == "events"
    assert written(database) == [(0, 0)]


def test_refused_batch__leaves_nothing_behind(app: Connection, database: Database) -> None:
    """Whatever stops a batch, in autocommit and within a transaction that goes on."""
    before = written(database)
    good = [wire("WORK_ORDER_CREATED", f"order-{n}") for n in range(500)]
    bad = [
        wire("STEP_STARTED", "order-7", payload=[]),
        wire("STEP_STARTED", "nowhere"),
        wire("WORK_ORDER_CREATED", "order-7"),
    ]
    for last in bad:
        with pytest.raises(psycopg.Error):
            app.execute(APPEND, ["acme", json.dumps([*good, last])])
        assert written(database) == before
    with app.transaction():
        for last in bad:
            with pytest.raises(psycopg.Error), app.transaction():
                app.execute(APPEND, ["acme", json.dumps([*good, last])])
        app.execute(APPEND, ["acme", json.dumps([wire("WORK_ORDER_CREATED", "after")])])
    assert written(database) == [(1, 1)]


def test_deep_json__ends_as_an_error(app: Connection, database: Database) -> None:
    """Deeper than the parser's stack: an error of the server's, and the session lives."""
    for levels in (1_000, 5_000, 100_000):
        with pytest.raises(psycopg.Error) as caught:
            app.execute(APPEND, ["acme", "[" + step_raw('{"a": ' + "[" * levels + "]" * levels + "}") + "]"])
        assert caught.value.sqlstate in {"SL001", "54001"}
    assert app.execute("SELECT 1").fetchone() == (1,)
    assert written(database) == [(0, 0)]


# --- Python and the database agree on every event


def python_says(text: str) -> tuple[str | None, str | None] | None:
    """Return field and rule of what Python refuses; None for an event that it accepts."""
    try:
        WorkOrderLedgerEventInput.from_mapping(json.loads(text))
    except ContractViolation as exc:
        return exc.field, exc.rule
    return None


def database_says(app: Connection, text: str) -> tuple[str | None, str | None] | None:
    """Return the same of the database, without words where its JSON parser refuses.

    What an order's state makes of an event that passes the contract is another matter.
    """
    try:
        app.execute(APPEND, ["acme", f"[{text}]"])
    except psycopg.Error as exc:
        if exc.sqlstate not in {*JSON_ERRORS, *BY_SQLSTATE}:
            raise
        if exc.sqlstate == "SL001":
            detail = json.loads(exc.diag.message_detail or "")
            return detail["field"], detail["rule"]
        return (None, None) if exc.sqlstate in JSON_ERRORS else None
    finally:
        app.rollback()
    return None


def python_accepts(text: str) -> bool:
    return python_says(text) is None


def database_accepts(app: Connection, text: str) -> bool:
    return database_says(app, text) is None


CHARACTERS = st.one_of(
    st.characters(codec=None, exclude_categories=[]),
    st.sampled_from(
        "aZ09._:/@+-# \t\n\r\0\x01\x1f\x7f\x85\x9f\u00a0\u1680\u180e\u2000\u200a\u200b\u2028\u202f"
    ),
    st.sampled_from('\u205f\u3000\ufeff\ud800\udfffé\u0301\U0001f600"\\'),
)
TEXT = st.one_of(
    st.text(CHARACTERS, max_size=6),
    st.text(st.sampled_from("abc-_. "), min_size=1, max_size=4),
    st.builds(
        lambda text, times: text * times,
        st.sampled_from(["a", "é", "😀"]),
        st.sampled_from([16, 64, 65, 96, 97, 128, 129]),
    ),
)
INTEGERS = st.one_of(
    st.sampled_from(
        [edge + near for edge in (0, 2**32, 2**53, 2**63, -(2**63), 10**19) for near in (-1, 0, 1)]
    ),
    st.integers(),
)
# Not 1e16: jsonb keeps it as 10000000000000000, so that the database takes it for an integer.
FLOATS = st.floats().filter(lambda number: "e+" not in repr(number))
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXT)
JSON = st.recursive(
    st.one_of(SCALARS, st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
OFFSETS = st.sampled_from(
    [timezone(timedelta(minutes=minutes)) for minutes in (-959, -60, 0, 1, 345, 840, 959)]
)
TIMES = st.one_of(
    st.from_regex(TIMESTAMP_PATTERN, fullmatch=True),
    st.datetimes(timezones=OFFSETS).map(datetime.isoformat),
    st.datetimes(min_value=datetime.fromisoformat("9999-12-30"), timezones=OFFSETS).map(datetime.isoformat),
    st.datetimes(max_value=datetime.fromisoformat("0001-01-03"), timezones=OFFSETS).map(datetime.isoformat),
    st.datetimes().map(datetime.isoformat),
    st.sampled_from([value for value in BAD_TIMES if isinstance(value, str)]),
)
KINDS = st.sampled_from(
    [kind.value for kind in WorkOrderEventType if kind not in ("LEASE_RENEWED", "LEASE_RELEASED")]
)
STATUSES = st.sampled_from([status.value for status in WorkOrderStatus])
EVENT_KEYS = [*dict.fromkeys((*BAD_VALUES, *EVENT_RULES)), *UNKNOWN_KEYS[:6]]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "correlation_id": st.uuids().map(str),
    "event_type": KINDS,
    "work_order_status": STATUSES,
    "previous_status": STATUSES,
    "occurred_at": TIMES,
    "expires_at": TIMES,
    "outcome": st.sampled_from(["APPROVED", "REJECTED", "EXPIRED"]),
    "fields": st.dictionaries(TEXT, JSON, max_size=3),
    "payload": st.dictionaries(TEXT, JSON, max_size=3),
    "value": JSON,
    "candidates": JSON,
}


@st.composite
def near_valid_events(draw: st.DrawFn) -> str:
    """Draw a valid event with a few changes, as JSON text."""
    kind = draw(KINDS)
    event = wire(kind, "order")
    rules = PAYLOAD_RULES.get(WorkOrderEventType(kind), PayloadRules())
    payload_keys = [*rules.required, *rules.optional, "other"]
    for target, keys in ((event["payload"], payload_keys), (event, EVENT_KEYS)):
        for key in draw(st.lists(st.sampled_from(keys), max_size=2, unique=True)):
            if draw(st.integers(0, 9)) == 0:
                target.pop(key, None)
            else:
                target[key] = draw(st.one_of(VALUES.get(key, TEXT), SCALARS))
    return json.dumps(event)


EXAMPLES = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@EXAMPLES
@given(near_valid_events())
def test_agreement__python_and_the_database_say_the_same(shared_app: Connection, text: str) -> None:
    ours, theirs = python_says(text), database_says(shared_app, text)
    if theirs == (None, None):
        assert ours is not None
    else:
        assert ours == theirs


@EXAMPLES
@given(st.dictionaries(TEXT, JSON, max_size=3))
@example({"a": 1e-300})
@example({"a": -0.0, "b": [5e-324, 123456789012345680.0, 1e16]})
def test_agreement__on_the_size_of_a_payload(shared_app: Connection, payload: dict[str, Any]) -> None:
    """Fill a payload up until Python says no: so does the database, at the same byte."""
    payload = {key: value for key, value in payload.items() if key != "fill"}
    if not python_accepts(step({**payload, "fill": ""})):
        return
    low, high = 0, MAX_PAYLOAD_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if python_accepts(step({**payload, "fill": "x" * middle})):
            low = middle
        else:
            high = middle - 1
    assert database_accepts(shared_app, step({**payload, "fill": "x" * low}))
    assert not database_accepts(shared_app, step({**payload, "fill": "x" * (low + 1)}))


@pytest.mark.parametrize("levels", [1, 30, 31, 32, 33, 100])
def test_agreement__on_the_depth_of_a_payload(shared_app: Connection, levels: int) -> None:
    for payload in ({"a": nested(levels)}, {"a": nested(levels), "b": "x" * 100}):
        text = step(payload)
        assert python_accepts(text) == database_accepts(shared_app, text) == (levels <= 31)


# Up to the last blank or control character of the basic plane, and the edges of what follows.
CHARACTERS_OF_NOTE = [
    *(chr(point) for point in range(1, 0x3100)),
    *(
        chr(point)
        for point in (0xD7FF, 0xE000, 0xFEFF, 0xFFF9, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF)
    ),
]


@pytest.mark.parametrize("shape", ["{}", "a{}", "{}a", "a{}a"])
@pytest.mark.parametrize("key", ["idempotency_key", "step_input_hash"])
def test_agreement__on_every_character(shared_app: Connection, key: str, shape: str) -> None:
    taken: list[str] = []
    refused: list[str] = []
    for character in CHARACTERS_OF_NOTE:
        text = changed({key: shape.format(character)}, "STEP_STARTED")
        (taken if python_accepts(text) else refused).append(text)
    assert 64 <= len(refused) < 128
    assert [text for text in refused if database_accepts(shared_app, text)] == []
    for first in range(0, len(taken), 1000):
        assert database_accepts(shared_app, ",".join(taken[first : first + 1000]))


@pytest.mark.parametrize("payload", [{}, {"other": 1}])
@pytest.mark.parametrize("event_type", [kind for kind in WorkOrderEventType if not kind.startswith("LEASE_")])
def test_agreement__on_the_keys_of_every_event_type(
    shared_app: Connection, event_type: str, payload: dict[str, Any]
) -> None:
    """Those that are required, and whether there may be others."""
    text = json.dumps(
        {
            **json.loads(changed({})),
            "event_type": event_type,
            "work_order_status": "CANCELED" if event_type == "WORK_ORDER_CANCELED" else "DRAFT",
            "payload": payload,
        }
    )
    assert python_says(text) == database_says(shared_app, text)
