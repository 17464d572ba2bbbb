"""What the package logs: retries, lost leases and revisions, and never a value, a token or a payload."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from selene_core import (
    AsyncAppender,
    ConcurrencyConflict,
    Feed,
    LeaseLost,
    LeaseRepository,
    StepAttemptRepository,
    WorkOrderEventType,
    WorkOrderLedgerEventInput,
    WorkOrderRepository,
    append_events,
    async_tenant_scope,
    hold_lease,
    run_in_tenant,
    tenant_scope,
)
from selene_core.contract.errors import BY_SQLSTATE
from selene_core.migrations import downgrade, history, plan, upgrade
from selene_core.store import retries
from selene_core.store.failures import http_status
from tests.support.factories import created, event, new_id
from tests.support.pooler import driver_options
from tests.support.races import DEADLINE_SECONDS, wait_until
from tests.support.servers import Database
from tests.support.workers import LIMITS

SECRET = "geheim-\u202e\x1b[31m%s{0}'\"-hunter2"
TOKEN = "token-hunter2-" + "x" * 32
BY_LOGGING = {*vars(logging.makeLogRecord({})), "message", "asctime"}


@pytest.fixture(autouse=True)
def at_debug(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, "selene_core")
    monkeypatch.setattr(retries, "_pause", lambda _attempt: 0.001)


def ours(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the facts of our records; nothing that is secret is in them, nor in what a handler writes."""
    found = [record for record in caplog.records if record.name == "selene_core"]
    formatter = logging.Formatter("%(message)s %(exc_text)s")
    for record in found:
        assert record.exc_info is None
        written = formatter.format(record)
        assert "\n" not in written
        assert "hunter2" not in written + json.dumps(vars(record), default=repr)
    return [
        {name: value for name, value in vars(record).items() if name not in BY_LOGGING} for record in found
    ]


