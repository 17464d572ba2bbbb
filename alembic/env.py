"""How a migration runs: one at a time, with bounded waits, as the owner; online or as a script."""

from typing import Any

from sqlalchemy import create_engine, pool, text

from selene_core import migrations
from selene_core.alembic_runs import current_run

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
    engine = create_engine(url, poolclass=pool.NullPool, connect_args=migrations.CONNECT_ARGS)
    with engine.connect() as connection, migrations.refusals():
        context.seen_waiting = migrations.wait_for_lock(connection)
        if context.only_looks:
            connection.begin()  # never committed: closing the connection undoes all that follows
        for statement in preamble():
            with connection.begin_nested() if context.only_looks else connection.begin():
                connection.execute(text(statement))
        configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


def run_offline() -> None:
    # paramstyle: the default doubles every % in a function body.
    configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"})
    # psql would show a NOTICE for whatever is dropped only where it is there.
    context.execute("SET client_min_messages = warning")
    start = context.script.get_revision(context.get_starting_revision_argument() or "base")
    context.execute(migrations.sql("offline_lock", version=1, lock_key=migrations.LOCK_KEY))
    for statement in preamble():
        context.execute(statement)
    context.execute(migrations.sql("offline_guard", version=1, starts_at=start.revision if start else ""))
    with context.begin_transaction():
        context.run_migrations()


def configure(**where: Any) -> None:
    """A transaction a revision upwards; one for all downwards: what refuses below undoes what came above."""
    context.configure(**where, **OPTIONS, transaction_per_migration=True)
    if getattr(context.get_context().opts.get("fn"), "__name__", None) == "downgrade":
        context.configure(**where, **OPTIONS, transaction_per_migration=False)


def preamble() -> list[str]:
    # Session settings, not SET LOCAL: they hold for every revision's own transaction.
    return [
        f"SET lock_timeout = '{migrations.lock_timeout()}'",
        migrations.sql("no_timeouts", version=1),
        migrations.sql("bootstrap", version=1),
        "SET ROLE selene_owner",
    ]


if context.is_offline_mode():
    run_offline()
else:
    run_online()
