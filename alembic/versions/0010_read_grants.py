"""Both roles may read; nobody may write but through the functions (contract §10).

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# alembic_version, too: check_schema reads it for a service. It holds revision ids only.
TABLES = ("os_core.work_order_ledger", "os_core.work_orders_current", "os_core.alembic_version")


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"GRANT SELECT ON {table} TO selene_app, selene_readonly")


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"REVOKE SELECT ON {table} FROM selene_app, selene_readonly")  # noqa: S608 - constants
