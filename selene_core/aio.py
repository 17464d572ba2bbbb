"""The async faces of the scope and the repositories: no logic of their own (SPEC.md section 14).

Each call runs its synchronous twin on the same connection in a greenlet, where psycopg's async driver waits
for the server without holding up the event loop: both faces send the same statements and raise the same
errors.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from selene_core.contracts import check_tenant_id
from selene_core.database import tenant_scope
from selene_core.repository import Repository
from selene_core.transactions import append_batch, rebuild_groups
from selene_core.work_order_statements import EVENTS_PAGE
from selene_core.work_orders import WorkOrderRepository, batch_to_wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from selene_core.contracts import (
        AppendResult,
        RebuildReport,
        WorkOrderEvent,
        WorkOrderLedgerEventInput,
    )

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Repository)


@asynccontextmanager
async def async_tenant_scope(
    bind: AsyncEngine | AsyncConnection, tenant_id: str
) -> AsyncIterator[AsyncConnection]:
    """Run one transaction for one tenant and yield its connection: tenant_scope() for async engines.

    Canceled inside, it rolls back. Raises what tenant_scope() raises (SPEC.md section 10).
    """
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as conn, async_tenant_scope(conn, tenant_id):
            yield conn
        return
    scope: Any = await bind.run_sync(lambda conn: tenant_scope(conn, tenant_id))
    await bind.run_sync(lambda _: scope.__enter__())
    try:
        yield bind
    except BaseException:
        exc_info = sys.exc_info()
        if not await bind.run_sync(lambda _: scope.__exit__(*exc_info)):
            raise
    else:
        await bind.run_sync(lambda _: scope.__exit__(None, None, None))


class AsyncRepository:
    """Hand each call to the synchronous repository of the same connection."""

    _twin: ClassVar[type[Repository]]

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn


def _face(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Make the async face of a repository's method."""

    @wraps(method)
    async def face(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        conn: AsyncConnection = self._conn
        return await conn.run_sync(lambda twin_conn: method(self._twin(twin_conn), *args, **kwargs))

    return face


class AsyncWorkOrderRepository(AsyncRepository):
    """Do what WorkOrderRepository does, for the connection of an async_tenant_scope."""

    _twin = WorkOrderRepository

    append = _face(WorkOrderRepository.append)
    append_many = _face(WorkOrderRepository.append_many)
    get = _face(WorkOrderRepository.get)
    get_by_correlation = _face(WorkOrderRepository.get_by_correlation)
    list_pending = _face(WorkOrderRepository.list_pending)
    cancel = _face(WorkOrderRepository.cancel)
    ask = _face(WorkOrderRepository.ask)
    notify_wait = _face(WorkOrderRepository.notify_wait)
    rebuild = _face(WorkOrderRepository.rebuild)
    verify = _face(WorkOrderRepository.verify)
    as_of = _face(WorkOrderRepository.as_of)

    async def events(self, work_order_id: str, after: int = 0) -> AsyncIterator[WorkOrderEvent]:
        """Iterate over the events as WorkOrderRepository.events does, a page in memory at a time."""
        rows = await self._conn.run_sync(lambda conn: WorkOrderRepository(conn).events(work_order_id, after))
        while page := await self._conn.run_sync(lambda _: [*islice(rows, EVENTS_PAGE)]):
            for row in page:
                yield row


async def async_append_events(
    engine: AsyncEngine, tenant_id: str, events: Iterable[WorkOrderLedgerEventInput]
) -> list[AppendResult]:
    """Append as append_events() does, in one round trip and a transaction of its own (SPEC.md section 4)."""
    tenant_id, wire = check_tenant_id(tenant_id), batch_to_wire(events)
    async with engine.connect() as conn:
        return await conn.run_sync(append_batch, tenant_id, wire)


async def async_rebuild_tenant(
    engine: AsyncEngine, tenant_id: str, progress: Callable[[RebuildReport], object] | None = None
) -> RebuildReport:
    """Rebuild as rebuild_tenant() does, one short transaction per group of orders (SPEC.md section 5)."""
    tenant_id = check_tenant_id(tenant_id)
    async with engine.connect() as conn:
        return await conn.run_sync(rebuild_groups, tenant_id, progress)
