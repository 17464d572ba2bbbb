"""What the other tests stand on: the choice of the server, and the databases and logins on it."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support import pooler, programs
from tests.support.pooler import BYPASS, is_pooled
from tests.support.races import backend_pid, wait_until, wait_until_blocked, wait_until_gone
from tests.support.servers import Database, NoServer, Role, Server, open_server


@pytest.mark.parametrize(
    ("role", "session_user", "current_user"),
    [
        ("app", "selene_test_app", "selene_test_app"),
        ("readonly", "selene_test_readonly", "selene_test_readonly"),
        ("owner", "selene_test_owner_login", "selene_owner"),
    ],
)
def test_database__logins(database: Database, role: Role, session_user: str, current_user: str) -> None:
    with database.engine(role).connect() as conn:
        users = conn.execute(sa.text("SELECT session_user, current_user")).one()
        assert users == (session_user, current_user)
        assert conn.execute(sa.text("SELECT current_database()")).scalar_one() == database.name
        group = f"selene_{role}"
        assert conn.execute(sa.text("SELECT pg_has_role(:group, 'USAGE')"), {"group": group}).scalar_one()


def test_database__no_login_is_privileged(database: Database) -> None:
    privileged = sa.text(
        "SELECT rolname FROM pg_roles"
        " WHERE rolname LIKE 'selene%' AND (rolsuper OR rolbypassrls OR rolcreaterole)"
    )
    with database.engine("admin").connect() as conn:
        assert conn.execute(privileged).all() == []


def test_new_database__dropped_while_in_use(server: Server) -> None:
    with server.new_database("dropped") as database:
        conn = database.engine("admin").connect()
        conn.execute(sa.text("SELECT 1"))
    with server.admin() as admin:
        assert admin.execute("SELECT FROM pg_database WHERE datname = %s", [database.name]).fetchall() == []
    conn.invalidate()


def test_wait_until_blocked__names_the_blocker(empty_database: Database) -> None:
    engine = empty_database.engine("admin")
    with engine.connect() as holder, engine.connect() as waiter, engine.connect() as watcher:
        holder.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))
        pid = backend_pid(waiter)
        # The lock is let go of before the pool waits for its thread, whatever happens in between.
        with ThreadPoolExecutor(1) as pool, closing(holder):
            waiting = pool.submit(waiter.execute, sa.text("SELECT pg_advisory_xact_lock(1)"))
            assert wait_until_blocked(watcher, pid) == [backend_pid(holder)]
            assert not waiting.done()
        assert waiting.done()
        waiter.invalidate()
        wait_until_gone(watcher, pid)


def test_open_server__given(fresh_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    given = fresh_server.admin_url().set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("SELENE_TEST_DATABASE_URL", given)
    monkeypatch.setenv("SELENE_TEST_PG", str(fresh_server.version))
    with ExitStack() as stack:
        opened = open_server(stack)
        assert (opened.kind, opened.version) == ("given", fresh_server.version)
        with opened.admin("template1") as conn:
            assert conn.info.dbname == "template1"
        monkeypatch.setenv("SELENE_TEST_PG", str(fresh_server.version - 1))
        with pytest.raises(NoServer, match=f"is PostgreSQL {fresh_server.version}"):
            open_server(stack)


def test_open_server__given_to_no_superuser(fresh_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_server.admin() as conn:
        conn.execute("CREATE ROLE ordinary LOGIN")
    url = fresh_server.url_for("ordinary", "postgres").render_as_string(hide_password=False)
    monkeypatch.setenv("SELENE_TEST_DATABASE_URL", url)
    monkeypatch.delenv("SELENE_TEST_PG", raising=False)
    with ExitStack() as stack, pytest.raises(NoServer, match="ordinary is not a superuser"):
        open_server(stack)


@pytest.mark.slow
def test_session__environment_of_libpq_counts_for_nothing() -> None:
    environment = {
        "PGHOSTADDR": "127.0.0.1",
        "PGOPTIONS": "-c role=nobody",
        "PGTZ": "elsewhere",
        "PGSERVICE": "elsewhere",
    }
    test = f"{__file__}::{test_database__no_login_is_privileged.__name__}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", test],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_open_server__none_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELENE_TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setenv("SELENE_PG_BIN", "/nonexistent")
    reasons = r"no given server: .*no container: .*no embedded server: "
    with ExitStack() as stack, pytest.raises(NoServer, match=reasons):
        open_server(stack)


@pytest.fixture
def given(fresh_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give the tests' choice a server that is quickly opened."""
    url = fresh_server.admin_url().set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("SELENE_TEST_DATABASE_URL", url)
    monkeypatch.delenv("SELENE_TEST_PG", raising=False)
    return fresh_server


