"""What an append writes: HOT updates of the projection, and bytes of WAL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Identifier

from benchmarks import bare
from benchmarks.events import APPEND, TENANT, Batch, created, event, orders, wire
from benchmarks.report import Result
from selene_core.store.tables import work_orders_current

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.databases import Connection, Database, Databases
    from benchmarks.events import Event, Order
    from benchmarks.scale import Scale

_STATS: Final = """
    SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
    WHERE relid = 'os_core.work_orders_current'::regclass
"""
_BUCKETS: Final = [name for name in work_orders_current.columns.keys() if "bucket" in name]  # noqa: SIM118 - a ColumnCollection


def hot_updates(databases: Databases, scale: Scale) -> list[Result]:
    """Count the HOT updates where status and bucket stay, and where each append moves the order's bucket."""
    stay = _share(databases, scale, before_each=None)
    found = [_result("same status and bucket", stay, 0.85)]
    if _BUCKETS:
        found.append(_result("bucket crossed each time", _share(databases, scale, _set_back), None))
    return found


def _result(label: str, share: float, goal: float | None) -> Result:
    return Result("hot", label, "all updates", 100 * share, 100.0, "%", [share], goal)


def _share(databases: Databases, scale: Scale, before_each: Callable[[Connection], None] | None) -> float:
    with databases.new() as database, database.app() as app, database.admin() as admin:
        some = _loaded(database, scale)
        updated, hot = 0, 0
        for number in range(2, 2 + scale.appends_of_order):
            if before_each is not None:
                before_each(admin)
            before = _counts(admin, app)
            for order in some:
                app.execute(APPEND, Batch(TENANT, wire([_field(order, number)])), prepare=True)
            after = _counts(admin, app)
            updated, hot = updated + after[0] - before[0], hot + after[1] - before[1]
    return hot / updated


def _set_back(admin: Connection) -> None:
    """Move every order to the bucket of the day before, so that its next append crosses."""
    for name in _BUCKETS:
        moved = "UPDATE os_core.work_orders_current SET {0} = {0} - interval '1 day'"
        admin.execute(SQL(moved).format(Identifier(name)))
    admin.execute("VACUUM os_core.work_orders_current")


def _counts(admin: Connection, app: Connection) -> tuple[int, int]:
    app.execute("SELECT pg_stat_force_next_flush()")
    admin.execute("SELECT pg_stat_clear_snapshot()")
    row = admin.execute(_STATS).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def wal_bytes(databases: Databases, scale: Scale) -> list[Result]:
    """Measure the bytes of WAL that an append writes, against the bare statement."""
    with databases.new() as database, database.app() as app, database.admin() as admin:
        some = _loaded(database, scale)
        bare.copy_tables(admin, database.app_url.username or "")
        seqs = range(2, 2 + scale.appends_of_order)

        def ours(seq: int) -> None:
            for order in some:
                app.execute(APPEND, Batch(TENANT, wire([_field(order, seq)])), prepare=True)

        def plain(seq: int) -> None:
            for order in some:
                app.execute(bare.SET_FIELD, bare.arguments(_field(order, seq)), prepare=True)

        for work in (ours, plain):
            work(2)  # the first write of a page after a checkpoint writes all of it
        spent = [[_written(admin, work, seq) / len(some) for seq in seqs[1:]] for work in (ours, plain)]
    middle = len(spent[0]) // 2
    ratios = [theirs / mine for mine, theirs in zip(*spent, strict=True)]
    mine, theirs = (sorted(each)[middle] for each in spent)
    return [Result("wal", "WAL of an append", "bare insert + update", mine, theirs, "B", ratios)]


def _written(admin: Connection, work: Callable[[int], None], seq: int) -> float:
    place = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
    before = admin.execute(place).fetchone()
    work(seq)
    after = admin.execute(place).fetchone()
    return after[0] - before[0] if before and after else 0.0


def _loaded(database: Database, scale: Scale) -> list[Order]:
    some = orders("writes", scale.operations)
    with database.app() as app, database.admin() as admin:
        for order in some:
            app.execute(APPEND, Batch(TENANT, wire([created(order)])), prepare=True)
        admin.execute("VACUUM ANALYZE")
    return some


def _field(order: Order, seq: int) -> Event:
    return event(order, seq, "FIELD_SET", "DRAFT", {"field_key": "activity", "value": f"step {seq}"})
