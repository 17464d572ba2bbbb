"""Appender and AsyncAppender: many callers append one event each, and share calls (contract §4)."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from threading import Condition, Event
from typing import TYPE_CHECKING, Any, Final, Self

from psycopg.errors import FeatureNotSupported
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from selene_core.contract.events import WorkOrderLedgerEventInput, check_tenant_id
from selene_core.contract.rows import AppendResult
from selene_core.store import work_order_statements as statements
from selene_core.store.binds import checked
from selene_core.store.failures import sqlstate_of
from selene_core.store.gathering import Call, Gathering, Waiting
from selene_core.store.repository import logged_refusals, send_unlogged
from selene_core.store.transactions import alone

if TYPE_CHECKING:
    from types import TracebackType

_IS_DISTRIBUTED: Final = "selene_is_distributed"
_CLOSED: Final = "the appender is closed"
_LIMIT: Final = """
    SELECT COALESCE(min(CAST(setting AS integer)), 0) FROM pg_catalog.pg_settings
    WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> '0'
"""


class Outcome:
    """What became of a call: nothing was sent, or there are results, or an error."""

    __slots__ = ("_call", "_results", "_sent", "error")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sent = False
        self._results: list[AppendResult] | None = None
        self.error: BaseException | None = None

    def send(self, conn: Connection) -> None:
        """Make the call on a connection that has no transaction yet."""
        call, self._sent = self._call, True
        # What several events meet together is told to nobody: they are sent again, in smaller parts.
        is_told = len(call.waiting) == 1
        try:
            with logged_refusals(call.tenant_id) if is_told else nullcontext():
                self._results = self._append(conn)
        except Exception:
            if is_told and not conn.invalidated:
                with suppress(Exception):
                    call.limit = conn.exec_driver_sql(_LIMIT).scalar_one()
            raise

    def _append(self, conn: Connection) -> list[AppendResult]:
        call = self._call
        given = {"tenant_id": call.tenant_id, "events": call.events}
        if not conn.info.get(_IS_DISTRIBUTED):
            try:
                return alone(conn, statements.APPEND_BRIEFLY, **given, lock_timeout=str(call.lock_timeout))
            except DBAPIError as exc:
                if sqlstate_of(exc) != FeatureNotSupported.sqlstate:
                    raise
                conn.rollback()  # nothing was written
                conn.info[_IS_DISTRIBUTED] = True
        # A distributed engine sends the call to its node only if it stands alone in its statement.
        with conn.begin():
            conn.exec_driver_sql(f"SET LOCAL lock_timeout = {call.lock_timeout}")
            rows = send_unlogged(conn, statements.APPEND, **given)
        return [statements.APPEND.read(row) for row in rows]

    def tell(self, gathering: Gathering) -> None:
        """Let the callers have their answers; an error after the results changes nothing."""
        if self._results is not None:
            gathering.succeeded(self._call, self._results)
        elif self.error is not None:
            gathering.failed(self._call, self.error, sent=self._sent)


class Appender:
    """Append single events of many threads, several in a call: each caller waits for his own answer.

    While a call is under way, the events that come next are gathered, by tenant, into the next one. A caller
    gets what append_events would give him alone: one caller's refusal is his alone, an event that gives a
    correlation_id goes alone, and at most one event of an order is under way. An order that somebody has
    locked holds up its own events only. At most `calls` connections of the engine are used at a time.

    A lost connection, whose outcome is unknown, is raised as SQLAlchemy's DBAPIError to a caller whose event
    has no idempotency_key. With a key the event is sent once more.
    """

    def __init__(self, engine: Engine, *, calls: int = 4) -> None:
        """Work on the engine; raises TypeError for anything else, ValueError for fewer than 2 calls."""
        self._engine: Engine = checked("Appender", "an Engine", engine, Engine)
        self._gathering = Gathering(calls)
        self._changed = Condition()
        self._closed = False

    def append(self, tenant_id: str, event: WorkOrderLedgerEventInput) -> AppendResult:
        """Append one event and wait for the answer; raises what append_events raises.

        Raises RuntimeError after close().
        """
        caller = _Caller(check_tenant_id(tenant_id), event)
        with self._changed:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._gathering.add(caller)
            self._hand_out(caller)
        try:
            while caller.answer is None:
                if (call := caller.call) is not None:
                    caller.call = None
                    self._make(call)
                else:
                    caller.woken.wait()
                    caller.woken.clear()
        finally:
            if caller.answer is None:  # interrupted
                self._give_up(caller)
        if isinstance(caller.answer, BaseException):
            raise caller.answer
        return caller.answer

    def close(self) -> None:
        """Take no more events, and wait until every caller has an answer."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._gathering.is_idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hand_out(self, first: _Caller | None = None) -> None:
        """Let a caller of each call that can be made now make it."""
        while (call := self._gathering.next_call()) is not None:
            callers: list[Any] = call.waiting
            maker: _Caller = first if first in callers else callers[0]  # type: ignore[assignment]  # not None
            maker.call = call
            maker.woken.set()
        if self._gathering.is_idle:
            self._changed.notify_all()

    def _make(self, call: Call) -> None:
        outcome = Outcome(call)
        try:
            with self._engine.connect() as conn:
                outcome.send(conn)
        except BaseException as exc:
            outcome.error = exc
            if not isinstance(exc, Exception):
                raise
        finally:
            with self._changed:
                outcome.tell(self._gathering)
                self._hand_out()

    def _give_up(self, caller: _Caller) -> None:
        with self._changed:
            caller.given_up = True
            if caller.call is not None:  # handed to it, and not begun: nothing was sent
                self._gathering.returned(caller.call)
            self._hand_out()


