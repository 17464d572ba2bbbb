"""The feed: a tenant's work-order events, for consumers that must miss none (contract §16)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from selene_core.contract.events import check_tenant_id
from selene_core.contract.frozen_json import MAX_INT64
from selene_core.contract.rows import FeedConsumer, FeedEvent, FeedProblem
from selene_core.contract.rules import MAX_ID, MAX_LEASE_TTL_MS, identifier, integer
from selene_core.store import feed_statements as statements
from selene_core.store.binds import Bind, bound, checked, joined
from selene_core.store.repository import fetch
from selene_core.store.scope import autocommitting, in_autocommit, tenant_scope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping, Select

T = TypeVar("T")

MAX_FEED_PAGE: Final = 1000
FEED_BATCH: Final = 100
FIRST_WAIT: Final = 0.02  # seconds
LONGEST_WAIT: Final = 1.0
POSITIONS_AT_ONCE: Final = 10_000  # how many events get their positions in one transaction
_LOOK_AT_STOP: Final = 0.05
_OTHERS_TURN: Final = 0.05

_CONSUMER: Final = identifier(MAX_ID)
_LIMIT: Final = integer(1, MAX_FEED_PAGE)
_POSITION: Final = integer(0, MAX_INT64)
_TTL_MS: Final = integer(1, MAX_LEASE_TTL_MS)

Stop: TypeAlias = Callable[[], bool] | Event
"""What ends follow(): a function that returns True, or an event that is set."""


class Feed:
    """The events of one tenant for one named consumer, each work order's in its order (contract §16).

    Every event comes, none twice to a consumer that works in batch() or follow(). Two instances of a consumer
    exclude each other: one gets the events, the other nothing. Different consumers do not disturb each other.
    """

    def __init__(self, engine: Engine, tenant_id: str, consumer: str, *, limit: int = FEED_BATCH) -> None:
        """Read for `consumer`, an id that stands for its place, 1..1000 events (`limit`) at a time.

        Raises ContractViolation, and TypeError for anything but an Engine.
        """
        self._engine: Engine = checked("Feed", "an Engine", engine, Engine)
        self._place = Place.of(tenant_id, consumer, limit)

    def enroll(self) -> bool:
        """Make the consumer, at position 0; False if it is there already. The other methods do so, too."""
        return alone(self._engine, self._place.enroll)

    @contextmanager
    def batch(self) -> Iterator[tuple[Connection, list[FeedEvent]]]:
        """Run one transaction: the next events, the consumer's place after them, and what you write.

        An exception takes all three back. The list is empty if there is nothing new, and while another
        instance is at work. The connection is in the tenant's tenant_scope.
        """
        self._poll()
        with tenant_scope(self._engine, self._place.tenant_id) as conn:
            yield conn, self._place.take(conn)

    def follow(self, *, stop: Stop | None = None) -> Generator[tuple[Connection, FeedEvent]]:
        """Iterate over the events for ever, each with the connection of its batch's transaction.

        A batch is committed when its last event is done and the next is asked for. A break, an exception or a
        killed process takes the batch back: its events come again. With `stop`, it ends after the batch at
        hand. Without news it looks again after 20 ms, then after twice as long each time, up to 1 s.
        """
        wait = Wait(stop)
        while not wait.is_over():
            found = 0
            if self._poll():
                with tenant_scope(self._engine, self._place.tenant_id) as conn:
                    for event in self._place.take(conn):
                        found += 1
                        yield conn, event
            for seconds in wait.after(found, self._place.limit):
                time.sleep(seconds)

    @contextmanager
    def lease(self, owner: str, *, ttl_ms: int) -> Iterator[FeedBatch]:
        """Hold the consumer for `ttl_ms` milliseconds (1..3,600,000), to send events elsewhere.

        The place moves by ack(), so events come at least once. `owner` is an id of this instance alone. The
        lease is given back at the end; what was not acknowledged comes again. Without news there is no lease,
        and the batch is empty. Raises LeaseHeld while another instance is at work.
        """
        owner, ttl_ms = self._place.check_lease(owner, ttl_ms)
        leased = None
        if self._poll():
            leased = alone(self._engine, lambda conn: self._place.lease(conn, owner, ttl_ms))
        batch = FeedBatch(self._engine, self._place, leased)
        try:
            yield batch
        finally:
            if leased is not None:
                # Nobody but the next holder would gain by an error here: the lease expires.
                with suppress(DBAPIError):
                    alone(self._engine, lambda conn: self._place.release(conn, leased.fence))

    def _poll(self) -> bool:
        return alone(self._engine, self._place.poll)


class FeedBatch:
    """Events under a lease: send them, then ack(). To be fenced, send `fence` along (contract §16)."""

    def __init__(self, engine: Engine, place: Place, leased: Leased | None) -> None:
        self._engine = engine
        self._place = place
        self._leased = leased
        self._acked = leased.feed_position if leased else 0
        self.events: tuple[FeedEvent, ...] = leased.events if leased else ()
        self.fence: int | None = leased.fence if leased else None
        self.lease_expires_at: datetime | None = leased.lease_expires_at if leased else None

    def ack(self, feed_position: int | None = None) -> None:
        """Move the consumer's place past the batch, or up to `feed_position`. It can be called again.

        Raises LeaseLost if the lease was taken over: what was sent comes again; ContractViolation.
        """
        if self._leased is not None:
            to = ack_target(self.events, self._acked, feed_position)
            alone(self._engine, lambda conn: self._place.ack(conn, self.fence, self._acked, to))
            self._acked = to


def read_feed(bind: Bind, tenant_id: str, after: int = 0, limit: int = FEED_BATCH) -> list[FeedEvent]:
    """Return the next 1..1000 events after a position, in order; also on a replica (contract §16).

    Only events that have positions: these are given on the primary, when a consumer asks. Raises
    ContractViolation, and what tenant_scope raises.
    """
    after, limit = _POSITION.check("after", after), _LIMIT.check("limit", limit)
    return statements.events(
        ask("read_feed", bind, statements.READ, tenant_id=tenant_id, after=after, limit=limit)
    )


def feed_status(bind: Bind, tenant_id: str) -> list[FeedConsumer]:
    """Return where each consumer of a tenant's feed stands (contract §16); raises what read_feed raises."""
    rows = ask("feed_status", bind, statements.STATUS, tenant_id=tenant_id, consumer=None)
    return [FeedConsumer(**row) for row in rows]


