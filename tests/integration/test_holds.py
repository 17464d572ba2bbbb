"""hold_lease: renewed beside the block, given back after it, lost cleanly (contract §8)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from selene_core import (
    LeaseHeld,
    LeaseLost,
    LeaseRepository,
    append_events,
    async_hold_lease,
    hold_lease,
    tenant_scope,
)
from tests.support.calls import Row, Tenant
from tests.support.factories import event, wire
from tests.support.pooler import driver_options
from tests.support.races import wait_until
from tests.support.relay import Relay
from tests.support.servers import Database
from tests.support.sessions import Sessions
from tests.support.workers import claim, leases

LONG, SHORT = 6_000, 1_200
SECONDS = 60.0


@pytest.fixture
def relay(shared_database: Database) -> Iterator[Relay]:
    """Return a relay to the application's address."""
    with closing(Relay(shared_database.url("app"))) as relay:
        yield relay


@pytest.fixture
def engine(relay: Relay, shared_database: Database) -> Iterator[sa.Engine]:
    """Return an engine that connects through the relay."""
    engine = sa.create_engine(relay.url, connect_args=driver_options(shared_database.url("app")))
    yield engine
    all_are_back(engine)  # else a late one would stay open: dispose() does not know it
    engine.dispose()


def all_are_back(engine: sa.Engine) -> None:
    """Wait until every renewal has been answered."""
    wait_until(lambda: engine.pool.checkedout() == 0, "no connection is out")  # type: ignore[attr-defined]


def renewed(tenant: Tenant, order: str) -> Row | None:
    """Return the lease of an order once it has been renewed."""
    return next((row for row in leases(tenant, order) if row["renewed_at"]), None)


def test_hold__takes_renews_and_gives_back(acme: Tenant, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG) as hold:
        first = hold.lease
        assert (first.work_order_id, first.lease_owner_id) == (order, "worker-1")
        with pytest.raises(LeaseHeld), hold_lease(engine, acme.id, order, "worker-2", ttl_ms=LONG):
            pass
        wait_until(lambda: hold.lease.renewed_at, "the lease is renewed")
        assert (hold.lease.fence, hold.lease.token) == (first.fence, first.token)
        assert not hold.wait(0)
        hold.check()
    (lease,) = leases(acme, order)
    assert lease["lease_state"] == "RELEASED"
    assert lease["renewed_at"] is not None
    assert acme.verify() == {}


def test_hold__says_when_the_order_may_be_claimed_again(acme: Tenant, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    until = datetime.now(UTC) + timedelta(hours=1)
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG) as hold:
        hold.not_before = until
    assert acme.projection(order)["queued_at"] == until
    assert claim(acme.app, acme.id) is None


def test_hold__goes_on_with_a_claim(acme: Tenant, engine: sa.Engine) -> None:
    """The claim's lease may have run for a while: it is renewed in time for what is left of it."""
    order = acme.order("EXECUTING")
    with tenant_scope(engine, acme.id) as conn:
        found = LeaseRepository(conn).claim("worker-1", ttl_ms=LONG)
    assert found is not None
    assert found.work_order.work_order_id == order
    assert found.work_order.lease_expires_at == found.lease.lease_expires_at
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=10 * LONG, token=found.lease.token) as hold:
        assert hold.lease.lease_id == found.lease.lease_id
        wait_until(lambda: renewed(acme, order), "the lease is renewed at once")
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_hold__gives_back_what_an_exception_leaves(acme: Tenant, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    with pytest.raises(ZeroDivisionError), hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG):
        raise ZeroDivisionError
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_hold__lives_while_the_row_is_locked(acme: Tenant, sessions: Sessions, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    locking = sessions.open_as_superuser()
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG) as hold:
        query = b"SELECT FROM os_core.work_orders_current WHERE work_order_id = %s FOR UPDATE"
        locking.conn.execute(query, (order,))
        waiting = "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        wait_until(
            lambda: sessions.admin.execute(waiting, (locking.pid,)).fetchone(),
            "the renewal waits for the row",
        )
        locking.conn.rollback()
        wait_until(lambda: renewed(acme, order), "the renewal went through")
        wait_until(lambda: hold.lease.renewed_at, "and was heard of")
        hold.check()
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_hold__lives_through_a_slow_reply(acme: Tenant, relay: Relay, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG) as hold:
        with relay.silent():
            wait_until(relay.holds_something.is_set, "the renewal is under way")
            assert not hold.lost
        wait_until(lambda: hold.lease.renewed_at, "the renewal went through")
        hold.check()
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_hold__is_lost_when_the_server_is_gone_for_longer_than_the_ttl(
    acme: Tenant, relay: Relay, engine: sa.Engine
) -> None:
    order = acme.order("EXECUTING")
    holding = hold_lease(engine, acme.id, order, "w-1", ttl_ms=SHORT)

    def work() -> Row | None:
        with relay.silent():
            assert hold.wait(SECONDS), "the block learns of it"
            with pytest.raises(LeaseLost):
                hold.check()
            return wait_until(lambda: claim(acme.app, acme.id, owner="w-2"), "it has ended there, too")

    with pytest.raises(LeaseLost) as lost, holding as hold:
        row = work()
    assert row is not None
    assert lost.value.work_order_id == order
    # The renewal comes through at last: it changes nothing, and the old token is worth nothing.
    all_are_back(engine)
    assert row["fence"] > hold.lease.fence
    assert acme.projection(order)["lease_owner_id"] == "w-2"
    with pytest.raises(LeaseLost):
        append_events(engine, acme.id, [event("STEP_STARTED", order, lease_token=hold.lease.token)])
    assert hold.lost
    assert [each["lease_state"] for each in leases(acme, order)] == ["EXPIRED", "ACTIVE"]


