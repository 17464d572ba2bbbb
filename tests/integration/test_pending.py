"""What is pending: the selector of contract §9, on a hundred thousand work orders and on a few."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import (
    ContractViolation,
    ConversationRepository,
    IdentityRepository,
    LeaseRepository,
    PendingCursor,
    StepAttemptRepository,
    TenantScopeViolation,
    WorkOrder,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from tests.support.factories import correlation_of, created, event
from tests.support.plans import index_conditions, index_names, plan_of, plans_kept, statements
from tests.support.servers import Database, Role, Server

ORDERS = 100_000
REQUESTERS = 5_000
BY_TIME, BY_REQUESTER = "ix_work_orders_current_pending", "ix_work_orders_current_pending_requester"
TENANT, BULK = "acme", "bulk"


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with many work orders: half of them pending, seventy updated at the same instant.

    Those of a requester tie by tens. The rows lie in no order, so that ties only come in order if sorted.
    Those of the tenant BULK were all updated within the same bucket, as after an import.
    """
    with server.new_database("pending", template_database) as database:
        with server.admin(database.name) as admin:
            admin.execute("SET session_replication_role = replica")  # rows without a ledger will do here
            for tenant, name, at in (
                (TENANT, "order", f"now() - INTERVAL '1 s' * (n % (2 * {REQUESTERS}) / 7)"),
                (BULK, "bulk", "date_bin('1 h', now(), '2000-01-01') + INTERVAL '1 ms' * (n / 3)"),
            ):
                admin.execute(
                    f"""
                    INSERT INTO os_core.work_orders_current (
                      work_order_id, tenant_id, correlation_id, turn_id, work_order_status, last_event_id,
                      last_seq, last_reason_code, last_updated_at, created_at, requester_user_id, fields_json,
                      asked_fields_json, resolved_fields_json, conflicts_json, prompt_dedupe_keys_json,
                      external_approval_pending, external_approval_notices, last_state_change_seq,
                      updated_bucket, queued_at, steps_due_at
                    )
                    SELECT '{name}-' || n, CASE WHEN n % 10 = 0 THEN 'rival' ELSE '{tenant}' END,
                      gen_random_uuid(), 1,
                      (ARRAY['DRAFT', 'DONE', 'CLARIFY', 'EXECUTING', 'CONFIRM', 'FAILED'])[1 + n % 6],
                      n, 1, 1, at, at, 'user-' || n % {REQUESTERS},
                      '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', FALSE, 0, 1,
                      date_bin('5 min', at, '2000-01-01 00:00:00+00'), at, at
                    FROM generate_series(1, {ORDERS}) AS n
                    CROSS JOIN LATERAL (SELECT {at} AS at) AS time
                    ORDER BY md5(n::text)
                    """.encode()
                )
            admin.execute("ANALYZE")
        yield database


def place(order: WorkOrder) -> PendingCursor:
    return PendingCursor(order.last_updated_at, order.last_event_id)


