"""Leases: what taking, keeping and giving back cost beside an append, and an append with a lease in play."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.events import APPEND, TENANT, Batch, append_all, batches, created, field_set, orders, wire
from benchmarks.report import compare
from benchmarks.rounds import Lane, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.events import Order
    from benchmarks.report import Result
    from benchmarks.scale import Scale

_APPEND: Final = ("append", "append, no lease")
_LANES: Final = (
    ("acquire", "acquire"),
    ("renew", "renew"),
    ("release", "release"),
    ("held", "append with a lease"),
)
_HOUR: Final = 3_600_000


def lease(databases: Databases, scale: Scale) -> list[Result]:
    """One connection: each lease function, and an append by the lease's holder, against a plain append."""
    with databases.new() as database:
        with database.app() as conn:
            everything = [
                created(order)
                for name in (_APPEND[0], *(name for name, _ in _LANES))
                for order in orders(name, scale.operations)
            ]
            append_all(conn, batches(everything, scale.batch))
        timings = measure(
            partial(_open_lanes, database, scale.operations),
            connections=1,
            warmup=scale.warmup,
            rounds=scale.rounds,
        )
    return [compare("lease", timings, lane, _APPEND, None) for lane in _LANES]


@contextmanager
def _open_lanes(database: Database, operations: int, _worker: int) -> Iterator[Mapping[str, Lane]]:
    with database.app() as conn:
        lanes = {name: orders(name, operations) for name in (_APPEND[0], *(name for name, _ in _LANES))}
        yield {
            "append": _append(conn, lanes["append"], {}),
            "acquire": _acquire(conn, lanes["acquire"]),
            "renew": _renew(conn, lanes["renew"]),
            "release": _release(conn, lanes["release"]),
            "held": _append(conn, lanes["held"], _take(conn, lanes["held"])),
        }


def _append(conn: Connection, orders_: Sequence[Order], tokens: Mapping[str, str]) -> Lane:
    def prepare(number: int) -> Callable[[], None]:
        calls = []
        for order in orders_:
            event = field_set(order, number + 2)
            if tokens:
                event["lease_token"] = tokens[order.work_order_id]
            calls.append(Batch(TENANT, wire([event])))

        def work() -> None:
            for call in calls:
                conn.execute(APPEND, call, prepare=True).fetchall()

        return work

    return Lane(len(orders_), prepare)


def _acquire(conn: Connection, orders_: Sequence[Order]) -> Lane:
    def prepare(number: int) -> Callable[[], object]:
        if number:
            _give_back(conn, tokens)
        tokens.update((order.work_order_id, secrets.token_urlsafe(32)) for order in orders_)
        return lambda: _take(conn, orders_, tokens)

    tokens: dict[str, str] = {}
    return Lane(len(orders_), prepare)


def _renew(conn: Connection, orders_: Sequence[Order]) -> Lane:
    tokens = _take(conn, orders_)

    def work() -> None:
        for work_order_id, token in tokens.items():
            arguments = (TENANT, work_order_id, token, _HOUR)
            conn.execute(
                "SELECT * FROM os_core.renew_lease(%s, %s, %s, %s)", arguments, prepare=True
            ).fetchall()

    return Lane(len(orders_), lambda _number: work)


def _release(conn: Connection, orders_: Sequence[Order]) -> Lane:
    def prepare(_number: int) -> Callable[[], object]:
        tokens = _take(conn, orders_)
        return lambda: _give_back(conn, tokens)

    return Lane(len(orders_), prepare)


def _take(
    conn: Connection, orders_: Sequence[Order], tokens: Mapping[str, str] | None = None
) -> Mapping[str, str]:
    tokens = tokens or {order.work_order_id: secrets.token_urlsafe(32) for order in orders_}
    for work_order_id, token in tokens.items():
        conn.execute(
            "SELECT * FROM os_core.acquire_lease(%s, %s, %s, %s, %s)",
            (TENANT, work_order_id, "worker-1", token, _HOUR),
            prepare=True,
        ).fetchall()
    return tokens


def _give_back(conn: Connection, tokens: Mapping[str, str]) -> None:
    for work_order_id, token in tokens.items():
        conn.execute(
            "SELECT * FROM os_core.release_lease(%s, %s, %s)", (TENANT, work_order_id, token), prepare=True
        ).fetchall()
