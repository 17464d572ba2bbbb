"""What a migration would do, said before it; and what it did, said truly (contract §13 and §15)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from selene_core import append_events, migrations
from selene_core.migrations import (
    LOCK_KEY,
    current,
    downgrade,
    downgrades,
    plan,
    upgrade,
)
from selene_core.migrations.downgrades import look
from selene_core.sql_files import script_directory
from tests.migrations.runs import (
    PATIENT,
    REVISIONS,
    VERSION_HELD,
    admin,
    alembic_env,
    catalogue_of,
    held,
    run_all,
    stands_at,
    wait_until_stopped,
)
from tests.support import commands
from tests.support.factories import created
from tests.support.races import backend_pid, wait_until
from tests.support.servers import Database

HEAD = REVISIONS[-1]
LEDGER, CURRENT = "os_core.work_order_ledger", "os_core.work_orders_current"
WAITING = sa.text(
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid NOT IN (pg_backend_pid(), :other) AND query LIKE '%pg_try_advisory_lock%')"
)


def selene_core(url: sa.URL, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with an answer for what it asks."""
    with patch.dict(os.environ, alembic_env(url), clear=True):
        return commands.selene_core(*arguments, answer=answer)


def roles_in(database: Database) -> set[str]:
    with admin(database) as conn:
        return set(conn.scalars(sa.text("SELECT rolname FROM pg_roles")))


# --- what an upgrade would do


def test_plan__on_an_empty_cluster_makes_nothing(bare_database: Database) -> None:
    roles, before = roles_in(bare_database), catalogue_of(bare_database)
    planned = plan(bare_database.admin_url)
    assert [revision for revision, _ in planned.revisions] == REVISIONS
    assert (planned.before, planned.after, planned.refused) == (None, HEAD, None)
    assert (roles_in(bare_database), catalogue_of(bare_database)) == (roles, before)
    assert stands_at(bare_database) == "nothing"


