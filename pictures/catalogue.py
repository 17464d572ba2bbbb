"""What the picture of the schema shows, read from the catalogue: a new table needs no change here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SHORT: Final = {"timestamp with time zone": "timestamptz", "character varying": "varchar"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column; an optional one may be NULL."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Key:
    """A primary key or a unique index, over some rows only where it has a predicate."""

    columns: tuple[str, ...]
    primary: bool
    predicate: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A reference to another table, or to its own."""

    name: str
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of ours."""

    name: str
    append_only: bool
    isolated: bool
    columns: tuple[Column, ...]
    keys: tuple[Key, ...]
    foreign_keys: tuple[ForeignKey, ...]


_TABLES: Final = """
  SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS isolated,
    EXISTS (
      SELECT FROM pg_trigger AS t
      WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND t.tgfoid = to_regproc('os_core.reject_mutation')
    ) AS append_only
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
  WHERE n.nspname IN ('os_core', 'conversation') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'alembic_version'
  ORDER BY n.nspname DESC, c.relname COLLATE "C"
"""
_COLUMNS: Final = """
  SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull
  FROM pg_attribute WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_KEYS: Final = """
  SELECT ARRAY(
      SELECT pg_get_indexdef(i.indexrelid, position, TRUE)
      FROM generate_series(1, i.indnkeyatts) AS position ORDER BY position
    ), i.indisprimary, coalesce(pg_get_expr(i.indpred, i.indrelid, TRUE), '')
  FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
  WHERE i.indrelid = :oid AND i.indisunique
  ORDER BY NOT i.indisprimary, c.relname COLLATE "C"
"""
_FOREIGN_KEYS: Final = """
  SELECT k.conname,
    ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS key (number, position)
      JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = key.number ORDER BY key.position),
    (SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
      WHERE c.oid = k.confrelid),
    ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS key (number, position)
      JOIN pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = key.number ORDER BY key.position)
  FROM pg_constraint AS k WHERE k.conrelid = :oid AND k.contype = 'f' ORDER BY k.conname COLLATE "C"
"""


def read_tables(conn: Connection) -> list[Table]:
    """Return the tables of a migrated database, in an order that does not depend on how it was made."""

    def ask(query: str, oid: int) -> list[Any]:
        return list(conn.execute(text(query), {"oid": oid}))

    return [
        Table(
            row.name,
            row.append_only,
            row.isolated,
            tuple(
                Column(name, _SHORT.get(type_, type_), null) for name, type_, null in ask(_COLUMNS, row.oid)
            ),
            tuple(Key(tuple(columns), *rest) for columns, *rest in ask(_KEYS, row.oid)),
            tuple(
                ForeignKey(name, tuple(columns), target, tuple(theirs))
                for name, columns, target, theirs in ask(_FOREIGN_KEYS, row.oid)
            ),
        )
        for row in conn.execute(text(_TABLES))
    ]
