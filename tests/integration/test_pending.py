"""What is pending: the selector of SPEC.md section 9, on a hundred thousand work orders and on a few."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import (
    ContractViolation,
    PendingCursor,
    TenantScopeViolation,
    WorkOrder,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from tests.factories import created, event
from tests.plans import index_conditions, index_names, plan_of, statements
from tests.servers import Database, Role, Server

ORDERS = 100_000
REQUESTERS = 5_000
BY_TIME, BY_REQUESTER = "ix_work_orders_current_pending", "ix_work_orders_current_pending_requester"
TENANT = "acme"


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with many work orders: half of them pending, many updated at the same instant."""
    with server.new_database("pending", template_database) as database:
        with server.admin(database.name) as admin:
            admin.execute("SET session_replication_role = replica")  # rows without a ledger will do here
            admin.execute(
                f"""
                INSERT INTO os_core.work_orders_current
                SELECT 'order-' || n, CASE WHEN n % 10 = 0 THEN 'rival' ELSE '{TENANT}' END,
                  gen_random_uuid(), 1,
                  (ARRAY['DRAFT', 'DONE', 'CLARIFY', 'EXECUTING', 'CONFIRM', 'FAILED'])[1 + n % 6], n, 1, 1,
                  clock_timestamp() - INTERVAL '1 s' * (n / 7), now(), 'user-' || n % {REQUESTERS},
                  NULL, NULL, NULL, NULL, NULL, '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
                  FALSE, NULL, NULL, NULL, 0, 1
                FROM generate_series(1, {ORDERS}) AS n
                """.encode()
            )
            admin.execute("ANALYZE")
        yield database


def place(order: WorkOrder) -> PendingCursor:
    return PendingCursor(order.last_updated_at, order.last_event_id)


