"""Row-level security on the ledger and the projection, and the two ways into a tenant (contract §10).

Revision ID: 0005
Revises: 0004
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("os_core.work_order_ledger", "os_core.work_orders_current")


def upgrade() -> None:
    op.execute(sql("tenant/no_tenant", version=1))
    op.execute(sql("tenant/require_tenant", version=1))
    op.execute(sql("refusal/refuse_contract", version=1))
    op.execute(sql("tenant/enter_tenant", version=1))
    for table in TABLES:
        op.execute(sql("table/tenant_isolation", version=1, table=table))


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP POLICY tenant_admit ON {table}")
        op.execute(f"DROP POLICY tenant_confine ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("DROP FUNCTION os_core.enter_tenant(text)")
    op.execute("DROP FUNCTION os_core.refuse_contract(integer, text)")
    op.execute("DROP FUNCTION os_core.require_tenant(text)")
    op.execute("DROP FUNCTION os_core.no_tenant(text)")
