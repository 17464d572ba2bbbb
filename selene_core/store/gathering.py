"""Which events of many callers go into which call, and what follows from its outcome. No input, no output.

An order has one event on its way at a time; the next of its events wait in line. So an answer is that of a
call of its own, whatever else is in the call.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy.exc import DBAPIError, OperationalError

from selene_core.store.failures import sqlstate_of
from selene_core.store.repository import Secret
from selene_core.store.work_orders import batch_to_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from selene_core.contract.events import WorkOrderLedgerEventInput
    from selene_core.contract.rows import AppendResult

MAX_GATHERED: Final = 128
_PARTS: Final = 8
_LOCK_NOT_AVAILABLE: Final = "55P03"
_FIRST_WAIT: Final = 20
_LONGEST_WAIT: Final = 160


class Waiting:
    """A caller's event, until it has its answer: a result or an error."""

    __slots__ = (
        "alone",
        "answered",
        "event",
        "given_up",
        "has_key",
        "order",
        "tenant_id",
        "waited",
        "was_lost",
    )

    def __init__(
        self,
        tenant_id: str,
        event: WorkOrderLedgerEventInput,
        answered: Callable[[AppendResult | BaseException], object],
    ) -> None:
        """Check the event as append_events does; raises ContractViolation."""
        self.event: Final = batch_to_wire([event])[1:-1]  # without the brackets
        self.tenant_id: Final = tenant_id
        self.order: Final = (tenant_id, event.work_order_id)
        self.has_key: Final = event.idempotency_key is not None
        # A thread is judged by the state that a call leaves: two orders could swap theirs.
        self.alone: Final = event.correlation_id is not None
        self.answered: Final = answered
        self.given_up = False
        self.was_lost = False
        self.waited = 0


@dataclass(slots=True, eq=False)
class Call:
    """Events of one tenant, each of another order, that are sent together."""

    waiting: list[Waiting]
    gathered: bool = False
    """Whether it holds the place of the tenant's gathered call."""
    suspect: bool = False
    """Whether one of its orders may be locked by somebody."""
    limit: int = field(default=0)
    """Milliseconds that the session lets a statement wait for a lock; 0 without a limit."""

    @property
    def tenant_id(self) -> str:
        """The tenant of all its events."""
        return self.waiting[0].tenant_id

    @property
    def events(self) -> str:
        """The argument of the append function; secret, because an event may contain a lease token."""
        return Secret(f"[{','.join(each.event for each in self.waiting)}]")

    @property
    def lock_timeout(self) -> int:
        """Milliseconds that it waits for a lock: so a locked order holds up the others in it no longer."""
        return min(max(_FIRST_WAIT, self.waiting[0].waited), _LONGEST_WAIT)


