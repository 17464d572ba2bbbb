"""list_pending after a bulk load: many pending orders in one bucket, against as many that came one by one."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.events import TENANT, append_all, batches, created, orders
from benchmarks.history import paced
from benchmarks.report import compare
from benchmarks.rounds import Lane, measure
from selene_core import WorkOrderRepository, tenant_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine

    from benchmarks.databases import Database, Databases
    from benchmarks.report import Result
    from benchmarks.scale import Scale

_BULK: Final = ("bulk", "list_pending, one bucket")
_SPREAD: Final = ("spread", "one order a second")
_BEGAN: Final = datetime(2026, 1, 13, tzinfo=UTC)


def bulk(databases: Databases, scale: Scale) -> list[Result]:
    """Read the first page where all pending orders are in one bucket of five minutes, and where few are."""
    with databases.new() as one, databases.new() as spread:
        _load(one, scale.pending_orders, timedelta(minutes=4) / scale.pending_orders)
        _load(spread, scale.pending_orders, timedelta(seconds=1))
        timings = measure(
            partial(_open_lanes, {_BULK[0]: one, _SPREAD[0]: spread}),
            connections=1,
            warmup=scale.warmup,
            rounds=scale.rounds,
        )
    return [compare("pending", timings, _BULK, _SPREAD, None)]


def _load(database: Database, count: int, apart: timedelta) -> None:
    with database.admin() as admin:
        with paced(admin, _BEGAN, apart), database.app() as app:
            append_all(app, batches((created(order) for order in orders("bulk", count)), 1000))
        admin.execute("VACUUM ANALYZE")


@contextmanager
def _open_lanes(databases: Mapping[str, Database], _worker: int) -> Iterator[dict[str, Lane]]:
    with ExitStack() as stack:
        engines = {name: stack.enter_context(each.app_engine()) for name, each in databases.items()}
        yield {name: Lane(10, partial(_pages, engine)) for name, engine in engines.items()}


def _pages(engine: Engine, _round: int) -> Callable[[], None]:
    def work() -> None:
        with tenant_scope(engine, TENANT) as conn:
            repository = WorkOrderRepository(conn)
            for _ in range(10):
                repository.list_pending()

    return work
