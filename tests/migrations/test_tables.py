"""selene_core.store.tables mirrors what the migrations make: collations, defaults and CHECKs included."""

import pytest
import sqlalchemy as sa
from alembic import command

from selene_core.migrations import config, target_metadata
from tests.support.servers import Database

DESCRIPTION = sa.text("""
    SELECT c.relname, a.attnum::text || ' ' || a.attname, concat_ws(' ',
      format_type(a.atttypid, a.atttypmod),
      'COLLATE ' || nullif(a.attcollation, 0)::regcollation::text,
      CASE WHEN a.attnotnull THEN 'NOT NULL' END,
      'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r'
    UNION ALL
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = to_regnamespace(:schema) AND conrelid <> 0 AND contype <> 'n'
    UNION ALL
    SELECT indrelid::regclass::text, c.relname, pg_get_indexdef(c.oid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = to_regnamespace(:schema)
""")


def describe(conn: sa.Connection, schema: str) -> list[str]:
    rows = conn.execute(DESCRIPTION, {"schema": schema})
    facts = sorted(" | ".join(row).replace("_mirror.", ".") for row in rows)
    return [fact for fact in facts if "alembic_version" not in fact]


def test_tables__equal_the_database(database: Database) -> None:
    """Made from the Python tables in schemas of their own, they come out the same."""
    mirror = sa.MetaData()
    for table in target_metadata.sorted_tables:
        table.to_metadata(mirror, schema=f"{table.schema}_mirror", referred_schema_fn=_mirrored)
    with database.engine("admin").connect() as conn:
        for schema in ("os_core", "conversation"):
            conn.exec_driver_sql(f"CREATE SCHEMA {schema}_mirror")
        mirror.create_all(conn)
        for schema in ("os_core", "conversation"):
            assert describe(conn, f"{schema}_mirror") == describe(conn, schema)
            assert describe(conn, schema)
        conn.rollback()


def _mirrored(
    _table: sa.Table, _schema: str | None, _key: sa.ForeignKeyConstraint, referred: str | None
) -> str:
    return f"{referred}_mirror"


def test_tables__alembic_check_finds_nothing_to_do(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELENE_DATABASE_URL", database.admin_url.render_as_string(hide_password=False))
    command.check(config())