def test_plan__from_where_it_stands(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    upgrade(empty_database.admin_url, "0007")
    planned = plan(empty_database.admin_url, "0009")
    assert (planned.before, planned.after) == ("0007", "0009")
    assert [revision for revision, _ in planned.revisions] == ["0008", "0009"]
    assert catalogue_of(empty_database) == catalogue_at("0007")
    upgrade(empty_database.admin_url)
    assert plan(empty_database.admin_url) == (HEAD, HEAD, [], False, None)


def test_plan__says_which_checks_fail(cluster: object, bare_database: Database) -> None:
    run_all(bare_database, ["CREATE ROLE migrator LOGIN PASSWORD 'selene-test'"])
    url = bare_database.server.url_for("migrator", bare_database.name)
    planned = plan(url)
    assert planned.refused is not None
    for statement in ("CREATE ROLE selene_owner NOLOGIN;", "GRANT CREATE ON DATABASE"):
        assert statement in planned.refused
    assert [revision for revision, _ in planned.revisions] == REVISIONS
    said = selene_core(url, "upgrade", "--dry-run")
    assert said.returncode == 1
    assert "Would be refused: migrator may not create roles" in said.stdout
    as_json = selene_core(url, "upgrade", "--dry-run", "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["refused"]) == (1, planned.refused)
    assert stands_at(bare_database) == "nothing"


def test_plan__another_migration_runs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", "0")
    with held(database, f"SELECT pg_advisory_lock({LOCK_KEY})"):
        planned = plan(database.admin_url)
    assert planned.refused is not None
    assert "another migration of this database is running" in planned.refused
    assert (planned.before, planned.revisions) == (HEAD, [])


def test_dry_run__names_the_revisions(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    url = empty_database.admin_url
    upgrade(url, REVISIONS[-3])
    said = selene_core(url, "upgrade", "--dry-run")
    assert said.returncode == 0, said.stderr
    first, *listed, last = said.stdout.splitlines()
    assert first == f"Would run, from {REVISIONS[-3]} to revision {HEAD}:"
    assert [line.split()[0] for line in listed] == REVISIONS[-2:]
    assert last == "Every check passes. Nothing was changed."
    as_json = json.loads(selene_core(url, "upgrade", "--dry-run", "--json").stdout)
    assert as_json == {"from": REVISIONS[-3], "to": HEAD, "revisions": REVISIONS[-2:], "refused": None}
    assert catalogue_of(empty_database) == catalogue_at(REVISIONS[-3])
    upgrade(url)
    assert selene_core(url, "upgrade", "--dry-run").stdout.startswith("Nothing to do: ")


# --- what an upgrade did


@pytest.mark.parametrize(("first", "ran"), [(HEAD, []), ("0007", REVISIONS[7:])])
def test_upgrade__two_at_once_say_what_each_did(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, first: str, ran: list[str]
) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    url = empty_database.admin_url
    upgrade(url, "0003")
    with ThreadPoolExecutor(3) as pool:
        with held(empty_database, VERSION_HELD), admin(empty_database) as conn:
            ahead = pool.submit(upgrade, url, first)
            pid = wait_until_stopped(empty_database)
            behind = pool.submit(upgrade, url)
            wait_until(lambda: conn.scalar(WAITING, {"other": pid}), "the second one asks for the lock")
        assert [revision for revision, _ in ahead.result().revisions] == REVISIONS[
            3 : REVISIONS.index(first) + 1
        ]
        assert [revision for revision, _ in behind.result().revisions] == ran
        assert (behind.result().after, behind.result().meanwhile) == (HEAD, not ran)
    assert upgrade(url) == (HEAD, HEAD, [], False, None)


@pytest.mark.parametrize("is_behind_head", [True, False])
def test_upgrade__the_one_ahead_did_nothing(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, is_behind_head: bool
) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    url = empty_database.admin_url
    upgrade(url, "0003" if is_behind_head else "head")
    with ThreadPoolExecutor(1) as pool:
        with admin(empty_database) as holder:
            holder.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
            behind = pool.submit(selene_core, url, "upgrade")
            with admin(empty_database) as conn:
                holding = {"other": backend_pid(holder)}
                wait_until(lambda: conn.scalar(WAITING, holding), "it asks for the lock")
        said = behind.result()
    assert said.returncode == 0, said.stderr
    assert said.stdout == (
        f"Upgraded from 0003 to revision {HEAD}.\n"
        if is_behind_head
        else f"Nothing to do: the database stands at revision {HEAD}.\n"
    )


@pytest.mark.slow
def test_command__two_upgrades_at_once(empty_database: Database) -> None:
    url = empty_database.admin_url
    upgrade(url, "0003")
    with ThreadPoolExecutor(1) as pool:
        with held(empty_database, VERSION_HELD), admin(empty_database) as conn:
            environment = alembic_env(url, **PATIENT)
            ahead, behind = (
                subprocess.Popen(
                    [sys.executable, "-m", "selene_core", "upgrade"],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(2)
            )
            pid = wait_until_stopped(empty_database)
            wait_until(lambda: conn.scalar(WAITING, {"other": pid}), "the second one asks for the lock")
        said = {pool.submit(process.communicate).result()[0] for process in (ahead, behind)}
    assert said == {
        f"Upgraded from 0003 to revision {HEAD}.\n",
        f"Nothing to do: another upgrade brought the database to revision {HEAD} meanwhile.\n",
    }


# --- what a downgrade takes away


@pytest.fixture(params=["admin", "owner"])
def filled_url(request: pytest.FixtureRequest, database: Database) -> sa.URL:
    """Return a migrator's URL of a database with rows of two tenants; FORCE hides them from the second."""
    for tenant, orders in (("acme", 2), ("globex", 1)):
        events = [created(f"wo-{tenant}-{number}") for number in range(orders)]
        append_events(database.engine("app"), tenant, events)
    return database.url(request.param)


def test_look__counts_the_rows_of_all_tenants(
    database: Database, catalogue_at: Callable[[str], str], filled_url: sa.URL
) -> None:
    loss = look(filled_url, "0003")
    assert (loss.before, loss.after) == (HEAD, "0003")
    assert [revision for revision, _ in loss.revisions] == REVISIONS[:2:-1]
    assert loss.tables.pop(CURRENT) == 3
    assert set(loss.tables.values()) == {0}
    assert LEDGER not in loss.tables
    assert {"os_core.work_order_leases", "conversation.conversation_ledger"} <= set(loss.tables)
    assert "os_core.no_tenant(text)" in loss.functions
    assert {f"policy tenant_confine of {LEDGER}", f"row security of {LEDGER}"} <= set(loss.guards)
    assert look(filled_url, "base").data == {LEDGER: 3, CURRENT: 3}
    # It was a look.
    assert catalogue_of(database) == catalogue_at("head")
    assert current(database.admin_url) == HEAD
    append_events(database.engine("app"), "acme", [created("wo-after")])


def test_look__says_what_goes_and_no_more(database: Database, catalogue_at: Callable[[str], str]) -> None:
    """What stands in the catalogue before, and not after."""
    for below in ("0014", "0007", "0002"):
        loss = look(database.admin_url, below)
        things = [
            {
                line.partition(" ")[2]
                for line in catalogue_at(each).splitlines()
                if line.startswith("function ")
            }
            for each in ("head", below)
        ]
        assert set(loss.functions) == things[0] - things[1]


def test_look__counts_no_further_than_it_says(
    database: Database, monkeypatch: pytest.MonkeyPatch, filled_url: sa.URL
) -> None:
    monkeypatch.setattr(downgrades, "COUNTED", 2)
    assert look(filled_url, "0003").tables[CURRENT] == 3
    monkeypatch.setattr(downgrades, "COUNTED", 1)
    assert look(filled_url, "0003").tables[CURRENT] == 2


def test_look__columns_and_their_values(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filled_url: sa.URL
) -> None:
    scripts = tmp_path / "alembic"
    shutil.copytree(script_directory(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "next.py").write_text(
        dedent(f"""
            from alembic import op
            revision, down_revision, branch_labels, depends_on = "next", "{HEAD}", None, None
            def upgrade():
                op.execute("ALTER TABLE {CURRENT} ADD nickname text, ADD empty text")
                op.execute("CREATE INDEX ix_next ON {CURRENT} (turn_id)")
            def downgrade():
                op.execute("ALTER TABLE {CURRENT} DROP nickname, DROP empty")
                op.execute("DROP INDEX os_core.ix_next")
        """),
        encoding="utf-8",
    )
    monkeypatch.setattr(migrations, "script_directory", lambda: scripts)
    upgrade(database.admin_url)
    run_all(database, [f"UPDATE {CURRENT} SET nickname = 'a' WHERE tenant_id = 'acme'"])
    loss = look(filled_url, "-1")
    assert (loss.before, loss.after, loss.tables, loss.functions) == ("next", HEAD, {}, ())
    assert loss.columns == {f"{CURRENT}.nickname": 2, f"{CURRENT}.empty": 0}
    assert loss.data == {f"{CURRENT}.nickname": 2}
    assert loss.guards == (f"index ix_next of {CURRENT}",)


def test_downgrade_command__keeps_rows_unless_told(
    database: Database, catalogue_at: Callable[[str], str], filled_url: sa.URL
) -> None:
    for option in ([], ["--yes"], ["--json", "--yes"]):
        refused = selene_core(filled_url, "downgrade", "base", *option, answer="y\n")
        assert refused.returncode == 1
        assert f"{LEDGER} with 3 rows" in refused.stderr
        assert "--allow-data-loss" in refused.stderr
    assert catalogue_of(database) == catalogue_at("head")
    done = selene_core(filled_url, "downgrade", "base", "--yes", "--allow-data-loss")
    assert done.returncode == 0, done.stderr
    assert f"table {LEDGER} with 3 rows\n" in done.stdout
    assert done.stdout.endswith(f"Downgraded from {HEAD} to revision base.\n")
    assert stands_at(database) == "base"
    again = selene_core(filled_url, "downgrade", "base")
    assert (again.returncode, again.stdout) == (0, "Nothing to do: the database stands at revision base.\n")


@pytest.mark.parametrize(
    ("answer", "stands"), [("y\n", REVISIONS[-2]), ("n\n", HEAD), ("\n", HEAD), ("", HEAD)]
)
def test_downgrade_command__asks(database: Database, answer: str, stands: str) -> None:
    said = selene_core(database.admin_url, "downgrade", "-1", answer=answer)
    assert "table os_core.subjects with 0 rows\n" in said.stdout
    assert f"Downgrade from {HEAD} to revision {REVISIONS[-2]}? [y/N]" in said.stdout
    assert said.returncode == (1 if stands == HEAD else 0)
    assert stands_at(database) == stands


def test_downgrade_command__dry_run(database: Database, catalogue_at: Callable[[str], str]) -> None:
    url = database.owner_url
    said = selene_core(url, "downgrade", "0014", "--dry-run")
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, "Nothing was changed.")
    append_events(database.engine("app"), "acme", [created("wo-1")])
    told = selene_core(url, "downgrade", "0002", "--dry-run", "--json")
    lost = json.loads(told.stdout)
    assert told.returncode == 1
    assert (lost["from"], lost["to"], lost["tables"][LEDGER]) == (HEAD, "0002", 1)
    assert "would be lost" in lost["refused"]
    assert catalogue_of(database) == catalogue_at("head")
    allowed = selene_core(url, "downgrade", "0002", "--dry-run", "--allow-data-loss", "--json")
    assert (allowed.returncode, json.loads(allowed.stdout)["refused"]) == (0, None)
    assert catalogue_of(database) == catalogue_at("head")


def test_downgrade_command__json_asks_nothing(database: Database) -> None:
    unasked = selene_core(database.admin_url, "downgrade", "0014", "--json", answer="y\n")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    done = selene_core(database.admin_url, "downgrade", "0014", "--json", "--yes")
    assert json.loads(done.stdout)["revisions"] == [*reversed(REVISIONS[REVISIONS.index("0015") :])]
    assert stands_at(database) == "0014"


@pytest.mark.parametrize("revision", ["no-such-revision", HEAD, "0099"])
def test_downgrade_command__leads_nowhere(empty_database: Database, revision: str) -> None:
    upgrade(empty_database.admin_url, "0003")
    refused = selene_core(empty_database.admin_url, "downgrade", revision, "--yes")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    downgrade(empty_database.admin_url, "0003")
    assert stands_at(empty_database) == "0003"
