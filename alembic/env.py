"""Run a migration: one at a time, with bounded waits, as the owner; on a database or as a script."""

from typing import Any

from sqlalchemy import text

from selene_core import migrations
from selene_core.migrations import session as migration_session
from selene_core.migrations.runs import current_run
from selene_core.sql_files import sql

# Not alembic.context: it belongs to the whole process, and may be that of another run.
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
            connection.begin()  # never committed: closing the connection rolls everything back
        configure(connection=connection)
        # One transaction: a refusal undoes everything.
        with connection.begin_nested() if context.only_looks else connection.begin():
            for statement in preamble():
                connection.execute(text(statement))
        migration_session.begin_with(connection, settings)
        with context.begin_transaction():
            context.run_migrations()
        context.log_steps()


def run_offline() -> None:
    # paramstyle: the default doubles every % in a function body.
    configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"})
    start = context.script.get_revision(context.get_starting_revision_argument() or "base")
    with context.begin_transaction():
        # psql would show a NOTICE for every DROP ... IF EXISTS.
        context.execute("SET LOCAL client_min_messages = warning")
        context.execute(sql("run/offline_lock", version=1, lock_key=migrations.LOCK_KEY))
        for statement in preamble(starts_at=start.revision if start else ""):
            context.execute(statement)
        context.run_migrations()


def configure(**where: Any) -> None:
    """Use one transaction for each revision of an upgrade, and one for a whole downgrade or script.

    So a downgrade or script that fails leaves everything as it was. A script leaves nothing in its session.
    """
    context.configure(**where, **OPTIONS, transaction_per_migration="connection" in where)
    if command() == "downgrade":
        context.configure(**where, **OPTIONS, transaction_per_migration=False)


def command() -> str | None:
    """Name Alembic's command: upgrade, downgrade, do_stamp, display_version …; needs configure()."""
    return getattr(context.get_context().opts.get("fn"), "__name__", None)


def preamble(starts_at: str | None = None) -> list[str]:
    """Make what every run needs, and check that the schema agrees with the version table."""
    script_only = [sql("run/offline_guard", version=1, starts_at=starts_at)]
    # Not for stamp, which repairs a version table.
    looks = [migrations.version_guard()] if command() != "do_stamp" else []
    return [
        *settings("LOCAL")[:-1],
        sql("run/bootstrap", version=1),
        *settings("LOCAL")[-1:],
        *(script_only if starts_at is not None else []),
        *looks,
    ]


def settings(scope: str) -> list[str]:
    """The owner comes last: it does not exist until the preamble has made it."""
    return [
        f"SET {scope} lock_timeout = '{migrations.lock_timeout()}'",
        sql("run/no_timeouts", version=1, is_local=scope == "LOCAL"),
        f"SET {scope} ROLE selene_owner",
    ]


if context.is_offline_mode():
    run_offline()
else:
    run_online()
