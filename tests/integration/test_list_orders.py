"""Listing by creation: list_orders of contract §9, on a hundred thousand work orders and on a few."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import (
    ContractViolation,
    LeaseRepository,
    OrderCursor,
    TenantScopeViolation,
    WorkOrder,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    tenant_scope,
)
from tests.support.factories import created, event
from tests.support.plans import index_conditions, index_names, plan_of, statements
from tests.support.servers import Database, Role, Server

ORDERS = 100_000
TENANT = "acme"
INDEXES = {
    "status": "ix_work_orders_current_status",
    "requester": "ix_work_orders_current_requester",
    "owner": "ix_work_orders_current_lease_owner",
}


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with many work orders, most of them done; many were created at the same instant."""
    with server.new_database("listed", template_database) as database:
        with server.admin(database.name) as admin:
            admin.execute("SET session_replication_role = replica")  # rows without a ledger will do here
            admin.execute(
                f"""
                INSERT INTO os_core.work_orders_current (
                  work_order_id, tenant_id, correlation_id, turn_id, last_event_id, last_seq,
                  last_reason_code, last_updated_at, created_at, fields_json, asked_fields_json,
                  resolved_fields_json, conflicts_json, prompt_dedupe_keys_json, external_approval_notices,
                  last_state_change_seq, external_approval_pending, updated_bucket, queued_at, steps_due_at,
                  work_order_status, requester_user_id, lease_owner_id
                )
                SELECT 'order-' || n, CASE WHEN n % 10 = 0 THEN 'rival' ELSE '{TENANT}' END,
                  gen_random_uuid(), 1, n, 1, 1, now(), now() - INTERVAL '1 s' * (n % 9000), '{{}}', '{{}}',
                  '{{}}', '{{}}', '{{}}', 0, 1, FALSE, now(), now(), now(),
                  CASE WHEN n % 17 = 0 THEN 'EXECUTING' WHEN n % 19 = 0 THEN 'CONFIRM' ELSE 'DONE' END,
                  'user-' || n % 5000, CASE WHEN n % 17 = 0 AND n % 3 = 0 THEN 'worker-' || n % 100 END
                FROM generate_series(1, {ORDERS}) AS n
                ORDER BY md5(n::text)
                """.encode()
            )
            admin.execute("ANALYZE")
        yield database


def place(order: WorkOrder) -> OrderCursor:
    return OrderCursor(order.created_at, order.work_order_id)


