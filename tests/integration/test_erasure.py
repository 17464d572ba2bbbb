"""The erasure of a person: nothing is left, nothing else changes, nobody can guess (contract §18)."""

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

from selene_core import (
    ContractViolation,
    ConversationRepository,
    Feed,
    FeedEventType,
    IdempotencyConflict,
    IdentityRepository,
    Personal,
    PromptAction,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    append_events,
    decide_prompt,
    erase_subject,
    tenant_scope,
)
from tests.support.calls import Tenant, refused
from tests.support.factories import columns, created, event, new_id, wire
from tests.support.feeds import advance, problems, read
from tests.support.raw import Connection, connect
from tests.support.servers import Database, Role, Server
from tests.support.sessions import Sessions

THREAD = UUID("6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11")
ERASABLE = ("os_core.subjects", "os_core.subject_values", "conversation.turn_texts")
EVERYTHING = (
    *ERASABLE,
    "os_core.subject_erasures",
    "os_core.work_order_ledger",
    "os_core.work_orders_current",
)
ERASED = {"$erased": True}


def personal(subject: str, value: Any) -> dict[str, Any]:
    """Write a personal value as a service in any language does."""
    return {"$personal": {"subject": subject, "value": value}}


def field_set(order: str, value: Any, **given: Any) -> dict[str, Any]:
    return wire("FIELD_SET", order, payload={"field_key": "name", "value": value}, **given)


def erase(conn: Connection, tenant_id: str, subject: str, reason: int = 7) -> tuple[Any, ...]:
    row = conn.execute("SELECT * FROM os_core.erase_subject(%s, %s, %s)", (tenant_id, subject, reason))
    (found,) = row.fetchall()
    return found


def resolve(conn: Connection, tenant_id: str, value: Any) -> Any:
    query = "SELECT os_core.resolve_values(%s, %s::jsonb)"
    row = conn.execute(query, (tenant_id, json.dumps(value))).fetchone()
    assert row is not None
    return row[0]


def say(conn: Connection, tenant_id: str, user: str, text: str, turn_id: int = 1, role: str = "USER") -> Any:
    query = "SELECT * FROM conversation.append_turn(%s, %s, %s, %s, %s, 'TYPED_TEXT', %s, 'PUBLIC_CHAT')"
    return conn.execute(query, (tenant_id, THREAD, turn_id, user, role, text)).fetchone()


def register(conn: Connection, tenant_id: str, user: str) -> None:
    conn.execute("SELECT os_core.register_identity(%s, %s)", (tenant_id, user))


