"""The repository: one statement a call, typed rows, errors as classes, and pages instead of whole tables."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import selene_core
from selene_core import (
    AppendResult,
    BoundExceeded,
    CancelInvalidState,
    ConcurrencyConflict,
    ContractViolation,
    CorrelationConflict,
    DriftedOrder,
    IdempotencyConflict,
    InvalidTransition,
    LeaseLost,
    ProjectionDamaged,
    RebuildReport,
    SeleneError,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderEventType,
    WorkOrderIdUnavailable,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    rebuild_tenant,
    tenant_scope,
)
from selene_core.contract import errors
from selene_core.store.work_order_statements import EVENTS_PAGE, REBUILD_GROUP_SIZE
from tests.support.factories import correlation_of, created, event
from tests.support.plans import index_names, plan_of, statements
from tests.support.servers import Database, Server

ORDERS = 20_000
EVENTS = 20_000
LEDGER = "os_core.work_order_ledger"


@pytest.fixture
def repository(engine: sa.Engine) -> Iterator[WorkOrderRepository]:
    """Return the repository of tenant acme, in a transaction of its own."""
    with tenant_scope(engine, "acme") as conn:
        yield WorkOrderRepository(conn)


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with many orders, and many events of one of them."""
    with server.new_database("full", template_database) as database:
        with server.admin(database.name) as admin:
            insert = (
                f"INSERT INTO {LEDGER} (tenant_id, work_order_id, work_order_seq, correlation_id, turn_id,"
                " event_type, work_order_status, reason_code, payload, event_hash)"
            )
            admin.execute(
                f"{insert} SELECT 'acme', 'order-' || n, 1, md5('order-' || n)::uuid, 1,"
                " 'WORK_ORDER_CREATED', 'DRAFT', 1, '{}', sha256('')"
                f" FROM generate_series(1, {ORDERS}) AS n"
            )
            admin.execute(
                f"{insert} SELECT 'acme', 'order-7', n, md5('order-7')::uuid, 1,"
                " 'STEP_STARTED', 'EXECUTING', 1, jsonb_build_object('text', repeat('x', 500)), sha256('')"
                f" FROM generate_series(2, {EVENTS}) AS n"
            )
            admin.execute(
                "INSERT INTO os_core.work_orders_current SELECT (folded.state).* FROM ("
                " SELECT os_core.fold_work_order(ledger ORDER BY ledger.work_order_seq) AS state"
                f" FROM {LEDGER} AS ledger GROUP BY ledger.work_order_id OFFSET 0) AS folded"
            )
            admin.execute("ANALYZE")
        yield database


def damage(admin_engine: sa.Engine, statement: str) -> None:
    with admin_engine.begin() as conn:
        assert conn.exec_driver_sql(statement).rowcount > 0


# --- the public names


def test_public_names__are_there_and_complete() -> None:
    """Every name of __all__ is one, and no refusal is without."""
    assert {name for name in selene_core.__all__ if not hasattr(selene_core, name)} == set()
    refusals = {error.__name__ for error in errors.BY_SQLSTATE.values()}
    assert {"SeleneError", *refusals} <= set(selene_core.__all__)


# --- append


def test_append__returns_what_was_written(repository: WorkOrderRepository) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    first, second = repository.append(created("order")), repository.append(event("FIELD_SET", "order"))
    assert (first.work_order_seq, first.replayed, first.code) == (1, False, None)
    assert (second.work_order_seq, second.replayed) == (2, False)
    assert second.work_order_event_id > first.work_order_event_id
    assert before < first.created_at <= second.created_at


def test_append__replays(repository: WorkOrderRepository) -> None:
    original = repository.append(created("order", idempotency_key="once"))
    replay = repository.append(created("order", idempotency_key="once"))
    assert replay == AppendResult(original.work_order_event_id, 1, True, original.created_at)
    assert replay.code == "OS_WORK_ORDER_IDEMPOTENCY_REPLAY"


def test_append_many__keeps_the_order_given(repository: WorkOrderRepository) -> None:
    batch = [created("b"), created("a"), event("STEP_STARTED", "b"), created("c"), event("STEP_STARTED", "a")]
    results = repository.append_many(iter(batch))
    assert [result.work_order_seq for result in results] == [1, 1, 2, 1, 2]
    ids = [result.work_order_event_id for result in results]
    found = [
        (row.work_order_event_id, row.work_order_id) for name in "abc" for row in repository.events(name)
    ]
    assert sorted(found) == sorted(zip(ids, "babca", strict=True))


