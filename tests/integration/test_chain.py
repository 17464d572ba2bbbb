"""event_hash and verify_chain: every change of the ledger that is not an append is named (contract §17)."""

import json
import random
from typing import Any

import pytest

from selene_core import BrokenChain, WorkOrderRepository, append_events, tenant_scope
from selene_core.store.tables import work_order_ledger
from tests.integration.test_documents import ROOT, blocks
from tests.support import chain
from tests.support.calls import Event, Tenant, refused
from tests.support.commands import selene_core
from tests.support.factories import created, event, new_id, wire
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.sessions import Sessions

GAP = "the event before it is missing"
OTHER = "event_hash is not that of its columns and of the event before"
LEDGER = "os_core.work_order_ledger"
# For every column what a superuser writes instead of what was appended.
OTHERWISE = {
    "work_order_event_id": "work_order_event_id + 1000000",
    "tenant_id": "'somebody-else'",
    "work_order_id": "work_order_id || '.moved'",
    "work_order_seq": "work_order_seq + 100",
    "correlation_id": "gen_random_uuid()",
    "turn_id": "turn_id + 1",
    "event_type": "'FIELD_CONFLICT_RESOLVED'",
    "work_order_status": "'FAILED'",
    "reason_code": "reason_code + 1",
    "step_id": "step_id || '.'",
    "step_input_hash": "NULL",
    "lease_owner_id": "'somebody'",
    "lease_token_hash": "'a-hash'",
    "lease_expires_at": "now()",
    "payload": """payload || '{"value": "Bergen"}'""",
    "idempotency_key": "idempotency_key || '.'",
    "occurred_at": "occurred_at + interval '1 microsecond'",
    "created_at": "created_at - interval '1 microsecond'",
    "event_hash": "sha256(event_hash)",
}
ODD: list[Any] = [
    *("", "\t\n\r\b\f\x01\x1f\x7f\u2028", '\\u0041 "quoted" \\', "Grüße \U0001f600", "\\x41", "a/b"),
    *(0, -0.0, 1e-7, 5e-324, 1.10, 12345678901234567890e-5, 2**63 - 1, -(2**63)),
    *(None, True, [], {}, [[1, [None]]], {"longer": 1, "b": {"": 2}, "a": 3, "é": 4, "\x02": 5}),
]


def story(acme: Tenant, events: int = 5) -> str:
    """Append events with something in every column that a caller may fill."""
    order = acme.order()
    for seq in range(2, events + 1):
        acme.append(
            wire(
                "FIELD_SET",
                order,
                payload={"field_key": "place", "value": seq},
                step_id="step",
                step_input_hash="hash",
                idempotency_key=f"key-{seq}",
                occurred_at="2026-02-03T04:05:06.070000+01:00",
            )
        )
    return order


def attack(acme: Tenant, *statements: str) -> None:
    """Do as a superuser what nobody should."""
    chain.tamper(acme.admin, *statements)


# --- what is written


def test_hash__is_what_anybody_can_make_of_the_columns(acme: Tenant) -> None:
    single, batch = acme.order(), [wire("WORK_ORDER_CREATED", new_id()) for _ in range(3)]
    orders = [each["work_order_id"] for each in batch]
    rng = random.Random(17)
    for n, value in enumerate(ODD):
        given: Event = {"payload": {"field_key": f"f{n}", "value": value}, "idempotency_key": f"clé \\ {n}"}
        acme.append(wire("FIELD_SET", single, **given, occurred_at=f"2026-01-01T00:00:00.{n:06}Z"))
        batch.append(wire("FIELD_SET", rng.choice(orders), **given))
    acme.append(*batch)
    acme.append(wire("FIELD_SET", orders[0]), wire("FIELD_SET", single), wire("FIELD_SET", orders[0]))
    assert chain.differing(acme.admin, acme.id) == []
    assert acme.verify_chain() == {}
    assert len(acme.ledger()) == 2 * len(ODD) + 7


def test_hash__of_events_that_our_own_functions_write(acme: Tenant) -> None:
    order, token = acme.order(), "a-token-of-sixteen"
    for call in (
        "acquire_lease(%s, %s, 'worker', %s, 60000)",
        "renew_lease(%s, %s, %s, 60000)",
        "start_step_attempt(%s, %s, 'book', 1000, 1, 1000, 'key', %s)",
        "release_lease(%s, %s, %s)",
        "cancel_work_order(%s, %s, 7, %s)",
    ):
        acme.app.execute(f"SELECT * FROM os_core.{call}".encode(), (acme.id, order, token))
    assert len(acme.ledger(order)) == 6
    assert chain.differing(acme.admin, acme.id) == []
    assert acme.verify_chain(order) == {}


