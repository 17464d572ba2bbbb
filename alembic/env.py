"""How a migration runs: one at a time, with bounded waits, as the owner; online or as a script."""

from typing import Any

from sqlalchemy import text

from selene_core import migrations
from selene_core.migrations import session as migration_session
from selene_core.migrations.runs import current_run
from selene_core.sql_files import sql

# Not alembic.context: that is the whole process's, and may be another run's.
context = current_run()

OPTIONS: dict[str, Any] = {
    "version_table_schema": "os_core",
    "target_metadata": migrations.target_metadata,
    "include_name": migrations.is_ours,
    "include_schemas": True,
}


def run_online() -> None:
    url = migrations.configured_url(context.config)
    with migration_session.opened(url) as connection, migrations.refusals():
        context.seen_waiting = migrations.wait_for_lock(connection)
        if context.only_looks:
            connection.begin()  # never committed: closing the connection undoes all that follows
        configure(connection=connection)
        # One transaction: what refuses undoes what was made.
        with connection.begin_nested() if context.only_looks else connection.begin():
            for statement in preamble():
                connection.execute(text(statement))
        migration_session.begin_with(connection, settings)
        with context.begin_transaction():
            context.run_migrations()


def run_offline() -> None:
    # paramstyle: the default doubles every % in a function body.
    configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"})
    start = context.script.get_revision(context.get_starting_revision_argument() or "base")
    with context.begin_transaction():
        # psql would show a NOTICE for whatever is dropped only where it is there.
        context.execute("SET LOCAL client_min_messages = warning")
        context.execute(sql("run/offline_lock", version=1, lock_key=migrations.LOCK_KEY))
        for statement in preamble(starts_at=start.revision if start else ""):
            context.execute(statement)
        context.run_migrations()


def configure(**where: Any) -> None:
    """A transaction for each revision upwards, one for all downwards: one that refuses undoes those above it.

    A script is one transaction: it leaves nothing in its session, and what stopped it left all as it was.
    """
    context.configure(**where, **OPTIONS, transaction_per_migration="connection" in where)
    if command() == "downgrade":
        context.configure(**where, **OPTIONS, transaction_per_migration=False)


def command() -> str | None:
    """Name Alembic's command: upgrade, downgrade, do_stamp, display_version …; needs configure()."""
    return getattr(context.get_context().opts.get("fn"), "__name__", None)


def preamble(starts_at: str | None = None) -> list[str]:
    """Make what every run presupposes, and look whether the schema is where the version table says."""
    script_only = [sql("run/offline_guard", version=1, starts_at=starts_at)]
    # Stamping is how a version table is mended.
    looks = [migrations.version_guard()] if command() != "do_stamp" else []
    return [
        *settings("LOCAL")[:-1],
        sql("run/bootstrap", version=1),
        *settings("LOCAL")[-1:],
        *(script_only if starts_at is not None else []),
        *looks,
    ]


def settings(scope: str) -> list[str]:
    """The owner comes last: there is none until the preamble has made it."""
    return [
        f"SET {scope} lock_timeout = '{migrations.lock_timeout()}'",
        sql("run/no_timeouts", version=1, is_local=scope == "LOCAL"),
        f"SET {scope} ROLE selene_owner",
    ]


if context.is_offline_mode():
    run_offline()
else:
    run_online()