def test_append_many__takes_up_to_1000(repository: WorkOrderRepository) -> None:
    assert len(repository.append_many([created(f"order-{n}") for n in range(1000)])) == 1000
    assert repository.verify() == []


@pytest.mark.parametrize(
    "batch", [[], [created("order")] * 1001, iter([created("order")] * 1001), None, 5], ids=lambda _: ""
)
def test_append_many__refuses_another_number(repository: WorkOrderRepository, batch: Any) -> None:
    with pytest.raises(ContractViolation, match=r"^events: must be 1\.\.1000 events$") as caught:
        repository.append_many(batch)
    assert caught.value.field == "events"


def test_append_many__stops_reading_an_endless_iterator(engine: sa.Engine) -> None:
    def endless() -> Iterator[WorkOrderLedgerEventInput]:
        while True:
            yield created("order")

    with pytest.raises(ContractViolation, match="events"):
        append_events(engine, "acme", endless())


@pytest.mark.parametrize("other", [{}, {"work_order_id": "order"}, None, "x", created("order").to_wire()])
def test_append__refuses_what_is_no_input(repository: WorkOrderRepository, other: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        repository.append_many([created("order"), other])
    assert (caught.value.field, caught.value.event_index) == ("events", 1)
    with pytest.raises(ContractViolation):
        repository.append(other)
    with pytest.raises(ContractViolation):
        repository.append_many(created("order"))  # type: ignore[arg-type]  # one event is no batch
    assert repository.get("order") is None


def test_append__all_or_nothing(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        repository = WorkOrderRepository(conn)
        with pytest.raises(WorkOrderNotFound) as caught, conn.begin_nested():
            repository.append_many([created("order"), event("STEP_STARTED", "nowhere")])
        assert (caught.value.work_order_id, caught.value.event_index) == ("nowhere", 1)
        assert repository.get("order") is None
        repository.append(created("order"))


TEXTS = [
    "👩‍👩‍👧‍👦🏴󠁧󠁢󠁳󠁣󠁴󠁿 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "שלום مرحبا \u202eright to left\u202c",
    "e\u0301 is not \u00e9, \u1100\u1161 is not \uac00",
    "\\ \" ' / \\u0041 %s %(x)s :name $1 {} \b\f\n\r\t \x01\x7f\x85\u2028\ufeff\uffff\U0010ffff",
    "<script>&amp;</script>; DROP TABLE os_core.work_order_ledger; --",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_append__text_comes_back_unchanged(repository: WorkOrderRepository, text: str) -> None:
    key = "".join(character for character in text if character.isprintable()).strip()
    payload = {"text": text, text: [text, {"nested": text}]}
    repository.append(created("order", payload={"fields": {"said": text}}, idempotency_key=key))
    repository.append(event("STEP_STARTED", "order", payload=payload))
    first, second = repository.events("order")
    assert (first.payload, first.idempotency_key) == ({"fields": {"said": text}}, key)
    assert second.payload == payload
    current = repository.get("order")
    assert current is not None
    assert current.fields_json == {"said": text}
    assert repository.append(
        created("order", payload={"fields": {"said": text}}, idempotency_key=key)
    ).replayed


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            2**63 - 1,
            -(2**63),
            0.1,
            -0.1,
            1.5e300 / 1e300,
            5e-324,
            1e-300,
            123456.789,
        ),
        *("", [], {}, [[]], {"": ""}, [1, "1", None, [True, {"a": [0.5]}]]),
    ],
    ids=repr,
)
def test_append__values_come_back_unchanged(repository: WorkOrderRepository, value: Any) -> None:
    repository.append(created("order", payload={"fields": {"value": value}}))
    current = repository.get("order")
    assert current is not None
    assert current.fields_json == {"value": value}
    assert type(current.fields_json["value"]) is type(value)


def test_append__times_keep_their_instant(repository: WorkOrderRepository) -> None:
    occurred_at = datetime.fromisoformat("2026-03-29T02:30:00.123456+14:00")
    repository.append(created("order", occurred_at=occurred_at))
    (row,) = repository.events("order")
    assert row.occurred_at == occurred_at
    assert row.occurred_at is not None
    assert row.occurred_at.tzinfo is not None


