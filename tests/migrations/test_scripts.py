"""alembic --sql through psql: the same schema, and only where the script belongs (contract §13)."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from selene_core.migrations import downgrade, upgrade
from tests.migrations.runs import (
    PAIRS,
    REVISIONS,
    alembic_apart,
    catalogue_of,
    psql,
    run_all,
    script,
    stands_at,
)
from tests.support.servers import Database


@pytest.mark.slow
def test_script__makes_the_same_schema(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    """Without a database to look at: SELENE_DATABASE_URL is not set."""
    printed = alembic_apart(None, "upgrade", "head", "--sql")
    assert printed.returncode == 0, printed.stdout
    run = psql(empty_database, printed.stdout)
    assert run.returncode == 0, run.stderr
    assert catalogue_of(empty_database) == catalogue_at("head")
    assert stands_at(empty_database) == REVISIONS[-1]


@pytest.mark.slow
def test_script__names_no_database(empty_database: Database) -> None:
    url = empty_database.admin_url.set(host="db.example.com", password="hush-hush")
    printed = alembic_apart(url, "upgrade", "head", "--sql")
    assert printed.returncode == 0
    assert "hush-hush" not in printed.stdout
    assert "db.example.com" not in printed.stdout


def test_script__as_a_migrator(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    name = f"migrator_of_{empty_database.name}"
    run_all(
        empty_database,
        [
            f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'selene-test'",
            f"GRANT CREATE ON DATABASE {empty_database.name} TO {name}",
        ],
    )
    try:
        upgrade(
            empty_database.admin_url, REVISIONS[0]
        )  # where others made the roles, the grant is theirs too
        run_all(empty_database, [f"GRANT selene_owner TO {name}"])
        url = empty_database.server.url_for(name, empty_database.name)
        run = psql(empty_database, script(f"{REVISIONS[0]}:head"), url)
        assert run.returncode == 0, run.stderr
        assert catalogue_of(empty_database) == catalogue_at("head")
    finally:
        run_all(empty_database, [f"DROP OWNED BY {name}", f"DROP ROLE {name}"])


@pytest.mark.parametrize("middle", REVISIONS[:-1])
def test_script__in_two_parts(
    empty_database: Database, catalogue_at: Callable[[str], str], middle: str
) -> None:
    for part in (middle, f"{middle}:head"):
        run = psql(empty_database, script(part))
        assert run.returncode == 0, run.stderr
        assert catalogue_of(empty_database) == catalogue_at(part.split(":")[-1])


def test_script__continues_an_upgrade_and_the_reverse(
    empty_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    upgrade(empty_database.admin_url, REVISIONS[2])
    assert psql(empty_database, script(f"{REVISIONS[2]}:{REVISIONS[5]}")).returncode == 0
    assert catalogue_of(empty_database) == catalogue_at(REVISIONS[5])
    upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")


@pytest.mark.parametrize(
    ("stands", "starts"),
    [("base", REVISIONS[2]), (REVISIONS[4], "base"), (REVISIONS[4], REVISIONS[2]), (REVISIONS[-1], "base")],
)
def test_script__refuses_a_database_that_stands_elsewhere(
    empty_database: Database, stands: str, starts: str
) -> None:
    upgrade(empty_database.admin_url)
    downgrade(empty_database.admin_url, stands)
    before = catalogue_of(empty_database)
    run = psql(empty_database, script(f"{starts}:head"))
    assert run.returncode == 3
    said = [revision if revision != "base" else "" for revision in (starts, stands)]
    assert 'the script starts at revision "{}", the database stands at "{}"'.format(*said) in run.stderr
    assert catalogue_of(empty_database) == before
    assert stands_at(empty_database) == stands


def test_script__refuses_a_database_without_us(empty_database: Database) -> None:
    assert psql(empty_database, script(f"{REVISIONS[2]}:head")).returncode == 3
    assert psql(empty_database, script("head:base", downgrade=True)).returncode == 3
    assert stands_at(empty_database) == "nothing"


@pytest.mark.parametrize(("below", "revision"), PAIRS)
def test_downgrade_script__each_revision(
    empty_database: Database, catalogue_at: Callable[[str], str], below: str, revision: str
) -> None:
    upgrade(empty_database.admin_url, revision)
    run = psql(empty_database, script(f"{revision}:{below}", downgrade=True))
    assert run.returncode == 0, run.stderr
    assert stands_at(empty_database) in (
        below,
        "nothing",
    )  # up to Alembic 1.17 a script drops the empty table
    if below != "base":
        assert catalogue_of(empty_database) == catalogue_at(below)
    again = psql(empty_database, script(f"{below}:head"))
    assert again.returncode == 0, again.stderr
    assert catalogue_of(empty_database) == catalogue_at("head")


@pytest.mark.parametrize("down", ["by script", "directly"])
@pytest.mark.parametrize("up", ["by script", "directly"])
def test_downgrade_script__to_base_and_up_again(
    empty_database: Database, catalogue_at: Callable[[str], str], down: str, up: str
) -> None:
    upgrade(empty_database.admin_url)
    if down == "directly":
        downgrade(empty_database.admin_url, "base")
    else:
        assert psql(empty_database, script("head:base", downgrade=True)).returncode == 0
    with empty_database.engine("admin").connect() as conn:
        left = sa.text(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'S')"
            " AND relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('os_core', 'conversation'))"
        )
        assert set(conn.scalars(left)) <= {"alembic_version"}
    if up == "directly":
        upgrade(empty_database.admin_url)
    else:
        assert psql(empty_database, script("head")).returncode == 0
    assert catalogue_of(empty_database) == catalogue_at("head")
