"""The version table is believed only where the schema bears it out (contract §13)."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from selene_core.cli import cli
from selene_core.migrations import (
    TRACES,
    MigrationRefused,
    contradiction,
    current,
    downgrade,
    upgrade,
)
from tests.migrations.runs import (
    REVISIONS,
    alembic,
    catalogue_of,
    everything,
    psql,
    run_all,
    script,
    stands_at,
    statements_in,
)
from tests.support.catalogue import traces_text
from tests.support.servers import Database, Server

VERSION = "os_core.alembic_version"
STAMPED = {
    # Where the schema stands, what the version table says, and what is said of the schema.
    "head on an empty database": ("base", REVISIONS[-1:], "nothing of any revision"),
    "the middle on an empty database": ("base", ["0007"], "nothing of any revision"),
    "a revision of functions on an empty database": ("base", ["0002"], "nothing of any revision"),
    "a table too early": ("0011", ["0012"], "that of revision 0011"),
    "functions too early": ("0006", ["0007"], "that of revision 0006"),
    "head too early": ("0003", REVISIONS[-1:], "that of revision 0003"),
    "too late": ("0014", ["0013"], "that of revision 0014"),
    "far too late": (REVISIONS[-1], ["0002"], f"that of revision {REVISIONS[-1]}"),
    "nothing": (REVISIONS[-1], [], f"that of revision {REVISIONS[-1]}"),
    "nothing in the middle": ("0008", [], "that of revision 0008"),
    "two revisions": ("0009", ["0009", "0007"], "that of revision 0009"),
    "two revisions at head": (REVISIONS[-1], REVISIONS[-2:], f"that of revision {REVISIONS[-1]}"),
}
LOST = "DROP TABLE os_core.alembic_version"


def stamped(database: Database, revisions: list[str]) -> list[str]:
    values = ", ".join(f"('{revision}')" for revision in revisions)
    return [f"DELETE FROM {VERSION}", *([f"INSERT INTO {VERSION} VALUES {values}"] if values else [])]


def command(database: Database, *arguments: str) -> Result:
    url = database.admin_url.render_as_string(hide_password=False)
    return CliRunner().invoke(cli, [*arguments, "--url", url])


def check_refused(database: Database, said: str) -> str:
    """Check that no way of running a migration changes anything, and return what is said."""
    before, catalogue = everything(database), catalogue_of(database)
    with pytest.raises(MigrationRefused, match=said) as refusal:
        upgrade(database.admin_url)
    refused = command(database, "upgrade")
    assert str(refused.exception) == str(refusal.value)
    looked = command(database, "current")
    assert looked.exit_code == 1
    assert said in looked.output
    as_json = command(database, "current", "--json")
    assert as_json.exit_code == 1
    assert '"contradiction": "' in as_json.output
    assert everything(database) == before
    assert catalogue_of(database) == catalogue
    return str(refusal.value)


@pytest.mark.parametrize("case", STAMPED)
def test_upgrade__a_version_table_that_is_wrong(
    empty_database: Database, catalogue_at: Callable[[str], str], case: str
) -> None:
    stands, says, said = STAMPED[case]
    upgrade(empty_database.admin_url)
    downgrade(empty_database.admin_url, stands)
    run_all(empty_database, stamped(empty_database, says))
    message = check_refused(empty_database, said)
    for revision in says:
        assert revision in message
    run_all(empty_database, statements_in(message))
    upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")
    assert command(empty_database, "current").exit_code == 0


def test_upgrade__after_alembic_stamp(empty_database: Database, catalogue_at: Callable[[str], str]) -> None:
    assert alembic(empty_database.admin_url, "stamp", "head").returncode == 0
    said = check_refused(empty_database, "nothing of any revision")
    for arguments in (["upgrade", "head"], ["current"]):
        refused = alembic(empty_database.admin_url, *arguments)
        assert refused.returncode != 0
        assert f"FAILED: {said.splitlines()[0]}" in refused.stdout
    with pytest.raises(MigrationRefused, match="nothing of any revision"):
        downgrade(empty_database.admin_url, REVISIONS[0])
    # Stamping again mends it as well.
    assert alembic(empty_database.admin_url, "stamp", "base").returncode == 0
    upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")


@pytest.mark.parametrize("stands", ["0002", "0003", "0009", "0010", REVISIONS[-1]])
def test_upgrade__a_schema_without_a_version_table(
    empty_database: Database, catalogue_at: Callable[[str], str], stands: str
) -> None:
    upgrade(empty_database.admin_url, stands)
    run_all(empty_database, [LOST])
    message = check_refused(empty_database, "no table os_core.alembic_version, but the schema is that of")
    run_all(empty_database, statements_in(message))
    upgrade(empty_database.admin_url)
    assert catalogue_of(empty_database) == catalogue_at("head")


TORN = {
    "a table that was dropped": (
        ["DROP TABLE os_core.sessions CASCADE"],
        "missing: relation os_core.sessions",
    ),
    "a table that was moved": (
        ["CREATE SCHEMA elsewhere", "ALTER TABLE os_core.identities SET SCHEMA elsewhere"],
        "missing: relation os_core.identities",
    ),
    "two tables of several revisions": (
        ["DROP TABLE os_core.work_order_leases CASCADE", "DROP TABLE os_core.sessions CASCADE"],
        "missing: relation os_core.work_order_leases, relation os_core.sessions",
    ),
}


@pytest.mark.parametrize("case", TORN)
@pytest.mark.parametrize("version_table", ["kept", "lost"])
def test_upgrade__tables_are_missing(database: Database, case: str, version_table: str) -> None:
    """No statement is advised: what would be made anew would be empty."""
    statements, said = TORN[case]
    run_all(database, [*statements, *([LOST] if version_table == "lost" else [])])
    message = check_refused(database, said if version_table == "kept" else "there already: ")
    assert statements_in(message) == []
    assert ("restore a backup" in message) == (version_table == "kept")


def test_upgrade__a_table_of_another_is_in_the_way(empty_database: Database) -> None:
    """The revision that would fail is the fourth from here: not one before it is run."""
    upgrade(empty_database.admin_url, "0010")
    run_all(empty_database, ["CREATE TABLE os_core.sessions (id bigint)"])
    message = check_refused(empty_database, "there already: relation os_core.sessions")
    assert stands_at(empty_database) == "0010"
    assert statements_in(message) == []


@pytest.mark.parametrize("stands", ["base", *REVISIONS])
def test_contradiction__none_where_all_is_well(empty_database: Database, stands: str) -> None:
    upgrade(empty_database.admin_url)
    downgrade(empty_database.admin_url, stands)
    assert contradiction(empty_database.admin_url) is None
    assert current(empty_database.admin_url) == (None if stands == "base" else stands)


def test_upgrade__what_a_person_dropped_is_no_contradiction(empty_database: Database) -> None:
    """A function or trigger that is missing is doctor's to say, and no reason to keep a database as it is."""
    upgrade(empty_database.admin_url, "0011")
    run_all(
        empty_database,
        [
            "DROP FUNCTION os_core.notify_wait",
            "DROP TRIGGER reject_mutation_row ON os_core.work_order_ledger",
            "CREATE INDEX of_another ON os_core.work_order_ledger (created_at)",
        ],
    )
    upgrade(empty_database.admin_url)
    assert stands_at(empty_database) == REVISIONS[-1]