# --- what the database refuses arrives as a class with its facts

HELD = uuid4()
Refused = tuple[type[SeleneError], list[WorkOrderLedgerEventInput], dict[str, Any]]
REFUSED: list[Refused] = [
    (
        ConcurrencyConflict,
        [event("STEP_STARTED", "order", expected_seq=7)],
        {"work_order_id": "order", "expected_seq": 7, "last_seq": 1, "event_index": 0, "retryable": True},
    ),
    (ConcurrencyConflict, [created("order", expected_seq=0)], {"expected_seq": 0, "last_seq": 1}),
    (
        IdempotencyConflict,
        [event("STEP_STARTED", "order", idempotency_key="once")],
        {"work_order_id": "order", "idempotency_key": "once", "event_index": 0, "retryable": False},
    ),
    (
        InvalidTransition,
        [created("order")],
        {"work_order_status": "DRAFT", "event_type": "WORK_ORDER_CREATED"},
    ),
    (
        InvalidTransition,
        [event("STEP_STARTED", "closed")],
        {"work_order_id": "closed", "work_order_status": "CANCELED", "event_type": "STEP_STARTED"},
    ),
    (CancelInvalidState, [event("WORK_ORDER_CANCELED", "closed")], {"work_order_status": "CANCELED"}),
    (WorkOrderNotFound, [event("STEP_STARTED", "nowhere")], {"work_order_id": "nowhere", "event_index": 0}),
    (LeaseLost, [event("STEP_STARTED", "order", lease_token="x" * 16)], {"work_order_id": "order"}),
    (
        CorrelationConflict,
        [created("another", correlation_id=HELD)],
        {"work_order_id": "another", "correlation_id": HELD},
    ),
    (WorkOrderIdUnavailable, [created("theirs")], {"work_order_id": "theirs"}),
    (
        BoundExceeded,
        [created("wide", payload={"fields": {f"field-{n}": n for n in range(65)}})],
        {"work_order_id": "wide", "bound": "fields_json", "limit": 64},
    ),
]


@pytest.mark.parametrize(("error", "batch", "facts"), REFUSED, ids=[error.__name__ for error, *_ in REFUSED])
def test_append__refusals(
    engine: sa.Engine, error: type[SeleneError], batch: list[WorkOrderLedgerEventInput], facts: dict[str, Any]
) -> None:
    append_events(engine, "rival", [created("theirs")])
    append_events(
        engine,
        "acme",
        [
            created("order", idempotency_key="once", correlation_id=HELD),
            created("closed"),
            event("WORK_ORDER_CANCELED", "closed"),
        ],
    )
    in_batch = [created("bystander"), *batch]

    def in_scope(events: list[WorkOrderLedgerEventInput]) -> None:
        with tenant_scope(engine, "acme") as conn:
            WorkOrderRepository(conn).append_many(events)

    for appending in (in_scope, lambda events: append_events(engine, "acme", events)):
        for events in (batch, in_batch):
            with pytest.raises(error) as caught:
                appending(events)
            expected = facts | ({"event_index": len(events) - 1} if "event_index" in facts else {})
            assert {name: getattr(caught.value, name) for name in expected} == expected
            assert isinstance(caught.value.__cause__, DBAPIError)
    with tenant_scope(engine, "acme") as conn:
        assert WorkOrderRepository(conn).get("bystander") is None


def test_append__contract_of_the_database(repository: WorkOrderRepository) -> None:
    valid = created("order")
    unchecked = WorkOrderLedgerEventInput.model_construct(**{**dict(valid), "turn_id": 0})
    with pytest.raises(ContractViolation) as caught:
        repository.append_many([valid, unchecked])
    assert (caught.value.field, caught.value.event_index) == ("turn_id", 1)
    assert caught.value.rule


