"""Several runs in one process: in threads, beside the host's own Alembic, and inside of its runs."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from selene_core.local import local_database
from selene_core.migrations import (
    config,
    current,
    downgrade,
    history,
    plan,
    script,
    upgrade,
)
from tests.migrations.runs import (
    PATIENT,
    REVISIONS,
    VERSION_HELD,
    admin,
    catalogue_of,
    held,
    stands_at,
    wait_until_stopped,
)
from tests.support.plans import listening
from tests.support.races import DEADLINE_SECONDS
from tests.support.servers import Database, Server

pytestmark = pytest.mark.slow

HEAD = REVISIONS[-1]
TABLES = sa.text(
    "SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
)


@pytest.fixture
def databases(server: Server) -> Iterator[list[Database]]:
    """Return four empty databases."""
    with ExitStack() as stack:
        yield [stack.enter_context(server.new_database(f"one_of_{number}")) for number in range(4)]


@pytest.fixture
def host(tmp_path: Path) -> Callable[[sa.URL], Config]:
    """Make an application with an Alembic of its own, whose revision calls `attributes["inside"]` midway."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(
        dedent("""
            from alembic import context
            from sqlalchemy import create_engine, pool
            url = context.config.attributes["url"]
            with create_engine(url, poolclass=pool.NullPool).connect() as connection:
                context.configure(connection=connection)
                with context.begin_transaction():
                    context.run_migrations()
        """)
    )
    (tmp_path / "versions" / "first.py").write_text(
        dedent("""
            from alembic import context, op
            import sqlalchemy as sa
            revision, down_revision, branch_labels, depends_on = "first", None, None, None
            def upgrade():
                inside = context.config.attributes["inside"]
                op.create_table("before", sa.Column("id", sa.Integer))
                inside()
                op.create_table("after", sa.Column("id", sa.Integer))
        """)
    )

    def configure(url: sa.URL, inside: Callable[[], object] = lambda: None) -> Config:
        configuration = Config(attributes={"url": url, "inside": inside})
        configuration.set_main_option("script_location", str(tmp_path))
        return configuration

    return configure


def tables_in(database: Database) -> set[str]:
    with admin(database) as conn:
        return set(conn.scalars(TABLES))


HOSTS = {"public.alembic_version", "public.before", "public.after"}


def together(*calls: Callable[[], object]) -> list[Any]:
    """Call all at the same time, in a thread each."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        ready.wait(DEADLINE_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [*pool.map(run, calls)]


def test_upgrade__databases_in_threads(databases: list[Database], catalogue_at: Callable[[str], str]) -> None:
    done = together(*(lambda url=each.admin_url: upgrade(url) for each in databases))
    assert [[revision for revision, _ in each.revisions] for each in done] == [REVISIONS] * 4
    assert {catalogue_of(each) for each in databases} == {catalogue_at("head")}


def test_every_function__in_threads(databases: list[Database], catalogue_at: Callable[[str], str]) -> None:
    up, down, looked_at, at_head = databases
    for each in (down, at_head):
        upgrade(each.admin_url)
    printed = script("head")
    _, _, seen, stands, listed, scripted = together(
        lambda: upgrade(up.admin_url),
        lambda: downgrade(down.admin_url, "0003"),
        lambda: plan(looked_at.admin_url),
        lambda: current(at_head.admin_url),
        history,
        script,
    )
    assert (stands, [revision for revision, _ in listed], scripted) == (HEAD, REVISIONS, printed)
    assert [revision for revision, _ in seen.revisions] == REVISIONS
    assert [catalogue_of(each) for each in (up, down)] == [catalogue_at("head"), catalogue_at("0003")]
    assert tables_in(looked_at) == set()


def test_upgrade__one_database_in_threads(
    empty_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    done = together(*[lambda: upgrade(empty_database.admin_url)] * 4)
    assert sorted(len(each.revisions) for each in done) == [0, 0, 0, len(REVISIONS)]
    assert {each.after for each in done} == {HEAD}
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__in_an_event_loop(databases: list[Database], catalogue_at: Callable[[str], str]) -> None:
    async def upgrade_all() -> None:
        await asyncio.gather(*(asyncio.to_thread(upgrade, each.admin_url) for each in databases))

    asyncio.run(upgrade_all())
    assert {catalogue_of(each) for each in databases} == {catalogue_at("head")}


def test_local_database__in_threads() -> None:
    def run() -> str | None:
        with local_database() as database:
            return current(database.admin_url)

    assert together(run, run) == [HEAD, HEAD]


@pytest.mark.parametrize("where", ["the same database", "another"])
def test_upgrade__inside_of_the_hosts_migration(
    databases: list[Database],
    host: Callable[..., Config],
    catalogue_at: Callable[[str], str],
    where: str,
) -> None:
    theirs = databases[0]
    ours = theirs if where == "the same database" else databases[1]
    command.upgrade(host(theirs.admin_url, lambda: upgrade(ours.admin_url)), "head")
    assert tables_in(theirs) >= HOSTS
    assert stands_at(ours) == HEAD
    if ours is not theirs:
        assert tables_in(theirs) == HOSTS
        assert catalogue_of(ours) == catalogue_at("head")


def test_upgrade__inside_of_our_own(databases: list[Database], catalogue_at: Callable[[str], str]) -> None:
    """As an application does it that listens to SQLAlchemy's events."""
    inside = threading.local()

    def begin(connection: sa.Connection) -> None:
        if connection.engine.url.database == databases[0].name and not hasattr(inside, "done"):
            inside.done = True
            upgrade(databases[1].admin_url)

    with listening(sa.Engine, "begin", begin):
        upgrade(databases[0].admin_url)
    assert {catalogue_of(each) for each in databases[:2]} == {catalogue_at("head")}