@pytest.mark.needs("pgbouncer")
def test_open_server__behind_a_pooler_says_so(given: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELENE_TEST_POOLER", "pgbouncer")
    monkeypatch.setattr(BYPASS, "reason", None)
    with ExitStack() as stack:
        opened = open_server(stack)
        assert opened.pooler is not None
        assert any("PgBouncer" in line and "transaction mode" in line for line in opened.describe())
        folder = opened.pooler.folder
        database = Database(opened, "postgres")
        assert is_pooled(database.app_url)
        assert is_pooled(database.readonly_url)
        assert not is_pooled(database.owner_url)
        assert not is_pooled(database.admin_url)
        monkeypatch.setattr(BYPASS, "reason", "the test's")
        assert not is_pooled(database.app_url)
    assert not folder.exists()


def test_open_server__never_takes_no_pooler_for_one(given: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooler, "find_pgbouncer", lambda: None)
    for name, reason in (("pgbouncer", "there is no pgbouncer"), ("pgcat", "the only one that is known")):
        monkeypatch.setenv("SELENE_TEST_POOLER", name)
        with ExitStack() as stack, pytest.raises(NoServer, match=reason):
            open_server(stack)


@pytest.mark.slow
@pytest.mark.needs("pgbouncer")
def test_pooler__ends_with_whoever_started_it(given: Server) -> None:
    """Also when that is killed: no PgBouncer stays, and no folder with its passwords."""
    code = """
        import sys
        from sqlalchemy.engine import make_url
        from tests.support.pooler import pgbouncer

        with pgbouncer(make_url(sys.argv[1]), {"somebody": "hush"}) as pooler:
            print(pooler.folder, (pooler.folder / "pid").read_text().strip(), flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), given.address.render_as_string(hide_password=False)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        process.kill()
    wait_until(lambda: not Path(folder).exists(), "the folder is removed")
    wait_until(lambda: state_of(pid) in ("", "Z"), "PgBouncer ends")


def state_of(pid: str) -> str:
    """Return the first letter of a process's state: Z has ended, and nobody has buried it."""
    return subprocess.run(
        ["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False
    ).stdout.strip()[:1]


@pytest.mark.parametrize(("in_ci", "kept"), [("true", 2), ("", 1)])
def test_programs__missing_ones_leave_tests_out_but_never_in_ci(
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    in_ci: str,
    kept: int,
) -> None:
    monkeypatch.setenv("CI", in_ci)
    monkeypatch.setattr(programs, "PROGRAMS", {"pgbouncer": lambda: None, "docker compose": lambda: ["true"]})
    # Deselection is reported: to nobody here, because these are not items of this run.
    monkeypatch.setattr(pytestconfig.hook, "pytest_deselected", lambda items: None)
    needy = pytest.Function.from_parent(request.node.parent, name="needy", callobj=lambda: None)
    needy.add_marker(pytest.mark.needs("pgbouncer"))
    other = pytest.Function.from_parent(request.node.parent, name="other", callobj=lambda: None)
    other.add_marker(pytest.mark.needs("docker compose"))
    items: list[pytest.Item] = [needy, other]
    programs.leave_out(pytestconfig, items)
    assert len(items) == kept
    assert other in items
