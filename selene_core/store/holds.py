"""hold_lease: hold a lease for the time of a block, and renew it beside it (contract §8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from threading import Condition, Event, Thread
from time import monotonic
from typing import Final

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from selene_core.contract.errors import InvalidTransition, LeaseLost, SeleneError
from selene_core.contract.events import check_tenant_id
from selene_core.contract.rows import HeldLease
from selene_core.store.aio import async_tenant_scope
from selene_core.store.binds import checked
from selene_core.store.instants import Instant
from selene_core.store.leases import LeaseRepository
from selene_core.store.logs import log_lost_lease, log_stranded_lease
from selene_core.store.scope import tenant_scope

_NOW: Final = select(func.clock_timestamp(type_=Instant()))


class _Hold:
    """What is known of a lease that a block holds. The clock decides whether it is lost, not a thread."""

    def __init__(self, lease: HeldLease, ttl_ms: int, ends_at: float) -> None:
        """Begin with a lease that ends at this time of monotonic(), or a little later."""
        self.lease = lease
        self.not_before: datetime | None = None
        self._ttl_ms = ttl_ms
        self._ends_at = ends_at
        self._asked_at = ends_at - ttl_ms / 1_000
        self._retrying = False
        self._lost = False
        self._order_ended = False
        self._changed = Condition()

    @property
    def lost(self) -> bool:
        """Whether the lease is lost: somebody may have taken over, or the work order has ended.

        It is lost, too, when it could not be renewed in time. Once it is True it stays True.
        """
        with self._changed:
            if not self._lost and monotonic() >= self._ends_at:
                self._lose("it was not renewed in time")
            return self._lost

    def check(self) -> None:
        """Raise LeaseLost if the lease is lost. Call it before each thing that must not be done twice."""
        if self.lost:
            raise LeaseLost(work_order_id=self.lease.work_order_id)

    def _pause(self) -> float:
        """Return in how many seconds to renew: after a third of the ttl; soon, if that failed."""
        if self._retrying:
            return min(1.0, self._ttl_ms / 12_000)
        return max(0.0, self._asked_at + self._ttl_ms / 3_000 - monotonic())

    def _renew(self, conn: Connection) -> HeldLease:
        self._asked_at = monotonic()
        return LeaseRepository(conn).renew(self.lease.work_order_id, self.lease.token, ttl_ms=self._ttl_ms)

    def _renewed(self, lease: HeldLease) -> None:
        with self._changed:
            if not self.lost:  # an answer that comes after the end is too late
                self.lease, self._ends_at = lease, self._asked_at + self._ttl_ms / 1_000
                self._retrying = False
                self._changed.notify_all()

    def _failed(self, exc: Exception) -> None:
        """Take note of a renewal that failed: another try may help, unless the database refused it."""
        with self._changed:
            self._retrying = True
            if isinstance(exc, SeleneError) and not exc.retryable and not self._lost:
                self._order_ended = isinstance(exc, InvalidTransition)
                # The call itself has logged a LeaseLost.
                told = self._order_ended or isinstance(exc, LeaseLost)
                self._lose(None if told else type(exc).__name__)

    def _lose(self, why: str | None) -> None:
        """Take note that the lease is lost; log why, if that is not said elsewhere."""
        self._lost = True
        self._changed.notify_all()
        if why is not None:
            log_lost_lease(self.lease.tenant_id, self.lease.work_order_id, why)

    def _seconds_left(self) -> float:
        return max(0.0, self._ends_at - monotonic())

    def _is_kept(self) -> bool:
        """Tell at the end of the block whether there is a lease to give back."""
        return not self.lost or self._order_ended

    def _give_back(self, conn: Connection) -> None:
        LeaseRepository(conn).release(self.lease.work_order_id, self.lease.token, not_before=self.not_before)

    def _is_stranded(self, exc: Exception) -> None:
        """Take note that the lease could not be given back: it ends by itself."""
        held = self.lease
        log_stranded_lease(held.tenant_id, held.work_order_id, type(exc).__name__)


class LeaseHold(_Hold):
    """A lease that hold_lease() holds for a block (contract §8).

    `lease` is the lease as it was last renewed. Set `not_before`, and claim() leaves the work order alone
    until then, once the block has ended.
    """

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the lease is lost; return whether it is."""
        until = monotonic() + seconds
        with self._changed:
            while not self.lost and (left := until - monotonic()) > 0:
                self._changed.wait(min(left, self._ends_at - monotonic()))
            return self.lost


