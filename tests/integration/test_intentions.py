"""What a service wants done, as methods: each is one event and may be sent twice (contract §14)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier, Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from selene_core import (
    AsyncWorkOrderRepository,
    CancelInvalidState,
    ContractViolation,
    CorrelationConflict,
    Created,
    ExternalApprovalPending,
    IdempotencyConflict,
    InvalidTransition,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderNotFound,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    tenant_scope,
)
from tests.support.factories import created, event, new_id
from tests.support.races import DEADLINE_SECONDS, backend_pid, wait_until_blocked

TENANT = "acme"
Call = Callable[[WorkOrderRepository, str], Any]


@contextmanager
def orders_of(engine: sa.Engine, tenant_id: str = TENANT) -> Iterator[WorkOrderRepository]:
    """Begin a transaction and yield its repository."""
    with tenant_scope(engine, tenant_id) as conn:
        yield WorkOrderRepository(conn)


def state(engine: sa.Engine, order: str) -> WorkOrder:
    with orders_of(engine) as orders:
        found = orders.get(order)
    assert found is not None
    return found


def ledger(engine: sa.Engine, order: str) -> list[WorkOrderEvent]:
    with orders_of(engine) as orders:
        return [*orders.events(order)]


@pytest.fixture
def order(engine: sa.Engine) -> str:
    """Return an order with an envelope of its own."""
    order = new_id()
    append_events(
        engine, TENANT, [created(order, turn_id=7, work_order_status="CONFIRM", reason_code=77, payload={})]
    )
    return order


INTENTIONS: dict[str, tuple[Call, str, dict[str, Any]]] = {
    "set_field": (
        lambda orders, order: orders.set_field(order, "place", {"x": [None]}, idempotency_key="k"),
        "FIELD_SET",
        {"field_key": "place", "value": {"x": [None]}},
    ),
    "set_field to null": (
        lambda orders, order: orders.set_field(order, "place", None, idempotency_key="k"),
        "FIELD_SET",
        {"field_key": "place", "value": None},
    ),
    "change_status": (
        lambda orders, order: orders.change_status(order, "EXECUTING", "CONFIRM", "go", idempotency_key="k"),
        "STATUS_CHANGED",
        {"previous_status": "CONFIRM", "note": "go"},
    ),
    "change_status, no more said": (
        lambda orders, order: orders.change_status(order, WorkOrderStatus.CLARIFY, idempotency_key="k"),
        "STATUS_CHANGED",
        {},
    ),
    "detect_conflict": (
        lambda orders, order: orders.detect_conflict(order, "place", ["a", None], idempotency_key="k"),
        "FIELD_CONFLICT_DETECTED",
        {"field_key": "place", "candidates": ["a", None]},
    ),
    "resolve_conflict": (
        lambda orders, order: orders.resolve_conflict(order, "place", "a", idempotency_key="k"),
        "FIELD_CONFLICT_RESOLVED",
        {"field_key": "place", "value": "a"},
    ),
    "request_approval": (
        lambda orders, order: orders.request_approval(order, "r1", "bob", idempotency_key="k"),
        "EXTERNAL_APPROVAL_REQUESTED",
        {"request_id": "r1", "target_user_id": "bob"},
    ),
    "request_approval until": (
        lambda orders, order: orders.request_approval(
            order,
            "r1",
            "bob",
            datetime(2999, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
            idempotency_key="k",
        ),
        "EXTERNAL_APPROVAL_REQUESTED",
        {"request_id": "r1", "target_user_id": "bob", "expires_at": "2999-01-01T00:00:00.000000Z"},
    ),
}


@pytest.mark.parametrize("name", INTENTIONS)
def test_intention__is_one_event_with_the_orders_own_envelope(
    engine: sa.Engine, order: str, name: str
) -> None:
    call, event_type, payload = INTENTIONS[name]
    before = state(engine, order)
    with orders_of(engine) as orders:
        result = call(orders, order)
    recorded = ledger(engine, order)[-1]
    assert (recorded.event_type, recorded.payload, recorded.idempotency_key) == (event_type, payload, "k")
    assert (recorded.work_order_event_id, recorded.work_order_seq) == (result.work_order_event_id, 2)
    assert (recorded.correlation_id, recorded.turn_id, recorded.reason_code) == (
        before.correlation_id,
        before.turn_id,
        before.last_reason_code,
    )
    status = {"change_status": "EXECUTING", "change_status, no more said": "CLARIFY"}.get(name, "CONFIRM")
    assert recorded.work_order_status == status == state(engine, order).work_order_status


@pytest.mark.parametrize("name", INTENTIONS)
def test_intention__replays_after_the_order_moved_on(engine: sa.Engine, order: str, name: str) -> None:
    call = INTENTIONS[name][0]
    with orders_of(engine) as orders:
        first = call(orders, order)
        orders.append(event("STEP_FINISHED", order, turn_id=9, work_order_status="CLARIFY", reason_code=9))
        again = call(orders, order)
        orders.cancel(order, reason_code=1, idempotency_key="cancel")
        ended = call(orders, order)
    for replay in (again, ended):
        assert (replay.work_order_event_id, replay.replayed) == (first.work_order_event_id, True)
    with orders_of(engine) as orders, pytest.raises(IdempotencyConflict):
        orders.set_field(order, "other", "value", idempotency_key="k")


def test_intention__takes_the_envelope(engine: sa.Engine, order: str) -> None:
    thread, when = uuid4(), datetime(2027, 1, 1, tzinfo=UTC)
    with orders_of(engine) as orders:
        orders.set_field(
            order,
            "place",
            1,
            correlation_id=thread,
            turn_id=8,
            work_order_status="EXECUTING",
            reason_code=88,
            expected_seq=1,
            occurred_at=when,
        )
        # None is left out, as everywhere.
        orders.change_status(order, "DONE", correlation_id=None, turn_id=None, reason_code=None)
    first, second = ledger(engine, order)[1:]
    assert (first.correlation_id, first.turn_id, first.work_order_status, first.reason_code) == (
        thread,
        8,
        "EXECUTING",
        88,
    )
    assert first.occurred_at == when
    assert (second.correlation_id, second.turn_id, second.work_order_status, second.reason_code) == (
        thread,
        8,
        "DONE",
        88,
    )


@pytest.mark.parametrize("name", ["reason", "event_type", "payload", "step_id", "work_order_id"])
def test_intention__refuses_an_argument_that_it_does_not_have(
    engine: sa.Engine, order: str, name: str
) -> None:
    given: dict[str, Any] = {name: 1}
    with orders_of(engine) as orders:
        with pytest.raises(TypeError, match=name):
            orders.set_field(order, "place", 1, **given)
        given = {"work_order_status": "DONE"}
        with pytest.raises(TypeError, match="work_order_status"):
            orders.change_status(order, "DONE", **given)
    assert len(ledger(engine, order)) == 1


REFUSED: list[tuple[Call, str]] = [
    (lambda orders, order: orders.set_field("a b", "place", 1), "work_order_id"),
    (lambda orders, order: orders.set_field(order, "a b", 1), "field_key"),
    (lambda orders, order: orders.set_field(order, "a", {"x": [2**63]}), "value.x[0]"),
    (lambda orders, order: orders.set_field(order, "a", "x" * 20_000), "payload"),
    (lambda orders, order: orders.set_field(order, "a", 1, turn_id=0), "turn_id"),
    (lambda orders, order: orders.change_status(order, "OPEN"), "status"),
    (lambda orders, order: orders.change_status(order, "DONE", "OPEN"), "previous_status"),
    (lambda orders, order: orders.change_status(order, "DONE", note="x" * 4097), "note"),
    (lambda orders, order: orders.change_status(order, "CANCELED"), "reason_code"),
    (lambda orders, order: orders.detect_conflict(order, "a", "no list"), "candidates"),  # type: ignore[arg-type]
    (lambda orders, order: orders.resolve_conflict(order, "", 1), "field_key"),
    (lambda orders, order: orders.request_approval(order, " ", "bob"), "request_id"),
    (lambda orders, order: orders.request_approval(order, "r", "bob", datetime(2027, 1, 1)), "expires_at"),  # noqa: DTZ001
    (lambda orders, order: orders.resolve_approval(order, "r", "MAYBE"), "outcome"),
    (
        lambda orders, order: orders.create(correlation_id=uuid4(), turn_id=1, reason_code=1, status="DONE"),
        "status",
    ),
    (
        lambda orders, order: orders.create(correlation_id="x", turn_id=1, reason_code=1),  # type: ignore[arg-type]
        "correlation_id",
    ),
    (lambda orders, order: orders.create(correlation_id=uuid4(), turn_id=0, reason_code=1), "turn_id"),
    (
        lambda orders, order: orders.create(
            correlation_id=uuid4(), turn_id=1, reason_code=1, fields={"a b": 1}
        ),
        "fields",
    ),
    (
        lambda orders, order: orders.create(
            "a b", correlation_id=uuid4(), turn_id=1, reason_code=1, idempotency_key="k"
        ),
        "work_order_id",
    ),
    (
        lambda orders, order: orders.create(
            correlation_id=uuid4(), turn_id=1, reason_code=1, idempotency_key="\n"
        ),
        "idempotency_key",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_intention__names_the_argument_that_it_refuses(engine: sa.Engine, order: str, number: int) -> None:
    call, field = REFUSED[number]
    with orders_of(engine) as orders, pytest.raises(ContractViolation) as refusal:
        call(orders, order)
    assert refusal.value.field == field
    assert refusal.value.rule
    assert len(ledger(engine, order)) == 1


def test_intention__is_refused_as_its_event_is(engine: sa.Engine, order: str) -> None:
    def refuses(error: type[Exception], call: Call) -> None:
        with orders_of(engine) as orders, pytest.raises(error):
            call(orders, order)

    with orders_of(engine) as orders:
        orders.request_approval(order, "r1", "bob", datetime(2999, 1, 1, tzinfo=UTC))
    refuses(ExternalApprovalPending, lambda orders, order: orders.change_status(order, "EXECUTING"))
    refuses(ExternalApprovalPending, lambda orders, order: orders.request_approval(order, "r2", "bob"))
    refuses(InvalidTransition, lambda orders, order: orders.resolve_approval(order, "r2", "APPROVED"))
    refuses(InvalidTransition, lambda orders, order: orders.resolve_approval(order, "r1", "EXPIRED"))
    with orders_of(engine) as orders:
        orders.resolve_approval(order, "r1", "APPROVED")
        orders.change_status(order, "CANCELED", reason_code=9)
    refuses(InvalidTransition, lambda orders, order: orders.set_field(order, "place", 1))
    refuses(CancelInvalidState, lambda orders, order: orders.change_status(order, "CANCELED", reason_code=9))
    refuses(WorkOrderNotFound, lambda orders, order: orders.set_field("nowhere", "place", 1))


# --- create


def create(engine: sa.Engine, tenant_id: str = TENANT, **given: Any) -> Created:
    usual = {"correlation_id": UUID(int=1), "turn_id": 1, "reason_code": 1}
    with orders_of(engine, tenant_id) as orders:
        return orders.create(**{**usual, **given})


def test_create__sent_twice_with_a_key_is_one_order(engine: sa.Engine) -> None:
    first = create(engine, idempotency_key="k", fields={"place": "Oslo"}, requester_user_id="alice")
    again = create(engine, idempotency_key="k", fields={"place": "Oslo"}, requester_user_id="alice")
    assert again == Created(
        first.work_order_id, first.work_order_event_id, first.work_order_seq, True, first.created_at
    )
    assert (first.replayed, first.code, again.code is None) == (False, None, False)
    assert state(engine, first.work_order_id).fields_json == {"place": "Oslo"}
    with pytest.raises(IdempotencyConflict):
        create(engine, idempotency_key="k", fields={"place": "Rome"}, requester_user_id="alice")
    # The order moves on, to another thread too: it still is the one.
    with orders_of(engine) as orders:
        orders.set_field(first.work_order_id, "place", 1, correlation_id=UUID(int=2), turn_id=9)
        orders.cancel(first.work_order_id, reason_code=1, idempotency_key="cancel")
    again = create(engine, idempotency_key="k", fields={"place": "Oslo"}, requester_user_id="alice")
    assert (again.work_order_id, again.replayed) == (first.work_order_id, True)


def test_create__the_id_is_of_tenant_thread_and_key(engine: sa.Engine) -> None:
    first = create(engine, idempotency_key="k")
    assert create(engine, "rival", idempotency_key="k").work_order_id != first.work_order_id
    others = [
        create(engine, idempotency_key="k", correlation_id=UUID(int=2)).work_order_id,
        create(engine, idempotency_key="j", correlation_id=UUID(int=3)).work_order_id,
        create(engine, correlation_id=UUID(int=4)).work_order_id,
        create(engine, correlation_id=UUID(int=5)).work_order_id,
    ]
    assert len({first.work_order_id, *others}) == 5
    mine = create(engine, work_order_id="mine", idempotency_key="k", correlation_id=UUID(int=6))
    assert mine.work_order_id == "mine"
    assert create(engine, work_order_id="mine", idempotency_key="k", correlation_id=UUID(int=6)).replayed
    # Without a key nobody can tell that it is the same: the thread is taken.
    with pytest.raises(CorrelationConflict):
        create(engine, correlation_id=UUID(int=4))
    with pytest.raises(InvalidTransition):
        create(engine, work_order_id="mine", correlation_id=UUID(int=7))


def test_create__takes_a_thread_in_any_spelling(engine: sa.Engine) -> None:
    thread = uuid4()
    first = create(engine, idempotency_key="k", correlation_id=thread)
    again = create(engine, idempotency_key="k", correlation_id=str(thread).upper())
    assert (again.work_order_id, again.replayed) == (first.work_order_id, True)


def test_create__at_once_is_one_order(engine: sa.Engine) -> None:
    made: list[Created] = []
    barrier = Barrier(16)

    def run() -> None:
        barrier.wait(DEADLINE_SECONDS)
        made.append(create(engine, idempotency_key="k", fields={"place": "Oslo"}))

    at_once([run] * 16)
    assert len({each.work_order_id for each in made}) == 1
    assert sorted(each.replayed for each in made) == [False] + [True] * 15
    assert len(ledger(engine, made[0].work_order_id)) == 1


def at_once(jobs: list[Callable[[], None]]) -> None:
    threads = [Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


# --- one round trip


CALLS: list[Call] = [
    *(call for call, _, _ in INTENTIONS.values()),
    lambda orders, order: orders.create(
        correlation_id=uuid4(), turn_id=1, reason_code=1, idempotency_key="k"
    ),
    lambda orders, order: orders.ask(order, ["place"], idempotency_key="ask"),
    lambda orders, order: orders.ask(order, ["place"]),
    lambda orders, order: orders.notify_wait(order),
    lambda orders, order: orders.cancel(order, reason_code=1, idempotency_key="k"),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_intention__is_one_round_trip_inside_a_scope(engine: sa.Engine, order: str, number: int) -> None:
    sent: list[str] = []
    with tenant_scope(engine, TENANT) as conn:
        sa.event.listen(conn, "before_cursor_execute", lambda *args: sent.append(args[2]))
        CALLS[number](WorkOrderRepository(conn), order)
        CALLS[number](WorkOrderRepository(conn), order)
        assert len(sent) == 2


# --- the two obvious programs


def test_program__what_was_read_a_moment_ago_undoes_nothing(engine: sa.Engine, order: str) -> None:
    """A reads CONFIRM, B sets EXECUTING and commits while A waits for the row: A's field is on EXECUTING."""
    pids: list[int] = []

    def set_field() -> None:
        with tenant_scope(engine, TENANT) as conn:
            orders = WorkOrderRepository(conn)
            read = orders.get(order)
            assert read is not None
            assert read.work_order_status == "CONFIRM"
            pids.append(backend_pid(conn))
            was_read.wait(DEADLINE_SECONDS)
            changed.wait(DEADLINE_SECONDS)
            orders.set_field(order, "place", "Oslo", idempotency_key="place")

    was_read, changed = Barrier(2), Barrier(2)
    writer = Thread(target=set_field)
    writer.start()
    with engine.connect() as looking, tenant_scope(engine, TENANT) as conn:
        was_read.wait(DEADLINE_SECONDS)
        WorkOrderRepository(conn).change_status(order, "EXECUTING", turn_id=8)
        changed.wait(DEADLINE_SECONDS)
        assert wait_until_blocked(looking, pids[0]) == [backend_pid(conn)]
    writer.join(DEADLINE_SECONDS)
    found = state(engine, order)
    assert (found.work_order_status, found.turn_id, found.fields_json) == ("EXECUTING", 8, {"place": "Oslo"})


def test_program__get_build_append_sent_twice_is_a_replay(engine: sa.Engine, order: str) -> None:
    """Between the two the order moves on, and each time the program reads it again."""

    def handle() -> bool:
        with orders_of(engine) as orders:
            assert orders.get(order) is not None
            return orders.set_field(order, "place", "Oslo", idempotency_key="message-1").replayed

    assert handle() is False
    with orders_of(engine) as orders:
        orders.change_status(order, "EXECUTING", turn_id=9, reason_code=9)
    assert handle() is True
    with orders_of(engine) as orders:
        orders.change_status(order, "DONE")
    assert handle() is True
    assert len(ledger(engine, order)) == 4


def test_async__has_every_intention() -> None:
    for name in ("create", *(name.partition(" ")[0].strip(",") for name in INTENTIONS), "resolve_approval"):
        assert callable(getattr(AsyncWorkOrderRepository, name))