@pytest.mark.parametrize("role", ["app", "readonly"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("tenant", [TENANT, BULK])
def test_pending__goes_through_an_index(full_database: Database, role: Role, mode: str, tenant: str) -> None:
    with tenant_scope(full_database.engine(role), tenant) as conn:
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
                assert "updated_bucket" in index_conditions(plan)


@pytest.mark.parametrize(
    "given", [{}, {"oldest_first": True}, {"limit": 100}, {"requester_user_id": "user-7"}]
)
def test_pending__is_not_planned_anew_in_every_call(full_database: Database, given: dict[str, Any]) -> None:
    with tenant_scope(full_database.engine(), TENANT) as conn:
        assert plans_kept(conn, partial(WorkOrderRepository(conn).list_pending, **given)) == 5


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize(
    ("tenant", "requester", "limit", "by_index"),
    [
        (TENANT, None, 997, True),
        (TENANT, "user-4", 1, True),
        (TENANT, "user-4", 3, True),
        (TENANT, "user-4", 3, False),
        (BULK, "user-4", 3, True),
    ],
)
def test_pending__pages_hold_each_once_and_in_order(
    full_database: Database,
    tenant: str,
    requester: str | None,
    limit: int,
    by_index: bool,
    oldest_first: bool,
) -> None:
    wanted = sa.text(
        "SELECT work_order_id FROM os_core.work_orders_current WHERE tenant_id = :tenant"
        " AND work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM')"
        " AND (CAST(:requester AS text) IS NULL OR requester_user_id = :requester)"
    )
    with full_database.engine("admin").connect() as conn:
        expected = set(conn.scalars(wanted, {"tenant": tenant, "requester": requester}))
    found: list[WorkOrder] = []
    with tenant_scope(full_database.engine(), tenant) as conn:
        # The indexes have the order in them; without them the statement has to ask for all of it.
        conn.exec_driver_sql(f"SET LOCAL enable_indexscan = {by_index}")
        conn.exec_driver_sql(f"SET LOCAL enable_bitmapscan = {by_index}")
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
    ends = zip(found[limit - 1 :: limit], found[limit::limit], strict=False)
    if tenant == TENANT:
        assert any(one.last_updated_at == other.last_updated_at for one, other in ends)  # within a tie


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


# What a user's tenant finds: all of it bears the user's name. Those in NAMELESS ask for nobody's by name.
READS: dict[str, Callable[[sa.Connection, str], object]] = {
    "list_pending": lambda conn, user: WorkOrderRepository(conn).list_pending(),
    "list_pending of a requester": lambda conn, user: WorkOrderRepository(conn).list_pending(user),
    "get": lambda conn, user: WorkOrderRepository(conn).get(f"{user}:order"),
    "get_by_correlation": lambda conn, user: WorkOrderRepository(conn).get_by_correlation(
        correlation_of(f"{user}:order")
    ),
    "events": lambda conn, user: [*WorkOrderRepository(conn).events(f"{user}:order")],
    "as_of": lambda conn, user: WorkOrderRepository(conn).as_of(f"{user}:order", seq=1),
    "verify": lambda conn, user: WorkOrderRepository(conn).verify(),
    "verify one": lambda conn, user: WorkOrderRepository(conn).verify(f"{user}:order"),
    "lease": lambda conn, user: LeaseRepository(conn).current(f"{user}:order"),
    "attempts": lambda conn, user: StepAttemptRepository(conn).history(f"{user}:order"),
    "attempts of a step": lambda conn, user: StepAttemptRepository(conn).history(f"{user}:order", "book"),
    "due_retries": lambda conn, user: StepAttemptRepository(conn).due_retries(),
    "identity": lambda conn, user: IdentityRepository(conn).get_identity(user),
    "device": lambda conn, user: IdentityRepository(conn).get_device(f"{user}:phone"),
    "devices": lambda conn, user: [*IdentityRepository(conn).devices(user)],
    "session": lambda conn, user: IdentityRepository(conn).get_session(f"{user}:session"),
    "sessions": lambda conn, user: [*IdentityRepository(conn).sessions(user)],
    "turn": lambda conn, user: ConversationRepository(conn).get(correlation_of(user), 1),
    "page": lambda conn, user: ConversationRepository(conn).page(correlation_of(user)),
    "turns": lambda conn, user: [*ConversationRepository(conn).turns(correlation_of(user))],
}
NAMELESS = ("list_pending", "verify", "due_retries")


def furnish(conn: sa.Connection, user: str) -> None:
    """Give a tenant one of everything: an order whose lease is held and whose step is due, people, a turn."""
    people = IdentityRepository(conn)
    people.register_identity(user)
    people.register_device(user, f"{user}:phone", device_type="mobile")
    people.open_session(f"{user}:session", user_id=user, device_id=f"{user}:phone")
    ConversationRepository(conn).append(
        correlation_id=correlation_of(user),
        turn_id=1,
        user_id=user,
        role="USER",
        source="TYPED_TEXT",
        text="Hello",
        privacy_scope="PUBLIC_CHAT",
    )
    order = f"{user}:order"
    first = created(order, payload={"requester_user_id": user})
    WorkOrderRepository(conn).append(first)
    StepAttemptRepository(conn).start(
        order, "book", timeout_ms=1, max_retries=1, retry_backoff_ms=1, idempotency_key="start"
    )
    LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=3_600_000)


def test_reads__as_a_superuser_one_tenant_is_seen(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    """Row-level security does not hold for one: what each read says in its own WHERE does."""
    for tenant, user in ((TENANT, "alice"), ("rival", "bob")):
        with tenant_scope(engine, tenant) as conn:
            furnish(conn, user)
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("UPDATE os_core.work_orders_current SET fields_json = '{\"x\": 1}'")
    for tenant, mine, other in ((TENANT, "alice", "bob"), ("rival", "bob", "alice")):
        with tenant_scope(admin_engine, tenant) as conn:
            for name, read in READS.items():
                found = repr(read(conn, mine))
                assert mine in found, name
                assert other not in found, name
                if name not in NAMELESS:
                    assert not read(conn, other), name


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