def rows(tenant: Tenant, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return a tenant's rows and where each lies: a write that changes nothing would show, too."""
    query = "SELECT ctid::text, row::text FROM {0} AS row WHERE tenant_id = %s ORDER BY 2"
    return {
        table: tenant.admin.execute(query.format(table).encode(), (tenant.id,)).fetchall()
        for table in tables or EVERYTHING
    }


# --- references


def test_reference__is_the_salted_hash_and_shared_within_a_subject(acme: Tenant) -> None:
    order, other = acme.order(), acme.order()
    acme.append(field_set(order, personal("anna", "red")), field_set(other, [personal("anna", "red")]))
    acme.append(wire("FIELD_SET", other, payload={"field_key": "b", "value": personal("bob", "red")}))
    fields = [acme.projection(each)["fields_json"] for each in (order, other)]
    annas, bobs = fields[0]["name"], fields[1]["b"]
    assert fields[1]["name"] == [annas]
    assert (annas["$subject"], bobs["$subject"]) == ("anna", "bob")
    assert annas["$ref"] != bobs["$ref"]
    held = acme.admin.execute(
        "SELECT subject_id, value_ref, salt, value FROM os_core.subject_values"
        " JOIN os_core.subjects USING (tenant_id, subject_id, salt) WHERE tenant_id = %s ORDER BY 1",
        (acme.id,),
    ).fetchall()
    assert [row[0] for row in held] == ["anna", "bob"]
    for _, ref, salt, value in held:
        assert len(salt) == 32
        assert ref == hashlib.sha256(salt + json.dumps(value).encode()).hexdigest()
    assert held[0][2] != held[1][2]
    assert "red" not in str(rows(acme, "os_core.work_order_ledger", "os_core.work_orders_current"))


@pytest.mark.parametrize("replica", [False, True], ids=["origin", "replica"])
def test_reference__commits_to_its_value(acme: Tenant, replica: bool) -> None:
    """Whoever writes: the database takes no other value under a reference, and none after an erasure."""
    acme.append(field_set(acme.order(), personal("anna", 12)))
    salt, ref = acme.admin.execute(
        "SELECT salt, value_ref FROM os_core.subject_values WHERE tenant_id = %s", (acme.id,)
    ).fetchall()[0]
    put = (
        "INSERT INTO os_core.subject_values (tenant_id, subject_id, value_ref, salt, value)"
        " VALUES (%s, 'anna', %s, %s, %s)"
    )
    other = hashlib.sha256(salt + b'"blue"').hexdigest()
    no_check = "SET LOCAL session_replication_role = replica" if replica else "SELECT 1"
    before = rows(acme)
    for named, salted, value in (
        (ref, salt, '"blue"'),
        ("0" * 64, salt, '"blue"'),
        (other.upper(), salt, '"blue"'),
        (other, secrets.token_bytes(32), '"blue"'),
    ):
        with refused("23514"), acme.admin.transaction():
            acme.admin.execute(no_check.encode())
            acme.admin.execute(put.encode(), (acme.id, named, salted, value))
    # Nor does a path with operators and types of its own help.
    with refused("23514"), acme.admin.transaction():
        for each in (
            "CREATE SCHEMA lies",
            "CREATE FUNCTION lies.always(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT TRUE'",
            "CREATE OPERATOR lies.= (FUNCTION = lies.always, LEFTARG = text, RIGHTARG = text)",
            "CREATE DOMAIN lies.text AS pg_catalog.text",
            "SET LOCAL search_path = lies, pg_catalog",
            no_check,
        ):
            acme.admin.execute(each.encode())
        acme.admin.execute(put.encode(), (acme.id, "0" * 64, salt, '"blue"'))
    if not replica:
        # The text of 34 begins with 3: so the same bytes are hashed, but it is not the subject's salt.
        own = secrets.token_bytes(32)
        for named, salted, value in (
            (hashlib.sha256(salt + b"34").hexdigest(), salt + b"3", "4"),
            (hashlib.sha256(own + b'"blue"').hexdigest(), own, '"blue"'),
        ):
            with refused("23503"):
                acme.admin.execute(put.encode(), (acme.id, named, salted, value))
    assert rows(acme) == before
    erase(acme.app, acme.id, "anna")
    for again in (False, True):
        if again:
            acme.append(field_set(acme.order(), personal("anna", "again")))
        with refused("23503"):
            acme.admin.execute(put.encode(), (acme.id, ref, salt, "12"))
    assert resolve(acme.app, acme.id, {"$subject": "anna", "$ref": ref}) == ERASED


def one_value(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return event types and payloads with the value in their one place for it."""
    return [
        ("FIELD_SET", {"field_key": "a", "value": value}),
        ("FIELD_SET", {"field_key": "a", "value": [{"b": value}, 'a "quoted" {"personal": 1}']}),
        ("FIELD_CONFLICT_DETECTED", {"field_key": "a", "candidates": ["x", value]}),
        ("FIELD_CONFLICT_RESOLVED", {"field_key": "a", "value": value}),
        ("STEP_STARTED", {"deep": {"er": {"still": value}}, "n": 1.5}),
    ]


ONE_VALUE: list[Any] = [
    *("Anna", "", "{%s}", 'a "quoted" \\" $personal', None, False, 0, 1.5, 2**63 - 1),
    *([], {"b": [1.0, "x"]}, {"$ref": "lone"}, {"$personal": 1, "note": 2}),
]


@pytest.mark.parametrize("value", ONE_VALUE, ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize("subject", ["new", "known", "erased"])
def test_value__is_kept_the_same_on_the_short_way_and_on_the_long_one(
    acme: Tenant, subject: str, value: Any
) -> None:
    """The short way is that of one value of a subject that was never erased."""
    order = acme.order()
    if subject != "new":
        acme.append(field_set(order, personal("anna", "before")))
    if subject == "erased":
        erase(acme.app, acme.id, "anna")
    order = acme.order()
    for event_type, payload in one_value(personal("anna", value)):
        given = wire(event_type, order, payload=payload, idempotency_key=f"{event_type}{payload}"[:128])
        before = None
        for replayed in (False, True):
            assert acme.append(given)[0].replayed is replayed
            assert before in (None, rows(acme))
            before = rows(acme)
    payloads = [row["payload"] for row in acme.ledger(order)[1:]]
    assert len({payload["value"]["$ref"] for payload in payloads if "$ref" in payload.get("value", ())}) == 1
    assert resolve(acme.app, acme.id, payloads) == [payload for _, payload in one_value(value)]
    held = acme.admin.execute(
        "SELECT count(*) FROM os_core.subject_values WHERE tenant_id = %s AND value <> '\"before\"'",
        (acme.id,),
    ).fetchone()
    assert held == (1,)
    assert acme.verify() == {}


VALUES = [
    *(None, True, 0, -1.5, "", "red", 'a "quoted" {"$ref": "x"} text', "{", "é\n\\", [], {}),
    *(
        [1, [2, {"a": None}]],
        {"a": {"$schema": "x", "$ref": "#/y"}},
        {"$ref": "#/$defs/json"},
        2**63 - 1,
        5e-324,
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:20])
def test_value__comes_back_equal_at_any_depth(acme: Tenant, value: Any) -> None:
    order = acme.order()
    deep = {"list": [0, {"of": personal("anna", value)}], "plain": value, "twice": personal("anna", value)}
    acme.append(field_set(order, deep))
    stored = acme.projection(order)["fields_json"]["name"]
    assert stored["twice"] == stored["list"][1]["of"]
    assert resolve(acme.app, acme.id, stored) == {
        "list": [0, {"of": value}],
        "plain": value,
        "twice": value,
    }
    assert acme.verify() == {}


def test_value__may_stand_in_fields_candidates_and_steps(acme: Tenant) -> None:
    order = acme.order(fields={"name": personal("anna", "red"), "other": {"x": [personal("anna", "blue")]}})
    acme.append(
        wire(
            "FIELD_CONFLICT_DETECTED",
            order,
            payload={"field_key": "name", "candidates": [personal("anna", "red"), personal("bob", "red")]},
        ),
        wire(
            "FIELD_CONFLICT_RESOLVED", order, payload={"field_key": "name", "value": personal("anna", "red")}
        ),
        wire("STEP_STARTED", order, payload={"to": {"address": personal("anna", "street 1")}}),
        wire("STEP_FINISHED", order, payload=personal("anna", "all of it")),
    )
    payloads = [row["payload"] for row in acme.ledger(order)]
    assert "$personal" not in str(payloads)
    assert resolve(acme.app, acme.id, payloads) == [
        {"fields": {"name": "red", "other": {"x": ["blue"]}}},
        {"field_key": "name", "candidates": ["red", "red"]},
        {"field_key": "name", "value": "red"},
        {"to": {"address": "street 1"}},
        "all of it",
    ]


def test_value__an_equal_one_is_no_state_change_and_a_retry_is_a_replay(acme: Tenant) -> None:
    order = acme.order()
    first = acme.append(field_set(order, personal("anna", 1), idempotency_key="k"))
    changed = acme.projection(order)["last_state_change_seq"]
    before = rows(acme)
    # 1.0 is the same number as 1.
    for value in (1, 1.0):
        again = acme.append(field_set(order, personal("anna", value), idempotency_key="k"))
        assert (again[0].work_order_event_id, again[0].replayed) == (first[0].work_order_event_id, True)
    assert rows(acme) == before
    twins = [field_set(order, personal("anna", value), idempotency_key="twins") for value in (1.0, 1)]
    assert [done.replayed for done in acme.append(*twins)] == [False, True]
    acme.append(field_set(order, personal("anna", 1.00)))
    assert acme.projection(order)["last_state_change_seq"] == changed
    for other in (personal("anna", 2), personal("bob", 1), 1, None, [personal("anna", 1)]):
        with refused("SL005"):
            acme.append(field_set(order, other, idempotency_key="k"))


def test_reference__may_be_given_again_while_it_is_live(acme: Tenant, sessions: Sessions) -> None:
    rival = sessions.tenant(new_id("rival"))
    order, theirs = acme.order(), rival.order()
    acme.append(field_set(order, personal("anna", "red"), idempotency_key="first"))
    rival.append(field_set(theirs, personal("anna", "red")))
    reference = acme.projection(order)["fields_json"]["name"]
    foreign = rival.projection(theirs)["fields_json"]["name"]
    acme.append(
        wire("FIELD_SET", order, payload={"field_key": "copy", "value": [reference]}, idempotency_key="c")
    )
    assert acme.projection(order)["fields_json"]["copy"] == [reference]
    unknown = {"$subject": "anna", "$ref": "0" * 64}
    of_another = {"$subject": "bob", "$ref": reference["$ref"]}
    said = set()
    for bad in (foreign, unknown, of_another):
        with refused("SL001") as refusal:
            acme.append(field_set(order, bad))
        said.add((refusal.message, str(refusal.facts)))
    assert len(said) == 1
    erase(acme.app, acme.id, "anna")
    with refused("SL001"):
        acme.append(field_set(order, reference))
    # Old calls are replays all the same.
    again = wire("FIELD_SET", order, payload={"field_key": "copy", "value": [reference]}, idempotency_key="c")
    assert acme.append(again)[0].replayed
    assert resolve(rival.app, rival.id, [foreign, reference]) == ["red", ERASED]


NOT_PERSONAL: list[Any] = [None, "x", [], {}, {"subject": "anna"}, {"value": 1}]
MALFORMED: list[Any] = [
    *({"$personal": value} for value in NOT_PERSONAL),
    *({"$personal": {"subject": subject, "value": 1}} for subject in ("", "a b", "é", "x" * 129, 5, None)),
    {"$personal": {"subject": "anna", "value": 1, "more": 1}},
    {"$personal": {"subject": "anna", "value": {"a": [personal("bob", 1)]}}},
    {"$personal": {"subject": "anna", "value": {"$subject": "anna", "$ref": "0" * 64}}},
    *({"$erased": value} for value in (True, False, None)),
    *({"$subject": "anna", "$ref": ref} for ref in ("", "x" * 64, "0" * 63, "A" * 64, 5, None)),
    *({"$subject": subject, "$ref": "0" * 64} for subject in ("", "a b", 5, None)),
    {**personal("anna", 1), "$ref": "0" * 64},
    {**personal("anna", 1), "$erased": True},
    {"$subject": "anna", "$erased": True},
]


@pytest.mark.parametrize("value", MALFORMED, ids=lambda value: ascii(value)[:50])
def test_malformed__is_refused_in_both_voices(acme: Tenant, value: Any) -> None:
    order = acme.order()
    given = columns("FIELD_SET", order, payload={"field_key": "name", "value": [{"in": value}]})
    with pytest.raises(ContractViolation) as caught:
        WorkOrderLedgerEventInput(**given)
    for events in ([wire(**given)], [field_set(order, 1), wire(**given)]):
        with refused("SL001") as refusal:
            acme.append(*events)
        assert (refusal.facts["field"], refusal.facts["rule"]) == (caught.value.field, caught.value.rule)
        assert refusal.facts["event_index"] == len(events) - 1
    assert rows(acme, "os_core.subject_values", "os_core.subjects") == {
        "os_core.subject_values": [],
        "os_core.subjects": [],
    }


def test_malformed__other_objects_with_a_dollar_are_values(acme: Tenant) -> None:
    order = acme.order()
    values: list[Any] = [
        {"$schema": "x", "$ref": "#/a", "$defs": {"b": {"$ref": "#/c"}}},
        {"$ref": "#/a"},
        {"$subject": "maths"},
        {"$personal": 1, "note": "not the only key"},
        {"$erased": True, "by": "hand"},
        "$personal",
        {"$": 1},
    ]
    for value in values:
        given = columns("FIELD_SET", order, payload={"field_key": "name", "value": value})
        WorkOrderLedgerEventInput(**given)
        acme.append(wire(**given))
        assert acme.projection(order)["fields_json"]["name"] == value
        assert resolve(acme.app, acme.id, value) == value


def test_payload__keeps_its_limit_as_it_is_sent_and_as_it_is_stored(acme: Tenant) -> None:
    order = acme.order()

    def outcome(value: Any) -> str | None:
        given = columns("STEP_STARTED", order, payload={"v": value})
        told: str | None = None
        try:
            WorkOrderLedgerEventInput(**given)
        except ContractViolation as exc:
            told = str(exc)
        if told is None:
            acme.append(wire(**given))
        else:
            with refused("SL001") as refusal:
                acme.append(wire(**given))
            assert refusal.message == f"events[0].{told}"
        return told

    assert outcome(personal("a", "x" * 16_000)) is None
    assert outcome(personal("a", "x" * 16_400)) is not None
    assert outcome([personal("a", n % 10) for n in range(170)]) is None  # each has 98 bytes as a reference
    assert outcome([personal("a", n % 10) for n in range(190)]) is not None
    # The object of a personal value is nested one level deeper than the reference.
    nested: Any = personal("a", "x")
    for _ in range(29):
        nested = [nested]
    assert outcome(nested) is None
    assert outcome([nested]) is not None


# --- erasure


def test_erase__reads_as_erased_and_keeps_what_was_known(acme: Tenant, shared_database: Database) -> None:
    order = acme.order(fields={"name": personal("anna", "Anna"), "town": personal("bob", "Oslo")})
    acme.append(wire("FIELD_PROMPTED", order, payload={"field_key": "age", "prompt_dedupe_key": "age#1"}))
    acme.append(wire("FIELD_SET", order, payload={"field_key": "age", "value": personal("anna", 40)}))
    ledger, projection = acme.everything()
    state = acme.as_of(order, seq=2)
    register(acme.app, acme.id, "anna")
    say(acme.app, acme.id, "anna", "my name is Anna")
    say(acme.app, acme.id, "anna", "Hello Anna", 2, "SELENE")
    erasure = erase(acme.app, acme.id, "anna", 451)
    assert erasure[2:] == (2, 2, False)
    assert acme.everything() == (ledger, projection)
    assert acme.verify() == {}
    assert acme.rebuild().changed == 0
    assert acme.as_of(order, seq=2) == state
    with tenant_scope(shared_database.engine("app"), acme.id) as conn:
        repository = WorkOrderRepository(conn)
        found = repository.get(order, resolve=True)
        assert found is not None
        assert found.fields_json == {"name": ERASED, "town": "Oslo", "age": ERASED}
        assert found.resolved_fields_json["age"]["value"] == ERASED
        plain = repository.get(order)
        assert plain is not None
        decision = decide_prompt(plain, ["name", "age"])
        assert decision.decision is PromptAction.SKIP
        assert repository.ask(order, ["name", "age"]).decision is PromptAction.SKIP
        assert [turn.text for turn in ConversationRepository(conn).turns(THREAD)] == [None, None]
    record = acme.admin.execute(
        "SELECT subject_id, reason_code, values_erased, texts_erased, erased_by FROM os_core.subject_erasures"
        " WHERE tenant_id = %s",
        (acme.id,),
    ).fetchall()
    assert record == [("anna", 451, 2, 2, acme.app.info.user)]


def test_erase__again_is_a_replay_and_stores_nothing(acme: Tenant) -> None:
    order = acme.order()
    acme.append(field_set(order, personal("anna", "Anna")))
    first = erase(acme.app, acme.id, "anna")
    before = rows(acme)
    assert erase(acme.app, acme.id, "anna", 8) == (*first[:4], True)
    assert rows(acme) == before
    # Somebody of whom nothing is kept: the record says that it was asked for.
    assert erase(acme.app, acme.id, "nobody")[2:] == (0, 0, False)
    assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}
    # Who comes again has another salt, and can be erased again.
    acme.append(field_set(order, personal("anna", "Anna")))
    references = [row["payload"]["value"]["$ref"] for row in acme.ledger(order)[1:]]
    assert len(set(references)) == 2
    assert erase(acme.app, acme.id, "anna")[2:] == (1, 0, False)


def test_erase__retries_of_old_calls_are_replays_and_store_nothing(acme: Tenant) -> None:
    first = wire(
        "WORK_ORDER_CREATED",
        new_id(),
        payload={"fields": {"a": personal("anna", "Anna")}},
        idempotency_key="1",
    )
    order = first["work_order_id"]
    calls = [
        [first],
        [field_set(order, [personal("anna", 1), personal("bob", 2)], idempotency_key="2")],
        [
            wire("STEP_STARTED", order, payload={"x": personal("anna", {"y": 1})}, idempotency_key="3"),
            wire("STATUS_CHANGED", order, work_order_status="DONE", idempotency_key="4"),
        ],
    ]
    for events in calls:
        acme.append(*events)
    register(acme.app, acme.id, "anna")
    said = say(acme.app, acme.id, "anna", "my secret")
    erase(acme.app, acme.id, "anna")
    before = rows(acme)
    for events in calls:
        assert all(done.replayed for done in acme.append(*events))
    # Nobody can tell any more what was there; the other subject's value still counts.
    assert acme.append(field_set(order, [personal("anna", "else"), personal("bob", 2)], idempotency_key="2"))[
        0
    ].replayed
    for other in (
        [personal("anna", 1), personal("bob", 3)],
        [personal("carl", 1), personal("bob", 2)],
        [1, 2],
    ):
        with refused("SL005"):
            acme.append(field_set(order, other, idempotency_key="2"))
    for text in ("my secret", "another"):
        assert say(acme.app, acme.id, "anna", text) == (*said[:4], True)
    with refused("SL005"):
        say(acme.app, acme.id, "anna", "my secret", role="SELENE")
    assert rows(acme) == before


def test_erase__is_told_through_the_feed(acme: Tenant, sessions: Sessions, shared_database: Database) -> None:
    order = acme.order(fields={"name": personal("anna", "Anna")})
    advance(acme.app, acme.id)
    erasure = erase(acme.app, acme.id, "anna", 451)
    acme.append(field_set(order, 1))
    advance(acme.app, acme.id)
    told = read(acme.app, acme.id)
    assert [(row["feed_position"], row["event_type"]) for row in told] == [
        (1, "WORK_ORDER_CREATED"),
        (2, "SUBJECT_ERASED"),
        (3, "FIELD_SET"),
    ]
    assert (told[1]["work_order_id"], told[1]["payload"]) == (None, {"subject_id": "anna"})
    assert (told[1]["reason_code"], told[1]["created_at"]) == (451, erasure[1])
    with Feed(shared_database.engine("app"), acme.id, "billing").batch() as (_, events):
        assert [event.subject_id for event in events] == [None, "anna", None]
        assert events[1].event_type is FeedEventType.SUBJECT_ERASED
        assert (events[1].work_order_id, events[1].tenant_id) == (None, acme.id)
    assert problems(acme.app, acme.id) == []
    # A replay is not told again; a rollback gives its position back; a tenant without a feed gets one.
    erase(acme.app, acme.id, "anna")
    undone = sessions.open(autocommit=False)
    erase(undone.conn, acme.id, "bob")
    undone.conn.rollback()
    assert erase(acme.app, acme.id, "carl")[2:] == (0, 0, False)
    advance(acme.app, acme.id)
    assert [row["payload"]["subject_id"] for row in read(acme.app, acme.id, 3)] == ["carl"]
    another = sessions.tenant(new_id("other"))
    erase(another.app, another.id, "anna")
    another.order()
    advance(another.app, another.id)
    assert [row["feed_position"] for row in read(another.app, another.id)] == [1, 2]
    assert problems(another.app, another.id) == []


def test_erase__of_hidden_turns_too(acme: Tenant) -> None:
    register(acme.app, acme.id, "anna")
    turn = say(acme.app, acme.id, "anna", "my secret")
    hide = "SELECT * FROM conversation.tombstone_turn(%s, %s, %s, 7)"
    acme.app.execute(hide, (acme.id, THREAD, turn[0]))
    assert erase(acme.app, acme.id, "anna")[3] == 1
    read = "SELECT text, tombstone_reason_code FROM conversation.read_turns(%s, %s, 0, 10)"
    assert acme.app.execute(read, (acme.id, THREAD)).fetchall() == [(None, 7), ("", 7)]
    tombstone = acme.app.execute(hide, (acme.id, THREAD, turn[0])).fetchone()
    assert tombstone is not None
    assert tombstone[-1] is True


@pytest.mark.parametrize(
    ("field", "subject", "reason"),
    [
        *(("subject_id", value, 1) for value in ("", "a b", "é", "x" * 129, None)),
        *(("reason_code", "anna", value) for value in (0, -1, 2**32, None)),
    ],
)
def test_erase__contract(
    acme: Tenant, shared_database: Database, field: str, subject: Any, reason: Any
) -> None:
    with refused("SL001") as refusal:
        erase(acme.app, acme.id, subject, reason)
    with pytest.raises(ContractViolation) as caught:
        erase_subject(shared_database.engine("app"), acme.id, subject, reason_code=reason)
    assert caught.value.field == refusal.facts["field"] == field
    assert caught.value.rule == refusal.facts["rule"]


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_erase__sees_what_was_committed_last(
    sessions: Sessions, acme: Tenant, shared_database: Database, isolation: IsolationLevel
) -> None:
    order = acme.order()
    acme.append(field_set(order, personal("anna", 1)))
    old = sessions.open(autocommit=False, isolation=isolation)
    with refused("SL001") as refusal:
        erase(old.conn, acme.id, "anna")
    assert refusal.facts["field"] == "isolation"
    engine = shared_database.engine("app", isolation_level=isolation.name.replace("_", " "))
    assert erase_subject(engine, acme.id, "anna", reason_code=1).values_erased == 1


# --- in flight


def in_flight(acme: Tenant) -> list[tuple[Callable[[Connection], Any], str]]:
    """Return calls that write something of anna's, and where it then is."""
    order = acme.order()
    held, said = "os_core.subject_values", "conversation.turn_texts"

    def append(*events: Mapping[str, Any]) -> Callable[[Connection], Any]:
        query = "SELECT * FROM os_core.append_work_order_events(%s, %s::jsonb)"
        return lambda conn: conn.execute(query, (acme.id, json.dumps([*events]))).fetchall()

    def first_words(conn: Connection) -> Any:
        register(conn, acme.id, "anna")
        return say(conn, acme.id, "anna", "my secret")

    step = wire("STEP_STARTED", order, payload={"to": [{"street": personal("anna", "secret")}]})
    deep = [1, {"a": [[{"b": personal("anna", "secret")}], "x"]}]
    conflict = wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": "name", "candidates": deep})
    return [
        (append(field_set(order, personal("anna", "secret"))), held),
        (
            append(field_set(order, personal("anna", "secret"), idempotency_key="k"), field_set(order, 2)),
            held,
        ),
        (first_words, said),
        (append(step), held),
        (append(conflict), held),
        (append(step, conflict), held),
    ]


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("number", range(6))
def test_in_flight__an_erasure_waits_for_it(
    sessions: Sessions, acme: Tenant, number: int, known: bool
) -> None:
    """Also where the subject is not known to anybody but the open transaction."""
    write, table = in_flight(acme)[number]
    if known:
        acme.append(field_set(acme.order(), personal("anna", "before")))
        register(acme.app, acme.id, "anna")
    writer, eraser = sessions.open(autocommit=False), sessions.open()
    write(writer.conn)
    future = eraser.start(lambda conn: erase(conn, acme.id, "anna"))
    assert sessions.blockers(eraser) == {writer.pid}
    writer.conn.commit()
    erasure = future.result()
    assert sum(erasure[2:4]) == 1 + known
    assert rows(acme, table) == {table: []}


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("number", range(6))
def test_in_flight__what_waits_for_an_erasure_is_erased_with_it(
    sessions: Sessions, acme: Tenant, number: int, known: bool
) -> None:
    """It was sent before: its event or turn is there, and reads as erased."""
    write, table = in_flight(acme)[number]
    if number == 2:
        register(acme.app, acme.id, "anna")
        write = partial(say, tenant_id=acme.id, user="anna", text="my secret")
    if known:
        acme.append(field_set(acme.order(), personal("anna", "before")))
    writer, eraser = sessions.open(), sessions.open(autocommit=False)
    erase(eraser.conn, acme.id, "anna")
    future: Future[Any] = writer.start(write)
    assert sessions.blockers(writer) == {eraser.pid}
    eraser.conn.commit()
    future.result()
    assert rows(acme, table) == {table: []}
    assert "secret" not in str(rows(acme))
    # What comes later is new.
    acme.append(field_set(acme.order(), personal("anna", "later")))
    assert len(rows(acme, "os_core.subject_values")["os_core.subject_values"]) == 1


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("number", [0, 1])
def test_in_flight__what_waits_for_an_erasure_that_is_rolled_back_is_kept(
    sessions: Sessions, acme: Tenant, number: int, known: bool
) -> None:
    """Nothing was erased: the subject has its one salt, and an equal value is there once."""
    if known:
        acme.append(field_set(acme.order(), personal("anna", "before")))
    write, _ = in_flight(acme)[number]
    writer, eraser = sessions.open(), sessions.open(autocommit=False)
    erase(eraser.conn, acme.id, "anna")
    future: Future[Any] = writer.start(write)
    assert sessions.blockers(writer) == {eraser.pid}
    eraser.conn.rollback()
    future.result()
    acme.append(field_set(acme.order(), personal("anna", "secret")))
    held = acme.admin.execute(
        "SELECT salt, value FROM os_core.subject_values"
        " JOIN os_core.subjects USING (tenant_id, subject_id, salt)"
        " WHERE tenant_id = %s AND NOT was_erased ORDER BY value",
        (acme.id,),
    ).fetchall()
    assert [value for _, value in held] == ["before", "secret"][not known :]
    assert len({salt for salt, _ in held}) == 1


def test_in_flight__a_subject_that_is_known_again(sessions: Sessions, acme: Tenant) -> None:
    """Erasures and calls wait for each other; a retry from before the erasure is still a replay."""
    order = acme.order()
    old = field_set(order, personal("anna", "old"), idempotency_key="old")
    acme.append(old)
    erase(acme.app, acme.id, "anna")
    acme.append(field_set(order, personal("anna", "new")))
    reference = acme.projection(order)["fields_json"]["name"]
    before = rows(acme)
    assert acme.append(old)[0].replayed
    with refused("SL005"):
        acme.append(field_set(order, personal("bob", "old"), idempotency_key="old"))
    assert rows(acme) == before
    for value in (personal("anna", "secret"), reference):
        writer, eraser = sessions.open(autocommit=False), sessions.open(autocommit=False)
        writer.append(acme.id, field_set(order, value))
        future = eraser.start(lambda conn: erase(conn, acme.id, "anna"))
        assert sessions.blockers(eraser) == {writer.pid}
        writer.conn.rollback()
        future.result()
        late = sessions.open()
        waiting = late.start_append(acme.id, field_set(order, personal("anna", "late")))
        assert sessions.blockers(late) == {eraser.pid}
        if value == reference:
            eraser.conn.commit()
        else:
            eraser.conn.rollback()
        waiting.result()
    assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}


@pytest.mark.parametrize("with_value", [False, True], ids=["alone", "with a value"])
def test_in_flight__a_live_reference_given_again(sessions: Sessions, acme: Tenant, with_value: bool) -> None:
    """An erasure waits for it; whoever waits for an erasure is refused, and nothing of the call stays."""
    order = acme.order(fields={"name": personal("anna", "secret")})
    reference = acme.projection(order)["fields_json"]["name"]
    more = [field_set(order, personal("anna", "more"))] if with_value else []
    events = [wire("STEP_STARTED", order, payload={"to": [reference]}), *more]
    writer, eraser, late = sessions.open(autocommit=False), sessions.open(autocommit=False), sessions.open()
    writer.append(acme.id, *events)
    erased = eraser.start(lambda conn: erase(conn, acme.id, "anna"))
    assert sessions.blockers(eraser) == {writer.pid}
    writer.conn.commit()
    assert erased.result()[2:4] == (1 + with_value, 0)
    before = acme.ledger(order)
    future = late.start_append(acme.id, *events)
    assert sessions.blockers(late) == {eraser.pid}
    eraser.conn.commit()
    with refused("SL001"):
        future.result()
    assert acme.ledger(order) == before
    assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}


