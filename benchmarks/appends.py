"""One event at a time, with one connection and with many."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from benchmarks import bare, naive
from benchmarks.databases import session_of
from benchmarks.events import (
    APPEND,
    TENANT,
    Batch,
    field_set,
    held_again,
    held_for_a_new_person,
    held_for_a_person,
    orders,
    wire,
)
from benchmarks.report import compare
from benchmarks.rounds import Lane, measure
from selene_core import WorkOrderLedgerEventInput, WorkOrderRepository, append_events, tenant_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.databases import Database, Databases
    from benchmarks.events import Event, Order
    from benchmarks.report import Result
    from benchmarks.rounds import Timings
    from benchmarks.scale import Scale

_ROUND_TRIP: Final = ("round_trip", "append, one round trip")
_BARE: Final = ("bare", "bare insert + update")
_PERSONAL: Final = ("personal", "append, a personal value")
_AGAIN: Final = ("personal_again", "append, one known before")
_FIRST: Final = ("personal_first", "append, a person's first")
_SCOPE: Final = ("scope", "append in tenant_scope")
_FUNCTION: Final = ("append_events", "append_events()")


def append_1(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: an append in one round trip against the bare statement."""
    timings = _measure(databases, scale, 1, (_ROUND_TRIP, _BARE))
    return [compare("append-1", timings, _ROUND_TRIP, _BARE, 0.70)]


