"""Every function that enters a tenant runs on the node that has the tenant, or refuses.

Revision ID: c0002
Revises: c0001
"""

from alembic import op

from selene_core.citus import by_value, guarded, without_lock

revision = "c0002"
down_revision = "c0001"
branch_labels = None
depends_on = None

# What applications and operators call with a tenant; the others are called by these, on the node.
PUBLIC = """
    SELECT p.oid::regprocedure::text
    FROM pg_proc AS p
    WHERE p.pronamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
      AND p.proargnames[1] = 'p_tenant_id'
      AND (
        p.prosecdef AND p.proname <> 'require_tenant'
        OR p.proname IN (
          'open_tenant_removal', 'count_tenant_rows', 'remove_tenant_rows', 'close_tenant_removal'
        )
      )
    ORDER BY 1
"""
ENTER = "SELECT pg_get_functiondef('os_core.enter_tenant(text)'::regprocedure)"
PROJECTION = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'write_projection'"
APPEND = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'append_work_order_event'"


def upgrade() -> None:
    conn = op.get_bind()
    conn.exec_driver_sql("SET LOCAL search_path = pg_catalog")
    for (name,) in conn.exec_driver_sql(PUBLIC).all():
        conn.exec_driver_sql(
            f"SELECT create_distributed_function('{name}', 'p_tenant_id',"
            " colocate_with := 'os_core.work_order_ledger', force_delegation := true)"
        )
    conn.exec_driver_sql(guarded(conn.exec_driver_sql(ENTER).scalar_one()).replace("%", "%%"))
    conn.exec_driver_sql(by_value(conn.exec_driver_sql(PROJECTION).scalar_one()).replace("%", "%%"))
    conn.exec_driver_sql(without_lock(conn.exec_driver_sql(APPEND).scalar_one()).replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("the way back is a copy: docs/howto/citus.md")