class Gathering:
    """The events that wait, and the calls that are under way: at most `calls`, one of each tenant gathered.

    Calls with an order that may be locked leave one place free, so that they never hold up all the others.
    """

    def __init__(self, calls: int) -> None:
        if calls < 2:
            raise ValueError("calls must be at least 2: one may have to wait for a lock")
        self._calls = calls
        self._under_way = 0
        self._suspects = 0
        self._gathered: set[str] = set()
        self._ready: dict[tuple[str, bool], deque[Waiting]] = {}
        self._apart: deque[Call] = deque()
        self._suspected: deque[Call] = deque()
        self._lines: dict[tuple[str, str], deque[Waiting]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._lines

    def add(self, waiting: Waiting) -> None:
        """Take an event; behind another of its order it waits in line."""
        line = self._lines.get(waiting.order)
        if line is None:
            self._lines[waiting.order] = deque()
            self._make_ready(waiting)
        else:
            line.append(waiting)

    def next_call(self) -> Call | None:
        """Return a call to make now, and count it as under way; None if there is none."""
        while self._under_way < self._calls:
            call = self._choose()
            if call is None:
                return None
            call.waiting = [each for each in call.waiting if not self._is_dropped(each)]
            if call.waiting:
                self._under_way += 1
                self._suspects += call.suspect
                if call.gathered:
                    self._gathered.add(call.tenant_id)
                return call
        return None

    def returned(self, call: Call) -> None:
        """Take back a call that was not made."""
        self._ended(call)
        call.gathered = False
        self._apart.appendleft(call)

    def succeeded(self, call: Call, results: Sequence[AppendResult]) -> None:
        """Answer with the results of a call."""
        self._ended(call)
        for waiting, result in zip(call.waiting, results, strict=True):
            self._answer(waiting, result)

    def failed(self, call: Call, error: BaseException, *, sent: bool) -> None:
        """Answer whom an error concerns; whatever was certainly not written otherwise is sent again."""
        self._ended(call)
        if sent and not _is_certain(error):
            self._lost(call, error)
        elif not sent or (len(call.waiting) == 1 and not self._may_wait_on(call, error)):
            for waiting, told in zip(call.waiting, _copies(error), strict=False):
                self._answer(waiting, told)
        else:
            self._divide(call, error)

    def _choose(self) -> Call | None:
        if self._apart:
            return self._apart.popleft()
        for place, ready in self._ready.items():
            tenant_id, alone = place
            if not alone and tenant_id in self._gathered:
                continue
            count = 1 if alone else min(len(ready), MAX_GATHERED)
            call = Call([ready.popleft() for _ in range(count)], gathered=not alone)
            del self._ready[place]
            if ready:
                self._ready[place] = ready  # behind the others
            return call
        if self._suspected and self._suspects < self._calls - 1:
            return self._suspected.popleft()
        return None

    def _make_ready(self, waiting: Waiting) -> None:
        self._ready.setdefault((waiting.tenant_id, waiting.alone), deque()).append(waiting)

    def _is_dropped(self, waiting: Waiting) -> bool:
        """Tell whether its caller has gone; then the next of its order comes."""
        if waiting.given_up:
            self._next_of(waiting)
        return waiting.given_up

    def _ended(self, call: Call) -> None:
        self._under_way -= 1
        self._suspects -= call.suspect
        if call.gathered:
            self._gathered.discard(call.tenant_id)

    def _answer(self, waiting: Waiting, answer: AppendResult | BaseException) -> None:
        self._next_of(waiting)
        waiting.answered(answer)

    def _next_of(self, waiting: Waiting) -> None:
        line = self._lines[waiting.order]
        if line:
            self._make_ready(line.popleft())
        else:
            del self._lines[waiting.order]

    def _lost(self, call: Call, error: BaseException) -> None:
        """Say so to those who cannot know what became of their event; a key makes sending it again safe."""
        again = [each for each in call.waiting if each.has_key and not each.was_lost]
        told = _copies(error)
        for waiting in call.waiting:
            if waiting not in again:
                self._answer(waiting, next(told))
            waiting.was_lost = True
        if again:
            self._apart.append(Call(again))

    def _may_wait_on(self, call: Call, error: BaseException) -> bool:
        if sqlstate_of(error) != _LOCK_NOT_AVAILABLE:
            return False
        (waiting,) = call.waiting
        waiting.waited += call.lock_timeout
        return not 0 < call.limit <= waiting.waited

    def _divide(self, call: Call, error: BaseException) -> None:
        """Send again what a refused call had, in smaller parts; whom the refusal names, alone."""
        suspect = call.suspect or sqlstate_of(error) == _LOCK_NOT_AVAILABLE
        index = getattr(error, "event_index", None)
        rest = [*call.waiting]
        named = [rest.pop(index)] if isinstance(index, int) and index < len(rest) else []
        size = max(1, len(call.waiting) // _PARTS)
        parts = [rest[start : start + size] for start in range(0, len(rest), size)]
        queue = self._suspected if suspect else self._apart
        queue.extend(Call(part, suspect=suspect) for part in (named, *parts) if part)


def _is_certain(error: BaseException) -> bool:
    """Tell whether the server has said that it wrote nothing, in a session that goes on."""
    by_driver = error if isinstance(error, DBAPIError) else error.__cause__
    if not isinstance(by_driver, DBAPIError) or by_driver.connection_invalidated:
        return False
    cause = by_driver.orig
    return (
        isinstance(cause, psycopg.Error)
        and cause.sqlstate is not None
        and cause.diag.severity_nonlocalized == "ERROR"
    )


def _copies(error: BaseException) -> Iterator[BaseException]:
    """Return the error, then copies: each caller raises one of his own.

    Whoever made the call may have been interrupted. That is not for the others.
    """
    if not isinstance(error, Exception):
        error = OperationalError("the call was interrupted: its outcome is unknown", None, error)
    another = error
    while True:
        yield another
        with suppress(Exception):
            another = copy(error)
            another.__cause__ = error.__cause__