class _Caller(Waiting):
    """A thread that waits, and may be the one to make a call."""

    __slots__ = ("answer", "call", "woken")

    def __init__(self, tenant_id: str, event: WorkOrderLedgerEventInput) -> None:
        super().__init__(tenant_id, event, self._take)
        self.woken = Event()
        self.call: Call | None = None
        self.answer: AppendResult | BaseException | None = None

    def _take(self, answer: AppendResult | BaseException) -> None:
        self.answer = answer
        self.woken.set()


class AsyncAppender:
    """Append single events of many tasks, several in a call, as Appender does for threads.

    A caller that is canceled before its event is sent has written nothing. If the event is on its way, the
    call goes on for the others, and the event may be written.
    """

    def __init__(self, engine: AsyncEngine, *, calls: int = 4) -> None:
        """Work on the engine; raises TypeError for anything else, ValueError for fewer than 2 calls."""
        self._engine: AsyncEngine = checked("AsyncAppender", "an AsyncEngine", engine, AsyncEngine)
        self._gathering = Gathering(calls)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def append(self, tenant_id: str, event: WorkOrderLedgerEventInput) -> AppendResult:
        """Append one event and wait for the answer; raises what append_events raises.

        Raises RuntimeError after close().
        """
        answer: asyncio.Future[AppendResult] = asyncio.get_running_loop().create_future()

        def take(told: AppendResult | BaseException) -> None:
            if answer.done():  # canceled
                return
            if isinstance(told, BaseException):
                answer.set_exception(told)
            else:
                answer.set_result(told)

        waiting = Waiting(check_tenant_id(tenant_id), event, take)
        if self._closed:
            raise RuntimeError(_CLOSED)
        self._gathering.add(waiting)
        self._start()
        try:
            return await answer
        finally:
            waiting.given_up = True  # counts only without an answer

    async def close(self) -> None:
        """Take no more events, and wait until every caller has an answer."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start(self) -> None:
        while (call := self._gathering.next_call()) is not None:
            task = asyncio.get_running_loop().create_task(self._make(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make(self, call: Call) -> None:
        outcome = Outcome(call)
        try:
            async with self._engine.connect() as conn:
                await conn.run_sync(outcome.send)
        except BaseException as exc:
            outcome.error = exc
            if not isinstance(exc, Exception):
                raise
        finally:
            outcome.tell(self._gathering)
            self._start()