def test_hold__ends_quietly_when_the_order_has_ended(acme: Tenant, engine: sa.Engine) -> None:
    order = acme.order("EXECUTING")
    with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=LONG) as hold:
        acme.append(wire("WORK_ORDER_CANCELED", order))
        assert hold.wait(SECONDS), "there is nothing left to do"
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_hold__what_the_block_raises_is_what_comes_out(acme: Tenant, engine: sa.Engine, relay: Relay) -> None:
    order = acme.order("EXECUTING")

    def fail() -> None:
        with hold_lease(engine, acme.id, order, "worker-1", ttl_ms=SHORT) as hold, relay.silent():
            assert hold.wait(SECONDS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_hold__takes_nothing_but_an_engine(acme: Tenant, engine: sa.Engine) -> None:
    for given in (None, "postgresql://", engine.connect):
        holding = hold_lease(given, acme.id, "order", "worker-1", ttl_ms=SHORT)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="hold_lease takes an Engine"):
            holding.__enter__()


# --- the asynchronous twin


def run(database: Database, relay: Relay, story: Callable[[Callable[..., Any]], Awaitable[None]]) -> None:
    """Run a story with async_hold_lease on an engine through the relay."""

    async def told() -> None:
        engine = create_async_engine(relay.url, connect_args=driver_options(database.url("app")))
        try:
            await story(lambda *args, **given: async_hold_lease(engine, *args, **given))
        finally:
            await engine.dispose()

    asyncio.run(asyncio.wait_for(told(), SECONDS))


async def until(happened: Callable[[], object]) -> None:
    while not happened():
        await asyncio.sleep(0.005)  # until the next look; run() has a deadline


def test_async_hold__takes_renews_and_gives_back(
    acme: Tenant, shared_database: Database, relay: Relay
) -> None:
    order = acme.order("EXECUTING")
    later = datetime.now(UTC) + timedelta(hours=1)

    async def story(hold_of: Callable[..., Any]) -> None:
        async with hold_of(acme.id, order, "worker-1", ttl_ms=LONG) as hold:
            await until(lambda: hold.lease.renewed_at)
            assert not await hold.wait(0.01)
            hold.check()
            hold.not_before = later

    run(shared_database, relay, story)
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]
    assert acme.projection(order)["queued_at"] == later


def test_async_hold__lives_through_a_slow_reply(
    acme: Tenant, shared_database: Database, relay: Relay
) -> None:
    order = acme.order("EXECUTING")

    async def story(hold_of: Callable[..., Any]) -> None:
        async with hold_of(acme.id, order, "worker-1", ttl_ms=LONG) as hold:
            with relay.silent():
                await until(relay.holds_something.is_set)
                assert not hold.lost
            await until(lambda: hold.lease.renewed_at)
            hold.check()

    run(shared_database, relay, story)
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]


def test_async_hold__is_lost_when_the_server_is_gone_for_longer_than_the_ttl(
    acme: Tenant, shared_database: Database, relay: Relay
) -> None:
    order = acme.order("EXECUTING")

    async def story(hold_of: Callable[..., Any]) -> None:
        async def work() -> None:
            async with hold_of(acme.id, order, "worker-1", ttl_ms=SHORT) as hold:
                with relay.silent():
                    assert await hold.wait(SECONDS)
                    await until(lambda: claim(acme.app, acme.id, owner="worker-2"))
                with pytest.raises(LeaseLost):
                    hold.check()

        with pytest.raises(LeaseLost):
            await work()

    run(shared_database, relay, story)
    assert acme.projection(order)["lease_owner_id"] == "worker-2"


def test_async_hold__gives_back_when_its_task_is_canceled(
    acme: Tenant, shared_database: Database, relay: Relay
) -> None:
    order = acme.order("EXECUTING")

    async def story(hold_of: Callable[..., Any]) -> None:
        holding = asyncio.Event()

        async def work() -> None:
            async with hold_of(acme.id, order, "worker-1", ttl_ms=LONG) as hold:
                holding.set()
                await hold.wait(SECONDS)

        task = asyncio.create_task(work())
        await holding.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(shared_database, relay, story)
    assert [row["lease_state"] for row in leases(acme, order)] == ["RELEASED"]
