"""Migrate as operators do: the alembic command in a process of its own, and its scripts through psql."""

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
from alembic import command
from alembic.config import CommandLine
from alembic.script import ScriptDirectory

from selene_core.migrations import LOCK_KEY, config
from tests.support.catalogue import catalogue
from tests.support.races import wait_until, wait_until_gone
from tests.support.servers import Database

ROOT = Path(__file__).parents[2]
REVISIONS = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]
PAIRS = list(zip(["base", *REVISIONS], REVISIONS, strict=False))
PATIENT = {"SELENE_LOCK_TIMEOUT": "5min", "SELENE_MIGRATION_WAIT": "300"}
"""For a migration that is stopped by a lock: it must not give up while the test looks at it."""


def alembic_env(url: sa.URL | None = None, **settings: str) -> dict[str, str]:
    """Compose an environment in which nothing but these settings concerns us."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "SELENE_"))}
    named = {} if url is None else {"SELENE_DATABASE_URL": url.render_as_string(hide_password=False)}
    return {**kept, **named, **settings}


def alembic(url: sa.URL | None, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command as in the checkout, in this process: its own would first import for half a second."""
    words = ["alembic", "-c", str(ROOT / "alembic.ini"), *arguments]
    printed = StringIO()
    with (
        patch.dict(os.environ, alembic_env(url, **settings), clear=True),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        try:
            CommandLine("alembic").main(words[1:])
            status = 0
        except SystemExit as exc:
            status = int(exc.code or 0)
        except Exception:
            traceback.print_exc()
            status = 1
    return subprocess.CompletedProcess(words, status, printed.getvalue())


def alembic_apart(url: sa.URL | None, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; stderr goes where stdout goes."""
    with alembic_started(url, *arguments, **settings) as process:
        printed, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, printed)


@contextmanager
def alembic_started(url: sa.URL | None, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it is killed at the end of the block, if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        env=alembic_env(url, **settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def script(revisions: str, *, downgrade: bool = False, allow_data_loss: bool = False) -> str:
    """Return what `alembic upgrade|downgrade … --sql` prints."""
    configuration = config()
    configuration.output_buffer = printed = StringIO()
    configuration.attributes["allow_data_loss"] = allow_data_loss
    (command.downgrade if downgrade else command.upgrade)(configuration, revisions, sql=True)
    return printed.getvalue()


def psql_command(database: Database, url: sa.URL | None = None) -> list[str]:
    """Compose the call of psql on a database, as the superuser unless the URL says otherwise."""
    program = database.server.binaries and database.server.binaries / "psql"
    address = (url or database.admin_url).set(drivername="postgresql").render_as_string(hide_password=False)
    return [str(program or shutil.which("psql")), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", address]


def psql(database: Database, text: str, url: sa.URL | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script."""
    return subprocess.run(
        psql_command(database, url),
        env=alembic_env(),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def psql_started(database: Database, text: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a script; it is killed at the end of the block, if it still runs."""
    file = folder / "script.sql"
    file.write_text(text, encoding="utf-8")
    with subprocess.Popen(
        [*psql_command(database), "-f", str(file)],
        env=alembic_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def statements_in(message: str) -> list[str]:
    """Find the statements that a refusal prints for an administrator."""
    return [line for line in message.splitlines() if line.endswith(";")]


def admin(database: Database) -> sa.Connection:
    """Connect as the superuser, in autocommit, and keep no connection when that one is closed."""
    return database.engine("admin", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect()


def run_all(database: Database, statements: list[str]) -> None:
    """Run statements as the superuser, one by one."""
    # Past SQLAlchemy, to which a % in a statement is the start of a parameter.
    with admin(database) as conn, closing(conn.connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)


def catalogue_of(database: Database) -> str:
    """Describe what a database holds."""
    with database.engine("admin", poolclass=sa.NullPool).connect() as conn:
        return catalogue(conn)


def everything(database: Database) -> dict[str, Any]:
    """Return all roles, memberships, settings, schemas and relations that are not the server's own."""
    queries = (
        "SELECT rolname, rolsuper, rolbypassrls, rolcanlogin, rolcreaterole FROM pg_roles ORDER BY 1",
        "SELECT roleid::regrole::text, member::regrole::text, grantor::regrole::text, admin_option"
        " FROM pg_auth_members ORDER BY 1, 2, 3",
        "SELECT nspname, pg_get_userbyid(nspowner), nspacl::text FROM pg_namespace ORDER BY 1",
        "SELECT oid::regclass::text FROM pg_class WHERE oid >= 16384 ORDER BY 1",
        "SELECT oid::regprocedure::text FROM pg_proc WHERE oid >= 16384 ORDER BY 1",
        "SELECT datname, datacl::text FROM pg_database ORDER BY 1",
    )
    with database.engine("admin").connect() as conn:
        return {query: conn.exec_driver_sql(query).all() for query in queries}


def stands_at(database: Database) -> str:
    """Return the revision in a database's version table; base for none, and nothing for no table."""
    with admin(database) as conn:
        if conn.scalar(sa.text("SELECT to_regclass('os_core.alembic_version')")) is None:
            return "nothing"
        revision: str | None = conn.scalar(sa.text("SELECT version_num FROM os_core.alembic_version"))
        return revision or "base"


@contextmanager
def held(database: Database, *statements: str) -> Iterator[sa.Connection]:
    """Run statements in a transaction that stays open until the block ends, and keeps its locks."""
    with database.engine("admin", poolclass=sa.NullPool).connect() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)
        yield conn
        conn.rollback()


# Whatever a revision does, the change of the version number is its last step, within its transaction.
VERSION_HELD = "LOCK TABLE os_core.alembic_version IN EXCLUSIVE MODE"

_MIGRATING = sa.text(
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND (classid::bigint << 32 | objid::bigint) = :key AND (NOT :stopped OR pg_blocking_pids(pid) <> '{}')"
)


def migrating_pid(conn: sa.Connection, *, stopped: bool = False) -> int | None:
    """Return the backend that holds the migration lock; with `stopped` only if it waits for another lock."""
    pid: int | None = conn.scalar(_MIGRATING, {"key": LOCK_KEY, "stopped": stopped})
    return pid


def wait_until_stopped(database: Database) -> int:
    """Wait until the migration of a database waits for a lock that the test holds, and return its backend."""
    with admin(database) as conn:
        pid = wait_until(lambda: migrating_pid(conn, stopped=True), "the migration waits for a lock")
    assert pid is not None
    return pid


def wait_until_dead(database: Database, pid: int) -> None:
    """Wait until a backend has ended."""
    with admin(database) as conn:
        wait_until_gone(conn, pid)
