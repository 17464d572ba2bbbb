"""One migration at a time, and none that blocks the site (contract §13)."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from selene_core.migrations import (
    LOCK_KEY,
    MigrationLocked,
    MigrationRefused,
    upgrade,
)
from tests.migrations.runs import (
    PATIENT,
    VERSION_HELD,
    admin,
    alembic,
    alembic_apart,
    alembic_started,
    catalogue_of,
    held,
    migrating_pid,
    psql,
    psql_started,
    run_all,
    script,
    stands_at,
    wait_until_stopped,
)
from tests.support.races import DEADLINE_SECONDS, backend_pid, wait_until, wait_until_blocked
from tests.support.servers import Database

pytestmark = pytest.mark.slow

LOCK = f"SELECT pg_advisory_lock({LOCK_KEY})"
BEFORE_ISOLATION = "0004"
POLLING = sa.text(
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> :other AND query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid())"
)


def test_upgrade__two_at_once(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(alembic_apart, empty_database.admin_url, "upgrade", "head") for _ in range(2)]
        for run in runs:
            assert run.result().returncode == 0, run.result().stdout
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__second_one_waits(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    url = empty_database.admin_url
    upgrade(url, BEFORE_ISOLATION)
    with (
        held(empty_database, VERSION_HELD) as holder,
        alembic_started(url, "upgrade", "head", **PATIENT) as first,
    ):
        pid = wait_until_stopped(empty_database)
        with (
            alembic_started(url, "upgrade", "head", **PATIENT) as second,
            admin(empty_database) as conn,
        ):
            wait_until(lambda: conn.scalar(POLLING, {"other": pid}), "the second one asks for the lock")
            assert migrating_pid(conn, stopped=True) == pid
            assert (first.poll(), second.poll()) == (None, None)
            holder.rollback()
            assert (first.wait(), second.wait()) == (0, 0)
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__lock_held_too_long(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", "0.3")
    with held(empty_database, LOCK):
        started = time.monotonic()
        with pytest.raises(MigrationLocked, match="another migration of this database is running"):
            upgrade(empty_database.admin_url)
        assert time.monotonic() - started >= 0.3
    assert stands_at(empty_database) == "nothing"
    with empty_database.engine("admin").connect() as conn:
        made = sa.text("SELECT nspname FROM pg_namespace WHERE nspname IN ('os_core', 'conversation')")
        assert conn.scalars(made).all() == []


def test_command__lock_held_too_long(empty_database: Database) -> None:
    with held(empty_database, LOCK):
        refused = alembic(empty_database.admin_url, "upgrade", "head", SELENE_MIGRATION_WAIT="0")
    assert refused.returncode != 0
    assert "FAILED: another migration of this database is running" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_upgrade__lock_of_another_database_does_not_count(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, catalogue_at: Callable[[str], str]
) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", "0")
    with empty_database.server.new_database("other") as other, held(other, LOCK):
        upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__lets_go_of_the_lock(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", "10")
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", "1ms")
    with held(empty_database, VERSION_HELD), pytest.raises(sa.exc.OperationalError):
        upgrade(empty_database.admin_url)
    monkeypatch.delenv("SELENE_LOCK_TIMEOUT")
    with admin(empty_database) as conn:
        wait_until(lambda: migrating_pid(conn) is None, "the lock is let go of after a failure")
        upgrade(empty_database.admin_url)
        wait_until(lambda: migrating_pid(conn) is None, "the lock is let go of")


@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", "-1", "1e3"])
def test_upgrade__senseless_wait_is_refused(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", value)
    with pytest.raises(MigrationRefused, match="SELENE_MIGRATION_WAIT"):
        upgrade(empty_database.admin_url)
    assert stands_at(empty_database) == "nothing"


@pytest.mark.parametrize("value", ["", "soon", "-1", "3 s", "3s'; DROP TABLE x; --"])
def test_upgrade__senseless_lock_timeout_is_refused(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", value)
    with pytest.raises(MigrationRefused, match="SELENE_LOCK_TIMEOUT"):
        upgrade(empty_database.admin_url)
    with pytest.raises(MigrationRefused, match="SELENE_LOCK_TIMEOUT"):
        script("head")
    assert stands_at(empty_database) == "nothing"


def test_script__second_one_refuses(
    empty_database: Database,
    catalogue_at: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", PATIENT["SELENE_LOCK_TIMEOUT"])
    text = script(f"{BEFORE_ISOLATION}:head")
    with (
        held(empty_database, VERSION_HELD) as holder,
        psql_started(empty_database, text, tmp_path) as first,
    ):
        pid = wait_until_stopped(empty_database)
        second = psql(empty_database, text)
        assert second.returncode == 3
        assert "another migration of this database is running" in second.stderr
        assert wait_until_stopped(empty_database) == pid
        assert first.poll() is None
        holder.rollback()
        assert first.wait() == 0
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_script__two_at_once(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    text = script("head")
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(psql, empty_database, text).result for _ in range(2)]
        results = [run() for run in runs]
    # The second one came too early, or too late.
    assert sorted(result.returncode for result in results) == [0, 3]
    (refused,) = (result.stderr for result in results if result.returncode)
    assert "another migration of this" in refused or 'the script starts at revision ""' in refused
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_script__and_upgrade_refuse_each_other(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", PATIENT["SELENE_LOCK_TIMEOUT"])
    text = script(f"{BEFORE_ISOLATION}:head")
    with held(empty_database, VERSION_HELD), psql_started(empty_database, text, tmp_path):
        wait_until_stopped(empty_database)
        monkeypatch.setenv("SELENE_MIGRATION_WAIT", "0")
        with pytest.raises(MigrationLocked):
            upgrade(empty_database.admin_url)
    with held(empty_database, LOCK):
        assert psql(empty_database, text).returncode == 3


def test_upgrade__long_reader_in_front_of_an_alter(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, catalogue_at: Callable[[str], str]
) -> None:
    """The migration gives up; a reader who came after it waited no longer than it did."""
    read = "SELECT count(*) FROM os_core.work_order_ledger"
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", "10s")
    engine = empty_database.engine("admin")
    with (
        ThreadPoolExecutor() as pool,  # outermost: what it waits for at the end is let go of before
        held(empty_database, read) as long_reader,
        engine.connect() as reader,
        admin(empty_database) as watcher,
    ):
        pid = backend_pid(reader)
        migration = pool.submit(upgrade, empty_database.admin_url)
        migrating = wait_until_stopped(empty_database)
        reading = pool.submit(lambda: reader.exec_driver_sql(read).scalar_one())
        assert wait_until_blocked(watcher, pid) == [migrating]
        # The long reader has not moved: it was the migration that let the other one pass.
        assert reading.result(DEADLINE_SECONDS) == 0
        with pytest.raises(sa.exc.OperationalError) as failure:
            migration.result(DEADLINE_SECONDS)
        assert isinstance(failure.value.orig, psycopg.errors.LockNotAvailable)
        assert long_reader.in_transaction()
        assert stands_at(empty_database) == BEFORE_ISOLATION
        assert catalogue_of(empty_database) == catalogue_at(BEFORE_ISOLATION)
    upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__each_revision_is_committed_on_its_own(empty_database: Database) -> None:
    """What one has locked is free again before the next one waits."""
    upgrade(empty_database.admin_url, "0003")
    with (
        held(empty_database, "SELECT FROM os_core.work_order_ledger"),
        alembic_started(empty_database.admin_url, "upgrade", "head", **PATIENT),
    ):
        wait_until_stopped(empty_database)
        assert stands_at(empty_database) == BEFORE_ISOLATION


def test_upgrade__lock_timeout_is_short_by_default(empty_database: Database) -> None:
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    with (
        admin(empty_database) as conn,
        held(empty_database, "SELECT FROM os_core.work_order_ledger"),
        alembic_started(empty_database.admin_url, "upgrade", "head") as process,
    ):
        pid = wait_until_stopped(empty_database)
        began = conn.scalar(
            sa.text("SELECT query_start FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}
        )
        assert process.wait(DEADLINE_SECONDS) != 0
        assert conn.scalar(sa.text("SELECT clock_timestamp() - :began > '1s'"), {"began": began})
        assert process.stdout is not None
        assert "canceling statement due to lock timeout" in process.stdout.read()


def test_upgrade__nothing_to_do_waits_for_no_table(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", "1ms")
    with held(database, "LOCK TABLE os_core.work_order_ledger, os_core.work_orders_current"):
        upgrade(database.admin_url)


def test_upgrade__other_timeouts_do_not_end_it(
    empty_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    """A limit on statements or transactions that the database sets for everyone is not for migrations."""
    upgrade(empty_database.admin_url, BEFORE_ISOLATION)
    name, limits = empty_database.name, ["statement_timeout", "idle_in_transaction_session_timeout"]
    if empty_database.server.version >= 17:
        limits.append("transaction_timeout")
    run_all(empty_database, [f"ALTER DATABASE {name} SET {limit} = '600ms'" for limit in limits])
    waited = sa.text("SELECT clock_timestamp() - query_start > '1s' FROM pg_stat_activity WHERE pid = :pid")
    with (
        admin(empty_database) as conn,
        held(
            empty_database, "SET statement_timeout = 0", "SET idle_in_transaction_session_timeout = 0"
        ) as holder,
    ):
        if "transaction_timeout" in limits:
            holder.exec_driver_sql("SET transaction_timeout = 0")
        holder.commit()
        holder.exec_driver_sql(VERSION_HELD)
        with alembic_started(empty_database.admin_url, "upgrade", "head", **PATIENT) as process:
            pid = wait_until_stopped(empty_database)
            wait_until(lambda: conn.scalar(waited, {"pid": pid}), "it waits past every limit")
            holder.rollback()
            assert process.wait() == 0, process.stdout and process.stdout.read()
    run_all(empty_database, [f"ALTER DATABASE {name} RESET {limit}" for limit in limits])
    assert catalogue_of(empty_database) == catalogue_at("head")
