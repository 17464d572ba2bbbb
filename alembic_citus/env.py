"""Distribute a migrated database: step by step, with the migration's lock, as the owner."""

from sqlalchemy import text

from selene_core import migrations
from selene_core.citus import VERSION_TABLE
from selene_core.migrations import session as migration_session
from selene_core.migrations.runs import current_run

context = current_run()


def settings(scope: str) -> list[str]:
    """Every transaction is the owner's; one step writes to many parts of tables, one after the other."""
    return [
        # Else the role below would reach the connections on which Citus must be its own superuser.
        f"SET {scope} citus.propagate_set_commands = 'none'",
        f"SET {scope} lock_timeout = '{migrations.lock_timeout()}'",
        f"SET {scope} citus.enable_unsafe_triggers = on",
        f"SET {scope} citus.multi_shard_modify_mode = 'sequential'",
        f"SET {scope} ROLE selene_owner",
    ]


if context.is_offline_mode():
    raise migrations.MigrationRefused("there is no script of the profile: it asks the cluster what there is")

with migration_session.opened(migrations.configured_url(context.config)) as connection, migrations.refusals():
    context.seen_waiting = migrations.wait_for_lock(connection)
    context.configure(
        connection=connection,
        version_table=VERSION_TABLE,
        version_table_schema="os_core",
        transaction_per_migration=True,
    )
    with connection.begin():
        # As the login itself: only a superuser may make roles on the nodes. A function brings them.
        if connection.exec_driver_sql("SHOW is_superuser").scalar_one() == "on":
            connection.exec_driver_sql("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
            connection.exec_driver_sql(
                "SELECT pg_catalog.create_distributed_function('os_core.is_identifier(text, integer)')"
            )
    with connection.begin():
        for statement in settings("LOCAL"):
            connection.execute(text(statement))
        connection.execute(text(migrations.version_guard()))
    migration_session.begin_with(connection, settings)
    with context.begin_transaction():
        context.run_migrations()
    context.log_steps()
