"""docs/contract.md agrees with the code: tables, event types, payload keys; its examples are appended."""

import json
import re
from itertools import chain
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import (
    PENDING_STATUSES,
    TERMINAL_STATUSES,
    IdentityRepository,
    SessionState,
    SessionStateInvalid,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    tenant_scope,
)
from selene_core.contract.frozen_json import MAX_INT64
from selene_core.contract.rules import EVENT_RULES, PAYLOAD_RULES, Rule
from selene_core.store.scope import translate_errors
from selene_core.store.tables import METADATA
from tests.integration.test_documents import ROOT

CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
POSTGRESQL = sa.make_url("postgresql+psycopg://").get_dialect()()


def section(heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    (_, after) = f"\n{CONTRACT}".split(f"\n{heading}\n", 1)
    return re.split(rf"^#{{1,{level}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table in a text, without its head."""
    found = re.findall(r"^(?:\|.*\n)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in found
    ]


def type_of(column: sa.Column[Any]) -> str:
    """Return a column's type, as the page writes it."""
    written = column.type.compile(dialect=POSTGRESQL).partition(" COLLATE ")[0].lower()
    return {"timestamp with time zone": "timestamptz"}.get(written, written)


def test_contract__sections_are_numbered_and_keep_their_numbers() -> None:
    numbers = re.findall(r"^## (\d+)\. \S", CONTRACT, flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 19)]


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=str)
def test_contract__has_every_column(table: sa.Table) -> None:
    """In an order for readers; a table's own is what costs least to write."""
    described = [(name.strip("`"), kind, null) for name, kind, null, _ in tables(section(f"### {table}"))[0]]
    assert sorted(described) == sorted(
        (column.name, type_of(column), "yes" if column.nullable else "no") for column in table.columns
    )


def test_contract__has_every_table() -> None:
    described = set(re.findall(r"^### ((?:os_core|conversation)\.\w+)$", CONTRACT, flags=re.MULTILINE))
    assert described == {str(table) for table in METADATA.sorted_tables}


def test_contract__has_every_status() -> None:
    statuses = {status: kind for status, _, kind in tables(section("### Statuses"))[0]}
    assert set(statuses) == set(WorkOrderStatus)
    assert {status for status, kind in statuses.items() if kind == "pending"} == PENDING_STATUSES
    assert {status for status, kind in statuses.items() if kind == "terminal"} == TERMINAL_STATUSES


def test_contract__has_every_key_of_an_event() -> None:
    rows = chain(*tables(section("### The envelope")))
    envelope = {key for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    assert envelope == {*EVENT_RULES, "payload"}


def test_contract__has_every_event_type() -> None:
    headings = re.findall(r"^#### (.*)$", section("### Event types"), flags=re.MULTILINE)
    assert sorted(", ".join(headings).split(", ")) == sorted(WorkOrderEventType)


@pytest.mark.parametrize("event_type", PAYLOAD_RULES)
def test_contract__has_every_payload_key(event_type: WorkOrderEventType) -> None:
    rules = PAYLOAD_RULES[event_type]
    (rows,) = tables(section(f"#### {event_type}"))
    described = {key.strip("`"): required for key, required, _ in rows}
    assert described == dict.fromkeys(rules.required, "yes") | dict.fromkeys(rules.optional, "no")


def test_contract__says_how_long_and_how_large() -> None:
    ledger = {
        name.strip("`"): what for name, _, _, what in tables(section("### os_core.work_order_ledger"))[0]
    }
    said = [(ledger[name], rule) for name, rule in EVENT_RULES.items() if name in ledger]
    for event_type, rules in PAYLOAD_RULES.items():
        payload = {key.strip("`"): what for key, _, what in tables(section(f"#### {event_type}"))[0]}
        said += [(payload[key], rule) for key, rule in {**rules.required, **rules.optional}.items()]
    limits = [(what, limit_of(rule)) for what, rule in said if limit_of(rule) is not None]
    assert len(limits) > 15
    assert [(what, limit) for what, limit in limits if f"{limit:,}" not in what.replace("..", " ")] == []


def limit_of(rule: Rule[Any]) -> int | None:
    """Return the most characters of a text, or the largest integer; None where a format or 64 bits say it."""
    limit: int | None = rule.schema.get("maxLength", rule.schema.get("maximum"))
    return None if "format" in rule.schema or limit == MAX_INT64 else limit


def test_contract__its_examples_are_the_life_of_an_order(engine: sa.Engine) -> None:
    """Each is appended as it stands, one after the other."""
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", CONTRACT, flags=re.DOTALL)]
    events = [WorkOrderLedgerEventInput.from_mapping(example) for example in examples]
    assert {event.event_type for event in events} == {
        kind for kind in WorkOrderEventType if not kind.startswith("LEASE_")
    }
    for event in events:
        append_events(engine, "acme", [event])
    with tenant_scope(engine, "acme") as conn:
        orders = WorkOrderRepository(conn)
        order = orders.get("wo_trip")
        assert order is not None
        assert (order.work_order_status, order.fields_json["city"]) == ("CANCELED", "Zürich")
        assert orders.verify() == []


def test_contract__has_every_move_of_a_session(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        IdentityRepository(conn).register_identity("alice")
        IdentityRepository(conn).register_device("alice", "phone", device_type="phone")
    found = {
        state: [
            goal for goal in SessionState if goal not in (state, "OPEN") and may_move(engine, state, goal)
        ]
        for state in SessionState
    }
    described = tables(section("### os_core.sessions"))[1]
    assert [[state, ", ".join(goals) or "nothing"] for state, goals in found.items()] == described


def may_move(engine: sa.Engine, state: SessionState, goal: SessionState) -> bool:
    """Tell whether a session can be moved from a state to another, by a session of its own."""
    session = f"{state}-{goal}"
    move = sa.text("SELECT session_state FROM os_core.move_session('acme', :session, :state)")
    with tenant_scope(engine, "acme") as conn:
        IdentityRepository(conn).open_session(session, user_id="alice", device_id="phone")
        if state is not SessionState.OPEN:
            conn.execute(move, {"session": session, "state": state})
    try:
        with tenant_scope(engine, "acme") as conn, translate_errors():
            conn.execute(move, {"session": session, "state": goal})
    except SessionStateInvalid:
        return False
    return True
