"""One server a session, one migrated template database, one clone of it a test."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy.engine import Engine

from selene_core.libpq import environment
from selene_core.local import LocalServerUnavailable
from selene_core.migrations import upgrade
from tests.support import programs
from tests.support.pooler import BYPASS
from tests.support.servers import Database, NoServer, Server, embedded_server, open_server

# What starts a server or builds a distribution for a test: pyproject.toml has the rule of the marker slow.
SLOW_FIXTURES = frozenset({"fresh_server", "server_of_its_own", "distributions"})
_SERVER = pytest.StashKey[Server | NoServer]()
_STACK = pytest.StashKey[ExitStack]()


def _open(config: pytest.Config) -> Server | NoServer:
    if _SERVER not in config.stash:
        config.stash[_STACK] = ExitStack()
        try:
            config.stash[_SERVER] = open_server(config.stash[_STACK])
        except NoServer as exc:
            config.stash[_SERVER] = exc
    return config.stash[_SERVER]


def _close(config: pytest.Config) -> None:
    if _SERVER in config.stash:
        del config.stash[_SERVER]
        config.stash[_STACK].close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take --server-only, for runs on one more version."""
    parser.addoption(
        "--server-only",
        action="store_true",
        help="leave out the tests that do not use the test server: they are the same on every version",
    )


def pytest_configure() -> None:
    """Forget what the caller's surroundings would change."""
    # Of servers and sessions, in libpq's environment; a given server may need its secrets.
    for name in environment():
        if not name.startswith(("PGPASS", "PGSSL")):
            del os.environ[name]
    # A job in a shell's background does not hear Ctrl-C, nor do the programs that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which server the tests run on; it stays open for them."""
    if config.option.collectonly:
        return []
    server = _open(config)
    if isinstance(server, NoServer):
        return [f"server: NONE, {server}"]
    lines = [f"server: {line}" for line in server.describe()]
    lines += [f"left out: the tests that need {name}, which is not installed" for name in programs.missing()]
    lines += [
        f"left out: the tests on {name}: SELENE_TEST_CITUS is not set" for name in programs.no_cluster()
    ]
    if config.getoption("dist", "no") != "no":
        _close(config)
        lines.append("server: each worker opens its own")
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here; in CI everything can. Mark what is slow, before -m is asked."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    programs.leave_out(config, items)
    if config.getoption("server_only"):
        rest = {item for item in items if "server" not in getattr(item, "fixturenames", ())}
        config.hook.pytest_deselected(items=[*rest])
        items[:] = [item for item in items if item not in rest]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the tests that a pooler cannot serve go past it."""
    BYPASS.set_for(item.nodeid)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server."""
    _close(config)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """Return the session's server; fail without one."""
    server = _open(pytestconfig)
    if isinstance(server, NoServer):
        pytest.fail(f"no PostgreSQL to test on: {server}", pytrace=False)
    return server


@pytest.fixture(scope="session")
def template_database(server: Server) -> Iterator[str]:
    """Name a database that the real migrations made, for cloning. Nothing may stay connected to it."""
    with server.new_database("template") as template:
        upgrade(template.admin_url)
        server.make_login_roles()
        yield template.name


@pytest.fixture
def database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a clone of the template."""
    with server.new_database("test", template_database) as database:
        yield database


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """Return a database without any migration. Its cluster may have our roles already."""
    with server.new_database("empty") as database:
        yield database


@pytest.fixture
def engine(database: Database) -> Engine:
    """Return an engine that logs in as a member of selene_app."""
    return database.engine("app")


@pytest.fixture
def admin_engine(database: Database) -> Engine:
    """Return an engine of the superuser's."""
    return database.engine("admin")


@pytest.fixture(scope="module")
def fresh_server(server: Server) -> Iterator[Server]:
    """Start one more embedded server, for what concerns a whole cluster: roles, crashes, restarts."""
    with ExitStack() as stack:
        try:
            fresh = embedded_server(stack, server.version)
        except LocalServerUnavailable:
            fresh = embedded_server(stack, None)
        yield fresh