def test_hash__does_not_change_with_a_replay(acme: Tenant) -> None:
    order = story(acme)
    before = acme.ledger(order)
    again = [wire("FIELD_SET", order, payload={"field_key": "place", "value": 2}, step_id="step")]
    again[0] |= {"step_input_hash": "hash", "idempotency_key": "key-2"}
    for events in (again, again * 2, [*again, wire("FIELD_SET", order), *again]):
        acme.append(*events)
    assert acme.ledger(order)[:5] == before
    assert len(acme.ledger(order)) == 6
    assert acme.verify_chain() == {}


def test_hash__of_a_caller_is_refused(acme: Tenant) -> None:
    with refused("SL001"):
        acme.append(wire("WORK_ORDER_CREATED", event_hash="\\x" + 32 * "00"))


@pytest.mark.parametrize("value", ["NULL", "''", "sha224('')", "sha512('')"])
@pytest.mark.parametrize("event_type", ["WORK_ORDER_CREATED", "FIELD_SET", "STEP_STARTED", "LEASE_ACQUIRED"])
def test_hash__has_32_bytes(acme: Tenant, event_type: str, value: str) -> None:
    order = acme.order()
    with refused("23502" if value == "NULL" else "23514"):
        acme.damage(
            f"INSERT INTO {LEDGER} SELECT (l).* FROM (SELECT jsonb_populate_record(l, jsonb_build_object("
            f"'work_order_seq', 2, 'work_order_event_id', 10000000, 'event_type', '{event_type}',"
            f" 'event_hash', {value}::bytea)) AS l"
            f" FROM {LEDGER} AS l WHERE work_order_id = %s) AS l",
            order,
        )


@pytest.mark.parametrize("others", [0, 1])
def test_append__to_a_projection_that_is_ahead_of_its_ledger_is_refused(acme: Tenant, others: int) -> None:
    order = story(acme)
    attack(acme, f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}' AND work_order_seq = 5")
    with refused("SL017") as refusal:
        acme.append(*[wire("WORK_ORDER_CREATED")] * others, wire("FIELD_SET", order))
    assert refusal.facts["work_order_id"] == order
    assert len(acme.ledger()) == 4


# --- what verify_chain names


def test_otherwise__names_every_column() -> None:
    assert OTHERWISE.keys() == set(work_order_ledger.columns.keys())


@pytest.mark.parametrize("column", OTHERWISE)
def test_verify_chain__names_the_event_whose_column_was_changed(acme: Tenant, column: str) -> None:
    order, sound = story(acme), story(acme)
    attack(
        acme,
        f"UPDATE {LEDGER} SET {column} = {OTHERWISE[column]}"
        f" WHERE work_order_id = '{order}' AND work_order_seq = 3",
    )
    named = {
        "tenant_id": {(order, 4): GAP},
        "work_order_id": {(order, 4): GAP, (f"{order}.moved", 3): GAP},
        "work_order_seq": {(order, 4): GAP, (order, 103): GAP},
        "event_hash": {(order, 3): OTHER, (order, 4): OTHER},
    }
    assert acme.verify_chain() == named.get(column, {(order, 3): OTHER})
    assert acme.verify_chain(sound) == {}
    assert acme.verify_chain(order)


def test_verify_chain__names_the_event_that_came_from_another_tenant(
    acme: Tenant, sessions: Sessions
) -> None:
    other, order = sessions.tenant(new_id("other")), story(acme)
    attack(acme, f"UPDATE {LEDGER} SET tenant_id = '{other.id}' WHERE work_order_id = '{order}'")
    assert acme.verify_chain() == {}  # an order that is not there: that is for the seals
    assert other.verify_chain() == {(order, seq): OTHER for seq in range(1, 6)}


@pytest.mark.parametrize("seq", [1, 3])
def test_verify_chain__names_where_an_event_was_deleted(acme: Tenant, seq: int) -> None:
    order = story(acme)
    attack(acme, f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}' AND work_order_seq = {seq}")
    assert acme.verify_chain() == {(order, seq + 1): GAP}


