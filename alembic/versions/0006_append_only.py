"""Nobody rewrites the work-order ledger (contract §11).

Revision ID: 0006
Revises: 0005
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = "os_core.work_order_ledger"


def upgrade() -> None:
    op.execute(sql("table/reject_mutation", version=1))
    op.execute(sql("table/append_only", version=1, table=TABLE))


def downgrade() -> None:
    op.execute(f"DROP TRIGGER reject_mutation_statement ON {TABLE}")
    op.execute(f"DROP TRIGGER reject_mutation_row ON {TABLE}")
    op.execute("DROP FUNCTION os_core.reject_mutation()")