def verify_feed(bind: Bind, tenant_id: str) -> list[FeedProblem]:
    """Compare a tenant's feed with its ledger; name what is lost, out of order or wrong (contract §16).

    Raises what read_feed raises.
    """
    rows = ask("verify_feed", bind, statements.VERIFY, tenant_id=tenant_id)
    return [FeedProblem(**row) for row in rows]


# --- what the synchronous and the asynchronous faces share


@dataclass(frozen=True, slots=True)
class Leased:
    """A lease on a consumer, with the events after its place."""

    fence: int
    feed_position: int
    lease_expires_at: datetime
    events: tuple[FeedEvent, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A consumer of a tenant's feed. Its methods work on a connection in autocommit, but take()."""

    tenant_id: str
    consumer: str
    limit: int

    @classmethod
    def of(cls, tenant_id: object, consumer: object, limit: object) -> Place:
        """Check what a caller gives; raises ContractViolation."""
        return cls(
            check_tenant_id(tenant_id), _CONSUMER.check("consumer", consumer), _LIMIT.check("limit", limit)
        )

    def check_lease(self, owner: object, ttl_ms: object) -> tuple[str, int]:
        """Check what lease() is given; raises ContractViolation."""
        return _CONSUMER.check("owner", owner), _TTL_MS.check("ttl_ms", ttl_ms)

    def enroll(self, conn: Connection) -> bool:
        """Make the consumer; tell whether it is new."""
        is_new: bool = self._call(conn, statements.ENROLL)[0]["result"]
        return is_new

    def poll(self, conn: Connection) -> bool:
        """Give positions, in a transaction of its own; tell whether there are events for the consumer.

        It makes the consumer: in the batch, the new row would make others wait for the batch's end.
        """
        try:
            rows = self._call(conn, statements.POLL, limit=POSITIONS_AT_ONCE)
        except DBAPIError as exc:
            if not is_overtaken(exc):
                raise
            return True
        has_news: bool = rows[0]["result"]
        return has_news

    def take(self, conn: Connection) -> list[FeedEvent]:
        """Take the next events in the transaction of a tenant_scope."""
        return statements.events(self._call(conn, statements.TAKE, limit=self.limit))

    def lease(self, conn: Connection, owner: str, ttl_ms: int) -> Leased:
        """Take the lease and read the events after the consumer's place; raises LeaseHeld."""
        row = self._call(conn, statements.LEASE, owner=owner, ttl_ms=ttl_ms)[0]
        found = fetch(
            conn, statements.READ, tenant_id=self.tenant_id, after=row["feed_position"], limit=self.limit
        )
        return Leased(**row, events=tuple(statements.events(found)))

    def ack(self, conn: Connection, fence: int | None, from_: int, to: int) -> None:
        """Move the consumer's place; raises LeaseLost."""
        self._call(conn, statements.ACK, fence=fence, **{"from": from_, "to": to})

    def release(self, conn: Connection, fence: int) -> None:
        """Give the lease back, if it is still there."""
        self._call(conn, statements.RELEASE, fence=fence)

    def _call(self, conn: Connection, statement: Select[Any], **parameters: object) -> Sequence[RowMapping]:
        return fetch(conn, statement, tenant_id=self.tenant_id, consumer=self.consumer, **parameters)


class Wait:
    """How long follow() waits for news, and whether it is to end."""

    def __init__(self, stop: Any | None) -> None:
        """Take a function, or an event of threading or asyncio."""
        ends = getattr(stop, "is_set", stop)
        if ends is not None and not callable(ends):
            raise TypeError(f"stop must be a function or an Event, not {type(stop).__name__}")
        self.is_over: Callable[[], bool] = ends or (lambda: False)
        self._seconds = FIRST_WAIT

    def after(self, found: int, limit: int) -> Iterator[float]:
        """Yield the seconds to sleep after a batch, in parts short enough to notice the end."""
        if found == limit:
            return
        self._seconds = FIRST_WAIT if found else min(self._seconds * 2, LONGEST_WAIT)
        # Jitter: consumers that were started together do not all come at once.
        left = self._seconds * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        while left > 0 and not self.is_over():
            yield min(left, _LOOK_AT_STOP)
            left -= _LOOK_AT_STOP


def ack_target(events: Sequence[FeedEvent], acked: int, feed_position: int | None) -> int:
    """Return the position up to which ack() acknowledges; raises ContractViolation."""
    last = events[-1].feed_position if events else acked
    return last if feed_position is None else integer(acked, last).check("feed_position", feed_position)


def give_positions(conn: Connection, tenant_id: str) -> int | None:
    """Give positions to events that have none; None if another transaction is at it."""
    try:
        rows = fetch(conn, statements.ADVANCE, tenant_id=tenant_id, limit=POSITIONS_AT_ONCE)
    except DBAPIError as exc:
        if not is_overtaken(exc):
            raise
        return None
    numbered: int | None = rows[0]["result"]
    return numbered


def give_all_positions(conn: Connection, tenant_id: str, patience: float) -> bool:
    """Give what is committed by now its positions; False if others are at it for `patience` seconds."""
    since = time.monotonic()
    while True:
        numbered = give_positions(conn, tenant_id)
        if numbered is None:
            if time.monotonic() - since > patience:
                return False
            time.sleep(_OTHERS_TURN)
        elif numbered < POSITIONS_AT_ONCE:
            return True
        else:
            since = time.monotonic()


def is_overtaken(exc: DBAPIError) -> bool:
    """Tell whether another gave positions since the snapshot: where REPEATABLE READ is a role's default."""
    return isinstance(exc.orig, psycopg.errors.SerializationFailure)


def alone(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Work on a connection in autocommit: each statement is a transaction, and enters the tenant itself."""
    with engine.connect() as conn:
        return in_autocommit_mode(conn, work)


def in_autocommit_mode(conn: Connection, work: Callable[[Connection], T]) -> T:
    """Work on a connection that has no transaction yet, in autocommit."""
    with autocommitting(conn):
        return work(conn)


def ask(name: str, bind: Bind, statement: Select[Any], **parameters: object) -> Sequence[RowMapping]:
    """Return the rows of a statement: in autocommit on an engine, else in the bind's transaction."""
    bind = bound(name, bind)
    check_tenant_id(parameters["tenant_id"])
    if isinstance(bind, Engine):
        return alone(bind, lambda conn: fetch(conn, statement, **parameters))
    return ask_joined(joined(bind), statement, **parameters)


def ask_joined(conn: Connection, statement: Select[Any], **parameters: Any) -> Sequence[RowMapping]:
    """Return the rows of a statement, in the connection's transaction if it has one."""
    if in_autocommit(conn):
        return fetch(conn, statement, **parameters)
    with tenant_scope(conn, parameters["tenant_id"]):
        return fetch(conn, statement, **parameters)