def test_in_flight__a_retry_of_what_commits_and_is_erased_meanwhile(sessions: Sessions, acme: Tenant) -> None:
    """The retry has looked for its key in vain: it must look again before it keeps anything."""
    order = acme.order()
    event_of_anna = field_set(order, personal("anna", "secret"), idempotency_key="k")
    winner, retry = sessions.open(autocommit=False), sessions.open()
    winner.append(acme.id, event_of_anna)
    future = retry.start_append(acme.id, event_of_anna)
    assert sessions.blockers(retry) == {winner.pid}
    eraser = sessions.open()
    erased = eraser.start(lambda conn: erase(conn, acme.id, "anna"))
    sessions.blockers(eraser)
    winner.conn.commit()
    assert future.result()[0].replayed
    erased.result()
    assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("committed", [False, True], ids=["in flight", "committed"])
def test_in_flight__an_older_snapshot_says_nothing_after_an_erasure(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, committed: bool
) -> None:
    """Neither a text nor a value: it would not see that it was erased."""
    register(acme.app, acme.id, "anna")
    order = acme.order(fields={"name": personal("anna", "before")})
    writes: list[Callable[[Connection], Any]] = [
        partial(say, tenant_id=acme.id, user="anna", text="my secret"),
        in_flight(acme)[0][0],
    ]
    for write in writes:
        old, eraser = sessions.open(autocommit=False, isolation=isolation), sessions.open(autocommit=False)
        old.conn.execute("SELECT 1 FROM os_core.work_orders_current")
        erase(eraser.conn, acme.id, "anna")
        if committed:
            eraser.conn.commit()
        future: Future[Any] = old.start(write)
        if not committed:
            assert sessions.blockers(old) == {eraser.pid}
            eraser.conn.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            future.result()
        old.conn.rollback()
        assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}
        # The next transaction says it, and anna is known again.
        write(old.conn)
        old.conn.commit()
        acme.append(field_set(order, personal("anna", "again")))
        register(acme.app, acme.id, "anna")