def test_append__projection_damaged(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    append_events(engine, "acme", [created("order")])
    damage(admin_engine, "DELETE FROM os_core.work_orders_current")
    with pytest.raises(ProjectionDamaged) as caught:
        append_events(engine, "acme", [created("order")])
    assert caught.value.work_order_id == "order"


# --- append_events


def test_append_events__commits_without_a_scope(engine: sa.Engine) -> None:
    results = append_events(engine, "acme", [created("order"), event("FIELD_SET", "order")])
    assert [(result.work_order_seq, result.replayed) for result in results] == [(1, False), (2, False)]
    with tenant_scope(engine, "acme") as conn:
        assert WorkOrderRepository(conn).get("order") is not None
    with tenant_scope(engine, "rival") as conn:
        assert WorkOrderRepository(conn).get("order") is None


def test_append_events__on_an_engine_in_autocommit(database: Database) -> None:
    engine = database.engine("app", isolation_level="AUTOCOMMIT")
    append_events(engine, "acme", [created("order")])
    assert append_events(engine, "acme", [event("STEP_STARTED", "order")])[0].work_order_seq == 2


@pytest.mark.parametrize("tenant_id", ["", "a b", "x" * 65, None])
def test_append_events__refuses_what_is_no_tenant_id(engine: sa.Engine, tenant_id: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        append_events(engine, tenant_id, [created("order")])
    assert caught.value.field == "tenant_id"


def test_append_events__leaves_the_session_as_it_was(database: Database) -> None:
    engine = database.engine("app", pool_size=1, max_overflow=0)
    append_events(engine, "acme", [created("order")])
    append_events(engine, "rival", [created("theirs")])
    with pytest.raises(WorkOrderNotFound):
        append_events(engine, "acme", [event("STEP_STARTED", "theirs")])
    with tenant_scope(engine, "acme") as conn:  # would be refused if the session were in autocommit still
        assert WorkOrderRepository(conn).get("order") is not None


def test_append_events__one_round_trip(database: Database, tmp_path: Path) -> None:
    """The client library's trace of the wire shows what it sent, and how often it then waited."""
    engine = database.engine("app", pool_size=1, max_overflow=0)
    append_events(engine, "acme", [created("order")])  # opens the connection
    with engine.connect() as conn:
        driver_connection = conn.connection.driver_connection
    assert driver_connection is not None
    trace = tmp_path / "trace"
    with trace.open("wb") as file, statements(engine) as sent:
        driver_connection.pgconn.trace(file.fileno())
        append_events(engine, "acme", [created(), *(event("STEP_STARTED", "order") for _ in range(50))])
        with pytest.raises(WorkOrderNotFound):
            append_events(engine, "acme", [event("STEP_STARTED", "nowhere")])
        driver_connection.pgconn.untrace()
    assert len(sent) == 2
    messages = re.findall(r"^[^\t]*\t([FB])\t[0-9]+\t(\w+)", trace.read_text(), re.MULTILINE)
    # Each of these makes the server answer and the client wait.
    waits = [kind for side, kind in messages if side == "F" and kind in {"Sync", "Query"}]
    assert waits == ["Sync", "Sync"]
    assert messages.count(("B", "ReadyForQuery")) == 2


# --- reads


def test_get__returns_the_row(repository: WorkOrderRepository) -> None:
    first, last = repository.append_many(
        [
            created("order", payload={"fields": {"place": "Oslo"}, "requester_user_id": "alice"}),
            event(
                "STEP_STARTED", "order", turn_id=5, reason_code=2**32 - 1, step_id="s1", step_input_hash="h1"
            ),
        ]
    )
    assert repository.get("order") == WorkOrder(
        work_order_id="order",
        tenant_id="acme",
        correlation_id=correlation_of("order"),
        turn_id=5,
        work_order_status=WorkOrderStatus.EXECUTING,
        last_event_id=last.work_order_event_id,
        last_seq=2,
        last_reason_code=2**32 - 1,
        last_updated_at=last.created_at,
        created_at=first.created_at,
        requester_user_id="alice",
        step_id="s1",
        step_input_hash="h1",
        lease_owner_id=None,
        lease_token_hash=None,
        lease_expires_at=None,
        fields_json={"place": "Oslo"},
        asked_fields_json={},
        resolved_fields_json={},
        conflicts_json={},
        prompt_dedupe_keys_json={},
        external_approval_pending=False,
        external_approval_request_id=None,
        external_approval_target_user_id=None,
        external_approval_expires_at=None,
        external_approval_notices=0,
        last_state_change_seq=1,
        updated_bucket=last.created_at
        - (last.created_at - datetime(2000, 1, 1, tzinfo=UTC)) % timedelta(minutes=5),
        queued_at=first.created_at,
        steps_due_at=first.created_at,
    )


def test_get__types(repository: WorkOrderRepository) -> None:
    repository.append_many([created("order"), event("EXTERNAL_APPROVAL_REQUESTED", "order")])
    current = repository.get("order")
    assert current is not None
    assert type(current.work_order_status) is WorkOrderStatus
    assert type(current.correlation_id) is UUID
    assert type(current.external_approval_pending) is bool
    assert current.created_at.tzinfo is not None


def test_get__unknown(repository: WorkOrderRepository) -> None:
    assert repository.get("nowhere") is None
    assert repository.get_by_correlation(uuid4()) is None


@pytest.mark.parametrize("work_order_id", ["", "a b", "a\0", "x" * 129, None, 5])
def test_reads__refuse_what_is_no_id(repository: WorkOrderRepository, work_order_id: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: repository.get(work_order_id),
        lambda: repository.events(work_order_id),
        lambda: repository.as_of(work_order_id, seq=1),
    ]
    if work_order_id is not None:
        calls += [lambda: repository.rebuild(work_order_id), lambda: repository.verify(work_order_id)]
    for call in calls:
        with pytest.raises(ContractViolation) as caught:
            call()
        assert caught.value.field == "work_order_id"


def test_get_by_correlation__finds_the_newest_thread(repository: WorkOrderRepository) -> None:
    newer = uuid4()
    repository.append(created("order"))
    assert repository.get_by_correlation(correlation_of("order")) == repository.get("order")
    repository.append(event("STATUS_CHANGED", "order", correlation_id=newer))
    assert repository.get_by_correlation(correlation_of("order")) is None
    assert repository.get_by_correlation(newer) == repository.get("order")


@pytest.mark.parametrize("correlation_id", ["", "x", None, 5, "{12345678-1234-1234-1234-123456789abc}"])
def test_get_by_correlation__refuses_what_is_none(
    repository: WorkOrderRepository, correlation_id: Any
) -> None:
    with pytest.raises(ContractViolation) as caught:
        repository.get_by_correlation(correlation_id)
    assert caught.value.field == "correlation_id"


def test_events__returns_the_rows(repository: WorkOrderRepository) -> None:
    occurred_at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    appended = repository.append(
        created("order", payload={"requester_user_id": "alice"}, idempotency_key="k", occurred_at=occurred_at)
    )
    (stored,) = repository.events("order")
    assert len(bytes.fromhex(stored.event_hash)) == 32
    assert stored == (
        WorkOrderEvent(
            work_order_event_id=appended.work_order_event_id,
            tenant_id="acme",
            work_order_id="order",
            work_order_seq=1,
            correlation_id=correlation_of("order"),
            turn_id=1,
            event_type=WorkOrderEventType.WORK_ORDER_CREATED,
            work_order_status=WorkOrderStatus.DRAFT,
            reason_code=1,
            step_id=None,
            step_input_hash=None,
            lease_owner_id=None,
            lease_token_hash=None,
            lease_expires_at=None,
            payload={"requester_user_id": "alice"},
            idempotency_key="k",
            occurred_at=occurred_at,
            created_at=appended.created_at,
            event_hash=stored.event_hash,
        )
    )


@pytest.mark.parametrize("count", [1, EVENTS_PAGE - 1, EVENTS_PAGE, EVENTS_PAGE + 1, 2 * EVENTS_PAGE])
def test_events__at_the_edges_of_a_page(repository: WorkOrderRepository, count: int) -> None:
    batch = [created("order"), *(event("STEP_STARTED", "order") for _ in range(count - 1))]
    repository.append_many(batch)
    repository.append(created("another"))
    for after in (0, 1, EVENTS_PAGE, count - 1, count, count + 1, 2**63 - 1):
        found = [row.work_order_seq for row in repository.events("order", after=after)]
        assert found == list(range(after + 1, count + 1))


@pytest.mark.parametrize("after", [-1, 1.0, "1", True, None, 2**63])
def test_events__refuses_what_is_no_seq(repository: WorkOrderRepository, after: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        repository.events("order", after=after)
    assert caught.value.field == "after"


def test_events__other_calls_may_go_between(repository: WorkOrderRepository) -> None:
    repository.append_many([created("order"), *(event("STEP_STARTED", "order") for _ in range(EVENTS_PAGE))])
    seen = []
    for row in repository.events("order"):
        seen.append(row.work_order_seq)
        if row.work_order_seq == 1:
            repository.append(event("STEP_FINISHED", "order"))
            assert next(repository.events("order", after=5)).work_order_seq == 6
    assert seen == list(range(1, EVENTS_PAGE + 3))


def test_events__may_be_left_early(engine: sa.Engine) -> None:
    append_events(engine, "acme", [created("order"), *(event("STEP_STARTED", "order") for _ in range(600))])
    with tenant_scope(engine, "acme") as conn:
        iterator = WorkOrderRepository(conn).events("order")
        assert next(iterator).work_order_seq == 1
    rest = [row.work_order_seq for row in _until_refused(iterator)]
    assert rest == list(
        range(2, EVENTS_PAGE + 1)
    )  # what it had read already, and nothing after the scope's end


def _until_refused(iterator: Iterator[WorkOrderEvent]) -> Iterator[WorkOrderEvent]:
    with pytest.raises(selene_core.TenantScopeViolation):
        yield from iterator


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "SET LOCAL selene.tenant_id = 'rival'"])
def test_events__tenant_lost_on_the_way(engine: sa.Engine, end: str) -> None:
    append_events(engine, "acme", [created("order"), *(event("STEP_STARTED", "order") for _ in range(600))])
    with tenant_scope(engine, "acme") as conn:
        iterator = WorkOrderRepository(conn).events("order")
        next(iterator)
        conn.exec_driver_sql(end)
        assert sum(1 for _ in _until_refused(iterator)) == EVENTS_PAGE - 1


def test_events__memory_does_not_grow_with_the_order(full_database: Database) -> None:
    engine = full_database.engine("app")
    with tenant_scope(engine, "acme") as conn, statements(engine) as sent:
        repository = WorkOrderRepository(conn)
        assert (
            sum(1 for _ in repository.events("order-7", after=EVENTS - 1000)) == 1000
        )  # what is cached, is now
        sent.clear()
        tracemalloc.start()
        try:
            read = sum(1 for _ in repository.events("order-7"))
            _, streamed = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            kept = list(repository.events("order-7", after=EVENTS - 10 * EVENTS_PAGE))
            _, listed = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (read, len(kept)) == (EVENTS, 10 * EVENTS_PAGE)
    assert streamed < listed / 2  # all 20,000 take less than a tenth of them kept
    assert len(sent) == EVENTS // EVENTS_PAGE + 1 + 11


def test_reads__one_statement_each(engine: sa.Engine) -> None:
    append_events(engine, "acme", [created("order"), event("STEP_STARTED", "order")])
    with tenant_scope(engine, "acme") as conn, statements(engine) as sent:
        repository = WorkOrderRepository(conn)
        calls: list[Callable[[], object]] = [
            lambda: repository.append(event("STEP_STARTED", "order")),
            lambda: repository.append_many([created(), created(), event("STEP_STARTED", "order")]),
            lambda: repository.get("order"),
            lambda: repository.get("nowhere"),
            lambda: repository.get_by_correlation(correlation_of("order")),
            lambda: list(repository.events("order")),
            lambda: repository.verify(),
            lambda: repository.rebuild("order"),
            lambda: repository.as_of("order", seq=1),
        ]
        for call in calls:
            sent.clear()
            call()
            assert len(sent) == 1


# --- plans


READS: list[tuple[Callable[[WorkOrderRepository], object], str]] = [
    (lambda repository: repository.get("order-7"), "ux_work_orders_current_tenant_work_order"),
    (
        lambda repository: repository.get_by_correlation(UUID("12345678-1234-1234-1234-123456789abc")),
        "ux_work_orders_current_tenant_correlation",
    ),
    (lambda repository: next(repository.events("order-7")), "ux_work_order_ledger_tenant_work_order_seq"),
    (
        lambda repository: next(repository.events("order-7", after=10_000)),
        "ux_work_order_ledger_tenant_work_order_seq",
    ),
    (lambda repository: list(repository.events("order-8")), "ux_work_order_ledger_tenant_work_order_seq"),
]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(("read", "index"), READS, ids=["get", "correlation", "events", "after", "short"])
@pytest.mark.parametrize("role", ["app", "readonly"])
def test_reads__go_through_the_index(
    full_database: Database,
    role: Any,
    read: Callable[[WorkOrderRepository], object],
    index: str,
    mode: str,
) -> None:
    engine = full_database.engine(role)
    with tenant_scope(engine, "acme") as conn:
        plan = plan_of(conn, lambda: read(WorkOrderRepository(conn)), mode)
    assert index_names(plan) == {index}


def test_reads__as_the_readonly_role(engine: sa.Engine, database: Database) -> None:
    append_events(engine, "acme", [created("order"), event("FIELD_SET", "order")])
    readonly = database.engine("readonly")
    with tenant_scope(readonly, "acme") as conn:
        repository = WorkOrderRepository(conn)
        found = repository.get("order")
        assert found is not None
        assert repository.get_by_correlation(correlation_of("order")) == found
        assert [row.work_order_seq for row in repository.events("order")] == [1, 2]
        assert repository.get("nowhere") is None
    with tenant_scope(readonly, "rival") as conn:
        assert WorkOrderRepository(conn).get("order") is None
    calls: list[Callable[[WorkOrderRepository], object]] = [
        lambda repository: repository.append(created()),
        lambda repository: repository.rebuild(),
        lambda repository: repository.verify(),
        lambda repository: repository.as_of("order", seq=1),
    ]
    for call in calls:
        with (
            tenant_scope(readonly, "acme") as conn,
            pytest.raises(DBAPIError, match="permission denied for function"),
        ):
            call(WorkOrderRepository(conn))


# --- as_of


def test_as_of__every_prefix(engine: sa.Engine) -> None:
    steps = [
        created("order", payload={"fields": {"a": 1}}),
        event("FIELD_PROMPTED", "order"),
        event("FIELD_SET", "order"),
        event("EXTERNAL_APPROVAL_REQUESTED", "order", payload={"request_id": "r", "target_user_id": "bob"}),
        event("WORK_ORDER_CANCELED", "order"),
    ]
    states: list[tuple[AppendResult, WorkOrder | None]] = []
    for step in steps:
        (result,) = append_events(engine, "acme", [step])
        with tenant_scope(engine, "acme") as conn:
            states.append((result, WorkOrderRepository(conn).get("order")))
    with tenant_scope(engine, "acme") as conn:
        repository = WorkOrderRepository(conn)
        for result, state in states:
            assert repository.as_of("order", seq=result.work_order_seq) == state
            assert repository.as_of("order", event_id=result.work_order_event_id) == state
            assert repository.as_of("order", at=result.created_at) == state
        first = states[0][0]
        assert repository.as_of("order", seq=0) is None
        assert repository.as_of("order", event_id=first.work_order_event_id - 1) is None
        assert repository.as_of("order", at=first.created_at - timedelta(microseconds=1)) is None
        assert repository.as_of("order", seq=99) == states[-1][1]
        assert repository.as_of("order", at=datetime.now(UTC) + timedelta(days=1)) == states[-1][1]
        assert repository.as_of("nowhere", seq=1) is None


@pytest.mark.parametrize(
    "given",
    [{}, {"seq": 1, "event_id": 1}, {"seq": 1, "at": datetime.now(UTC)}, {"event_id": None}],
    ids=["none", "two", "two with at", "None"],
)
def test_as_of__takes_exactly_one(repository: WorkOrderRepository, given: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation) as caught:
        repository.as_of("order", **given)
    assert caught.value.field == "as_of"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", datetime(2026, 1, 1)),  # noqa: DTZ001 - naive on purpose
        ("at", "yesterday"),
        ("at", datetime.max.replace(tzinfo=timezone(-timedelta(minutes=1)))),
        *(("seq", value) for value in (-1, 1.5, "1", True, 2**63)),
        *(("event_id", value) for value in (-1, 1.5, "1", True, 2**63)),
    ],
)
def test_as_of__refuses(repository: WorkOrderRepository, name: str, value: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        repository.as_of("order", **{name: value})
    assert caught.value.field == name


# --- verify and rebuild

DAMAGES = {
    "a field": "UPDATE os_core.work_orders_current SET fields_json = '{\"place\": 5}'",
    "a number's form": "UPDATE os_core.work_orders_current SET fields_json = '{\"n\": 1.0}'",
    "the status": "UPDATE os_core.work_orders_current SET work_order_status = 'DONE'",
    "no row": "DELETE FROM os_core.work_orders_current",
}


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES.keys())
def test_rebuild__one(engine: sa.Engine, admin_engine: sa.Engine, statement: str) -> None:
    append_events(
        engine,
        "acme",
        [created("order", payload={"fields": {"n": 1}}), event("STEP_STARTED", "order"), created("another")],
    )
    with tenant_scope(engine, "acme") as conn:
        before = WorkOrderRepository(conn).get("order")
    damage(admin_engine, f"{statement} WHERE work_order_id = 'order'")
    with tenant_scope(engine, "acme") as conn:
        repository = WorkOrderRepository(conn)
        (drifted,) = repository.verify()
        assert isinstance(drifted, DriftedOrder)
        assert (drifted.work_order_id, bool(drifted.problem)) == ("order", True)
        assert repository.verify("order") == [drifted]
        assert repository.verify("another") == []
        reports: list[RebuildReport] = []
        assert repository.rebuild("order", progress=reports.append) == RebuildReport(1, 2, 1)
        assert reports == [RebuildReport(1, 2, 1)]
        assert repository.verify() == []
        assert repository.get("order") == before
        assert repository.rebuild("order") == RebuildReport(1, 2, 0)
        assert repository.rebuild("nowhere") == RebuildReport(0, 0, 0)