def test_verify_chain__names_where_an_event_was_deleted_and_the_rest_moved_up(acme: Tenant) -> None:
    order = story(acme)
    attack(
        acme,
        f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}' AND work_order_seq = 3",
        f"UPDATE {LEDGER} SET work_order_seq = 3 WHERE work_order_id = '{order}' AND work_order_seq = 4",
        f"UPDATE {LEDGER} SET work_order_seq = 4 WHERE work_order_id = '{order}' AND work_order_seq = 5",
    )
    assert acme.verify_chain() == {(order, 3): OTHER, (order, 4): OTHER}


def test_verify_chain__names_where_an_event_was_inserted(acme: Tenant) -> None:
    order = story(acme)
    fields = ", ".join(work_order_ledger.columns.keys())
    made = fields.replace("work_order_event_id", "work_order_event_id + 1000000").replace(
        "idempotency_key", "NULL"
    )
    attack(
        acme,
        f"UPDATE {LEDGER} SET work_order_seq = 105 WHERE work_order_id = '{order}' AND work_order_seq = 5",
        f"UPDATE {LEDGER} SET work_order_seq = 5 WHERE work_order_id = '{order}' AND work_order_seq = 4",
        f"INSERT INTO {LEDGER} ({fields}) SELECT {made.replace('work_order_seq', '4')} FROM {LEDGER}"
        f" WHERE work_order_id = '{order}' AND work_order_seq = 3",
        f"UPDATE {LEDGER} SET work_order_seq = 6 WHERE work_order_id = '{order}' AND work_order_seq = 105",
    )
    assert acme.verify_chain() == {(order, seq): OTHER for seq in (4, 5, 6)}


def test_verify_chain__names_two_orders_that_have_each_others_events(acme: Tenant) -> None:
    one, two = story(acme), story(acme)
    attack(
        acme,
        f"UPDATE {LEDGER} SET work_order_id = '{one}.x' WHERE work_order_id = '{one}' AND work_order_seq = 3",
        f"UPDATE {LEDGER} SET work_order_id = '{one}' WHERE work_order_id = '{two}' AND work_order_seq = 3",
        f"UPDATE {LEDGER} SET work_order_id = '{two}' WHERE work_order_id = '{one}.x'",
    )
    assert acme.verify_chain() == {(order, seq): OTHER for order in (one, two) for seq in (3, 4)}


def test_verify_chain__names_two_events_that_changed_places(acme: Tenant) -> None:
    order = story(acme)
    where = f"WHERE work_order_id = '{order}' AND work_order_seq"
    attack(
        acme,
        *(
            f"UPDATE {LEDGER} SET work_order_seq = {to} {where} = {seq}"
            for seq, to in ((2, 9), (3, 2), (9, 3))
        ),
    )
    assert acme.verify_chain() == {(order, seq): OTHER for seq in (2, 3, 4)}


def test_verify_chain__cannot_see_what_was_cut_or_made_anew(acme: Tenant) -> None:
    """The seals can: tests/integration/test_seals.py."""
    cut, deleted, anew = story(acme), story(acme), story(acme)
    attack(
        acme,
        f"DELETE FROM {LEDGER} WHERE work_order_id = '{cut}' AND work_order_seq > 3",
        f"DELETE FROM {LEDGER} WHERE work_order_id = '{deleted}'",
        f"UPDATE {LEDGER} SET turn_id = 99 WHERE work_order_id = '{anew}' AND work_order_seq = 2",
    )
    assert acme.verify_chain() == {(anew, 2): OTHER}
    chain.rehash(acme.admin, anew)
    assert acme.verify_chain() == {}


@pytest.mark.parametrize("size", [1, 2, 5, 7, 10000])
def test_verify_chain_part__goes_on_where_it_stopped(acme: Tenant, size: int) -> None:
    orders = sorted(story(acme) for _ in range(3))
    changed = [(orders[0], 5), (orders[1], 1), (orders[2], 3)]
    for order, seq in changed:
        attack(
            acme,
            f"UPDATE {LEDGER} SET turn_id = 99 WHERE work_order_id = '{order}' AND work_order_seq = {seq}",
        )
    found, events, place = [], 0, (None, None)
    while True:
        row = acme.app.execute(
            "SELECT * FROM os_core.verify_chain_part(%s, %s, %s, NULL, %s)", (acme.id, *place, size)
        ).fetchone()
        assert row is not None
        assert row[0] <= size
        events += row[0]
        found += [(each["work_order_id"], each["work_order_seq"]) for each in row[1] or []]
        if row[2] is None:
            break
        place = row[2:]
    assert (found, events) == (changed, 15)