def test_in_flight__calls_of_many_subjects_never_wait_in_a_circle(sessions: Sessions, acme: Tenant) -> None:
    orders = [acme.order() for _ in range(8)]
    names = [f"subject-{n}" for n in range(12)]

    def job(number: int) -> Callable[[Connection], None]:
        def run(conn: Connection) -> None:
            query = "SELECT * FROM os_core.append_work_order_events(%s, %s::jsonb)"
            for n in range(6):
                turned = names[number + n :] + names[: number + n]
                events = [field_set(orders[number], [personal(name, n) for name in turned]) for _ in range(2)]
                conn.execute(query, (acme.id, json.dumps(events))).fetchall()

        return run

    def eraser(conn: Connection) -> None:
        for name in names * 2:
            erase(conn, acme.id, name)

    sessions.at_once([*(job(n) for n in range(6)), eraser])
    for name in names:
        erase(acme.app, acme.id, name)
    assert rows(acme, *ERASABLE) == {table: [] for table in ERASABLE}
    assert acme.verify() == {}


# --- what is left of the bytes


def pieces(value: str) -> set[bytes]:
    """Take samples of a random text, which TOAST stores as it is: it cannot be compressed."""
    return {value[place : place + 24].encode() for place in range(0, len(value) - 24, 250)}