@pytest.mark.parametrize("role", ["app", "readonly"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_pending__goes_through_an_index(full_database: Database, role: Role, mode: str) -> None:
    with tenant_scope(full_database.engine(role), TENANT) as conn:
        orders = WorkOrderRepository(conn)
        last = orders.list_pending(limit=1000)[-1]
        reads: list[tuple[dict[str, Any], str]] = [
            ({}, BY_TIME),
            ({"limit": 1000, "oldest_first": True}, BY_TIME),
            ({"within": timedelta(hours=1)}, BY_TIME),
            ({"after": last}, BY_TIME),
            ({"after": last, "oldest_first": True}, BY_TIME),
            ({"requester_user_id": "user-7"}, BY_REQUESTER),
            ({"requester_user_id": "user-7", "oldest_first": True}, BY_REQUESTER),
            ({"requester_user_id": "user-7", "within": timedelta(days=1)}, BY_REQUESTER),
            ({"requester_user_id": "user-7", "after": last}, BY_REQUESTER),
            ({"requester_user_id": "nobody"}, BY_REQUESTER),
        ]
        for given, index in reads:
            plan = plan_of(conn, partial(orders.list_pending, **given), mode)
            assert index_names(plan) == {index}, given
            if "after" in given:  # the walk begins there, and not at the front
                assert "ROW(" in index_conditions(plan)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize(("requester", "limit"), [(None, 997), ("user-4", 1), ("user-4", 3)])
def test_pending__pages_hold_each_once_and_in_order(
    full_database: Database, requester: str | None, limit: int, oldest_first: bool
) -> None:
    wanted = sa.text(
        "SELECT work_order_id FROM os_core.work_orders_current WHERE tenant_id = :tenant"
        " AND work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM')"
        " AND (CAST(:requester AS text) IS NULL OR requester_user_id = :requester)"
    )
    with full_database.engine("admin").connect() as conn:
        expected = set(conn.scalars(wanted, {"tenant": TENANT, "requester": requester}))
    found: list[WorkOrder] = []
    with tenant_scope(full_database.engine(), TENANT) as conn:
        orders = WorkOrderRepository(conn)
        cursor: PendingCursor | None = None
        while page := orders.list_pending(requester, limit=limit, oldest_first=oldest_first, after=cursor):
            assert len(page) <= limit
            found += page
            cursor = place(page[-1])
    assert len(found) == len(expected) > 2
    assert {order.work_order_id for order in found} == expected
    steps = [(place(one), place(other)) for one, other in pairwise(found)]
    assert all(one < other if oldest_first else one > other for one, other in steps)


def test_pending__within_is_a_window_before_now(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    append_events(engine, TENANT, [created("old"), created("new")])
    with admin_engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE os_core.work_orders_current SET last_updated_at = now() - INTERVAL '2 hours'"
            " WHERE work_order_id = 'old'"
        )
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        for hours, expected in ((1, ["new"]), (3, ["new", "old"])):
            found = orders.list_pending(within=timedelta(hours=hours))
            assert [order.work_order_id for order in found] == expected


def test_pending__an_order_that_does_not_change_is_neither_skipped_nor_repeated(engine: sa.Engine) -> None:
    names = [f"order-{n}" for n in range(12)]
    append_events(engine, TENANT, [created(name) for name in names])
    steady = {name for name in names if int(name[6:]) % 3}
    seen: list[str] = []
    page: list[WorkOrder] = []
    while True:
        with tenant_scope(engine, TENANT) as conn:
            page = WorkOrderRepository(conn).list_pending(limit=2, after=page[-1] if page else None)
        if not page:
            break
        seen += [order.work_order_id for order in page]
        # Meanwhile others move to the front, end, and come into being.
        moving = sorted(set(names) - steady)
        if len(seen) == 2:
            append_events(engine, TENANT, [event("FIELD_SET", moving[0]), created("new")])
        if len(seen) == 4:
            append_events(engine, TENANT, [event("WORK_ORDER_CANCELED", moving[1])])
    assert [name for name in seen if name in steady] == sorted(steady, key=names.index, reverse=True)


def test_pending__statuses_tenants_and_requesters(engine: sa.Engine) -> None:
    for status in ("DRAFT", "CLARIFY", "CONFIRM", "EXECUTING"):
        first = created(f"acme-{status}", work_order_status=status, payload={"requester_user_id": "alice"})
        append_events(engine, TENANT, [first])
    append_events(
        engine, TENANT, [created("acme-bob", payload={"requester_user_id": "bob"}), created("nobody")]
    )
    append_events(engine, "rival", [created("theirs", payload={"requester_user_id": "alice"})])
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        pending = ["nobody", "acme-bob", "acme-CONFIRM", "acme-CLARIFY", "acme-DRAFT"]
        assert [order.work_order_id for order in orders.list_pending()] == pending
        assert [order.work_order_id for order in orders.list_pending("alice")] == pending[2:]
        assert orders.list_pending("alice", after=orders.list_pending("alice")[-1]) == []
    with tenant_scope(engine, "rival") as conn:
        assert [order.work_order_id for order in WorkOrderRepository(conn).list_pending("alice")] == [
            "theirs"
        ]


def test_pending__is_one_statement_and_asks_for_the_tenant(engine: sa.Engine) -> None:
    with tenant_scope(engine, TENANT) as conn:
        orders = WorkOrderRepository(conn)
        with statements(engine) as sent:
            assert orders.list_pending() == []
        assert len(sent) == 1
        conn.commit()
        with pytest.raises(TenantScopeViolation):
            orders.list_pending()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"requester_user_id": " "}, "requester_user_id"),
        ({"within": timedelta(0)}, "within"),
        ({"within": timedelta(days=-1)}, "within"),
        ({"within": timedelta.max}, "within"),
        ({"within": 60}, "within"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": True}, "limit"),
        ({"after": "order-7"}, "after"),
        ({"after": (1, 2, 3)}, "after"),
        ({"after": ("yesterday", 1)}, "after.last_updated_at"),
    ],
)
def test_pending__refuses_bad_arguments(engine: sa.Engine, given: dict[str, object], field: str) -> None:
    with tenant_scope(engine, TENANT) as conn, pytest.raises(ContractViolation) as refusal:
        WorkOrderRepository(conn).list_pending(**given)  # type: ignore[arg-type]
    assert refusal.value.field == field
