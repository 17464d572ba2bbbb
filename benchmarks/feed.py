"""The feed: a page of it beside a plain page of the ledger, and how soon tail --follow shows an event."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.events import APPEND, TENANT, Batch, append_all, batches, created, field_set, orders, wire
from benchmarks.report import Result, compare
from benchmarks.rounds import Lane, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.scale import Scale

_PLAIN: Final = (
    "SELECT * FROM os_core.work_order_ledger WHERE tenant_id = %s AND work_order_event_id > %s"
    " ORDER BY work_order_event_id LIMIT 1000"
)
_FEED: Final = "SELECT * FROM os_core.read_feed(%s, %s, 1000)"
_AS_MANY: Final = 1 / 1.5  # a page may cost so many times a plain one
_SHOWN_IN: Final = 0.150


def feed_page(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: pages of the feed, from all over a backlog, against pages of the ledger by id."""
    with databases.new() as database:
        with database.app() as conn, database.admin() as admin:
            append_all(conn, batches(map(created, orders("feed", scale.growth_orders)), scale.batch))
            while conn.execute("SELECT os_core.advance_feed(%s)", (TENANT,)).fetchone() != (0,):
                pass
            admin.execute("VACUUM ANALYZE os_core.work_order_ledger, os_core.work_order_feed")
        timings = measure(
            partial(_pages, database, scale.growth_orders, scale.operations_of_many),
            connections=1,
            warmup=scale.warmup,
            rounds=scale.rounds,
        )
    return [compare("feed-page", timings, ("feed", "page of the feed"), ("plain", "plain page"), _AS_MANY)]


@contextmanager
def _pages(database: Database, backlog: int, pages: int, _worker: int) -> Iterator[Mapping[str, Lane]]:
    places = [max(backlog - 1000, 0) * number // pages for number in range(pages)]

    def lane(query: str, first: int) -> Lane:
        def work() -> None:
            for place in places:
                conn.execute(query, (TENANT, first + place), prepare=True).fetchall()

        return Lane(pages, lambda _number: work)

    with database.app() as conn:
        conn.execute("SELECT set_config('selene.tenant_id', %s, FALSE)", (TENANT,))
        row = conn.execute("SELECT min(work_order_event_id) - 1 FROM os_core.work_order_ledger").fetchone()
        yield {"feed": lane(_FEED, 0), "plain": lane(_PLAIN, row[0] if row else 0)}


def tail(databases: Databases, scale: Scale) -> list[Result]:
    """From before an append until tail --follow, in another process, has written the event: p50 and p95."""
    with databases.new() as database, database.app() as conn:
        url = database.app_url.set(drivername="postgresql").render_as_string(hide_password=False)
        command = ["tail", TENANT, "--follow", "--after", "0", "--json", "--url", url]
        with subprocess.Popen(
            [sys.executable, "-m", "selene_core", *command], stdout=subprocess.PIPE, text=True
        ) as shown:
            try:
                seconds = sorted(_shown(conn, shown, scale))
            finally:
                shown.terminate()
    values = {"p50": statistics.median(seconds), "p95": seconds[len(seconds) * 95 // 100]}
    return [
        Result("tail", f"append to shown, {name}", "goal", value, _SHOWN_IN, "s", [_SHOWN_IN / value], 1.0)
        for name, value in values.items()
    ]


def _shown(conn: Connection, shown: subprocess.Popen[str], scale: Scale) -> Iterator[float]:
    (order,) = orders("tail", 1)
    if shown.stdout is None:
        raise RuntimeError("tail has no output to read")
    for number in range(scale.warmup + scale.operations):
        event = field_set(order, number + 1) if number else created(order)
        # Not in step with its looks, which are 50 ms apart.
        time.sleep(number * 7 % 50 / 1000)
        start = time.perf_counter()
        conn.execute(APPEND, Batch(TENANT, wire([event])), prepare=True)
        line = json.loads(shown.stdout.readline())
        taken = time.perf_counter() - start
        if line["work_order_seq"] != number + 1:
            raise RuntimeError(f"tail showed {line} for event {number + 1}")
        if number >= scale.warmup:
            yield taken
