"""A ledger with a past: orders that came one after another, an event a second, loaded in minutes.

The functions append as ever, but read a clock of ours while it is loaded. So hashes, times and buckets are
those of a ledger that grew for so long.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Literal

from benchmarks.events import append_all, batches, life, orders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from benchmarks.databases import Connection, Database
    from benchmarks.events import Event, Order

PENDING_APART: Final = 10
"""Of so many orders the first is still pending, the others have ended."""
_EVENTS_OF_PENDING: Final = 6
_EVENTS_OF_TEN: Final = 9 * 10 + _EVENTS_OF_PENDING
_ALIVE: Final = 100
_READ_THE_CLOCK: Final = """
    SELECT pg_get_functiondef(oid) FROM pg_proc
    WHERE pronamespace = 'os_core'::regnamespace AND prosrc LIKE '%pg_catalog.clock_timestamp()%'
"""
_CLOCK: Final = """
    CREATE FUNCTION public.bench_clock() RETURNS timestamptz LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$ BEGIN RETURN {}::timestamptz + {}::interval * nextval('public.bench_ticks'); END $$
"""


def orders_of(events: int) -> int:
    """Return how many orders a ledger of so many events has."""
    return max(1, events // _EVENTS_OF_TEN) * PENDING_APART


def order_at(place: int) -> Order:
    """Return the ids of the order that came as number `place`, counted from 0."""
    return orders(f"growth.{place}", 1)[0]


def load(database: Database, loaded: int, events: int, began: datetime) -> int:
    """Load orders, if so many are loaded, until there are so many events; return how many orders there are.

    The first event of all came at `began`.
    """
    count = orders_of(events)
    with database.admin() as admin:
        with paced(admin, began, timedelta(seconds=1)), database.app() as app:
            for start in range(loaded, count, _ALIVE):
                some = [order_at(place) for place in range(start, min(start + _ALIVE, count))]
                append_all(app, batches(_lives(some), 1000))
        admin.execute("VACUUM ANALYZE")
    return count


def _lives(some: Sequence[Order]) -> Iterator[Event]:
    """Let orders live at the same time."""
    lives = [
        list(islice(life(order), None if place % PENDING_APART else _EVENTS_OF_PENDING))
        for place, order in enumerate(some)
    ]
    for turn in range(10):
        yield from (events[turn] for events in lives if turn < len(events))


@contextmanager
def paced(admin: Connection, began: datetime, apart: timedelta) -> Iterator[None]:
    """Let the functions read a clock that goes on by so much with each event."""
    definitions = [text for (text,) in admin.execute(_READ_THE_CLOCK).fetchall()]
    admin.execute("CREATE SEQUENCE IF NOT EXISTS public.bench_ticks")
    admin.execute(SQL(_CLOCK).format(Literal(began), Literal(apart)))
    for text in definitions:
        admin.execute(text.replace("pg_catalog.clock_timestamp()", "public.bench_clock()"))
    try:
        yield
    finally:
        for text in definitions:
            admin.execute(text)
        admin.execute("DROP FUNCTION public.bench_clock()")