def files(admin: Connection) -> bytes:
    """Return the bytes of every file of our tables, their indexes and their TOAST."""
    admin.execute("CHECKPOINT")
    found = admin.execute(
        "WITH ours AS (SELECT oid, reltoastrelid FROM pg_class WHERE relkind = 'r' AND relnamespace IN"
        " ('os_core'::regnamespace, 'conversation'::regnamespace)),"
        " heaps AS (SELECT oid FROM ours UNION SELECT reltoastrelid FROM ours WHERE reltoastrelid <> 0),"
        " every AS (SELECT oid FROM heaps UNION SELECT indexrelid FROM pg_index"
        " WHERE indrelid IN (TABLE heaps))"
        " SELECT pg_read_binary_file(pg_relation_filepath(oid)) FROM every"
    )
    return b"".join(row[0] for row in found)


def dump(server: Server, database: Database) -> bytes:
    assert server.binaries is not None
    url = database.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
    program = [str(server.binaries / "pg_dump"), f"--dbname={url}"]
    return subprocess.run(program, capture_output=True, check=True, env={"PATH": os.environ["PATH"]}).stdout


def test_erase__leaves_no_byte(
    server: Server, database: Database, engine: sa.Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of values nor of texts nor of salts; long ones, and with others' rows on the same pages."""
    secret = {name: secrets.token_urlsafe(6000) for name in ("value", "text")}
    small = {name: secrets.token_urlsafe(30) for name in ("a", "b", "text")}
    kept = secrets.token_urlsafe(3000), secrets.token_urlsafe(9000)
    order = new_id()
    fields = {"long": Personal("anna", secret["value"]), "deep": [{"a": Personal("anna", small["a"])}]}
    append_events(
        engine,
        "acme",
        [
            created(
                order, payload={"fields": {**fields, "bobs": Personal("bob", kept[0])}}, idempotency_key="k"
            ),
            event("STEP_STARTED", order, payload={"to": Personal("anna", small["b"])}),
        ],
    )
    with tenant_scope(engine, "acme") as conn:
        turns = ConversationRepository(conn)
        for number, (user, text) in enumerate(
            [("anna", secret["text"]), ("bob", kept[1]), ("anna", small["text"])], start=1
        ):
            IdentityRepository(conn).register_identity(user)
            turns.append(
                correlation_id=THREAD,
                turn_id=number,
                user_id=user,
                role="USER",
                source="TYPED_TEXT",
                text=text,
                privacy_scope="PUBLIC_CHAT",
            )
    with connect(database.admin_url, autocommit=True) as admin:
        salts = [
            row[0]
            for row in admin.execute(
                "SELECT salt FROM os_core.subjects WHERE subject_id = 'anna' UNION ALL"
                " SELECT salt FROM conversation.turn_texts JOIN conversation.conversation_ledger"
                " USING (tenant_id, conversation_turn_id) WHERE user_id = 'anna'"
            )
        ]
        admin.execute("ANALYZE")
        gone = {piece for value in secret.values() for piece in pieces(value)}
        gone |= {value.encode() for value in small.values()}
        stays = pieces(kept[0]) | pieces(kept[1])
        before = files(admin), dump(server, database)
        assert len(salts) == 3
        assert all(salt in before[0] and salt.hex().encode() in before[1] for salt in salts)
        for place in before:  # so that the search would find them; some lie across two pages
            assert sum(piece in place for piece in gone) > 0.9 * len(gone)
        statistics = "SELECT count(*) FROM pg_statistic WHERE pg_statistic::text LIKE %s"

        erase_subject(engine, "acme", "anna", reason_code=1)
        for table in ERASABLE:
            admin.execute(f"VACUUM FULL {table}".encode())
        admin.execute("ANALYZE")
        after = files(admin), dump(server, database)
        for place in after:
            assert not [piece for piece in gone if piece in place]
            assert sum(piece in place for piece in stays) > 0.9 * len(stays)
        assert not any(salt in after[0] or salt.hex().encode() in after[1] for salt in salts)
        for value in (*secret.values(), *small.values()):
            assert admin.execute(statistics, (f"%{value[:24]}%",)).fetchone() == (0,)

    # Retries keep nothing, and no refusal shows what they carry.
    with pytest.raises(IdempotencyConflict) as caught:
        append_events(engine, "acme", [created(order, payload={"fields": fields}, idempotency_key="k")])
    told = [str(caught.value), str(vars(caught.value)), str(caught.value.__cause__)]
    bad = {"a": Personal("anna", small["a"]), "b": {"$subject": "anna", "$ref": "0" * 64}}
    with pytest.raises(ContractViolation) as refused_reference:
        append_events(engine, "acme", [event("STEP_STARTED", order, payload=bad)])
    told += [str(refused_reference.value), str(refused_reference.value.__cause__)]
    told += [repr(Personal("anna", small["a"])), *capsys.readouterr()]
    assert not [value for value in small.values() if value in " ".join(told)]
    with connect(database.admin_url, autocommit=True) as admin:
        assert not [piece for piece in gone if piece in dump(server, database)]


# --- who may


WAYS_TO_A_VALUE = [
    "SELECT salt FROM os_core.subjects",
    "SELECT * FROM os_core.subjects",
    "SELECT subject::text FROM os_core.subjects AS subject",
    "SELECT value FROM os_core.subject_values",
    "SELECT salt FROM os_core.subject_values",
    "SELECT held::text FROM os_core.subject_values AS held",
    "SELECT subject_id FROM os_core.subject_values WHERE value = '1'",
    "SELECT subject_id FROM os_core.subject_values ORDER BY value",
    "COPY os_core.subject_values TO STDOUT",
    "COPY os_core.subjects (salt) TO STDOUT",
    "SELECT os_core.salted_hash('', 'guess')",
    "SELECT os_core.random_salt()",
    "SELECT os_core.refer_personal('acme', '[]')",
    "SELECT os_core.payload_as_recorded('acme', '{}', '{}')",
    "SELECT stavalues1 FROM pg_statistic",
    "DELETE FROM os_core.subject_values",
    "DELETE FROM os_core.subject_values WHERE FALSE",
    "UPDATE os_core.subjects SET salt = salt",
    "INSERT INTO os_core.subject_erasures (tenant_id, subject_id, reason_code, values_erased, texts_erased,"
    " erased_at) VALUES ('acme', 'anna', 1, 0, 0, now())",
]


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_role__reads_no_salt_and_no_value(database: Database, engine: sa.Engine, role: Role) -> None:
    order = new_id()
    append_events(engine, "acme", [created(order, payload={"fields": {"a": Personal("anna", "secret")}})])
    with database.engine(role).connect() as conn:
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        for way in WAYS_TO_A_VALUE:
            with pytest.raises(sa.exc.DBAPIError) as caught, conn.begin_nested():
                conn.exec_driver_sql(way)
            assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), way
        for way in ("os_core.resolve_values('acme', '{}')", "os_core.erase_subject('acme', 'anna', 1)"):
            if role == "readonly":
                with pytest.raises(sa.exc.DBAPIError, match="permission denied"), conn.begin_nested():
                    conn.exec_driver_sql(f"SELECT {way}")
        held = conn.exec_driver_sql("SELECT subject_id, value_ref FROM os_core.subject_values").all()
        assert len(held) == 1