@pytest.mark.parametrize("role", ["app", "readonly"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_list__goes_through_an_index(full_database: Database, role: Role, mode: str) -> None:
    with tenant_scope(full_database.engine(role), TENANT) as conn:
        orders = WorkOrderRepository(conn)
        last = orders.list_orders(limit=1000)[-1]
        reads: list[tuple[dict[str, Any], set[str]]] = [
            ({}, {"status"}),
            ({"limit": 1000, "oldest_first": True}, {"status"}),
            ({"statuses": ["EXECUTING"]}, {"status"}),
            ({"statuses": ["EXECUTING", "DONE"], "after": last}, {"status"}),
            ({"after": last, "oldest_first": True}, {"status"}),
            ({"requester_user_id": "user-7"}, {"requester"}),
            ({"requester_user_id": "user-7", "statuses": ["DONE"], "after": last}, {"requester"}),
            ({"lease_owner_id": "worker-51"}, {"owner"}),
            ({"lease_owner_id": "worker-51", "statuses": ["EXECUTING"], "after": last}, {"owner"}),
            ({"lease_owner_id": "worker-51", "requester_user_id": "user-7"}, {"owner", "requester"}),
        ]
        for given, names in reads:
            plan = plan_of(conn, partial(orders.list_orders, **given), mode)
            used = index_names(plan)
            assert len(used) == 1, given
            assert used <= {INDEXES[name] for name in names}, given
            assert "work_order_status = " in index_conditions(plan), given
            if "after" in given:  # the walk begins there, and not at the front
                assert "ROW(" in index_conditions(plan)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize(
    ("statuses", "requester", "owner", "limit"),
    [
        (["EXECUTING"], None, None, 7),
        (["EXECUTING", "CONFIRM", "DRAFT"], None, None, 997),
        (None, "user-4", None, 3),
        (["DONE"], "user-4", None, 1),
        (None, None, "worker-51", 5),
    ],
)
def test_list__pages_hold_each_once_and_in_order(
    full_database: Database,
    statuses: list[str] | None,
    requester: str | None,
    owner: str | None,
    limit: int,
    oldest_first: bool,
) -> None:
    wanted = sa.text(
        "SELECT work_order_id FROM os_core.work_orders_current WHERE tenant_id = :tenant"
        " AND (CAST(:statuses AS text[]) IS NULL OR work_order_status = ANY(:statuses))"
        " AND (CAST(:requester AS text) IS NULL OR requester_user_id = :requester)"
        " AND (CAST(:owner AS text) IS NULL OR lease_owner_id = :owner)"
    )
    given = {"tenant": TENANT, "statuses": statuses, "requester": requester, "owner": owner}
    with full_database.engine("admin").connect() as conn:
        expected = set(conn.scalars(wanted, given))
    found: list[WorkOrder] = []
    with tenant_scope(full_database.engine(), TENANT) as conn:
        cursor: OrderCursor | None = None
        while page := WorkOrderRepository(conn).list_orders(
            statuses, requester, owner, limit=limit, oldest_first=oldest_first, after=cursor
        ):
            assert len(page) <= limit
            found += page
            cursor = place(page[-1])
    assert len(found) == len(expected) > 2
    assert {order.work_order_id for order in found} == expected
    steps = [(place(one), place(other)) for one, other in pairwise(found)]
    assert all(one < other if oldest_first else one > other for one, other in steps)


def test_list__costs_no_more_for_what_is_done(full_database: Database) -> None:
    """A page of 20 reads 20 rows of each status and their places in the index, of 80,000 that are done."""
    with tenant_scope(full_database.engine(), TENANT) as conn:
        orders = WorkOrderRepository(conn)
        for given in ({"statuses": ["EXECUTING"]}, {}, {"requester_user_id": "user-7"}):
            with statements(conn.engine) as sent:
                orders.list_orders(**given)
            ((statement, parameters),) = sent
            plan = conn.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            ).scalar_one()[0]["Plan"]
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 150, given


def test_list__an_order_that_keeps_its_status_is_neither_skipped_nor_repeated(engine: sa.Engine) -> None:
    names = [f"order-{n}" for n in range(12)]
    append_events(engine, TENANT, [created(name) for name in names])
    steady = {name for name in names if int(name[6:]) % 3}
    seen: list[str] = []
    page: list[WorkOrder] = []
    while True:
        with tenant_scope(engine, TENANT) as conn:
            page = WorkOrderRepository(conn).list_orders(
                ["DRAFT", "CONFIRM"], limit=2, after=page[-1] if page else None
            )
        if not page:
            break
        seen += [order.work_order_id for order in page]
        # Meanwhile some of the steady change, and others end or come into being.
        if len(seen) == 2:
            append_events(
                engine, TENANT, [event("FIELD_SET", "order-7", work_order_status="DRAFT"), created("new")]
            )
        if len(seen) == 4:
            append_events(engine, TENANT, [event("WORK_ORDER_CANCELED", "order-3")])
    assert [name for name in seen if name in steady] == sorted(steady, key=names.index, reverse=True)
    assert "order-3" not in seen


def test_list__statuses_requesters_owners_and_tenants(engine: sa.Engine) -> None:
    for status in ("DRAFT", "CLARIFY", "CONFIRM", "EXECUTING"):
        user = {"requester_user_id": "alice" if status < "D" else "bob"}
        append_events(engine, TENANT, [created(status, work_order_status=status, payload=user)])
    append_events(
        engine, TENANT, [created("done"), event("STATUS_CHANGED", "done", work_order_status="DONE")]
    )
    append_events(engine, "rival", [created("theirs", payload={"requester_user_id": "alice"})])
    with tenant_scope(engine, TENANT) as conn:
        leases = LeaseRepository(conn)
        token = leases.acquire("EXECUTING", "worker-1", ttl_ms=60_000).token
        leases.acquire("DRAFT", "worker-1", ttl_ms=60_000)
        leases.acquire("CLARIFY", "worker-2", ttl_ms=60_000)
        orders = WorkOrderRepository(conn)

        def names(*args: Any, **given: Any) -> list[str]:
            return [order.work_order_id for order in orders.list_orders(*args, **given)]

        assert names() == ["done", "EXECUTING", "CONFIRM", "CLARIFY", "DRAFT"]
        assert names(oldest_first=True) == names()[::-1]
        assert names(["DONE"]) == ["done"]
        assert names([WorkOrderStatus.DRAFT, "CONFIRM", "DRAFT"]) == ["CONFIRM", "DRAFT"]
        assert names(requester_user_id="alice") == ["CONFIRM", "CLARIFY"]
        assert names(["DRAFT", "CLARIFY"], "alice") == ["CLARIFY"]
        assert names(lease_owner_id="worker-1") == ["EXECUTING", "DRAFT"]
        assert names(["DRAFT"], lease_owner_id="worker-1", requester_user_id="bob") == ["DRAFT"]
        leases.release("EXECUTING", token)
        assert names(lease_owner_id="worker-1") == ["DRAFT"]
        assert names(after=orders.list_orders()[-1]) == []
        assert names(limit=1, after=orders.list_orders(limit=1)[0]) == ["EXECUTING"]


def test_list__is_one_statement_and_asks_for_the_tenant(engine: sa.Engine) -> None:
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        with statements(engine) as sent:
            assert orders.list_orders() == []
        assert len(sent) == 1
        conn.commit()
        with pytest.raises(TenantScopeViolation):
            orders.list_orders()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"statuses": []}, "statuses"),
        ({"statuses": "DRAFT"}, "statuses"),
        ({"statuses": ["draft"]}, "statuses"),
        ({"statuses": [None]}, "statuses"),
        ({"statuses": 7}, "statuses"),
        ({"requester_user_id": " "}, "requester_user_id"),
        ({"lease_owner_id": ""}, "lease_owner_id"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"oldest_first": 1}, "oldest_first"),
        ({"after": "order-7"}, "after"),
        ({"after": ("yesterday", "order-7")}, "after.created_at"),
        ({"after": ("2026-01-01T00:00:00Z", 7)}, "after.work_order_id"),
    ],
)
def test_list__refuses_bad_arguments(engine: sa.Engine, given: dict[str, Any], field: str) -> None:
    with tenant_scope(engine, TENANT) as conn, pytest.raises(ContractViolation) as refusal:
        WorkOrderRepository(conn).list_orders(**given)
    assert refusal.value.field == field
