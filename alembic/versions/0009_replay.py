"""Rebuild, verify and as_of: the projection against its ledger (contract §5); verify_chain (contract §17).

Revision ID: 0009
Revises: 0008
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql("replay/mend_work_orders", version=1))
    op.execute(sql("replay/rebuild_range", version=1))
    op.execute(sql("replay/rebuild_work_order", version=1))
    op.execute(sql("replay/rebuild_work_orders", version=1))
    op.execute(sql("replay/verify_work_orders", version=1))
    op.execute(sql("replay/work_order_as_of", version=1))
    op.execute(sql("replay/verify_chain_part", version=1))
    op.execute(sql("replay/verify_chain", version=1))


def downgrade() -> None:
    op.execute("DROP FUNCTION os_core.verify_chain(text, text)")
    op.execute("DROP FUNCTION os_core.verify_chain_part(text, text, bigint, text, integer)")
    op.execute("DROP FUNCTION os_core.work_order_as_of(text, text, bigint, bigint, timestamptz)")
    op.execute("DROP FUNCTION os_core.verify_work_orders(text, text)")
    op.execute("DROP FUNCTION os_core.rebuild_work_orders(text, text, integer)")
    op.execute("DROP FUNCTION os_core.rebuild_work_order(text, text)")
    op.execute("DROP FUNCTION os_core.rebuild_range(text, text, text)")
    op.execute("DROP FUNCTION os_core.mend_work_orders(text, text[])")