def test_contradiction__a_service_may_ask(database: Database) -> None:
    assert contradiction(database.app_url) is None
    run_all(database, stamped(database, ["0003"]))
    assert "that of revision" in str(contradiction(database.readonly_url))


@pytest.mark.parametrize("case", ["head on an empty database", "too late", "functions too early"])
def test_script__a_version_table_that_is_wrong(empty_database: Database, case: str) -> None:
    stands, says, said = STAMPED[case]
    upgrade(empty_database.admin_url)
    downgrade(empty_database.admin_url, stands)
    run_all(empty_database, stamped(empty_database, says))
    before = catalogue_of(empty_database)
    is_head = says == REVISIONS[-1:]
    text = script(f"head:{REVISIONS[0]}" if is_head else f"{says[0]}:head", downgrade=is_head)
    refused = psql(empty_database, text)
    assert refused.returncode == 3
    assert said in refused.stderr
    assert catalogue_of(empty_database) == before


def test_script__a_schema_without_a_version_table(empty_database: Database) -> None:
    upgrade(empty_database.admin_url)
    run_all(empty_database, [LOST])
    before = catalogue_of(empty_database)
    refused = psql(empty_database, script("head"))
    assert refused.returncode == 3
    assert f"that of revision {REVISIONS[-1]}" in refused.stderr
    assert catalogue_of(empty_database) == before


def test_traces__are_what_the_revisions_make(server: Server) -> None:
    assert TRACES.read_text(encoding="utf-8") == traces_text(server), "python -m tests.support.catalogue"