class AsyncLeaseHold(_Hold):
    """A lease that async_hold_lease() holds for a block: as LeaseHold, but wait() is awaited."""

    def __init__(self, lease: HeldLease, ttl_ms: int, ends_at: float) -> None:
        """Begin with a lease that ends at this time of monotonic(), or a little later."""
        super().__init__(lease, ttl_ms, ends_at)
        self._gone = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the lease is lost; return whether it is."""
        until = monotonic() + seconds
        while not self.lost and (left := until - monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), min(left, self._ends_at - monotonic()))
        return self.lost

    def _lose(self, why: str | None) -> None:
        super()._lose(why)
        self._gone.set()


@contextmanager
def hold_lease(
    engine: Engine, tenant_id: str, work_order_id: str, owner: str, *, ttl_ms: int, token: str | None = None
) -> Iterator[LeaseHold]:
    """Hold the lease on a work order for a block: take it, renew it, and give it back at the end.

    A thread of its own renews it after each third of `ttl_ms`; for that the engine needs a connection more
    than the block does. A renewal that fails is repeated as long as the lease may still be held. The block
    looks at `lost`, or calls check() or wait(): a lost lease is another's, and the database refuses its
    token. The end of the block raises LeaseLost if the lease was lost, unless the block raises an exception
    of its own or the work order has ended.

    `token`: that of a claim(), whose lease goes on; or one made with secrets.token_urlsafe(32), so that the
    call can be repeated after a lost reply. Raises what acquire() raises, and TypeError for anything but an
    Engine.
    """
    owned: Engine = checked("hold_lease", "an Engine", engine, Engine)
    tenant_id = check_tenant_id(tenant_id)
    with tenant_scope(owned, tenant_id) as conn:
        hold = LeaseHold(*_take(conn, work_order_id, owner, ttl_ms, token))
    stopped = Event()
    keeping = Thread(target=_keep, args=(owned, tenant_id, hold, stopped), name="selene-lease", daemon=True)
    keeping.start()
    try:
        yield hold
    except BaseException:
        stopped.set()
        with suppress(SeleneError):
            _end(owned, tenant_id, hold, keeping)
        raise
    stopped.set()
    _end(owned, tenant_id, hold, keeping)


def _take(
    conn: Connection, work_order_id: str, owner: str, ttl_ms: int, token: str | None
) -> tuple[HeldLease, int, float]:
    """Take the lease; return what a hold begins with."""
    lease = LeaseRepository(conn).acquire(work_order_id, owner, ttl_ms=ttl_ms, token=token)
    # By the clock of the process, which nobody sets. That of a claim has run for a while.
    now = monotonic()
    left = lease.lease_expires_at - conn.execute(_NOW).scalar_one()
    return lease, ttl_ms, now + left.total_seconds()


def _keep(engine: Engine, tenant_id: str, hold: LeaseHold, stopped: Event) -> None:
    while not stopped.wait(hold._pause()) and not hold.lost:
        try:
            with tenant_scope(engine, tenant_id) as conn:
                lease = hold._renew(conn)
        except Exception as exc:  # whatever it was, the thread goes on: lost is decided by the clock
            hold._failed(exc)
            continue
        hold._renewed(lease)
        if stopped.is_set():  # the block did not wait for this answer: nobody works under what it renewed
            with suppress(SeleneError):
                _give_back(engine, tenant_id, hold)


def _end(engine: Engine, tenant_id: str, hold: LeaseHold, keeping: Thread) -> None:
    keeping.join(hold._seconds_left())
    if hold._is_kept():
        _give_back(engine, tenant_id, hold)
    else:
        hold.check()


def _give_back(engine: Engine, tenant_id: str, hold: LeaseHold) -> None:
    try:
        with tenant_scope(engine, tenant_id) as conn:
            hold._give_back(conn)
    except SQLAlchemyError as exc:
        hold._is_stranded(exc)


@asynccontextmanager
async def async_hold_lease(
    engine: AsyncEngine,
    tenant_id: str,
    work_order_id: str,
    owner: str,
    *,
    ttl_ms: int,
    token: str | None = None,
) -> AsyncIterator[AsyncLeaseHold]:
    """Hold the lease on a work order for a block, as hold_lease() does; a task renews it (contract §8).

    The event loop must not be blocked for longer than two thirds of `ttl_ms`.
    """
    owned: AsyncEngine = checked("async_hold_lease", "an AsyncEngine", engine, AsyncEngine)
    tenant_id = check_tenant_id(tenant_id)
    async with async_tenant_scope(owned, tenant_id) as conn:
        hold = AsyncLeaseHold(*await conn.run_sync(_take, work_order_id, owner, ttl_ms, token))
    keeping = asyncio.create_task(_keep_async(owned, tenant_id, hold))
    try:
        yield hold
    except BaseException:
        with suppress(SeleneError):
            await _end_async(owned, tenant_id, hold, keeping)
        raise
    await _end_async(owned, tenant_id, hold, keeping)


async def _keep_async(engine: AsyncEngine, tenant_id: str, hold: AsyncLeaseHold) -> None:
    while not await hold.wait(hold._pause()):
        try:
            async with async_tenant_scope(engine, tenant_id) as conn:
                lease = await conn.run_sync(hold._renew)
        except Exception as exc:  # as in _keep
            hold._failed(exc)
            continue
        hold._renewed(lease)


async def _end_async(
    engine: AsyncEngine, tenant_id: str, hold: AsyncLeaseHold, keeping: asyncio.Task[None]
) -> None:
    keeping.cancel()  # a renewal under way is rolled back with its connection
    await asyncio.wait({keeping}, timeout=hold._seconds_left() + 1)
    if not hold._is_kept():
        hold.check()
        return
    try:
        async with async_tenant_scope(engine, tenant_id) as conn:
            await conn.run_sync(hold._give_back)
    except SQLAlchemyError as exc:
        hold._is_stranded(exc)
