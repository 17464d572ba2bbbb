"""Asking, telling of a wait, canceling: races, retries, and callers who go past the policy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from itertools import repeat
from threading import Barrier
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

from selene_core import (
    CancelInvalidState,
    ContractViolation,
    IdempotencyConflict,
    InvalidTransition,
    ProjectionDamaged,
    PromptAction,
    PromptDecision,
    PromptReason,
    SeleneError,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from tests.support.calls import TERMINAL, Tenant, refused
from tests.support.factories import created, event, new_id, wire
from tests.support.races import DEADLINE_SECONDS, wait_until
from tests.support.raw import Connection
from tests.support.servers import Database
from tests.support.sessions import Sessions

TENANT = "acme"
FAR_OFF = "2999-01-01T00:00:00Z"
CALLERS = 50


def prompt(order: str, key: str, number: int = 1, **given: Any) -> dict[str, Any]:
    payload = {"field_key": key, "prompt_dedupe_key": f"{key}#{number}"}
    return wire("FIELD_PROMPTED", order, payload=payload, **given)


def request(order: str, request_id: str = "r1", **given: Any) -> dict[str, Any]:
    payload = {"request_id": request_id, "target_user_id": "boss", **given}
    return wire("EXTERNAL_APPROVAL_REQUESTED", order, payload=payload)


def ended(order: str, status: str) -> WorkOrderLedgerEventInput:
    return event("STATUS_CHANGED", order, work_order_status=status)


def notify(conn: Connection, tenant_id: str, order: str, turn_id: int | None = 1) -> bool:
    row = conn.execute("SELECT os_core.notify_wait(%s, %s, %s, 1)", (tenant_id, order, turn_id)).fetchone()
    assert row is not None
    speaks: bool = row[0]
    return speaks


# --- fifty at once


def test_ask__of_fifty_at_once_one_asks(acme: Tenant, shared_database: Database) -> None:
    order = acme.order()
    asked = ask_at_once(shared_database, acme.id, order)
    decisions = [each.decision for each in asked]
    assert decisions.count(PromptAction.ASK) == 1
    assert decisions.count(PromptAction.STOP) == CALLERS - 1
    assert [row["event_type"] for row in acme.ledger(order)] == ["WORK_ORDER_CREATED", "FIELD_PROMPTED"]
    assert acme.verify() == {}


def test_ask__of_fifty_at_once_with_one_key_all_get_the_one_prompt(
    acme: Tenant, shared_database: Database
) -> None:
    order = acme.order()
    asked = ask_at_once(shared_database, acme.id, order, idempotency_key="ask")
    prompts = [each.prompt for each in asked if each.prompt is not None]
    _, recorded = acme.ledger(order)
    assert [each.work_order_event_id for each in prompts] == [recorded["work_order_event_id"]] * CALLERS
    assert [each.replayed for each in prompts].count(False) == 1


def ask_at_once(database: Database, tenant_id: str, order: str, **given: Any) -> list[PromptDecision]:
    """Ask for one field on fifty connections from the same moment."""
    pool = database.engine(pool_size=CALLERS, max_overflow=0)
    barrier = Barrier(CALLERS)

    def ask(_number: int) -> PromptDecision:
        with tenant_scope(pool, tenant_id) as conn:
            barrier.wait(DEADLINE_SECONDS)
            return WorkOrderRepository(conn).ask(order, required_fields=["place"], **given)

    try:
        with ThreadPoolExecutor(CALLERS) as threads:
            return [*threads.map(ask, range(CALLERS))]
    finally:
        pool.dispose()  # the tests share the server's hundred connections


def test_prompt__of_fifty_at_once_past_the_policy_one_is_recorded(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()

    def send(number: int) -> Callable[[Connection], str | None]:
        def job(conn: Connection) -> str | None:
            try:
                Tenant(acme.id, conn, conn).append(prompt(order, "place", number))
            except psycopg.Error as exc:
                return exc.sqlstate
            return None

        return job

    answers = sessions.at_once([send(number) for number in range(CALLERS)])
    assert answers.count(None) == 1
    assert answers.count("SL008") == CALLERS - 1
    assert len(acme.ledger(order)) == 2


def test_notify_wait__of_fifty_at_once_one_speaks(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()
    acme.append(request(order, expires_at=FAR_OFF))
    answers = sessions.at_once([lambda conn: notify(conn, acme.id, order)] * CALLERS)
    assert answers.count(True) == 1
    assert [row["event_type"] for row in acme.ledger(order)][2:] == ["EXTERNAL_APPROVAL_WAIT_NOTIFIED"]
    assert acme.verify() == {}


def test_ask__waits_for_who_holds_the_order_and_decides_by_what_is_then(
    sessions: Sessions, acme: Tenant, shared_database: Database
) -> None:
    order = acme.order()
    holder = sessions.open(autocommit=False)
    holder.append(acme.id, wire("FIELD_SET", order))
    second = sessions.open()
    engine = shared_database.engine()

    def ask(_conn: Connection) -> PromptAction:
        with tenant_scope(engine, acme.id) as conn:
            pids.append(conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            return WorkOrderRepository(conn).ask(order, required_fields=["place"]).decision

    pids: list[int] = []
    asking = second.start(ask)
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ANY(%s)"
    while sessions.admin.execute(blocked, (pids,)).fetchone() != (1,):
        assert not asking.done()
    holder.conn.commit()
    assert asking.result() is PromptAction.SKIP


# --- past the policy, straight to the function


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("before", "sent", "sqlstate"),
    [
        ([wire("FIELD_SET", "o")], prompt("o", "place"), "SL008"),
        ([prompt("o", "place")], prompt("o", "place", 2), "SL008"),
        ([prompt("o", "place")], {**prompt("o", "date"), "payload": prompt("o", "date")["payload"]}, None),
        (
            [prompt("o", "place")],
            wire("FIELD_PROMPTED", "o", payload={"field_key": "date", "prompt_dedupe_key": "place#1"}),
            "SL008",
        ),
        ([prompt("o", "place"), wire("STATUS_CHANGED", "o")], prompt("o", "place"), None),
        ([prompt("o", "place"), wire("STEP_FAILED", "o")], prompt("o", "place", 2), "SL008"),
        ([wire("FIELD_CONFLICT_DETECTED", "o")], prompt("o", "place"), None),
        ([wire("FIELD_CONFLICT_DETECTED", "o"), prompt("o", "place")], prompt("o", "place", 2), "SL008"),
        (
            [wire("FIELD_CONFLICT_DETECTED", "o"), prompt("o", "place"), wire("STATUS_CHANGED", "o")],
            prompt("o", "place", 2),
            "SL008",
        ),
        ([wire("FIELD_CONFLICT_RESOLVED", "o")], prompt("o", "place"), "SL008"),
        ([request("o")], prompt("o", "place"), "SL009"),
        ([request("o")], wire("STEP_STARTED", "o", work_order_status="DRAFT"), "SL009"),
        ([request("o")], wire("STEP_FINISHED", "o", work_order_status="DONE"), "SL009"),
        ([request("o")], wire("STEP_FINISHED", "o", work_order_status="CONFIRM"), None),
        ([request("o")], wire("STATUS_CHANGED", "o", work_order_status="FAILED"), None),
        ([request("o")], request("o", "r2"), "SL009"),
        ([], wire("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "o"), "SL007"),
    ],
)
def test_append__refuses_what_the_policy_would_not_send(
    acme: Tenant, before: list[dict[str, Any]], sent: dict[str, Any], sqlstate: str | None, batch: bool
) -> None:
    order = acme.order()
    for each in before:
        acme.append({**each, **identity(order)})
    last = {**sent, **identity(order)}
    # In a batch the rules see the state after the batch's earlier events, and nothing of it is written.
    events = [wire("FIELD_SET", other := acme.order()), last] if batch else [last]
    ledger = acme.everything()
    if sqlstate is None:
        acme.append(*events)
        assert acme.verify() == {}
        return
    with refused(sqlstate) as refusal:
        acme.append(*events)
    assert refusal.facts["work_order_id"] == order
    assert refusal.facts["event_index"] == len(events) - 1
    assert acme.everything() == ledger
    if batch:
        acme.append(wire("FIELD_SET", other))


def identity(order: str) -> dict[str, Any]:
    return {name: wire("FIELD_SET", order)[name] for name in ("work_order_id", "correlation_id")}


def test_append__a_prompt_and_its_twin_in_one_batch(acme: Tenant) -> None:
    order = acme.order()
    with refused("SL008") as refusal:
        acme.append(prompt(order, "place"), prompt(order, "place", 2))
    assert refusal.facts["event_index"] == 1
    assert len(acme.ledger(order)) == 1


def test_append__an_expiry_is_judged_by_the_databases_clock(acme: Tenant) -> None:
    """Neither by occurred_at, nor by when the transaction began."""
    order = acme.order()
    acme.append(request(order, expires_at=FAR_OFF))
    expired = {"request_id": "r1", "outcome": "EXPIRED"}
    with refused("SL007"):
        acme.append(
            wire("EXTERNAL_APPROVAL_RESOLVED", order, payload=expired, occurred_at="3000-01-01T00:00:00Z")
        )
    with acme.app.transaction():
        acme.app.execute("SELECT 1")
        soon = acme.admin.execute("SELECT clock_timestamp() + INTERVAL '50 ms'").fetchone()
        assert soon is not None
        other = acme.order()
        acme.append(request(other, expires_at=soon[0].astimezone(UTC).isoformat().replace("+00:00", "Z")))
        past = "SELECT clock_timestamp() > %s"
        wait_until(lambda: acme.admin.execute(past, soon).fetchone() == (True,), "the request expires")
        acme.append(wire("EXTERNAL_APPROVAL_RESOLVED", other, payload=expired))
    assert acme.verify() == {}


# --- ask


def test_ask__a_used_key_returns_what_was_recorded(engine: sa.Engine) -> None:
    append_events(engine, TENANT, [created("order")])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        orders.ask("order", required_fields=["a"], idempotency_key="one")
        first = orders.ask(
            "order", required_fields=["a", "b"], idempotency_key="two", turn_id=4, reason_code=5
        )
        assert (first.decision, first.reason) == (
            PromptAction.ASK_DIFFERENT_FIELD,
            PromptReason.POLICY_ALREADY_ASKED,
        )
        orders.append(event("FIELD_SET", "order", payload={"field_key": "b", "value": 1}))
        again = orders.ask("order", required_fields=["a", "b"], idempotency_key="two")
        assert again.prompt is not None
        assert first.prompt is not None
        assert again.prompt.replayed
        assert again.prompt.work_order_event_id == first.prompt.work_order_event_id
        assert (again.decision, again.field_key, again.prompt_dedupe_key, again.reason) == (
            first.decision,
            "b",
            "b#1",
            first.reason,
        )
        # Even where the caller now wants something else, or the order waits.
        orders.append(event("EXTERNAL_APPROVAL_REQUESTED", "order"))
        other = orders.ask("order", required_fields=["c"], idempotency_key="two")
        assert (other.field_key, other.prompt and other.prompt.replayed) == ("b", True)
        asked = [row for row in orders.events("order") if row.event_type == "FIELD_PROMPTED"]
        assert len(asked) == 2
        orders.append(event("FIELD_SET", "order", work_order_status="CONFIRM", idempotency_key="three"))
        with pytest.raises(IdempotencyConflict) as refusal:
            orders.ask("order", required_fields=["c"], idempotency_key="three")
        assert refusal.value.idempotency_key == "three"


def test_ask__a_used_key_tells_the_reason_whatever_is_required_now(engine: sa.Engine) -> None:
    conflict = event("FIELD_CONFLICT_DETECTED", "order")
    append_events(engine, TENANT, [created("order", payload={"fields": {"place": 1}}), conflict])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        first = orders.ask("order", required_fields=["place"], idempotency_key="one")
        assert first.reason is PromptReason.POLICY_CONFLICT_REQUIRES_ONE_ASK
        for required, prefilled in ((["other"], []), (["place"], ["place"])):
            again = orders.ask(
                "order", required_fields=required, prefilled_fields=prefilled, idempotency_key="one"
            )
            assert (again.decision, again.field_key, again.reason) == (first.decision, "place", first.reason)


def test_ask__lists_without_an_end_are_refused(engine: sa.Engine) -> None:
    append_events(engine, TENANT, [created("order")])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        for given in (
            {"required_fields": repeat("a")},
            {"required_fields": ["a"], "prefilled_fields": repeat("a")},
        ):
            with pytest.raises(ContractViolation):
                orders.ask("order", **given)


@pytest.mark.parametrize("order", [None, "", " ", "a b", "x" * 129])
@pytest.mark.parametrize(
    "call",
    [
        "lock_work_order(%s, %s)",
        "notify_wait(%s, %s)",
        "cancel_work_order(%s, %s, 1, 'key')",
        "ask_field(%s, %s, '{place}')",
    ],
)
def test_commands__refuse_what_is_no_id_in_the_database_too(
    acme: Tenant, call: str, order: str | None
) -> None:
    with refused("SL001") as refusal:
        acme.app.execute(f"SELECT os_core.{call}".encode(), (acme.id, order))
    assert refusal.facts["field"] == "work_order_id"


def test_append__a_request_that_comes_with_the_end_is_no_change(acme: Tenant) -> None:
    for status in {*TERMINAL} - {"CANCELED"}:  # which needs an event of its own
        order = acme.order()
        acme.append({**request(order), "work_order_status": status})
        row = acme.projection(order)
        assert (row["external_approval_pending"], row["last_state_change_seq"]) == (False, 1)
    assert acme.verify() == {}


@pytest.mark.parametrize("status", sorted({*TERMINAL} - {"DONE"}))  # for that the approval must be given
def test_append__the_end_ends_a_wait_for_an_approval(acme: Tenant, status: str) -> None:
    order = acme.order()
    acme.append(request(order))
    acme.append(wire("STATUS_CHANGED", order, work_order_status=status))
    row = acme.projection(order)
    assert (row["work_order_status"], row["external_approval_pending"]) == (status, False)
    assert row["external_approval_request_id"] is None
    assert acme.verify() == {}


def test_ask__carries_forward_what_is_not_given(engine: sa.Engine) -> None:
    thread = uuid4()
    first = created("order", correlation_id=thread, turn_id=7, reason_code=8, work_order_status="CLARIFY")
    append_events(engine, TENANT, [first])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        orders.ask("order", required_fields=["a"])
        orders.ask("order", required_fields=["b"], turn_id=70, reason_code=80)
        events = [*orders.events("order")][1:]
    carried = [(row.correlation_id, row.turn_id, row.reason_code, row.work_order_status) for row in events]
    assert carried == [(thread, 7, 8, "CLARIFY"), (thread, 70, 80, "CLARIFY")]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"required_fields": []}, "required_fields"),
        ({"required_fields": ["a"] * 65}, "required_fields"),
        ({"required_fields": "place"}, "required_fields"),
        ({"required_fields": 7}, "required_fields"),
        ({"required_fields": ["a", "b c"]}, "required_fields[1]"),
        ({"required_fields": ["a"], "prefilled_fields": "a"}, "prefilled_fields"),
        ({"required_fields": ["a"], "prefilled_fields": [None]}, "prefilled_fields[0]"),
        ({"required_fields": ["a"], "turn_id": 0}, "turn_id"),
        ({"required_fields": ["a"], "reason_code": 2**32}, "reason_code"),
        ({"required_fields": ["a"], "idempotency_key": " "}, "idempotency_key"),
    ],
)
def test_ask__refuses_bad_arguments(engine: sa.Engine, given: dict[str, Any], field: str) -> None:
    append_events(engine, TENANT, [created("order")])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        with pytest.raises(ContractViolation) as refusal:
            orders.ask("order", **given)
        assert refusal.value.field == field
        found = orders.get("order")
        assert found is not None
        assert found.last_seq == 1


def test_ask__an_order_that_has_ended(engine: sa.Engine) -> None:
    append_events(
        engine, TENANT, [created("order"), event("STATUS_CHANGED", "order", work_order_status="DONE")]
    )
    with tenant_scope(engine, TENANT) as conn, pytest.raises(InvalidTransition):
        WorkOrderRepository(conn).ask("order", required_fields=["place"])


# --- unknown and damaged orders, other tenants


CALLS: list[Callable[[WorkOrderRepository, str], object]] = [
    lambda orders, order: orders.ask(order, required_fields=["place"]),
    lambda orders, order: orders.notify_wait(order),
    lambda orders, order: orders.cancel(order, reason_code=1, idempotency_key="cancel"),
]


@pytest.mark.parametrize("call", CALLS, ids=["ask", "notify_wait", "cancel"])
def test_commands__on_an_order_that_is_not_the_tenants(
    engine: sa.Engine, admin_engine: sa.Engine, call: Callable[[WorkOrderRepository, str], object]
) -> None:
    append_events(engine, "rival", [created("theirs")])
    append_events(engine, TENANT, [created("lost")])
    refusals: dict[str, SeleneError] = {}
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("DELETE FROM os_core.work_orders_current WHERE work_order_id = 'lost'")
    for order in ("theirs", "never", "lost"):
        with tenant_scope(engine, TENANT) as conn, pytest.raises(SeleneError) as refusal:
            call(WorkOrderRepository(conn), order)
        refusals[order] = refusal.value
    assert type(refusals["theirs"]) is type(refusals["never"]) is WorkOrderNotFound
    assert str(refusals["theirs"]).replace("theirs", "never") == str(refusals["never"])
    assert type(refusals["lost"]) is ProjectionDamaged


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize(
    "call",
    [
        "SELECT os_core.notify_wait(%s, %s)",
        "SELECT * FROM os_core.cancel_work_order(%s, %s, 1, 'cancel')",
        "SELECT * FROM os_core.lock_work_order(%s, %s)",
        "SELECT * FROM os_core.ask_field(%s, %s, '{place}')",
    ],
)
def test_commands__in_a_frozen_snapshot_a_conflict_is_a_serialization_failure(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel, call: str
) -> None:
    order = acme.order()
    acme.append(request(order))
    frozen = sessions.open(autocommit=False, isolation=isolation)
    frozen.conn.execute("SELECT 1")
    acme.append(wire("FIELD_SET", order, work_order_status="CONFIRM"))
    with refused("40001"):
        frozen.conn.execute(call.encode(), (acme.id, order))


# --- notify_wait


def test_notify_wait__writes_one_event_with_what_the_order_has(engine: sa.Engine) -> None:
    append_events(
        engine, TENANT, [created("order"), event("EXTERNAL_APPROVAL_REQUESTED", "order", turn_id=5)]
    )
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        assert orders.notify_wait("order", reason_code=77)
        *_, notice = orders.events("order")
        assert (notice.turn_id, notice.reason_code, notice.work_order_status) == (5, 77, "CONFIRM")
        assert notice.payload == {"request_id": "ask-1"}
        assert notice.idempotency_key is None


@pytest.mark.parametrize(("name", "value"), [("turn_id", 0), ("reason_code", 0), ("turn_id", "1")])
def test_notify_wait__refuses_bad_arguments(engine: sa.Engine, name: str, value: Any) -> None:
    append_events(engine, TENANT, [created("order")])
    with tenant_scope(engine, TENANT) as conn, pytest.raises(ContractViolation) as refusal:
        WorkOrderRepository(conn).notify_wait("order", **{name: value})
    assert refusal.value.field == name


def test_notify_wait__refuses_them_in_the_database_too(acme: Tenant) -> None:
    """Whether anything is pending or not."""
    order = acme.order()
    for then in (request(order), wire("WORK_ORDER_CANCELED", order, work_order_status="CANCELED")):
        with refused("SL001") as refusal:
            notify(acme.app, acme.id, order, turn_id=0)
        assert (refusal.facts["field"], refusal.message.startswith("turn_id: ")) == ("turn_id", True)
        acme.append(then)
    assert not notify(acme.app, acme.id, order)
    assert len(acme.ledger(order)) == 3


# --- cancel


def test_cancel__writes_an_event_and_is_idempotent_by_its_key(engine: sa.Engine) -> None:
    thread = uuid4()
    append_events(engine, TENANT, [created("order", correlation_id=thread, turn_id=3)])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        first = orders.cancel("order", reason_code=9, idempotency_key="cancel", note="no longer needed")
        again = orders.cancel("order", reason_code=9, idempotency_key="cancel", note="no longer needed")
        assert (first.replayed, again.replayed) == (False, True)
        assert again.work_order_event_id == first.work_order_event_id
        *_, event_ = orders.events("order")
        assert (event_.event_type, event_.reason_code, event_.payload) == (
            "WORK_ORDER_CANCELED",
            9,
            {"note": "no longer needed"},
        )
        assert (event_.correlation_id, event_.turn_id) == (thread, 3)
        found = orders.get("order")
        assert found is not None
        assert found.work_order_status == "CANCELED"


@pytest.mark.parametrize("status", TERMINAL)
def test_cancel__refuses_an_order_that_has_ended(engine: sa.Engine, status: Any) -> None:
    append_events(
        engine, TENANT, [created("order"), event("STATUS_CHANGED", "order", work_order_status=status)]
    )
    with tenant_scope(engine, TENANT) as conn:
        with pytest.raises(CancelInvalidState) as refusal, conn.begin_nested():
            WorkOrderRepository(conn).cancel("order", reason_code=1, idempotency_key="cancel")
        assert (refusal.value.work_order_id, refusal.value.work_order_status) == ("order", status)
        assert len([*WorkOrderRepository(conn).events("order")]) == 2


def test_cancel__a_key_of_something_else(engine: sa.Engine) -> None:
    append_events(engine, TENANT, [created("order", idempotency_key="create")])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        with pytest.raises(IdempotencyConflict), conn.begin_nested():
            orders.cancel("order", reason_code=1, idempotency_key="create")
        orders.cancel("order", reason_code=1, idempotency_key="cancel")
        with pytest.raises(IdempotencyConflict), conn.begin_nested():
            orders.cancel("order", reason_code=2, idempotency_key="cancel")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"reason_code": 0, "idempotency_key": "k"}, "reason_code"),
        ({"reason_code": 1, "idempotency_key": ""}, "idempotency_key"),
        ({"reason_code": 1, "idempotency_key": None}, "idempotency_key"),
        ({"reason_code": 1, "idempotency_key": "k", "note": "x" * 4097}, "note"),
    ],
)
def test_cancel__refuses_bad_arguments(engine: sa.Engine, given: dict[str, Any], field: str) -> None:
    append_events(engine, TENANT, [created("order")])
    with tenant_scope(engine, TENANT) as conn, pytest.raises(ContractViolation) as refusal:
        WorkOrderRepository(conn).cancel("order", **given)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("NULL, 'k'", "reason_code"),
        ("0, 'k'", "reason_code"),
        ("1, NULL", "idempotency_key"),
        ("1, ''", "idempotency_key"),
    ],
)
def test_cancel__refuses_them_in_the_database_too(acme: Tenant, arguments: str, field: str) -> None:
    order = acme.order()
    with refused("SL001") as refusal:
        acme.app.execute(f"SELECT os_core.cancel_work_order(%s, %s, {arguments})".encode(), (acme.id, order))
    assert refusal.facts["field"] == field
    assert len(acme.ledger(order)) == 1


def test_cancel__of_many_at_once_with_keys_of_their_own_one_cancels(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()

    def cancel(key: str) -> Callable[[Connection], str | None]:
        def job(conn: Connection) -> str | None:
            try:
                conn.execute("SELECT os_core.cancel_work_order(%s, %s, 1, %s)", (acme.id, order, key))
            except psycopg.Error as exc:
                return exc.sqlstate
            return None

        return job

    answers = sessions.at_once([cancel(new_id("key")) for _ in range(16)])
    assert answers.count(None) == 1
    assert answers.count("SL004") == 15
    assert len(acme.ledger(order)) == 2
