"""Every function that enters a tenant runs on the node that has the tenant, or refuses.

Revision ID: c0002
Revises: c0001
"""

from alembic import op

from selene_core.citus import CHANGED_BODIES, function_of

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
DEFINITION = """
    SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p
    WHERE p.pronamespace = 'os_core'::regnamespace AND p.proname = %s
"""


def upgrade() -> None:
    conn = op.get_bind()
    conn.exec_driver_sql("SET LOCAL search_path = pg_catalog")
    for (name,) in conn.exec_driver_sql(PUBLIC).all():
        conn.exec_driver_sql(
            f"SELECT create_distributed_function('{name}', 'p_tenant_id',"
            " colocate_with := 'os_core.work_order_ledger', force_delegation := true)"
        )
    for file, changed in CHANGED_BODIES.items():
        definition = conn.exec_driver_sql(DEFINITION, (function_of(file),)).scalar_one()
        conn.exec_driver_sql(changed(definition).replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("the way back is a copy: docs/howto/citus.md")
