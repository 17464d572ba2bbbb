"""Down and up again; never past rows of a ledger without being told (contract §11 and §13)."""

import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from selene_core.migrations import MigrationRefused, downgrade, upgrade
from tests.migrations.runs import (
    PAIRS,
    alembic,
    alembic_apart,
    catalogue_of,
    psql,
    run_all,
    script,
    stands_at,
)
from tests.support import factories
from tests.support.servers import Database, Role

LEDGER = "0003"
BELOW_LEDGER = ["0002", "0001", "base"]
REFUSED = "downgrade refused: os_core.work_order_ledger has rows"
BELOW = {revision: below for below, revision in PAIRS}
TOLD = ("-x", "allow-data-loss=yes")
INSERT = """
    INSERT INTO os_core.work_order_ledger (
      tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type, work_order_status,
      reason_code, payload, event_hash
    ) VALUES ('acme', 'wo-1', 1, gen_random_uuid(), 1, 'WORK_ORDER_CREATED', 'DRAFT', 1, '{}', sha256(''))
"""


def append(database: Database, tenant_id: str) -> None:
    """Append one event as the application would."""
    with database.engine("app").begin() as conn:
        events = json.dumps([factories.wire("WORK_ORDER_CREATED")])
        statement = sa.text("SELECT * FROM os_core.append_work_order_events(:tenant, CAST(:events AS jsonb))")
        conn.execute(statement, {"tenant": tenant_id, "events": events})


def events_in(database: Database) -> int:
    with database.engine("admin").connect() as conn:
        count: int = conn.execute(sa.text("SELECT count(*) FROM os_core.work_order_ledger")).scalar_one()
        return count


@pytest.fixture(params=["as the superuser", "as the owner"])
def migrator_url(request: pytest.FixtureRequest, database: Database) -> sa.URL:
    """Return a migrator's URL: the superuser's, and that of a login which FORCE hides every row from."""
    append(database, "acme")
    append(database, "globex")
    return database.admin_url if request.param == "as the superuser" else database.owner_url


@pytest.mark.parametrize(("below", "revision"), PAIRS)
def test_downgrade__each_revision_and_up_again(
    empty_database: Database, catalogue_at: Callable[[str], str], below: str, revision: str
) -> None:
    url = empty_database.admin_url
    upgrade(url, revision)
    downgrade(url, below)
    assert stands_at(empty_database) == below
    if below != "base":
        assert catalogue_of(empty_database) == catalogue_at(below)
    upgrade(url, revision)
    assert catalogue_of(empty_database) == catalogue_at(revision)


def test_downgrade__to_base_leaves_schemas_and_roles(database: Database) -> None:
    downgrade(database.admin_url, "base")
    assert stands_at(database) == "base"
    things = catalogue_of(database).split("\n\n")
    assert [thing.splitlines()[0] for thing in things] == [
        "default privileges of selene_owner",
        "relation os_core.alembic_version",
        "role selene_app",
        "role selene_feed",
        "role selene_owner",
        "role selene_readonly",
        "schema conversation",
        "schema os_core",
    ]


def test_downgrade__to_base_and_up_again(database: Database, catalogue_at: Callable[[str], str]) -> None:
    for url in (database.admin_url, database.owner_url):
        downgrade(url, "base")
        upgrade(url)
        assert catalogue_of(database) == catalogue_at("head")
    append(database, "acme")


@pytest.mark.parametrize("target", BELOW_LEDGER)
def test_downgrade__rows_are_not_dropped(
    database: Database, catalogue_at: Callable[[str], str], migrator_url: sa.URL, target: str
) -> None:
    with pytest.raises(MigrationRefused, match=REFUSED):
        downgrade(migrator_url, target)
    # Nothing at all has happened: the guards and the projection above the ledger are as they were.
    assert catalogue_of(database) == catalogue_at("head")
    assert events_in(database) == 2
    append(database, "acme")


def test_downgrade__rows_are_seen_whatever_the_tenant(database: Database) -> None:
    """A tenant that is set for every session must not hide the others' rows."""
    append(database, "acme")
    run_all(database, [f"ALTER DATABASE {database.name} SET selene.tenant_id = 'globex'"])
    with pytest.raises(MigrationRefused, match=REFUSED):
        downgrade(database.owner_url, "base")


@pytest.mark.parametrize("start", ["0003", "0004", "0005", "0006"])
def test_downgrade__rows_are_seen_with_and_without_row_security(
    empty_database: Database, catalogue_at: Callable[[str], str], start: str
) -> None:
    upgrade(empty_database.admin_url, start)
    run_all(empty_database, [INSERT])
    with pytest.raises(MigrationRefused, match=REFUSED):
        downgrade(empty_database.admin_url, "base")
    assert catalogue_of(empty_database) == catalogue_at(start)
    downgrade(empty_database.admin_url, "base", allow_data_loss=True)
    assert stands_at(empty_database) == "base"


def test_downgrade__rows_are_seen_under_force(empty_database: Database) -> None:
    """Not even a table that shows the owner no row is dropped unseen."""
    upgrade(empty_database.admin_url, LEDGER)
    run_all(
        empty_database,
        [
            INSERT,
            *(
                f"ALTER TABLE os_core.work_order_ledger {how} ROW LEVEL SECURITY"
                for how in ("ENABLE", "FORCE")
            ),
        ],
    )
    with pytest.raises(MigrationRefused, match=REFUSED):
        downgrade(empty_database.admin_url, "base")
    run = psql(empty_database, script(f"{LEDGER}:base", downgrade=True))
    assert (run.returncode, REFUSED in run.stderr) == (3, True)
    with empty_database.engine("admin").connect() as conn:
        forced = sa.text("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'work_order_ledger'")
        assert conn.scalar(forced)