def test_rebuild__all_in_the_callers_transaction(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    count = 2 * REBUILD_GROUP_SIZE + 1
    append_events(engine, "acme", [created(f"order-{n:04}") for n in range(count)])
    append_events(engine, "rival", [created("theirs")])
    damage(admin_engine, "UPDATE os_core.work_orders_current SET turn_id = turn_id + 1")
    reports: list[RebuildReport] = []
    with engine.connect() as conn, conn.begin() as transaction, tenant_scope(conn, "acme"):
        repository = WorkOrderRepository(conn)
        assert len(repository.verify()) == count
        assert repository.rebuild(progress=reports.append) == RebuildReport(count, count, count)
        assert [report.work_orders for report in reports] == [
            REBUILD_GROUP_SIZE,
            2 * REBUILD_GROUP_SIZE,
            count,
        ]
        assert repository.verify() == []
        transaction.rollback()
    with tenant_scope(engine, "acme") as conn:
        assert len(WorkOrderRepository(conn).verify()) == count
    with tenant_scope(engine, "rival") as conn:
        assert [drifted.work_order_id for drifted in WorkOrderRepository(conn).verify()] == ["theirs"]


def test_rebuild_tenant__group_by_group(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    count = 2 * REBUILD_GROUP_SIZE + 1
    append_events(engine, "acme", [created(f"order-{n:04}") for n in range(count)])
    append_events(engine, "rival", [created("theirs")])
    damage(admin_engine, "UPDATE os_core.work_orders_current SET turn_id = turn_id + 1")

    class Interrupted(Exception):
        pass

    def interrupt(report: RebuildReport) -> None:
        assert report == RebuildReport(REBUILD_GROUP_SIZE, REBUILD_GROUP_SIZE, REBUILD_GROUP_SIZE)
        raise Interrupted

    def drifted(tenant_id: str) -> int:
        with tenant_scope(engine, tenant_id) as conn:
            return len(WorkOrderRepository(conn).verify())

    with pytest.raises(Interrupted):
        rebuild_tenant(engine, "acme", progress=interrupt)
    assert drifted("acme") == count - REBUILD_GROUP_SIZE

    reports: list[RebuildReport] = []
    total = rebuild_tenant(engine, "acme", reports.append)
    assert total == RebuildReport(count, count, count - REBUILD_GROUP_SIZE)
    assert reports == [
        RebuildReport(REBUILD_GROUP_SIZE, REBUILD_GROUP_SIZE, 0),
        RebuildReport(2 * REBUILD_GROUP_SIZE, 2 * REBUILD_GROUP_SIZE, REBUILD_GROUP_SIZE),
        total,
    ]
    assert (drifted("acme"), drifted("rival")) == (0, 1)
    assert rebuild_tenant(engine, "acme") == RebuildReport(count, count, 0)
    assert rebuild_tenant(engine, "nobody") == RebuildReport(0, 0, 0)


def test_rebuild_tenant__refuses_what_is_no_tenant_id(engine: sa.Engine) -> None:
    with pytest.raises(ContractViolation) as caught:
        rebuild_tenant(engine, "a b")
    assert caught.value.field == "tenant_id"
