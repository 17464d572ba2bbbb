"""Killed inside any revision and run again, a migration ends in the same schema (contract §13)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from selene_core.migrations import upgrade
from tests.migrations.runs import (
    PAIRS,
    PATIENT,
    REVISIONS,
    VERSION_HELD,
    alembic_started,
    catalogue_of,
    held,
    psql,
    psql_started,
    script,
    stands_at,
    wait_until_dead,
    wait_until_stopped,
)
from tests.support.servers import Database, Server

pytestmark = pytest.mark.slow

# In the first revision there is no version table yet that could be locked; this is what it changes first.
DEFAULTS_HELD = "LOCK TABLE pg_catalog.pg_default_acl IN SHARE MODE"


@contextmanager
def stopped_in(database: Database, before: str) -> Iterator[None]:
    """Let a migration that starts now come to a stop inside the revision after `before`."""
    if before != "base":
        upgrade(database.admin_url, before)
    with held(database, DEFAULTS_HELD if before == "base" else VERSION_HELD):
        yield


def terminate(database: Database, pid: int) -> None:
    with database.server.admin() as conn:
        assert conn.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone() == (True,)


@pytest.mark.parametrize(("before", "revision"), PAIRS)
@pytest.mark.parametrize("end", ["the backend is terminated", "the process is killed"])
def test_upgrade__interrupted(
    empty_database: Database, catalogue_at: Callable[[str], str], before: str, revision: str, end: str
) -> None:
    url = empty_database.admin_url
    with stopped_in(empty_database, before), alembic_started(url, "upgrade", revision, **PATIENT) as process:
        pid = wait_until_stopped(empty_database)
        if end == "the process is killed":
            process.kill()  # SIGKILL; its backend learns of it when it has something to say
        else:
            terminate(empty_database, pid)
        assert process.wait() != 0
    wait_until_dead(empty_database, pid)
    assert stands_at(empty_database) == (before if before != "base" else "nothing")
    if before != "base":
        assert catalogue_of(empty_database) == catalogue_at(before)
    upgrade(url)
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__again_while_a_killed_one_still_works(
    empty_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    url = empty_database.admin_url
    with (
        stopped_in(empty_database, REVISIONS[4]),
        alembic_started(url, "upgrade", "head", **PATIENT) as first,
    ):
        pid = wait_until_stopped(empty_database)
        first.kill()
        first.wait()
        with alembic_started(url, "upgrade", "head", **PATIENT) as second:
            # The killed one's backend has the lock until it notices: the second waits for it.
            assert wait_until_stopped(empty_database) == pid
            terminate(empty_database, pid)
            wait_until_dead(empty_database, pid)
            assert wait_until_stopped(empty_database) != pid
            second.kill()
            second.wait()
    upgrade(url)
    assert catalogue_of(empty_database) == catalogue_at("head")


@pytest.mark.parametrize(("before", "revision"), PAIRS)
def test_script__interrupted(
    empty_database: Database,
    catalogue_at: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: str,
    revision: str,
) -> None:
    monkeypatch.setenv("SELENE_LOCK_TIMEOUT", PATIENT["SELENE_LOCK_TIMEOUT"])
    text = script(f"{before}:head")
    with stopped_in(empty_database, before), psql_started(empty_database, text, tmp_path) as process:
        pid = wait_until_stopped(empty_database)
        process.kill()
        process.wait()
    wait_until_dead(empty_database, pid)
    assert stands_at(empty_database) == (before if before != "base" else "nothing")
    again = psql(empty_database, text)
    assert again.returncode == 0, again.stderr
    assert catalogue_of(empty_database) == catalogue_at("head")
    assert revision in REVISIONS


def test_upgrade__server_crashes(cluster: Server, catalogue_at: Callable[[str], str]) -> None:
    assert cluster.local is not None
    with cluster.new_database("crashed") as database:
        url = database.admin_url
        upgrade(url, REVISIONS[4])
        # Its connection goes down with the server.
        holder = cluster.admin(database.name)
        holder.execute(b"BEGIN")
        holder.execute(VERSION_HELD.encode())
        with alembic_started(url, "upgrade", "head", **PATIENT) as process:
            wait_until_stopped(database)
            cluster.local.restart(immediate=True)
            assert process.wait() != 0
        with pytest.raises(psycopg.OperationalError):
            holder.execute(b"SELECT 1")
        database.close()
        assert stands_at(database) == REVISIONS[4]
        upgrade(url)
        assert catalogue_of(database) == catalogue_at("head")
