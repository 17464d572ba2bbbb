"""Find what a downgrade would remove, by running it and rolling it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from selene_core.migrations import Revision, downgrade_run, revision_of
from selene_core.schema.catalogue import read, read_revisions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.runtime.migration import RevisionStep
    from sqlalchemy import URL, Connection

    from selene_core.schema.catalogue import Facts

COUNTED: Final = 1_000_000
"""Rows are counted while the table is locked, so no further than this: COUNTED + 1 stands for more."""

_GUARDS: Final = ("policy ", "trigger ", "constraint ", "index ", "row security", "force row security")


@dataclass(frozen=True, slots=True)
class Loss:
    """What a downgrade from `before` to `after` removes; None is base.

    `tables` counts the rows of each removed table. `columns` counts the values other than NULL of each column
    removed from a table that stays. Both count all tenants, up to COUNTED + 1. `guards` are removed policies,
    triggers, constraints and indexes of tables that stay.
    """

    before: str | None
    after: str | None
    revisions: tuple[Revision, ...]
    tables: dict[str, int]
    columns: dict[str, int]
    functions: tuple[str, ...]
    guards: tuple[str, ...]

    @property
    def data(self) -> dict[str, int]:
        """The tables and columns that hold something."""
        return {name: count for name, count in (self.tables | self.columns).items() if count}


def look(url: str | URL, revision: str) -> Loss:
    """Return what a downgrade to `revision` would remove; nothing is changed.

    It runs the downgrade in a transaction that is rolled back, so services wait for it as for the downgrade
    itself. Raises what downgrade() raises before its first change.
    """
    losses: list[Loss] = []

    def walk(steps: list[RevisionStep], connection: Connection) -> Iterator[RevisionStep]:
        stood = max(read_revisions(connection) or (), default=None)
        before = read(connection)
        undone = connection.begin_nested()
        yield from steps
        after = read(connection)
        lower = max(read_revisions(connection) or (), default=None)
        undone.rollback()
        undone_revisions = tuple(revision_of(step.revision) for step in steps)
        losses.append(Loss(stood, lower, undone_revisions, **_lost(connection, before, after)))

    downgrade_run(url, revision, walk, only_looks=True, allow_data_loss=True).start()
    return losses[0]


def _lost(connection: Connection, before: Facts, after: Facts) -> dict[str, Any]:
    gone = [thing.partition(" ")[::2] for thing in before if thing not in after]
    parts = [
        (thing.removeprefix("relation "), aspect)
        for thing, aspects in before.items()
        if thing.startswith("relation ") and thing in after
        for aspect, value in aspects.items()
        if aspect not in after[thing] or (aspect.endswith("row security") and after[thing][aspect] != value)
    ]
    columns = [
        (table, aspect.removeprefix("column ")) for table, aspect in parts if aspect.startswith("column ")
    ]
    return {
        "tables": {name: _count(connection, name) for kind, name in gone if kind == "relation"},
        "columns": {f"{table}.{name}": _count(connection, table, name) for table, name in columns},
        "functions": tuple(name for kind, name in gone if kind == "function"),
        "guards": tuple(f"{aspect} of {table}" for table, aspect in parts if aspect.startswith(_GUARDS)),
    }


def _count(connection: Connection, table: str, column: str | None = None) -> int:
    """Count rows as the owner. FORCE would hide them, so it is lifted; that is rolled back with the rest."""
    connection.exec_driver_sql(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    # Raises an error if a policy would still filter, instead of counting too few.
    connection.exec_driver_sql("SET LOCAL row_security = off")
    where = f"WHERE {column} IS NOT NULL" if column else ""
    query = f"SELECT count(*) FROM (SELECT FROM {table} {where} LIMIT {COUNTED + 1}) AS counted"
    found: int = connection.exec_driver_sql(query).scalar_one()
    return found
