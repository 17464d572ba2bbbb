"""Downgrades below leases and attempts: never past rows without being told (contract §13)."""

from collections.abc import Callable
from contextlib import closing

import pytest
import sqlalchemy as sa

from selene_core.migrations import MigrationRefused, downgrade, upgrade
from tests.migrations.runs import PAIRS, catalogue_of, psql, script, stands_at
from tests.support.calls import Tenant
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.workers import acquire, new_token, start

LEASES, ATTEMPTS = "work_order_leases", "work_order_step_attempts"
BELOW = {revision: below for below, revision in PAIRS}


def revision_of(table: str) -> str:
    """Return the revision that makes a table."""
    return {LEASES: "0012", ATTEMPTS: "0013"}[table]


@pytest.fixture(params=[LEASES, ATTEMPTS])
def table(request: pytest.FixtureRequest, database: Database) -> str:
    """Name a table, the only one of the two that has a row."""
    name: str = request.param
    with (
        closing(connect(database.app_url, autocommit=True)) as app,
        closing(connect(database.admin_url, autocommit=True)) as admin,
    ):
        acme = Tenant("acme", app, admin)
        if name == LEASES:
            acquire(app, acme.id, acme.order(), new_token())
        else:
            start(app, acme.id, acme.order())
    return name


def rows_in(database: Database, table: str) -> int:
    with database.engine("admin").connect() as conn:
        count: int = conn.execute(sa.text(f"SELECT count(*) FROM os_core.{table}")).scalar_one()
        return count


@pytest.mark.parametrize("role", ["admin", "owner"])
def test_downgrade__rows_are_not_dropped(
    database: Database, catalogue_at: Callable[[str], str], table: str, role: str
) -> None:
    url = database.admin_url if role == "admin" else database.owner_url
    target = BELOW[revision_of(table)]
    with pytest.raises(MigrationRefused, match=f"downgrade refused: os_core.{table} has rows"):
        downgrade(url, target)
    run = psql(database, script(f"head:{target}", downgrade=True), url)
    assert (run.returncode, f"os_core.{table} has rows" in run.stderr) == (3, True)
    assert catalogue_of(database) == catalogue_at("head")
    assert rows_in(database, table) == 1


def test_downgrade__told_to_lose_rows(
    database: Database, catalogue_at: Callable[[str], str], table: str
) -> None:
    downgrade(database.owner_url, BELOW[revision_of(table)], allow_data_loss=True)
    assert stands_at(database) == BELOW[revision_of(table)]
    upgrade(database.owner_url)
    assert catalogue_of(database) == catalogue_at("head")
    assert rows_in(database, table) == 0


def test_downgrade__of_the_attempts_keeps_the_leases(database: Database) -> None:
    with (
        closing(connect(database.app_url, autocommit=True)) as app,
        closing(connect(database.admin_url, autocommit=True)) as admin,
    ):
        acme = Tenant("acme", app, admin)
        acquire(app, acme.id, acme.order(), new_token())
    downgrade(database.owner_url, BELOW[revision_of(ATTEMPTS)])
    upgrade(database.owner_url)
    assert rows_in(database, LEASES) == 1
