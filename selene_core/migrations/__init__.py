"""Run the migrations, from a checkout or a wheel, and give revisions their SQL (contract §13)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from alembic.config import Config
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, pool, text
from sqlalchemy.exc import DBAPIError

from selene_core.contract.errors import SeleneCoreError
from selene_core.migrations.runs import Run
from selene_core.schema.catalogue import read_revisions
from selene_core.sql_files import script_directory, sql
from selene_core.store.autogenerate import include_name
from selene_core.store.engines import CONNECT_ARGS, psycopg_url
from selene_core.store.tables import METADATA

LOCK_KEY: Final = 7_235_101_420_163_011_001
"""The session advisory lock that a running migration holds; advisory locks are per database."""

TRACES: Final = Path(__file__).with_name("traces.json")
"""The catalogue names that prove that a revision has run; written by `python -m tests.support.catalogue`."""

target_metadata = METADATA
_POLL_SECONDS: Final = 0.1


# Of Alembic's own error too: its command prints one as a sentence, without a traceback.
class MigrationLocked(SeleneCoreError, CommandError):
    """Another migration of the database did not finish in time."""


class MigrationRefused(SeleneCoreError, CommandError):
    """Nothing was changed: roles or rights are missing, rows would be lost, or no database is named."""


class Revision(NamedTuple):
    """One step of the schema: its id, and in a line what it is for."""

    revision: str
    purpose: str


class Upgrade(NamedTuple):
    """What an upgrade did, or would do: `revisions` in their order, from `before` to `after`.

    `meanwhile`: it ran nothing, because another migration that it waited for did. `refused`: why a check of
    plan() fails; then `after` is None if the login may not see the database's revision.
    """

    before: str | None
    after: str | None
    revisions: list[Revision]
    meanwhile: bool = False
    refused: str | None = None


def config(url: str | URL | None = None) -> Config:
    """Return an Alembic configuration; without a URL, SELENE_DATABASE_URL is read when it runs."""
    result = Config(attributes={} if url is None else {"url": url})
    # Alembic interpolates % in option values, so a folder's name must not be taken for one.
    result.set_main_option("script_location", str(script_directory()).replace("%", "%%"))
    return result


def upgrade(
    url: str | URL | None = None,
    revision: str = "head",
    progress: Callable[[Revision], object] | None = None,
) -> Upgrade:
    """Upgrade the database to `revision`, and return what this run did; others may run in the same process.

    `progress` is called with each revision once it is committed: it stays, whatever becomes of the next.
    Raises MigrationLocked when another migration holds the lock past SELENE_MIGRATION_WAIT seconds
    (default 60), and MigrationRefused, with the statements to run, when roles or rights are missing.
    """
    return _upgrade(url, revision, progress)


def plan(url: str | URL | None = None, revision: str = "head") -> Upgrade:
    """Make the checks that upgrade() makes before its first change, and return what it would run.

    It changes nothing.
    """
    try:
        return _upgrade(url, revision, only_looks=True)
    except (MigrationRefused, MigrationLocked) as exc:
        refused = str(exc)
    database = configured_url(config(url))
    try:
        stands = current(database)
    except (DBAPIError, MigrationRefused):
        return Upgrade(None, None, [], refused=refused)
    steps = ScriptDirectory.from_config(config())._upgrade_revs(revision, stands or "base")
    revisions = [revision_of(step.revision) for step in steps]
    return Upgrade(stands, revisions[-1].revision if revisions else stands, revisions, refused=refused)


def downgrade(url: str | URL | None, revision: str, *, allow_data_loss: bool = False) -> None:
    """Downgrade the database to `revision`, all or nothing.

    Raises MigrationRefused when a ledger with rows would go, unless `allow_data_loss` (contract §11).
    """
    downgrade_run(url, revision, lambda steps, _connection: steps, allow_data_loss=allow_data_loss).start()


def downgrade_run(
    url: str | URL | None,
    revision: str,
    walk: Callable[[list[RevisionStep], Connection], Iterable[RevisionStep]],
    **options: bool,
) -> Run:
    """Prepare a downgrade that runs what `walk` makes of the steps to `revision`."""
    scripts = ScriptDirectory.from_config(configuration := config(url))

    # By this name env.py knows that it is to be one transaction.
    def downgrade(heads: Any, context: MigrationContext) -> Iterable[RevisionStep]:
        if context.connection is None:
            raise AssertionError("a downgrade needs a connection")
        return walk(scripts._downgrade_revs(revision, heads), context.connection)

    return Run(configuration, scripts, fn=downgrade, destination_rev=revision, **options)


def current(url: str | URL) -> str | None:
    """Return the database's revision; None before the first."""
    with _reader(url) as connection:
        stamps = read_revisions(connection)
    return max(stamps) if stamps else None


def contradiction(url: str | URL) -> str | None:
    """Return how the version table contradicts the schema, and what to do about it; None if they agree."""
    with _reader(url) as connection:
        try:
            with refusals():
                connection.execute(text(version_guard()))
        except MigrationRefused as exc:
            return str(exc)
    return None


@contextmanager
def _reader(url: str | URL) -> Iterator[Connection]:
    """Connect with the right to read the version table; everything is rolled back.

    Raises MigrationRefused, with the message of an upgrade, for a login that may neither read nor migrate.
    """
    engine = create_engine(psycopg_url(url), poolclass=pool.NullPool, connect_args=CONNECT_ARGS)
    with engine.connect() as connection:
        try:
            read_revisions(connection)
        except DBAPIError as exc:
            if not isinstance(exc.orig, psycopg.errors.InsufficientPrivilege):
                raise
            # A migrator that does not inherit may read as the owner, as it does when it migrates.
            connection.rollback()
            with refusals():
                connection.execute(text(sql("run/bootstrap", version=1)))
            connection.exec_driver_sql("SET LOCAL ROLE selene_owner")
        yield connection


