"""Rebuild: how fast the database folds a ledger, and that memory does not grow with it."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa
from psycopg.rows import dict_row
from psycopg.sql import SQL, Literal

from benchmarks.events import TENANT, append_all, batches, life, orders
from benchmarks.fold import fold
from benchmarks.report import Result, compare
from benchmarks.rounds import Lane, measure
from selene_core import RebuildReport, rebuild_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.scale import Scale

_EVENTS_AN_ORDER: Final = 10
_FEW: Final = "few"  # a tenant with few orders
_PYTHON_PART: Final = 5  # Python folds every fifth order, in less time
_DAMAGE: Final = """
    UPDATE os_core.work_orders_current
    SET fields_json = '{"damaged": true}', turn_id = turn_id + 1, last_state_change_seq = 1
    WHERE tenant_id = %s
"""
_LEDGER: Final = """
    SELECT *
    FROM os_core.work_order_ledger
    WHERE tenant_id = %s AND work_order_id < %s
    ORDER BY work_order_id, work_order_seq
"""
_GOAL_EVENTS_A_SECOND: Final = 100_000


def rebuild(databases: Databases, scale: Scale) -> list[Result]:
    """Rebuild a tenant where nothing differs, and where every row was damaged; then watch memory."""
    clean, damaged = ("clean", "nothing differs"), ("damaged", "all rows damaged")
    python = ("python", "fold in Python, cursor")
    with databases.new() as database:
        _load(database, TENANT, scale.rebuild_orders, scale.batch)
        _load(database, _FEW, scale.few_orders, scale.batch)

        @contextmanager
        def open_lanes(_worker: int) -> Iterator[Mapping[str, Lane]]:
            events = scale.rebuild_orders * _EVENTS_AN_ORDER
            part = scale.rebuild_orders // _PYTHON_PART
            with database.app_engine() as engine, database.admin() as admin, database.app() as app:

                def prepare_clean(_number: int) -> Callable[[], None]:
                    return lambda: _expect(rebuild_tenant(engine, TENANT), scale.rebuild_orders, 0)

                def prepare_damaged(_number: int) -> Callable[[], None]:
                    admin.execute(_DAMAGE, [TENANT])
                    admin.execute("VACUUM os_core.work_orders_current")
                    return lambda: _expect(
                        rebuild_tenant(engine, TENANT), scale.rebuild_orders, scale.rebuild_orders
                    )

                def prepare_python(_number: int) -> Callable[[], None]:
                    end = orders(TENANT, part + 1)[part].work_order_id

                    def work() -> None:
                        folded = sum(1 for _ in fold_ledger(app, TENANT, end))
                        if folded != part:
                            raise RuntimeError(f"Python folded {folded} of {part} orders")

                    return work

                yield {
                    clean[0]: Lane(events, prepare_clean),
                    damaged[0]: Lane(events, prepare_damaged),
                    python[0]: Lane(part * _EVENTS_AN_ORDER, prepare_python),
                }

        timings = measure(open_lanes, connections=1, warmup=min(1, scale.warmup), rounds=scale.rebuilds)

        results = _memory(database, scale)
    for lane in (clean, damaged):
        rates = [1 / seconds for seconds in timings.seconds[lane[0]]]
        results.append(
            Result(
                "rebuild",
                lane[1],
                "the rate that is the goal",
                1 / timings.median(lane[0]),
                _GOAL_EVENTS_A_SECOND,
                "/s",
                [rate / _GOAL_EVENTS_A_SECOND for rate in rates],
                1.0,
            )
        )
        results.append(compare("rebuild", timings, lane, python, 8.0))
    return results


def fold_ledger(conn: Connection, tenant_id: str, before: str) -> Iterator[dict[str, Any]]:
    """Fold in Python what a server-side cursor yields of the orders whose ids come before one."""
    with conn.transaction():
        conn.execute(SQL("SET LOCAL selene.tenant_id = {}").format(Literal(tenant_id)))
        with conn.cursor("ledger", row_factory=dict_row) as cursor:
            cursor.itersize = 2000
            cursor.execute(_LEDGER, [tenant_id, before], binary=True)
            state: dict[str, Any] | None = None
            for event in cursor:
                if state is not None and state["work_order_id"] != event["work_order_id"]:
                    yield state
                    state = None
                state = fold(state, event)
            if state is not None:
                yield state


def _memory(database: Database, scale: Scale) -> list[Result]:
    """Rebuild a small tenant and one ten times as large, and compare the peaks of memory."""
    few, many = _peaks(database, _FEW), _peaks(database, TENANT)
    against = f"{scale.few_orders * _EVENTS_AN_ORDER:,} events"
    large = f"{scale.rebuild_orders * _EVENTS_AN_ORDER:,} events"
    pairs = [("client", few.client, many.client)]
    if few.server is not None and many.server is not None:
        pairs.append(("server", few.server, many.server))
    return [
        Result("rebuild", f"{side}: {large}", f"{side}: {against}", most, least, "MB", [least / most], 0.8)
        for side, least, most in pairs
    ]


def _load(database: Database, tenant_id: str, count: int, batch: int) -> None:
    with database.app() as app, database.admin() as admin:
        events = chain.from_iterable(map(life, orders(tenant_id, count)))
        append_all(app, batches(events, batch, tenant_id))
        admin.execute("VACUUM ANALYZE os_core.work_order_ledger, os_core.work_orders_current")
        admin.execute("CHECKPOINT")


def _expect(report: RebuildReport, work_orders: int, changed: int) -> None:
    if report != RebuildReport(work_orders, work_orders * _EVENTS_AN_ORDER, changed):
        raise RuntimeError(f"the rebuild did something else: {report}")


class _Peaks(NamedTuple):
    """Megabytes; the server's are None where its process cannot be watched."""

    client: float
    server: float | None


def _peaks(database: Database, tenant_id: str) -> _Peaks:
    """Rebuild a tenant in a process of its own, and return the peaks of memory, there and in its backend."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_rebuild_watched, database, tenant_id).result()


def _rebuild_watched(database: Database, tenant_id: str) -> _Peaks:
    with database.app_engine() as engine:
        with engine.connect() as conn:  # which the pool keeps, and gives to the rebuild
            pid = conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with _watching(Path(f"/proc/{pid}/status")) as server:
            rebuild_tenant(engine, tenant_id)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _Peaks(kilobytes / 1024 / (1024 if sys.platform == "darwin" else 1), max(server, default=None))


@contextmanager
def _watching(status: Path) -> Iterator[list[float]]:
    """Collect how many megabytes a process has of its own: not what it touches of the shared buffers."""
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(_own_megabytes(status))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    if status.exists():
        seen.append(_own_megabytes(status))
        watcher.start()
    try:
        yield seen
    finally:
        done.set()
        if watcher.ident is not None:
            watcher.join()


def _own_megabytes(status: Path) -> float:
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0