def test_verify_chain_part__refuses_a_size_out_of_bounds(acme: Tenant) -> None:
    for size in (None, 0, 10001):
        with refused("SL001") as refusal:
            acme.app.execute("SELECT os_core.verify_chain_part(%s, '', NULL, NULL, %s)", (acme.id, size))
        assert refusal.facts["field"] == "limit"


def test_verify_chain__sees_one_tenant(acme: Tenant, sessions: Sessions) -> None:
    other = sessions.tenant(new_id("other"))
    order = story(other)
    attack(other, f"UPDATE {LEDGER} SET turn_id = 99 WHERE work_order_id = '{order}' AND work_order_seq = 2")
    assert acme.verify_chain() == acme.verify_chain(order) == {}
    with acme.app.transaction(), refused("SL002"):
        acme.app.execute("SELECT set_config('selene.tenant_id', %s, TRUE)", (acme.id,))
        other_chain = "SELECT * FROM os_core.verify_chain(%s)"
        acme.app.execute(other_chain, (other.id,))


# --- in Python


def test_repository__shows_the_hash_and_names_what_is_broken(shared_database: Database) -> None:
    engine, tenant_id, orders = shared_database.engine("app"), new_id("acme"), [new_id() for _ in range(2)]
    append_events(engine, tenant_id, [created(order) for order in orders])
    append_events(engine, tenant_id, [event("FIELD_SET", order) for order in orders * 2])
    with connect(shared_database.admin_url, autocommit=True) as admin:
        chain.tamper(
            admin,
            f"UPDATE {LEDGER} SET turn_id = 7 WHERE work_order_id = '{orders[0]}' AND work_order_seq = 2",
        )
    reached: list[int] = []
    with tenant_scope(engine, tenant_id) as conn:
        repository = WorkOrderRepository(conn)
        assert repository.verify_chain(progress=reached.append) == [BrokenChain(orders[0], 2, OTHER)]
        assert repository.verify_chain(orders[0]) == [BrokenChain(orders[0], 2, OTHER)]
        assert repository.verify_chain(orders[1]) == []
        hashes = [each.event_hash for each in repository.events(orders[1])]
    with shared_database.engine("admin").connect() as conn:
        hashed = f"SELECT encode(event_hash, 'hex') FROM {LEDGER} WHERE work_order_id = '{orders[1]}'"
        assert hashes == [*conn.exec_driver_sql(f"{hashed} ORDER BY work_order_seq").scalars()]
    assert reached == [6]


# --- on the command line


def test_command__names_what_is_broken(shared_database: Database, acme: Tenant) -> None:
    def verify(*options: str) -> tuple[int, str]:
        url = shared_database.app_url.render_as_string(hide_password=False)
        done = selene_core("verify", acme.id, "--chain", *options, "--url", url)
        return done.returncode, done.stdout

    one, two = story(acme), story(acme)
    assert verify() == (0, "Clean: every event is what was appended (10 events).\n")
    attack(acme, f"UPDATE {LEDGER} SET turn_id = 9 WHERE work_order_id = '{one}' AND work_order_seq = 4")
    named = f"{one}, event 4: {OTHER}\n"
    assert verify() == (1, f"{named}1 of 10 events are not what was appended.\n")
    assert verify("--work-order", one)[1].startswith(named)
    assert verify("--work-order", two)[0] == 0
    assert verify("--work-order", "none") == (1, "")
    status, told = verify("--json")
    assert (status, json.loads(told)) == (
        1,
        {
            "clean": False,
            "events": 10,
            "broken": [{"work_order_id": one, "work_order_seq": 4, "problem": OTHER}],
        },
    )


def test_command__warns_of_a_tenant_without_events(shared_database: Database) -> None:
    url = shared_database.app_url.render_as_string(hide_password=False)
    done = selene_core("verify", new_id("nobody"), "--chain", "--url", url)
    assert done.returncode == 0
    assert "has 0 work orders" in done.stderr


def test_contract__has_the_formula(acme: Tenant) -> None:
    order = story(acme)
    (text,) = [text for name, text in blocks(ROOT / "docs/contract.md", "python") if name == "event-hash"]
    page: dict[str, Any] = {}
    exec(text, page)  # noqa: S102 - the contract's example
    before = None
    for event_row in acme.ledger(order):
        payload = acme.admin.execute("SELECT %s::jsonb::text", (json.dumps(event_row["payload"]),)).fetchone()
        assert payload is not None
        assert page["event_hash"](before, {**event_row, "payload": payload[0]}) == event_row["event_hash"]
        before = event_row["event_hash"]