def history() -> list[Revision]:
    """Return the revisions that this version of the library brings, in their order."""
    scripts = [*ScriptDirectory.from_config(config()).walk_revisions()]
    return [revision_of(each) for each in reversed(scripts)]


def script(revisions: str = "head") -> str:
    """Return the SQL of an upgrade, for psql -v ON_ERROR_STOP=1; from elsewhere than base as `0003:head`.

    Raises MigrationRefused for an invalid range, and for one that leads downwards or nowhere.
    """
    known = ["base", *(each.revision for each in history())]
    first, _, last = revisions.rpartition(":") if ":" in revisions else ("base", "", revisions)
    places = [known.index(name) if name in known else -1 for name in (first, last.replace("head", known[-1]))]
    if not 0 <= places[0] < places[1]:
        raise MigrationRefused(f"no upgrade leads from {first!r} to {last!r}: see selene-core history")
    configuration = config()
    configuration.output_buffer = printed = StringIO()
    scripts = ScriptDirectory.from_config(configuration)

    def upgrade(heads: Any, _context: MigrationContext) -> list[RevisionStep]:
        return scripts._upgrade_revs(last, heads)

    Run(configuration, scripts, fn=upgrade, as_sql=True, starting_rev=first, destination_rev=last).start()
    return printed.getvalue()


def _upgrade(
    url: str | URL | None,
    revision: str,
    progress: Callable[[Revision], object] | None = None,
    *,
    only_looks: bool = False,
) -> Upgrade:
    scripts = ScriptDirectory.from_config(configuration := config(url))
    stood: list[str] = []
    ran: list[Revision] = []

    def upgrade(heads: Any, _context: MigrationContext) -> Iterator[RevisionStep]:
        stood.extend(heads)
        for step in scripts._upgrade_revs(revision, heads):
            if not only_looks:
                yield step
            # Reached once its transaction is committed.
            ran.append(revision_of(step.revision))
            if progress is not None:
                progress(ran[-1])

    run = Run(configuration, scripts, only_looks=only_looks, fn=upgrade, destination_rev=revision)
    run.start()
    before = max(stood, default=None)
    if ran:
        return Upgrade(before, ran[-1].revision, ran)
    return Upgrade(before, before, [], run.seen_waiting not in (None, tuple(stood)))


def revision_of(found: Script) -> Revision:
    """Make a Revision from its file."""
    return Revision(found.revision, found.doc.partition("\n")[0])


def configured_url(configuration: Config) -> URL:
    """Return the database that a run is for: the configuration's attribute, else SELENE_DATABASE_URL."""
    # An attribute and not an option: a % in a password would be interpolated.
    url: str | URL | None = configuration.attributes.get("url") or os.environ.get("SELENE_DATABASE_URL")
    if not url:
        raise MigrationRefused("SELENE_DATABASE_URL is not set: it names the database to migrate")
    return psycopg_url(url)


def lock_timeout() -> str:
    """Return how long a migration waits for a lock, and so makes others wait (SELENE_LOCK_TIMEOUT, 3s)."""
    value = os.environ.get("SELENE_LOCK_TIMEOUT", "3s")
    if not re.fullmatch(r"[0-9]{1,9}(ms|s|min)?", value):
        raise MigrationRefused("SELENE_LOCK_TIMEOUT must be a number with an optional unit ms, s or min")
    return value


def lock_wait() -> float:
    """Return how many seconds a migration waits for another to finish (SELENE_MIGRATION_WAIT, 60)."""
    value = os.environ.get("SELENE_MIGRATION_WAIT", "60")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", value):
        raise MigrationRefused("SELENE_MIGRATION_WAIT must be a number of seconds")
    return float(value)


def wait_for_lock(connection: Connection) -> tuple[str, ...] | None:
    """Take the migration lock on the connection that migrates, so that losing one is losing the other.

    Polls: a session that blocks in pg_advisory_lock() holds a snapshot, for which CREATE INDEX CONCURRENTLY
    in the session ahead would wait for ever. Raises MigrationLocked past SELENE_MIGRATION_WAIT seconds.
    Returns the content of the version table when another migration was running; None if none was.
    """
    deadline = time.monotonic() + lock_wait()
    seen: tuple[str, ...] | None = None
    while True:
        with connection.begin():
            if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
                return seen
        if seen is None:
            seen = _seen(connection)
        if time.monotonic() >= deadline:
            raise MigrationLocked(
                "another migration of this database is running: start again when it is done"
                " (SELENE_MIGRATION_WAIT is how many seconds to wait)"
            )
        time.sleep(_POLL_SECONDS)


def _seen(connection: Connection) -> tuple[str, ...] | None:
    """Return the content of the version table; None if the login may not read it, or would have to wait."""
    try:
        with connection.begin():
            connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            return read_revisions(connection) or ()
    except DBAPIError as exc:
        if not isinstance(exc.orig, (psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable)):
            raise
        return None


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what our own checks in the database raise into MigrationRefused."""
    try:
        yield
    except DBAPIError as exc:
        if not isinstance(exc.orig, psycopg.errors.ObjectNotInPrerequisiteState):
            raise
        raise MigrationRefused(exc.orig.diag.message_primary) from exc


def version_guard() -> str:
    """Return the statement that raises if the schema contradicts the version table."""
    return sql("run/version_guard", version=1, traces=TRACES.read_text(encoding="utf-8").strip())


def is_ours(name: str | None, type_: str, parents: Any) -> bool:
    """Tell Alembic's autogeneration which schemas to compare."""
    return not (type_ == "schema" and include_name(name, type_, parents))
