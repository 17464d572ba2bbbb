"""Reading one work order: through the repository and its SQL, against a bare SELECT by primary key."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from psycopg.sql import SQL, Literal

from benchmarks import bare
from benchmarks.databases import session_of
from benchmarks.events import TENANT, orders
from benchmarks.report import compare
from benchmarks.rounds import Lane, measure
from selene_core import WorkOrderRepository, tenant_scope
from selene_core.store.tables import work_orders_current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine

    from benchmarks.databases import Database, Databases
    from benchmarks.report import Result
    from benchmarks.scale import Scale

_REPOSITORY: Final = ("repository", "get() of the repository")
_SQL: Final = ("sql", "its SQL, psycopg")
_PLAIN: Final = ("plain", "plain SELECT in the scope")
_BARE: Final = ("bare", "bare SELECT, SQLAlchemy")
_BARE_SQL: Final = ("bare_sql", "bare SELECT, psycopg")
_GROUP: Final = "get"
_PLAIN_SELECT: Final = sa.text(
    "SELECT * FROM os_core.work_orders_current"
    " WHERE tenant_id = :tenant_id AND work_order_id = :work_order_id"
)


def get(databases: Databases, scale: Scale) -> list[Result]:
    """Get work orders by id."""
    with databases.new() as database:
        bare.make_copies(database, orders(_GROUP, 10 * scale.operations), scale.batch)
        timings = measure(
            partial(_open_lanes, database, scale.operations),
            connections=1,
            warmup=scale.warmup,
            rounds=scale.rounds,
        )
    return [
        compare("get", timings, _REPOSITORY, _PLAIN, 0.95),
        compare("get", timings, _REPOSITORY, _BARE, None),
        compare("get", timings, _SQL, _BARE_SQL, None),
    ]


@contextmanager
def _open_lanes(database: Database, operations: int, _worker: int) -> Iterator[Mapping[str, Lane]]:
    copy = work_orders_current.to_metadata(sa.MetaData(), schema="bench")
    select = sa.select(copy).where(copy.c.work_order_id == sa.bindparam("work_order_id"))
    ids = [order.work_order_id for order in orders(_GROUP, 10 * operations)][::10]
    set_tenant = SQL("SET LOCAL selene.tenant_id = {}").format(Literal(TENANT))
    with database.app_engine() as engine, database.app() as app:
        statement, parameters = _sql_of_get(engine, ids[0])
        bare_statement = str(select.compile(engine))

        def repository() -> None:
            with tenant_scope(engine, TENANT) as conn:
                work_orders = WorkOrderRepository(conn)
                for work_order_id in ids:
                    if work_orders.get(work_order_id) is None:
                        raise LookupError(work_order_id)

        def plain() -> None:
            with tenant_scope(engine, TENANT) as conn:
                for work_order_id in ids:
                    given = {"tenant_id": TENANT, "work_order_id": work_order_id}
                    conn.execute(_PLAIN_SELECT, given).one()

        def by_select() -> None:
            with engine.begin() as conn:
                for work_order_id in ids:
                    conn.execute(select, {"work_order_id": work_order_id}).one()

        def by_sql(text: str, others: Mapping[str, Any]) -> None:
            query = text.encode()
            with app.transaction():
                app.execute(set_tenant)
                for work_order_id in ids:
                    arguments = {**others, "work_order_id": work_order_id}
                    if len(app.execute(query, arguments, prepare=True).fetchall()) != 1:
                        raise LookupError(work_order_id)

        yield {
            name: Lane(len(ids), _same_each_round(work), [session])
            for name, work, session in (
                (_REPOSITORY[0], repository, session_of(engine)),
                (_PLAIN[0], plain, session_of(engine)),
                (_BARE[0], by_select, session_of(engine)),
                (_SQL[0], partial(by_sql, statement, parameters), app.info.backend_pid),
                (_BARE_SQL[0], partial(by_sql, bare_statement, {}), app.info.backend_pid),
            )
        }


def _same_each_round(work: Callable[[], None]) -> Callable[[int], Callable[[], None]]:
    return lambda _number: work


def _sql_of_get(engine: Engine, work_order_id: str) -> tuple[str, Mapping[str, Any]]:
    """Listen to what the repository sends."""
    sent: list[tuple[str, Mapping[str, Any]]] = []

    def listen(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    with tenant_scope(engine, TENANT) as conn:
        sa.event.listen(conn, "before_cursor_execute", listen)
        WorkOrderRepository(conn).get(work_order_id)
    return sent[-1]