def test_retry__is_logged_with_its_facts(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    append_events(engine, "acme", [created(order := new_id(), payload={"fields": {"place": SECRET}})])
    payload = {"field_key": "place", "value": SECRET}
    fact = event("FIELD_SET", order, payload=payload, expected_seq=9, idempotency_key="hunter2")
    with pytest.raises(ConcurrencyConflict):
        run_in_tenant(engine, "acme", lambda conn: WorkOrderRepository(conn).append(fact), 3)
    first, second = ours(caplog)
    assert first == {
        "selene_event": "retry",
        "tenant_id": "acme",
        "error": "ConcurrencyConflict",
        "sqlstate": "SL006",
        "attempt": 1,
        "attempts": 3,
        "pause_ms": 1,
    }
    assert second == {**first, "attempt": 2}


def test_retry__of_the_drivers_error_tells_no_parameter(
    engine: sa.Engine, admin_engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy's message lists parameters, PostgreSQL's DETAIL has values: neither is logged."""
    runs: list[int] = []

    def work(conn: sa.Connection) -> None:
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        runs.append(pid)
        if len(runs) == 1:
            with admin_engine.connect() as admin:
                admin.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        conn.execute(sa.text("SELECT CAST(:secret AS text)"), {"secret": SECRET})

    run_in_tenant(engine, "acme", work)
    [told] = ours(caplog)
    assert (told["selene_event"], told["error"]) == ("retry", "OperationalError")


def test_lost_lease__is_logged_by_every_call_that_meets_it(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    append_events(engine, "acme", [created(order := new_id())])
    calls: list[Callable[[sa.Connection], object]] = [
        lambda conn: LeaseRepository(conn).renew(order, TOKEN, ttl_ms=1_000),
        lambda conn: LeaseRepository(conn).release(order, TOKEN),
        lambda conn: StepAttemptRepository(conn).start(
            order, "book", **LIMITS, idempotency_key="k", lease_token=TOKEN
        ),
        lambda conn: WorkOrderRepository(conn).append(
            event("STEP_STARTED", order, payload={"note": SECRET}, lease_token=TOKEN)
        ),
        lambda _conn: append_events(engine, "acme", [event("STEP_STARTED", order, lease_token=TOKEN)]),
    ]
    for call in calls:
        with pytest.raises(LeaseLost), tenant_scope(engine, "acme") as conn:
            call(conn)
    lost = {"selene_event": "lease_lost", "tenant_id": "acme", "work_order_id": order}
    assert ours(caplog) == [lost] * len(calls)


def test_lost_lease__of_a_feed_names_its_consumer(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    append_events(engine, "acme", [created(new_id())])
    feed, clock = Feed(engine, "acme", "relay"), sa.text("SELECT clock_timestamp() > :until")
    with feed.lease("relay-1", ttl_ms=1) as late:
        with engine.connect() as conn:
            wait_until(lambda: conn.scalar(clock, {"until": late.lease_expires_at}), "the lease expires")
        with feed.lease("relay-2", ttl_ms=60_000), pytest.raises(LeaseLost):
            late.ack()
    assert ours(caplog) == [{"selene_event": "lease_lost", "tenant_id": "acme", "consumer": "relay"}]
    assert "the lease on feed consumer relay of tenant acme is lost" in caplog.messages[-1]


def test_lost_lease__of_a_shared_call_is_logged_once(
    database: Database, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """While the first event is on its way, the others are gathered; the one that is refused is sent alone."""
    orders = [new_id() for _ in range(5)]
    append_events(engine, "acme", [created(order) for order in orders])
    facts = [
        WorkOrderLedgerEventInput(
            work_order_id=order,
            event_type=WorkOrderEventType.STEP_STARTED,
            payload={},
            lease_token=TOKEN if order == orders[2] else None,
        )
        for order in orders
    ]

    async def story() -> list[Any]:
        url = database.url("app")
        shared = create_async_engine(url, connect_args=driver_options(url))
        try:
            async with AsyncAppender(shared) as appender:
                calls = [appender.append("acme", fact) for fact in facts]
                return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await shared.dispose()

    answers = asyncio.run(story())
    assert [isinstance(answer, LeaseLost) for answer in answers] == [order == orders[2] for order in orders]
    assert ours(caplog) == [{"selene_event": "lease_lost", "tenant_id": "acme", "work_order_id": orders[2]}]


def test_lost_lease__of_a_hold_is_logged_once(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    append_events(engine, "acme", [created(order := new_id())])

    def lose() -> None:
        with hold_lease(engine, "acme", order, "worker-1", ttl_ms=1_200) as hold:
            with tenant_scope(engine, "acme") as conn:  # as nobody should: with the token of another
                LeaseRepository(conn).release(order, hold.lease.token)
            assert hold.wait(DEADLINE_SECONDS)

    with pytest.raises(LeaseLost):
        lose()
    assert ours(caplog) == [{"selene_event": "lease_lost", "tenant_id": "acme", "work_order_id": order}]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_hidden_error__that_ended_the_transaction_is_logged(
    database: Database, engine: sa.Engine, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    mistake = sa.text("SELECT 1 / 0")

    async def hide() -> None:
        twin = create_async_engine(database.app_url, poolclass=sa.NullPool)
        async with async_tenant_scope(twin, "acme") as conn:
            with pytest.raises(DBAPIError):
                await conn.execute(mistake)

    if is_async:
        asyncio.run(hide())
    else:
        with tenant_scope(engine, "acme") as conn, pytest.raises(DBAPIError):
            conn.execute(mistake)
    assert ours(caplog) == [{"selene_event": "hidden_error", "tenant_id": "acme"}]


def test_hidden_error__that_a_savepoint_took_back_is_not_logged(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with tenant_scope(engine, "acme") as conn, pytest.raises(DBAPIError), conn.begin_nested():
        conn.execute(sa.text("SELECT 1 / 0"))
    assert ours(caplog) == []


def test_lost_lease__is_not_written_where_nobody_has_set_up_logging(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    append_events(engine, "acme", [created(order := new_id())])
    with pytest.raises(LeaseLost), tenant_scope(engine, "acme") as conn:
        LeaseRepository(conn).renew(order, TOKEN, ttl_ms=1_000)
    assert capsys.readouterr().err == ""


def test_revisions__are_logged_once_committed(
    empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    names = [each.revision for each in history()]
    plan(empty_database.admin_url)
    assert ours(caplog) == []
    upgrade(empty_database.admin_url, names[2])
    downgrade(empty_database.admin_url, names[0])
    upgrade(empty_database.admin_url, names[0])
    told = [(fact["direction"], fact["revision"]) for fact in ours(caplog)]
    up = [("upgrade", name) for name in names[:3]]
    assert told == [*up, ("downgrade", names[2]), ("downgrade", names[1])]


def test_revisions__that_are_rolled_back_are_not_logged(
    empty_database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that fails is not; one before it, which is committed, is."""
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", "50ms")
    upgrade(empty_database.admin_url, "0003")
    caplog.clear()
    with empty_database.engine("admin").connect() as reader:
        # A foreign key may be made beside a reader, row-level security may not.
        reader.exec_driver_sql("LOCK TABLE os_core.work_order_ledger IN ACCESS SHARE MODE")
        with pytest.raises(DBAPIError):
            upgrade(empty_database.admin_url)
        assert [fact["revision"] for fact in ours(caplog)] == ["0004"]
        caplog.clear()
        with pytest.raises(DBAPIError):
            downgrade(empty_database.admin_url, "0002")
    assert ours(caplog) == []


def test_levels__nothing_but_lost_and_retried_is_a_warning(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    append_events(engine, "acme", [created(new_id(), payload={"fields": {"place": SECRET}})])
    assert ours(caplog) == []


def test_http_status__every_refusal_has_one_of_its_own() -> None:
    for kind in BY_SQLSTATE.values():
        assert "http_status" in vars(kind), kind
        assert http_status(kind()) == kind.http_status
        assert 400 <= kind.http_status < 600
    assert http_status(ValueError()) == 500
