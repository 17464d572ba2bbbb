"""Thread, turn, status and reason may be left out: they are then the order's own (contract §3)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.support.calls import TERMINAL, Appended, Event, Row, Tenant, refused
from tests.support.factories import new_id, wire
from tests.support.sessions import Sessions

ENVELOPE = ("correlation_id", "turn_id", "work_order_status", "reason_code")
Send = Callable[..., Appended]


def bare(event_type: str, order: str, payload: Event | None = None, **given: Any) -> Event:
    """Compose an event without the envelope."""
    usual = wire(event_type, order)
    kept = {name: value for name, value in usual.items() if name not in ENVELOPE}
    return {**kept, **({} if payload is None else {"payload": payload}), **given}


def field_set(order: str, value: Any = "Oslo", **given: Any) -> Event:
    """Compose a FIELD_SET without the envelope."""
    return bare("FIELD_SET", order, {"field_key": "place", "value": value}, **given)


def envelope(row: Row) -> list[Any]:
    """Return the four columns of an event or of an order."""
    reason = row["reason_code"] if "reason_code" in row else row["last_reason_code"]
    return [row["correlation_id"], row["turn_id"], row["work_order_status"], reason]


@pytest.fixture(params=["single", "batch"])
def send(request: pytest.FixtureRequest, acme: Tenant) -> Send:
    """Append an event alone, or as the last of a batch, after one of another order."""

    def send(event: Event) -> Appended:
        before = [wire("WORK_ORDER_CREATED")] if request.param == "batch" else []
        return acme.append(*before, event)[-1]

    return send


@pytest.fixture
def order(acme: Tenant) -> str:
    """Return an order whose envelope is its own."""
    order = new_id()
    acme.append(
        wire("WORK_ORDER_CREATED", order, turn_id=7, work_order_status="CONFIRM", reason_code=77, payload={})
    )
    return order


@pytest.mark.parametrize("left_out", [*ENVELOPE, "all"])
@pytest.mark.parametrize("as_null", [False, True], ids=["absent", "null"])
def test_left_out__is_the_orders_own(
    acme: Tenant, order: str, send: Send, left_out: str, as_null: bool
) -> None:
    names = set(ENVELOPE if left_out == "all" else (left_out,))
    given = {"turn_id": 8, "work_order_status": "EXECUTING", "reason_code": 88}
    event = {**field_set(order), "correlation_id": wire("FIELD_SET")["correlation_id"], **given}
    for name in names:
        del event[name]
    before = acme.projection(order)
    send({**event, **(dict.fromkeys(names) if as_null else {})})
    stored = acme.ledger(order)[-1]
    own = dict(zip(ENVELOPE, envelope(before), strict=True))
    for name in ENVELOPE:
        assert str(stored[name]) == str(own[name] if name in names else event[name]), name
    assert envelope(acme.projection(order)) == envelope(stored)
    assert acme.verify() == {}


@pytest.mark.parametrize(
    ("event_type", "given", "missing"),
    [
        *(("WORK_ORDER_CREATED", {name: None}, name) for name in ENVELOPE),
        ("STATUS_CHANGED", {"work_order_status": None}, "work_order_status"),
        ("STATUS_CHANGED", {"work_order_status": "CANCELED", "reason_code": None}, "reason_code"),
        ("WORK_ORDER_CANCELED", {"reason_code": None}, "reason_code"),
    ],
)
@pytest.mark.parametrize("as_null", [False, True], ids=["absent", "null"])
def test_required__by_what_creates_changes_the_status_or_cancels(
    acme: Tenant, order: str, send: Send, event_type: str, given: Event, missing: str, as_null: bool
) -> None:
    event = {**wire(event_type, order), **given}
    if not as_null:
        del event[missing]
    with refused("SL001") as refusal:
        send(event)
    assert refusal.facts["field"] == missing
    assert refusal.facts["rule"].startswith(f"is required by {event_type}")
    assert len(acme.ledger(order)) == 1


def test_status_changed__gives_its_status_and_nothing_else(acme: Tenant, order: str, send: Send) -> None:
    before = envelope(acme.projection(order))
    send(bare("STATUS_CHANGED", order, work_order_status="EXECUTING"))
    assert envelope(acme.ledger(order)[-1]) == [before[0], before[1], "EXECUTING", before[3]]
    send(bare("STATUS_CHANGED", order, work_order_status="CANCELED", reason_code=9))
    assert envelope(acme.ledger(order)[-1]) == [before[0], before[1], "CANCELED", 9]


def test_cancel__needs_a_reason_and_no_status(acme: Tenant, order: str, send: Send) -> None:
    before = envelope(acme.projection(order))
    event = bare("WORK_ORDER_CANCELED", order, reason_code=9, idempotency_key="k")
    original = send(event)
    assert envelope(acme.ledger(order)[-1]) == [before[0], before[1], "CANCELED", 9]
    again = send({**event, "work_order_status": "CANCELED"})
    assert (again.work_order_event_id, again.replayed) == (original.work_order_event_id, True)
    with refused("SL004"):
        send({**event, "idempotency_key": "other"})


@pytest.mark.parametrize("end", TERMINAL)
def test_ended__an_event_without_a_status_is_refused(acme: Tenant, send: Send, end: str) -> None:
    order = acme.order(end)
    for event_type in ("FIELD_SET", "STEP_FINISHED", "EXTERNAL_APPROVAL_REQUESTED", "FIELD_PROMPTED"):
        with refused("SL007") as refusal:
            send(bare(event_type, order))
        assert refusal.message == f"work order {order} is {end}: nothing follows"
    assert len(acme.ledger(order)) == 2


@pytest.mark.parametrize("canceler", ["WORK_ORDER_CANCELED", "STATUS_CHANGED"])
def test_ended__after_a_cancel_in_the_same_batch(acme: Tenant, order: str, canceler: str) -> None:
    cancel = bare(canceler, order, {}, work_order_status="CANCELED", reason_code=9)
    with refused("SL007") as refusal:
        acme.append(cancel, field_set(order))
    assert refusal.facts["event_index"] == 1
    # The other type of cancel may still follow, as ever.
    other = {"WORK_ORDER_CANCELED": "STATUS_CHANGED", "STATUS_CHANGED": "WORK_ORDER_CANCELED"}[canceler]
    acme.append(cancel, bare(other, order, {}, work_order_status="CANCELED", reason_code=9))
    assert acme.projection(order)["work_order_status"] == "CANCELED"


def test_batch__what_the_events_before_left(acme: Tenant) -> None:
    order, other = new_id(), acme.order("EXECUTING")
    created = wire("WORK_ORDER_CREATED", order, turn_id=3, reason_code=30)
    thread = wire("FIELD_SET")["correlation_id"]
    acme.append(
        created,
        field_set(order, 1),
        bare("STATUS_CHANGED", order, work_order_status="EXECUTING", turn_id=4),
        field_set(other, 2, reason_code=5),
        field_set(order, 3, correlation_id=thread),
        field_set(order, 4, reason_code=50),
        field_set(order, 5),
        field_set(other, 6),
    )
    assert [[str(value) for value in envelope(event)] for event in acme.ledger(order)] == [
        [created["correlation_id"], "3", "DRAFT", "30"],
        [created["correlation_id"], "3", "DRAFT", "30"],
        [created["correlation_id"], "4", "EXECUTING", "30"],
        [thread, "4", "EXECUTING", "30"],
        [thread, "4", "EXECUTING", "50"],
        [thread, "4", "EXECUTING", "50"],
    ]
    assert [envelope(event)[1:] for event in acme.ledger(other)[-2:]] == [[1, "EXECUTING", 5]] * 2
    assert acme.verify() == {}


# --- content is what was given


def test_replay__after_the_order_moved_on(acme: Tenant, order: str, send: Send) -> None:
    event = field_set(order, idempotency_key="k")
    original = send(event)
    stored = acme.ledger(order)[-1]
    full = {**event, **dict(zip(ENVELOPE, envelope(stored), strict=True))}
    full["correlation_id"] = str(full["correlation_id"])
    send(bare("STATUS_CHANGED", order, work_order_status="EXECUTING", turn_id=9, reason_code=99))
    for ended in (False, True):
        if ended:
            send(bare("STATUS_CHANGED", order, work_order_status="DONE"))
        # With or without the envelope, and with hopeless conditions: the original comes first.
        for again in (event, full, {**event, "turn_id": 7}, {**event, "expected_seq": 77}):
            row = send(again)
            assert (row.work_order_event_id, row.replayed) == (original.work_order_event_id, True)
        for other in (
            {**event, "turn_id": 8},
            {**event, "work_order_status": "EXECUTING"},
            {**event, "reason_code": 99},
            {**event, "correlation_id": wire("FIELD_SET")["correlation_id"]},
            {**event, "step_id": "a"},
            field_set(order, "Rome", idempotency_key="k"),
        ):
            with refused("SL005"):
                send(other)


def test_replay__of_an_event_given_in_full(acme: Tenant, order: str, send: Send) -> None:
    full = wire("FIELD_SET", order, idempotency_key="k", turn_id=8, work_order_status="CLARIFY")
    original = send(full)
    again = send({name: value for name, value in full.items() if name not in ENVELOPE})
    assert (again.work_order_event_id, again.replayed) == (original.work_order_event_id, True)


def test_twins__in_one_batch_compare_with_what_the_first_became(acme: Tenant, order: str) -> None:
    event = field_set(order, idempotency_key="k")
    own = {
        name: str(value) if name == "correlation_id" else value
        for name, value in zip(ENVELOPE, envelope(acme.projection(order)), strict=True)
    }
    moved = bare("STATUS_CHANGED", order, work_order_status="EXECUTING", turn_id=8, reason_code=88)
    for batch in (
        [event, moved, event],
        [event, moved, {**event, **own}],
        [{**event, **own}, moved, event],
        [field_set(order, 0), event, moved, field_set(order, 1), event, {**event, "turn_id": 7}],
    ):
        with acme.app.transaction(force_rollback=True):
            rows = acme.append(*batch)
            first = next(index for index, each in enumerate(batch) if each.get("idempotency_key"))
            assert rows[-1] == Appended(
                rows[first].work_order_event_id, rows[first].work_order_seq, True, rows[first].created_at
            )
        # What the order is by then is not what the first event said.
        with refused("SL005") as refusal:
            acme.append(*batch, {**event, "turn_id": 8})
        assert refusal.facts["event_index"] == len(batch)
    assert len(acme.ledger(order)) == 1


def test_twins__of_an_order_that_the_batch_creates(acme: Tenant) -> None:
    order = new_id()
    event = field_set(order, idempotency_key="k")
    rows = acme.append(wire("WORK_ORDER_CREATED", order), event, {**event, "turn_id": 1}, field_set(order, 2))
    assert [row.replayed for row in rows] == [False, False, True, False]
    assert [row.work_order_seq for row in rows] == [1, 2, 2, 3]


# --- the two obvious programs


@pytest.mark.parametrize("lane", ["single", "batch"])
def test_read_then_write__does_not_undo_a_status(sessions: Sessions, lane: str) -> None:
    """A reads DRAFT, B sets EXECUTING, A appends FIELD_SET: the order stays EXECUTING."""
    acme = sessions.tenant(new_id("acme"))
    order, other = acme.order(), acme.order()
    a, b = sessions.open(), sessions.open(autocommit=False)
    rest = [field_set(other)] if lane == "batch" else []
    with a.conn.transaction():
        a.conn.execute(f"SET LOCAL selene.tenant_id = '{acme.id}'".encode())
        read = a.conn.execute("SELECT work_order_status FROM os_core.work_orders_current").fetchall()
        assert read == [("DRAFT",), ("DRAFT",)]
    b.append(acme.id, bare("STATUS_CHANGED", order, work_order_status="EXECUTING", turn_id=2))
    waiting = a.start_append(acme.id, *rest, field_set(order, idempotency_key="k"))
    assert sessions.blockers(a) == {b.pid}
    b.conn.commit()
    row = waiting.result()[-1]
    assert row.work_order_seq == 3
    assert envelope(acme.projection(order))[1:] == [2, "EXECUTING", 1]
    # Sent twice: get, build the event, append with a key.
    again = a.append(acme.id, *rest, field_set(order, idempotency_key="k"))[-1]
    assert (again.work_order_event_id, again.replayed) == (row.work_order_event_id, True)
    assert acme.verify() == {}


@pytest.mark.parametrize("lane", ["single", "batch"])
def test_at_once__sixteen_writers_never_undo_what_others_set(sessions: Sessions, lane: str) -> None:
    """Half of them move the status and the turn, half set fields: each event has what the one before left."""
    acme = sessions.tenant(new_id("acme"))
    order, other = acme.order(), acme.order()

    def moves(number: int) -> Callable[[Any], None]:
        def run(conn: Any) -> None:
            tenant = Tenant(acme.id, conn, acme.admin)
            for step in range(5):
                event = bare(
                    "STATUS_CHANGED",
                    order,
                    work_order_status=("CLARIFY", "CONFIRM", "EXECUTING")[(number + step) % 3],
                    turn_id=100 * number + step + 1,
                )
                tenant.append(*([field_set(other)] if lane == "batch" else []), event)

        return run

    def sets(number: int) -> Callable[[Any], None]:
        def run(conn: Any) -> None:
            tenant = Tenant(acme.id, conn, acme.admin)
            for step in range(5):
                event = field_set(order, [number, step], idempotency_key=f"{number}-{step}")
                for _ in range(2):
                    tenant.append(*([field_set(other)] if lane == "batch" else []), event)

        return run

    sessions.at_once([moves(number) if number % 2 else sets(number) for number in range(16)])
    ledger = acme.ledger(order)
    assert len(ledger) == 1 + 16 * 5
    for before, after in pairwise(ledger):
        if after["event_type"] == "FIELD_SET":
            assert envelope(after) == envelope(before)
    assert acme.unsound() == []
    assert acme.verify() == {}


def test_lost_race__a_batch_completes_its_events_anew(sessions: Sessions) -> None:
    """The order that a batch would create is another's by then: what was left out is that order's."""
    acme = sessions.tenant(new_id("acme"))
    order = new_id()
    created = wire("WORK_ORDER_CREATED", order, turn_id=3, reason_code=30, idempotency_key="c")
    a, b = sessions.open(autocommit=False), sessions.open()
    a.append(acme.id, created, bare("STATUS_CHANGED", order, work_order_status="EXECUTING", turn_id=5))
    waiting = b.start_append(acme.id, created, field_set(order, idempotency_key="k"))
    assert sessions.blockers(b) == {a.pid}
    a.conn.commit()
    assert [row.replayed for row in waiting.result()] == [True, False]
    assert envelope(acme.ledger(order)[-1])[1:] == [5, "EXECUTING", 30]
    assert acme.verify() == {}


def test_lease_and_steps__carry_the_orders_own(acme: Tenant, order: str) -> None:
    """What our functions write has the envelope of the moment, and a release follows the end."""
    before = envelope(acme.projection(order))
    token = "t" * 32
    acme.app.execute("SELECT os_core.acquire_lease(%s, %s, 'me', %s, 60000, NULL)", (acme.id, order, token))
    acme.append(field_set(order, turn_id=8, work_order_status="EXECUTING"))
    acme.app.execute("SELECT os_core.renew_lease(%s, %s, %s, 60000)", (acme.id, order, token))
    assert envelope(acme.ledger(order)[-1]) == [before[0], 8, "EXECUTING", before[3]]
    acme.append(bare("WORK_ORDER_CANCELED", order, reason_code=9))
    acme.app.execute("SELECT os_core.release_lease(%s, %s, %s)", (acme.id, order, token))
    assert envelope(acme.ledger(order)[-1]) == [before[0], 8, "CANCELED", 9]
    assert acme.verify() == {}


def test_payload__is_not_the_place_for_it(acme: Tenant, order: str, send: Send) -> None:
    """The four columns only: everything else that is left out is nothing, and not the order's."""
    send(bare("STEP_STARTED", order, {}, step_id="a", step_input_hash="h"))
    send(field_set(order))
    stored = acme.ledger(order)[-1]
    assert [stored["step_id"], stored["step_input_hash"], stored["idempotency_key"]] == [None] * 3