def test_downgrade__told_to_lose_rows(
    database: Database, catalogue_at: Callable[[str], str], migrator_url: sa.URL
) -> None:
    downgrade(migrator_url, "base", allow_data_loss=True)
    assert stands_at(database) == "base"
    upgrade(migrator_url)
    assert catalogue_of(database) == catalogue_at("head")
    assert events_in(database) == 0


def test_downgrade__down_to_the_ledger_keeps_its_rows(
    database: Database, catalogue_at: Callable[[str], str]
) -> None:
    append(database, "acme")
    downgrade(database.admin_url, LEDGER)
    assert events_in(database) == 1
    upgrade(database.admin_url)
    assert catalogue_of(database) == catalogue_at("head")
    assert events_in(database) == 1


@pytest.mark.parametrize(
    "option", [(), ("-x", "allow-data-loss=no"), ("-x", "allow-data-loss"), ("-x", "yes")]
)
def test_command__rows_are_not_dropped(
    database: Database, catalogue_at: Callable[[str], str], option: tuple[str, ...]
) -> None:
    append(database, "acme")
    refused = alembic(database.admin_url, *option, "downgrade", "base")
    assert refused.returncode != 0
    assert f"FAILED: {REFUSED}" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert catalogue_of(database) == catalogue_at("head")
    assert events_in(database) == 1


def test_command__relative_downgrade(database: Database, catalogue_at: Callable[[str], str]) -> None:
    append(database, "acme")
    refused = alembic(database.admin_url, "downgrade", f"-{len(PAIRS)}")
    assert f"FAILED: {REFUSED}" in refused.stdout
    assert catalogue_of(database) == catalogue_at("head")


def test_command__told_to_lose_rows(database: Database) -> None:
    append(database, "acme")
    done = alembic(database.owner_url, *TOLD, "downgrade", "base")
    assert done.returncode == 0, done.stdout
    assert stands_at(database) == "base"


@pytest.mark.parametrize("target", BELOW_LEDGER)
def test_script__rows_are_not_dropped(
    database: Database, catalogue_at: Callable[[str], str], migrator_url: sa.URL, target: str
) -> None:
    run = psql(database, script(f"head:{target}", downgrade=True), migrator_url)
    assert run.returncode == 3
    assert REFUSED in run.stderr
    assert catalogue_of(database) == catalogue_at("head")
    assert events_in(database) == 2


@pytest.mark.slow
def test_script__told_to_lose_rows(database: Database, migrator_url: sa.URL) -> None:
    printed = alembic_apart(None, *TOLD, "downgrade", "head:base", "--sql")
    assert printed.returncode == 0, printed.stdout
    assert printed.stdout == script("head:base", downgrade=True, allow_data_loss=True)
    run = psql(database, printed.stdout, migrator_url)
    assert run.returncode == 0, run.stderr
    assert stands_at(database) in ("base", "nothing")


def test_script__without_rows(database: Database, catalogue_at: Callable[[str], str]) -> None:
    run = psql(database, script("head:base", downgrade=True), database.owner_url)
    assert run.returncode == 0, run.stderr
    upgrade(database.owner_url)
    assert catalogue_of(database) == catalogue_at("head")


# --- what stands beside the work orders

IDENTITY = "INSERT INTO os_core.identities (tenant_id, user_id, status) VALUES ('acme', 'alice', 'ACTIVE')"
TURN = """
    INSERT INTO conversation.conversation_ledger (
      tenant_id, correlation_id, turn_id, user_id, role, source, text_hash, privacy_scope
    ) VALUES ('acme', gen_random_uuid(), 1, 'alice', 'USER', 'TYPED_TEXT', repeat('0', 64), 'PUBLIC_CHAT')
"""


@pytest.mark.parametrize(
    ("rows", "target", "table"),
    [
        ([IDENTITY, TURN], "0014", "conversation.conversation_ledger"),
        ([IDENTITY, TURN], "0003", "conversation.conversation_ledger"),
        ([IDENTITY], BELOW["0014"], "os_core.identities"),
        ([IDENTITY], "base", "os_core.identities"),
    ],
)
@pytest.mark.parametrize("role", ["admin", "owner"])
def test_downgrade__users_and_conversations_are_not_dropped(
    database: Database,
    catalogue_at: Callable[[str], str],
    rows: list[str],
    target: str,
    table: str,
    role: Role,
) -> None:
    run_all(database, rows)
    url = database.url(role)
    with pytest.raises(MigrationRefused, match=f"downgrade refused: {table} has rows"):
        downgrade(url, target)
    assert catalogue_of(database) == catalogue_at("head")
    refused = psql(database, script(f"head:{target}", downgrade=True), url)
    assert refused.returncode == 3
    assert f"{table} has rows" in refused.stderr
    downgrade(url, target, allow_data_loss=True)
    assert stands_at(database) == target


def test_downgrade__to_the_conversation_keeps_it(database: Database) -> None:
    run_all(database, [IDENTITY, TURN])
    downgrade(database.admin_url, "0015")
    with database.engine("admin").connect() as conn:
        assert conn.scalar(sa.text("SELECT turn_id FROM conversation.conversation_ledger")) == 1