@pytest.fixture
def guarded(database: Database, engine: sa.Engine) -> Iterator[Connection]:
    """Return a superuser's connection in a transaction of acme, where anna was erased and bob was not."""
    with tenant_scope(engine, "acme") as conn:
        for user in ("anna", "bob"):
            IdentityRepository(conn).register_identity(user)
            ConversationRepository(conn).append(
                correlation_id=uuid4(),
                turn_id=1,
                user_id=user,
                role="USER",
                source="TYPED_TEXT",
                text="text",
                privacy_scope="PUBLIC_CHAT",
            )
        fields = {user: Personal(user, 1) for user in ("anna", "bob")}
        WorkOrderRepository(conn).append(created(payload={"fields": fields}))
    erase_subject(engine, "acme", "anna", reason_code=1)
    with connect(database.admin_url) as admin:
        admin.execute("SET LOCAL selene.tenant_id = 'acme'")
        yield admin
        admin.rollback()


@pytest.mark.parametrize("replica", [False, True], ids=["origin", "replica"])
@pytest.mark.parametrize("table", ERASABLE)
def test_guard__nobody_deletes_without_a_record_of_it(guarded: Connection, table: str, replica: bool) -> None:
    if replica:
        guarded.execute("SET LOCAL session_replication_role = replica")
    for statement in (
        f"DELETE FROM {table}",
        f"DELETE FROM {table} WHERE FALSE",
        f"UPDATE {table} SET tenant_id = tenant_id",
        f"UPDATE {table} SET tenant_id = 'x' WHERE FALSE",
        f"TRUNCATE {table} CASCADE",
    ):
        with refused("SL003") as refusal, guarded.transaction():
            guarded.execute(statement.encode())
        assert refusal.facts["table"] in (table, "os_core.subject_values")
    for trigger in ("guard_row", "guard_statement"):
        guarded.execute("SAVEPOINT armed")
        guarded.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}".encode())
        with refused("SL003"), guarded.transaction():
            guarded.execute(f"DELETE FROM {table}".encode())
        guarded.execute("ROLLBACK TO armed")
    # A record of one subject is none of another's; with bob's own, his rows go, as on a subscriber.
    record = (
        "INSERT INTO os_core.subject_erasures (tenant_id, subject_id, reason_code, values_erased,"
        " texts_erased, erased_at) VALUES ('acme', %s, 1, 0, 0, clock_timestamp())"
    )
    guarded.execute(record, ("anna",))
    if not table.endswith("subjects"):
        with refused("SL003"), guarded.transaction():
            guarded.execute(f"DELETE FROM {table}".encode())
        guarded.execute(record, ("bob",))
        assert guarded.execute(f"DELETE FROM {table}".encode()).rowcount == 1
