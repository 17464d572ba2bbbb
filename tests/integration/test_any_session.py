"""The schema is found to be what it is, whatever the session has set and however a script was saved."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from selene_core import SchemaDrifted, check_schema
from selene_core.migrations import script, upgrade
from selene_core.schema import drift
from selene_core.schema.doctor import examine
from tests.migrations.runs import ROOT, admin, alembic_env, held, psql, psql_command, run_all
from tests.support.catalogue import catalogue
from tests.support.servers import LOGIN_ROLES, Database

LEDGER = "os_core.work_order_ledger"
CURRENT = "os_core.work_orders_current"
SETTINGS = [
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "search_path = os_core, conversation, public",
    "DateStyle = 'SQL, DMY'",
    "DateStyle = 'German'",
    "IntervalStyle = iso_8601",
    "IntervalStyle = sql_standard",
    "TimeZone = 'UTC+5'",
    "TimeZone = 'Asia/Kathmandu'",
    "bytea_output = escape",
    "extra_float_digits = -15",
    "transform_null_equals = on",
    "array_nulls = off",
    "backslash_quote = off",
    "row_security = off",
    "client_encoding = 'LATIN1'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = serializable",
    "from_collapse_limit = 1",
    "lc_monetary = 'C'",
    "work_mem = '64kB'",
]
# Definitions that the server prints in as many ways as there are settings for it.
PRINTED = [
    r"""CREATE TABLE os_core.printed (
      "Quoted" timestamptz DEFAULT '2026-02-01 12:00+00'::timestamptz,
      i interval DEFAULT '1 day 02:03:04'::interval,
      f double precision DEFAULT 0.1::double precision + 1.1::real,
      b bytea DEFAULT '\x00ff5c'::bytea,
      d date CHECK (d > '2026-02-01'::date),
      t text CHECK (t <> 'a\b''c')
    )""",
    'CREATE INDEX printed_part ON os_core.printed ("Quoted")'
    """ WHERE "Quoted" > '2026-02-01 12:00+00'::timestamptz""",
    r"CREATE POLICY printed ON os_core.printed USING (t <> '\') WITH CHECK (i < '1 mon'::interval)",
    r"CREATE FUNCTION os_core.printed(a text DEFAULT '\') RETURNS bytea LANGUAGE sql IMMUTABLE"
    r" BEGIN ATOMIC SELECT '\x00ff5c'::bytea; END",
]


def each_setting(conn: sa.Connection) -> Iterator[str]:
    """Set one after the other in the session."""
    for setting in SETTINGS:
        conn.exec_driver_sql(f"SET {setting}")
        conn.commit()
        yield setting
        conn.rollback()
        conn.exec_driver_sql(f"RESET {setting.partition(' ')[0]}")
        conn.commit()


def test_catalogue__is_the_same_in_every_session(database: Database) -> None:
    """Every part of a definition that could be printed differently is."""
    run_all(database, PRINTED)
    with database.engine("admin").connect() as conn:
        plain = catalogue(conn)
        for setting in each_setting(conn):
            name = sa.text(f"SELECT current_setting('{setting.partition(' ')[0]}')")
            before = conn.scalar(name)
            conn.rollback()
            assert catalogue(conn) == plain, setting
            assert conn.scalar(name) == before


def test_doctor__says_the_same_in_every_session(database: Database) -> None:
    run_all(database, [f"ALTER TABLE {LEDGER} NO FORCE ROW LEVEL SECURITY", "CREATE TABLE elsewhere ()"])
    run_all(database, ["ALTER TABLE elsewhere OWNER TO selene_owner"])
    with database.engine("admin").connect() as conn:
        plain = examine(conn)
        assert len(plain.faults) == 2
        conn.rollback()
        for setting in each_setting(conn):
            assert examine(conn) == plain, setting


def test_check_schema__says_the_same_in_every_session(database: Database) -> None:
    # Past a pooler: the session is the test's own.
    engine = sa.create_engine(database.server.url_for(LOGIN_ROLES["app"], database.name))
    with engine.connect() as conn:
        for setting in each_setting(conn):
            assert check_schema(conn) == drift.expected_schema().head, setting
            conn.rollback()
            with held(database, f"ALTER TABLE {CURRENT} NO FORCE ROW LEVEL SECURITY") as other:
                other.commit()
                with pytest.raises(SchemaDrifted, match="row-level security is not forced"):
                    check_schema(conn)
                other.exec_driver_sql(f"ALTER TABLE {CURRENT} FORCE ROW LEVEL SECURITY")
                other.commit()
    engine.dispose()


@pytest.mark.parametrize("how", ["upgrade", "script"])
def test_migration__makes_the_same_in_every_session(
    empty_database: Database, database: Database, how: str
) -> None:
    run_all(
        empty_database,
        [
            f'ALTER DATABASE "{empty_database.name}" SET {setting}'
            for setting in SETTINGS
            if "read_only" not in setting
        ],
    )
    if how == "upgrade":
        upgrade(empty_database.admin_url)
    else:
        run = psql(empty_database, script())
        assert (run.returncode, run.stderr) == (0, "")
    with database.engine("admin").connect() as conn, empty_database.engine("admin").connect() as other:
        assert catalogue(other) == catalogue(conn)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_script__saved_with_other_line_ends(
    empty_database: Database, database: Database, line_end: str
) -> None:
    run = subprocess.run(
        psql_command(empty_database),
        env=alembic_env(),
        input=script().replace("\n", line_end).encode(),
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    with admin(empty_database) as conn:
        bodies = conn.scalars(
            sa.text(
                "SELECT prosrc FROM pg_proc WHERE pronamespace = 'os_core'::regnamespace AND prosrc <> ''"
            )
        ).all()
    assert all(("\r" in body) == (line_end != "\n") for body in bodies if "\n" in body)
    with database.engine("admin").connect() as conn:
        migrated = catalogue(conn)
    with empty_database.engine("admin").connect() as conn:
        assert catalogue(conn) == migrated
        assert examine(conn).healthy
    assert check_schema(empty_database.engine("app")) == drift.expected_schema().head


@pytest.mark.slow
def test_checkout__with_other_line_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkout on Windows has the catalogue and the functions' files with CRLF."""
    other = tmp_path / "catalogue.txt"
    other.write_bytes(drift.CATALOGUE_FILE.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(drift, "CATALOGUE_FILE", other)
    drift.expected_schema.cache_clear()
    try:
        assert check_schema(database.engine()) == drift.expected_schema().head
    finally:
        monkeypatch.undo()
        drift.expected_schema.cache_clear()
    site = tmp_path / "site"
    shutil.copytree(ROOT / "selene_core", site / "selene_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "alembic", site / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*site.rglob("*.sql"), *site.rglob("*.txt"), *site.rglob("*.py")]:
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    run_all(database, ["DROP FUNCTION os_core.work_order_as_of(text, text, bigint, bigint, timestamptz)"])
    done = subprocess.run(
        [sys.executable, "-m", "selene_core", "doctor"],
        env=alembic_env(database.admin_url, PYTHONPATH=str(site)),
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    run_all(database, [done.stdout.decode()])
    assert check_schema(database.engine()) == drift.expected_schema().head
