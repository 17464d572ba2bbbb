"""The asynchronous feed: the steps of Feed, each run on the same connection in a greenlet (contract §16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from selene_core.contract.rows import FeedConsumer, FeedEvent, FeedProblem
from selene_core.store.aio import async_tenant_scope
from selene_core.store.binds import AsyncBind, async_bound, async_joined, checked
from selene_core.store.feed import (
    FEED_BATCH,
    Leased,
    Place,
    Wait,
    ack_target,
    feed_status,
    in_autocommit_mode,
    read_feed,
    verify_feed,
)

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

T = TypeVar("T")

AsyncStop: TypeAlias = Callable[[], bool] | asyncio.Event
"""What ends follow(): a function that returns True, or an event that is set."""


class AsyncFeed:
    """Do what Feed does, for an asynchronous engine."""

    def __init__(
        self, engine: AsyncEngine, tenant_id: str, consumer: str, *, limit: int = FEED_BATCH
    ) -> None:
        """Read for `consumer`, as Feed does."""
        self._engine: AsyncEngine = checked("AsyncFeed", "an AsyncEngine", engine, AsyncEngine)
        self._place = Place.of(tenant_id, consumer, limit)

    async def enroll(self) -> bool:
        """Make the consumer, as Feed.enroll() does."""
        return await _alone(self._engine, self._place.enroll)

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[tuple[AsyncConnection, list[FeedEvent]]]:
        """Run one transaction, as Feed.batch() does."""
        await self._poll()
        async with async_tenant_scope(self._engine, self._place.tenant_id) as conn:
            yield conn, await conn.run_sync(self._place.take)

    async def follow(
        self, *, stop: AsyncStop | None = None
    ) -> AsyncGenerator[tuple[AsyncConnection, FeedEvent]]:
        """Iterate over the events for ever, as Feed.follow() does.

        After a break, close it (contextlib.aclosing), or the last batch's transaction stays open.
        """
        wait = Wait(stop)
        while not wait.is_over():
            found = 0
            if await self._poll():
                async with async_tenant_scope(self._engine, self._place.tenant_id) as conn:
                    for event in await conn.run_sync(self._place.take):
                        found += 1
                        yield conn, event
            for seconds in wait.after(found, self._place.limit):
                await asyncio.sleep(seconds)

    @asynccontextmanager
    async def lease(self, owner: str, *, ttl_ms: int) -> AsyncIterator[AsyncFeedBatch]:
        """Hold the consumer, as Feed.lease() does."""
        checked_owner, checked_ttl = self._place.check_lease(owner, ttl_ms)
        leased = None
        if await self._poll():
            leased = await _alone(
                self._engine, lambda conn: self._place.lease(conn, checked_owner, checked_ttl)
            )
        batch = AsyncFeedBatch(self._engine, self._place, leased)
        try:
            yield batch
        finally:
            if leased is not None:
                with suppress(DBAPIError):
                    await _alone(self._engine, lambda conn: self._place.release(conn, leased.fence))

    async def _poll(self) -> bool:
        return await _alone(self._engine, self._place.poll)


class AsyncFeedBatch:
    """Do what FeedBatch does, for AsyncFeed."""

    def __init__(self, engine: AsyncEngine, place: Place, leased: Leased | None) -> None:
        self._engine = engine
        self._place = place
        self._leased = leased
        self._acked = leased.feed_position if leased else 0
        self.events: tuple[FeedEvent, ...] = leased.events if leased else ()
        self.fence: int | None = leased.fence if leased else None
        self.lease_expires_at: datetime | None = leased.lease_expires_at if leased else None

    async def ack(self, feed_position: int | None = None) -> None:
        """Move the consumer's place, as FeedBatch.ack() does."""
        if self._leased is not None:
            to = ack_target(self.events, self._acked, feed_position)
            await _alone(self._engine, lambda conn: self._place.ack(conn, self.fence, self._acked, to))
            self._acked = to


async def async_read_feed(
    bind: AsyncBind, tenant_id: str, after: int = 0, limit: int = FEED_BATCH
) -> list[FeedEvent]:
    """Return the next events after a position, as read_feed() does (contract §16)."""
    return await _asked("async_read_feed", bind, lambda conn: read_feed(conn, tenant_id, after, limit))


async def async_feed_status(bind: AsyncBind, tenant_id: str) -> list[FeedConsumer]:
    """Return where each consumer of a tenant's feed stands, as feed_status() does (contract §16)."""
    return await _asked("async_feed_status", bind, lambda conn: feed_status(conn, tenant_id))


async def async_verify_feed(bind: AsyncBind, tenant_id: str) -> list[FeedProblem]:
    """Compare a tenant's feed with its ledger, as verify_feed() does (contract §16)."""
    return await _asked("async_verify_feed", bind, lambda conn: verify_feed(conn, tenant_id))


async def _asked(name: str, bind: Any, work: Callable[[Connection], T]) -> T:
    bind = async_bound(name, bind)
    if isinstance(bind, AsyncEngine):
        return await _alone(bind, work)
    return await (await async_joined(bind)).run_sync(work)


async def _alone(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    async with engine.connect() as conn:
        return await conn.run_sync(in_autocommit_mode, work)