def personal(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: personal values against a plain one."""
    timings = _measure(databases, scale, 1, (_PERSONAL, _AGAIN, _FIRST, _ROUND_TRIP))
    return [
        compare("personal", timings, _PERSONAL, _ROUND_TRIP, 0.87),
        compare("personal", timings, _AGAIN, _ROUND_TRIP, 0.87),
        compare("personal", timings, _FIRST, _ROUND_TRIP, None),
    ]


def append_8(databases: Databases, scale: Scale) -> list[Result]:
    """Many connections: an append in one round trip against the bare statement."""
    timings = _measure(databases, scale, scale.connections, (_ROUND_TRIP, _BARE))
    return [compare("append-8", timings, _ROUND_TRIP, _BARE, 0.65)]


def scope_1(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: append through the package."""
    return _scope("scope-1", databases, scale, 1)


def scope_8(databases: Databases, scale: Scale) -> list[Result]:
    """Many connections: append through the package."""
    return _scope("scope-8", databases, scale, scale.connections)


def naive_1(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: an append against a transaction that folds in the client."""
    return _naive("naive-1", databases, scale, 1)


def naive_8(databases: Databases, scale: Scale) -> list[Result]:
    """Many connections: an append against a transaction that folds in the client."""
    return _naive("naive-8", databases, scale, scale.connections)


def _scope(name: str, databases: Databases, scale: Scale, connections: int) -> list[Result]:
    by_statement = ("bare_sqlalchemy", "bare, SQLAlchemy")
    by_transaction = ("bare_transaction", "bare, SQLAlchemy BEGIN")
    lanes = (_SCOPE, _FUNCTION, _BARE, by_statement, by_transaction)
    timings = _measure(databases, scale, connections, lanes)
    return [
        compare(name, timings, _SCOPE, by_transaction, None),
        compare(name, timings, _SCOPE, _BARE, None),
        compare(name, timings, _FUNCTION, by_statement, None),
        compare(name, timings, _FUNCTION, _BARE, None),
    ]


def _naive(name: str, databases: Databases, scale: Scale, connections: int) -> list[Result]:
    client = ("naive", "transaction, Python fold")
    by_text = ("naive_text", "the same, SQLAlchemy text")
    by_core = ("naive_core", "the same, SQLAlchemy Core")
    lanes = (_ROUND_TRIP, client, _FUNCTION, _SCOPE, by_text, by_core)
    timings = _measure(databases, scale, connections, lanes)
    return [
        compare(name, timings, _ROUND_TRIP, client, 2.0),
        *(compare(name, timings, _FUNCTION, usual, 3.5) for usual in (by_core, by_text)),
        *(compare(name, timings, _SCOPE, usual, 2.2) for usual in (by_core, by_text)),
    ]


def _measure(
    databases: Databases, scale: Scale, connections: int, lanes: Sequence[tuple[str, str]]
) -> Timings:
    names = [name for name, _ in lanes]
    alone = connections == 1
    operations = scale.operations if alone else scale.operations_of_many
    rounds = scale.rounds if alone else scale.rounds_of_many
    with databases.new() as database:
        everything = [_orders(name, worker, operations) for name in names for worker in range(connections)]
        bare.make_copies(database, list(chain.from_iterable(everything)), scale.batch)
        timings = measure(
            partial(_open_lanes, database, names, operations),
            connections=connections,
            warmup=scale.warmup,
            rounds=rounds,
        )
        bare.check_equal_work(database, events=scale.warmup + rounds)
    return timings


def _orders(name: str, worker: int, count: int) -> list[Order]:
    """Name the orders to which one lane of one worker appends: one event each a round."""
    return orders(f"{name}.{worker}", count)


@contextmanager
def _open_lanes(
    database: Database, names: Sequence[str], operations: int, worker: int
) -> Iterator[Mapping[str, Lane]]:
    with ExitStack() as stack:
        yield {name: _OPEN[name](stack, database, _orders(name, worker, operations)) for name in names}


def _lane(
    orders_: Sequence[Order], compose: Callable[[Event], Any], append: Callable[[Any], object], session: int
) -> Lane:
    """Append an event a round to each order; what is sent is composed before the clock runs."""

    def prepare(number: int) -> Callable[[], None]:
        # The warm-up's first round is number 0, and comes after the creation.
        composed = [compose(field_set(order, number + 2)) for order in orders_]

        def work() -> None:
            for item in composed:
                append(item)

        return work

    return Lane(len(orders_), prepare, [session])


def _open_round_trip(
    stack: ExitStack,
    database: Database,
    orders_: Sequence[Order],
    change: Callable[[Event], Event] = lambda item: item,
) -> Lane:
    conn = stack.enter_context(database.app())

    def append(call: Batch) -> None:
        _only(conn.execute(APPEND, call, prepare=True).fetchall())

    return _lane(orders_, lambda item: Batch(TENANT, wire([change(item)])), append, conn.info.backend_pid)


def _open_bare(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    conn = stack.enter_context(database.app())

    def append(arguments: dict[str, Any]) -> None:
        _only(conn.execute(bare.SET_FIELD, arguments, prepare=True).fetchall())

    return _lane(orders_, bare.arguments, append, conn.info.backend_pid)


def _open_scope(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())

    def append(event: WorkOrderLedgerEventInput) -> None:
        with tenant_scope(engine, TENANT) as conn:
            WorkOrderRepository(conn).append(event)

    return _lane(orders_, WorkOrderLedgerEventInput.from_mapping, append, session_of(engine))


def _open_append_events(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())
    return _lane(
        orders_,
        WorkOrderLedgerEventInput.from_mapping,
        lambda event: append_events(engine, TENANT, [event]),
        session_of(engine),
    )


def _open_bare_sqlalchemy(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())
    statement = sa.text(bare.SET_FIELD_TEXT)

    def append(arguments: dict[str, Any]) -> None:
        with engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            _only(conn.execute(statement, arguments).all())

    return _lane(orders_, bare.arguments, append, session_of(engine))


def _open_bare_transaction(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())
    statement = sa.text(bare.SET_FIELD_TEXT)

    def append(arguments: dict[str, Any]) -> None:
        with engine.begin() as conn:
            _only(conn.execute(statement, arguments).all())

    return _lane(orders_, bare.arguments, append, session_of(engine))


def _open_naive(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    conn = stack.enter_context(database.app())
    return _lane(
        orders_, bare.arguments, lambda arguments: naive.append(conn, arguments), conn.info.backend_pid
    )


def _open_naive_text(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())
    append = partial(naive.append_by_text, engine)
    return _lane(orders_, bare.arguments, append, session_of(engine))


def _open_naive_core(stack: ExitStack, database: Database, orders_: Sequence[Order]) -> Lane:
    engine = stack.enter_context(database.app_engine())
    return _lane(orders_, naive.row, naive.appender_by_core(engine), session_of(engine))


_OPEN: Final[Mapping[str, Callable[[ExitStack, Database, Sequence[Order]], Lane]]] = {
    "round_trip": _open_round_trip,
    "personal": partial(_open_round_trip, change=held_for_a_person),
    "personal_again": partial(_open_round_trip, change=held_again),
    "personal_first": partial(_open_round_trip, change=held_for_a_new_person),
    "bare": _open_bare,
    "scope": _open_scope,
    "append_events": _open_append_events,
    "bare_sqlalchemy": _open_bare_sqlalchemy,
    "bare_transaction": _open_bare_transaction,
    "naive": _open_naive,
    "naive_text": _open_naive_text,
    "naive_core": _open_naive_core,
}


def _only(rows: Sequence[object]) -> None:
    if len(rows) != 1:
        raise LookupError(f"one row expected, not {len(rows)}")
