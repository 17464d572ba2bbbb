"""The asynchronous scope and repositories, without any logic of their own (contract §14).

Each call runs its synchronous twin in a greenlet, on the same connection. There psycopg's async driver waits
for the server without blocking the event loop. So both send the same statements and raise the same errors.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import wraps
from itertools import islice
from types import GenericAlias
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar, get_args, get_type_hints

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from selene_core.contract.events import WorkOrderLedgerEventInput, check_tenant_id
from selene_core.contract.rows import AppendResult, Erasure, RebuildReport
from selene_core.store.attempts import StepAttemptRepository
from selene_core.store.binds import AsyncBind, async_bound, async_joined, checked
from selene_core.store.conversation import ConversationRepository
from selene_core.store.erasure import checked_erasure, erase_alone, erase_joined
from selene_core.store.identities import IdentityRepository
from selene_core.store.leases import LeaseRepository
from selene_core.store.repository import Repository
from selene_core.store.retries import Attempts
from selene_core.store.scope import tenant_scope
from selene_core.store.transactions import append_alone, append_joined, rebuild_groups
from selene_core.store.work_orders import WorkOrderRepository, batch_to_wire

_PAGE: Final = 64

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Repository)


@asynccontextmanager
async def async_tenant_scope(bind: AsyncBind, tenant_id: str) -> AsyncIterator[AsyncConnection]:
    """Run one transaction for one tenant and yield its connection, as tenant_scope() does (contract §10).

    If the task is canceled inside, a transaction that it began is rolled back. Raises what tenant_scope()
    raises.
    """
    bind = async_bound("async_tenant_scope", bind)
    tenant_id = check_tenant_id(tenant_id)
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as conn, async_tenant_scope(conn, tenant_id):
            yield conn
        return
    conn = await async_joined(bind)
    scope: Any = await conn.run_sync(lambda twin_conn: tenant_scope(twin_conn, tenant_id))
    await conn.run_sync(lambda _: scope.__enter__())
    try:
        yield conn
    except BaseException:
        exc_info = sys.exc_info()
        if not await conn.run_sync(lambda _: scope.__exit__(*exc_info)):
            raise
    else:
        await conn.run_sync(lambda _: scope.__exit__(None, None, None))


class AsyncRepository:
    """Pass each call to the synchronous repository on the same connection."""

    _twin: ClassVar[type[Repository]]

    def __init__(self, conn: AsyncConnection) -> None:
        """Work on the connection that async_tenant_scope yields; raises TypeError for anything else."""
        wanted = "the AsyncConnection that async_tenant_scope yields"
        self._conn: AsyncConnection = checked(type(self).__name__, wanted, conn, AsyncConnection)


def _face(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Make the asynchronous twin of a repository's method."""

    @wraps(method)
    async def face(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        conn: AsyncConnection = self._conn
        return await conn.run_sync(lambda twin_conn: method(self._twin(twin_conn), *args, **kwargs))

    return face


def _stream(
    method: Callable[Concatenate[R, P], Iterator[T]],
) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """Make the asynchronous twin of a repository's method that reads page by page."""

    @wraps(method)
    async def face(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        conn: AsyncConnection = self._conn
        rows = await conn.run_sync(lambda twin_conn: method(self._twin(twin_conn), *args, **kwargs))
        while page := await conn.run_sync(lambda _: [*islice(rows, _PAGE)]):
            for row in page:
                yield row

    # wraps() has copied the twin's annotations, which name a synchronous iterator.
    hints = get_type_hints(method)
    face.__annotations__ = {**hints, "return": GenericAlias(AsyncIterator, get_args(hints["return"]))}
    return face


class AsyncWorkOrderRepository(AsyncRepository):
    """Do what WorkOrderRepository does, for the connection of an async_tenant_scope."""

    _twin = WorkOrderRepository

    append = _face(WorkOrderRepository.append)
    append_many = _face(WorkOrderRepository.append_many)
    get = _face(WorkOrderRepository.get)
    resolve = _face(WorkOrderRepository.resolve)
    get_by_correlation = _face(WorkOrderRepository.get_by_correlation)
    events = _stream(WorkOrderRepository.events)
    list_pending = _face(WorkOrderRepository.list_pending)
    create = _face(WorkOrderRepository.create)
    set_field = _face(WorkOrderRepository.set_field)
    change_status = _face(WorkOrderRepository.change_status)
    detect_conflict = _face(WorkOrderRepository.detect_conflict)
    resolve_conflict = _face(WorkOrderRepository.resolve_conflict)
    request_approval = _face(WorkOrderRepository.request_approval)
    resolve_approval = _face(WorkOrderRepository.resolve_approval)
    list_orders = _face(WorkOrderRepository.list_orders)
    cancel = _face(WorkOrderRepository.cancel)
    ask = _face(WorkOrderRepository.ask)
    notify_wait = _face(WorkOrderRepository.notify_wait)
    rebuild = _face(WorkOrderRepository.rebuild)
    verify = _face(WorkOrderRepository.verify)
    verify_chain = _face(WorkOrderRepository.verify_chain)
    as_of = _face(WorkOrderRepository.as_of)


class AsyncLeaseRepository(AsyncRepository):
    """Do what LeaseRepository does, for the connection of an async_tenant_scope."""

    _twin = LeaseRepository

    acquire = _face(LeaseRepository.acquire)
    claim = _face(LeaseRepository.claim)
    renew = _face(LeaseRepository.renew)
    release = _face(LeaseRepository.release)
    current = _face(LeaseRepository.current)


class AsyncStepAttemptRepository(AsyncRepository):
    """Do what StepAttemptRepository does, for the connection of an async_tenant_scope."""

    _twin = StepAttemptRepository

    start = _face(StepAttemptRepository.start)
    finish = _face(StepAttemptRepository.finish)
    history = _face(StepAttemptRepository.history)
    due_retries = _face(StepAttemptRepository.due_retries)


class AsyncIdentityRepository(AsyncRepository):
    """Do what IdentityRepository does, for the connection of an async_tenant_scope."""

    _twin = IdentityRepository

    register_identity = _face(IdentityRepository.register_identity)
    register_device = _face(IdentityRepository.register_device)
    open_session = _face(IdentityRepository.open_session)
    touch_session = _face(IdentityRepository.touch_session)
    soft_close_session = _face(IdentityRepository.soft_close_session)
    suspend_session = _face(IdentityRepository.suspend_session)
    resume_session = _face(IdentityRepository.resume_session)
    close_session = _face(IdentityRepository.close_session)
    get_identity = _face(IdentityRepository.get_identity)
    get_device = _face(IdentityRepository.get_device)
    get_session = _face(IdentityRepository.get_session)
    devices = _stream(IdentityRepository.devices)
    sessions = _stream(IdentityRepository.sessions)


class AsyncConversationRepository(AsyncRepository):
    """Do what ConversationRepository does, for the connection of an async_tenant_scope."""

    _twin = ConversationRepository

    append = _face(ConversationRepository.append)
    tombstone = _face(ConversationRepository.tombstone)
    get = _face(ConversationRepository.get)
    page = _face(ConversationRepository.page)
    turns = _stream(ConversationRepository.turns)


async def async_append_events(
    bind: AsyncBind, tenant_id: str, events: Iterable[WorkOrderLedgerEventInput]
) -> list[AppendResult]:
    """Append 1..1000 events, all or none, as append_events() does (contract §4)."""
    bind = async_bound("async_append_events", bind)
    tenant_id, wire = check_tenant_id(tenant_id), batch_to_wire(events)
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as conn:
            return await conn.run_sync(append_alone, tenant_id, wire)
    conn = await async_joined(bind)
    return await conn.run_sync(append_joined, tenant_id, wire)


async def async_erase_subject(
    bind: AsyncBind, tenant_id: str, subject_id: str, *, reason_code: int
) -> Erasure:
    """Erase what is kept about a person, as erase_subject() does (contract §18)."""
    bind = async_bound("async_erase_subject", bind)
    checked = checked_erasure(tenant_id, subject_id, reason_code)
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as conn:
            return await conn.run_sync(lambda twin_conn: erase_alone(twin_conn, **checked))
    conn = await async_joined(bind)
    return await conn.run_sync(lambda twin_conn: erase_joined(twin_conn, **checked))


async def async_rebuild_tenant(
    engine: AsyncEngine, tenant_id: str, progress: Callable[[RebuildReport], object] | None = None
) -> RebuildReport:
    """Rebuild every work order of a tenant, as rebuild_tenant() does (contract §5)."""
    owned: AsyncEngine = checked("async_rebuild_tenant", "an AsyncEngine", engine, AsyncEngine)
    tenant_id = check_tenant_id(tenant_id)
    async with owned.connect() as conn:
        return await conn.run_sync(rebuild_groups, tenant_id, progress)


async def async_run_in_tenant(
    engine: AsyncEngine,
    tenant_id: str,
    work: Callable[[AsyncConnection], Awaitable[T]],
    attempts: int = 5,
    *,
    retry_unknown: bool = False,
) -> T:
    """Return await work(conn), run and run again as run_in_tenant() does (contract §14)."""
    owned: AsyncEngine = checked("async_run_in_tenant", "an AsyncEngine", engine, AsyncEngine)
    attempting = Attempts(tenant_id, attempts, retry_unknown)
    while True:
        try:
            async with async_tenant_scope(owned, attempting.tenant_id) as conn:
                with attempting.one_on(await conn.run_sync(lambda twin_conn: twin_conn)):
                    return await work(conn)
        except Exception as exc:
            pause = attempting.pause_after(exc)
        await asyncio.sleep(pause)
