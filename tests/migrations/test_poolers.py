"""A migration has a session of its own or does not begin, and leaves nothing in any (contract §13)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from selene_core.cli import cli
from selene_core.migrations import (
    MigrationRefused,
    current,
    downgrade,
    upgrade,
)
from tests.migrations.disguise import Disguise, disguised
from tests.migrations.runs import (
    PATIENT,
    REVISIONS,
    VERSION_HELD,
    alembic,
    alembic_started,
    catalogue_of,
    everything,
    held,
    psql,
    run_all,
    script,
    stands_at,
    wait_until_stopped,
)
from tests.support.pooler import Pooler, pgbouncer
from tests.support.scratch import upgrade_further
from tests.support.servers import PASSWORD, Database, Server

LEFT = """
    SELECT current_user = session_user, current_setting('lock_timeout'), current_setting('statement_timeout'),
      current_setting('idle_in_transaction_session_timeout'),
      (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""
MODES = {
    "transaction": {"pool_mode": "transaction"},
    "statement": {"pool_mode": "statement"},
    "session": {"pool_mode": "session"},
    "session without a reset": {"pool_mode": "session", "server_reset_query": ""},
    "transaction, options dropped": {"pool_mode": "transaction", "ignore_startup_parameters": "options"},
    "statement, options dropped": {"pool_mode": "statement", "ignore_startup_parameters": "options"},
    "session, options dropped": {"pool_mode": "session", "ignore_startup_parameters": "options"},
    "transaction, one after the other": {"pool_mode": "transaction", "server_round_robin": "1"},
}
Pools = Callable[..., Pooler]


@pytest.fixture
def pools(cluster: Server) -> Iterator[Pools]:
    """Start PgBouncers with settings."""
    run_on_server(cluster, f"CREATE ROLE migrator LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    with ExitStack() as stack:
        yield lambda size, **settings: stack.enter_context(
            pgbouncer(cluster.address, {"migrator": PASSWORD}, server_connections=size, settings=settings)
        )


def run_on_server(server: Server, statement: str) -> None:
    with server.admin() as conn:
        conn.execute(statement.encode())


def left_by(url: sa.URL) -> tuple[object, ...] | None:
    """Return what the next client finds in a session."""
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
        return conn.execute(LEFT.encode()).fetchone()


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("mode", MODES)
def test_upgrade__a_pooler_is_refused_before_the_first_change(
    bare_database: Database, pools: Pools, mode: str
) -> None:
    pooler = pools(3 if "after the other" in mode else 1, **MODES[mode])
    url = pooler.url_for("migrator", PASSWORD, bare_database.name)
    before, clean = everything(bare_database), left_by(url)
    for command in (upgrade, lambda url: downgrade(url, "base")):
        with pytest.raises(
            MigrationRefused, match=r"leads through a pooler.*past the pooler.*selene-core sql"
        ):
            command(url)
    refused = alembic(url, "upgrade", "head")
    assert refused.returncode != 0
    assert "FAILED: the connection leads through a pooler" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert everything(bare_database) == before
    assert left_by(url) == clean
    assert advisory_locks(bare_database) == 0


@pytest.mark.needs("pgbouncer")
def test_command__a_pooler_is_refused_in_one_line(bare_database: Database, pools: Pools) -> None:
    url = pools(1).url_for("migrator", PASSWORD, bare_database.name)
    result = CliRunner().invoke(cli, ["upgrade", "--url", url.render_as_string(hide_password=False)])
    assert isinstance(result.exception, MigrationRefused)
    assert current(url) is None
    upgrade(bare_database.admin_url)
    assert current(url) == REVISIONS[-1], "to look is no matter of sessions"


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("mode", ["transaction", "session without a reset"])
def test_script__through_a_pooler_is_one_transaction_and_leaves_nothing(
    bare_database: Database, pools: Pools, catalogue_at: Callable[[str], str], mode: str
) -> None:
    url = pools(1, **MODES[mode]).url_for("migrator", PASSWORD, bare_database.name)
    clean = left_by(url)
    middle = REVISIONS[6]
    for part in (middle, f"{middle}:head"):
        done = psql(bare_database, script(part), url)
        assert done.returncode == 0, done.stderr
        assert left_by(url) == clean
    assert catalogue_of(bare_database) == catalogue_at("head")
    refused = psql(bare_database, script("head"), url)
    assert refused.returncode == 3
    assert left_by(url) == clean


@pytest.mark.needs("pgbouncer")
def test_script__in_statement_mode_changes_nothing(bare_database: Database, pools: Pools) -> None:
    url = pools(1, pool_mode="statement").url_for("migrator", PASSWORD, bare_database.name)
    before, clean = everything(bare_database), left_by(url)
    assert psql(bare_database, script("head"), url).returncode != 0
    assert everything(bare_database) == before
    assert left_by(url) == clean


def test_script__refused_without_on_error_stop_changes_nothing(empty_database: Database) -> None:
    upgrade(empty_database.admin_url, REVISIONS[3])
    before = catalogue_of(empty_database)
    psql(empty_database, f"\\set ON_ERROR_STOP off\n{script('head')}")
    assert catalogue_of(empty_database) == before
    assert stands_at(empty_database) == REVISIONS[3]


@pytest.fixture(params=["hands on no options", "hands on everything"])
def deceiver(request: pytest.FixtureRequest, cluster: Server) -> Iterator[Disguise]:
    """Run a pooler in transaction mode that gives the true key of the first of two backends."""
    with disguised(cluster, 2, hands_on_options=request.param == "hands on everything") as disguise:
        yield disguise


def test_upgrade__a_pooler_that_hands_on_what_it_can_is_refused(
    bare_database: Database, deceiver: Disguise
) -> None:
    before = everything(bare_database)
    user = bare_database.admin_url.username
    assert user is not None
    with pytest.raises(MigrationRefused, match="leads through a pooler"):
        upgrade(deceiver.url_for(user, bare_database.name))
    assert everything(bare_database) == before
    assert advisory_locks(bare_database) == 0
    assert {deceiver.ask(each, LEFT)[0] for each in (0, 1)} == {"t"}


@pytest.mark.parametrize("end", ["done", "fails", "interrupted", "refused"])
def test_upgrade__leaves_nothing_in_a_session_that_is_kept(
    bare_database: Database, cluster: Server, catalogue_at: Callable[[str], str], end: str
) -> None:
    """As by a proxy that gives each client a session, and does not end it with the client."""
    upgrade(bare_database.admin_url, REVISIONS[3])
    user = bare_database.admin_url.username
    assert user is not None
    with disguised(cluster, 1) as keeper:
        url = keeper.url_for(user, bare_database.name)
        if end == "done":
            upgrade(url)
            assert catalogue_of(bare_database) == catalogue_at("head")
        elif end == "fails":
            with held(bare_database, VERSION_HELD):
                assert alembic(url, "upgrade", "head", SELENE_LOCK_TIMEOUT="1ms").returncode != 0
        elif end == "refused":
            run_all(bare_database, ["ALTER ROLE selene_app BYPASSRLS"])
            with pytest.raises(MigrationRefused, match="BYPASSRLS"):
                upgrade(url)
        else:
            with held(bare_database, VERSION_HELD), alembic_started(url, "upgrade", "head", **PATIENT) as run:
                wait_until_stopped(bare_database)
                run.send_signal(signal.SIGINT)
                assert run.wait() != 0
        fresh = left_by(bare_database.admin_url)
        assert fresh is not None
        assert keeper.ask(0, LEFT) == ["t" if value is True else str(value) for value in fresh]
    assert advisory_locks(bare_database) == 0


def advisory_locks(database: Database) -> int:
    with database.engine("admin", poolclass=sa.NullPool).connect() as conn:
        count: int = conn.scalar(
            sa.text(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
        return count


def test_upgrade__a_migrator_with_one_connection(empty_database: Database) -> None:
    """The looks at the session are made one after the other."""
    name = f"single_{empty_database.name}"
    run_all(empty_database, [f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{PASSWORD}'"])
    try:
        run_all(empty_database, [f"ALTER ROLE {name} NOSUPERUSER CONNECTION LIMIT 1"])
        upgrade(empty_database.admin_url)
        run_all(empty_database, [f"GRANT selene_owner TO {name}"])
        upgrade(empty_database.server.url_for(name, empty_database.name))
    finally:
        run_all(empty_database, [f"DROP ROLE {name}"])


def test_upgrade__options_of_the_url_and_the_environment_hold(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say who migrates, as here, or how: the mark comes in addition."""
    name = f"acting_{empty_database.name}"
    upgrade(empty_database.admin_url, REVISIONS[0])
    run_all(empty_database, [f"CREATE ROLE {name} NOLOGIN"])
    try:
        for given in ("in the URL", "in the environment"):
            url = empty_database.admin_url
            if given == "in the URL":
                url = url.update_query_dict({"options": f"-c role={name}"})
            else:
                monkeypatch.setenv("PGOPTIONS", f"-c role={name}")
            with pytest.raises(MigrationRefused, match=f"{name} may not act as selene_owner"):
                upgrade(url)
    finally:
        monkeypatch.delenv("PGOPTIONS")
        run_all(empty_database, [f"DROP ROLE {name}"])


def test_upgrade__a_revision_outside_of_transactions_runs_as_the_owner(database: Database) -> None:
    """As CREATE INDEX CONCURRENTLY must; the revision after it has settings of its transaction again."""
    upgrade_further(
        database,
        """
        with op.get_context().autocommit_block():
            op.execute("CREATE INDEX CONCURRENTLY ix_further ON os_core.sessions (tenant_id, session_state)")
        """,
        'op.execute("CREATE TABLE os_core.further (id bigint)")',
    )
    owners = sa.text("SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname LIKE '%further'")
    with database.engine("admin").connect() as conn:
        assert conn.scalars(owners).all() == ["selene_owner"]