def test_upgrade__while_the_hosts_alembic_runs_in_a_thread(
    databases: list[Database], host: Callable[..., Config], catalogue_at: Callable[[str], str]
) -> None:
    theirs, ours = databases[:2]
    midway, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        midway.set()
        assert go_on.wait(DEADLINE_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(command.upgrade, host(theirs.admin_url, pause), "head")
        try:
            assert midway.wait(DEADLINE_SECONDS)
            upgrade(ours.admin_url, "0007")
            downgrade(ours.admin_url, "0003")
            script()
            upgrade(ours.admin_url)
        finally:
            go_on.set()
        run.result()
    assert tables_in(theirs) == HOSTS
    assert catalogue_of(ours) == catalogue_at("head")


@pytest.fixture
def stopped_midway(
    databases: list[Database], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], AbstractContextManager[None]]:
    """Run an upgrade of the second database in a thread, which is midway while the block runs."""
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    upgrade(databases[1].admin_url, "0003")

    @contextmanager
    def stop(call: Callable[[], object]) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            with held(databases[1], VERSION_HELD):
                run = pool.submit(call)
                wait_until_stopped(databases[1])
                yield
            run.result()

    return stop


def test_upgrade__the_hosts_alembic_runs_meanwhile(
    databases: list[Database],
    host: Callable[..., Config],
    catalogue_at: Callable[[str], str],
    stopped_midway: Callable[[Callable[[], object]], AbstractContextManager[None]],
) -> None:
    theirs, ours = databases[:2]
    with stopped_midway(lambda: upgrade(ours.admin_url)):
        command.upgrade(host(theirs.admin_url), "head")
    assert tables_in(theirs) == HOSTS
    assert catalogue_of(ours) == catalogue_at("head")


def test_command__the_hosts_alembic_takes_its_context(
    databases: list[Database],
    catalogue_at: Callable[[str], str],
    stopped_midway: Callable[[Callable[[], object]], AbstractContextManager[None]],
) -> None:
    """What `from alembic import context` means to the host is ours now: no revision of ours runs there."""
    theirs, ours = databases[:2]
    with stopped_midway(lambda: command.upgrade(config(ours.admin_url), "head")), admin(theirs) as conn:
        context.configure(connection=conn)
        with pytest.raises(CommandError, match="another run of Alembic in this process"):
            context.run_migrations()
    assert tables_in(theirs) <= {"public.alembic_version"}
    assert catalogue_of(ours) == catalogue_at("head")


def prepared(database: Database) -> EnvironmentContext:
    """Prepare what alembic.command.upgrade would run."""
    configuration = config(database.admin_url)
    scripts = ScriptDirectory.from_config(configuration)
    return EnvironmentContext(
        configuration, scripts, fn=lambda heads, _: scripts._upgrade_revs("head", heads)
    )


def test_command__its_place_is_taken(databases: list[Database]) -> None:
    """What alembic.command does in two threads, in the order in which the wrong database was upgraded."""
    late = prepared(databases[0])
    with prepared(databases[1]), pytest.raises(CommandError, match="another run of Alembic in this process"):
        late.script.run_env()
    with pytest.raises(CommandError, match="another run of Alembic in this process"):
        late.script.run_env()
    assert [tables_in(each) for each in databases[:2]] == [set(), set()]


def test_command__databases_in_threads(databases: list[Database], catalogue_at: Callable[[str], str]) -> None:
    """Alembic's own functions do not bear it: they fail, but a database is upgraded or left alone."""

    def run(database: Database) -> bool:
        try:
            command.upgrade(config(database.admin_url), "head")
        except (CommandError, KeyError):  # the second is Alembic's, where another has cleared the globals
            return False
        return True

    done = together(*(lambda each=each: run(each) for each in databases))
    for database, is_done in zip(databases, done, strict=True):
        stands = stands_at(database)
        assert stands in ([HEAD] if is_done else [HEAD, "nothing"])
        if stands == HEAD:
            assert catalogue_of(database) == catalogue_at("head")


def test_upgrade__failed_run_leaves_nothing_to_the_next(
    databases: list[Database], catalogue_at: Callable[[str], str]
) -> None:
    with pytest.raises(CommandError, match="no-such-revision"):
        upgrade(databases[0].admin_url, "no-such-revision")
    command.upgrade(config(databases[0].admin_url), "head")
    assert catalogue_of(databases[0]) == catalogue_at("head")
