"""The fold and its aggregate: what an event means for the projection (contract §5).

Revision ID: 0007
Revises: 0006
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql("fold/apply_work_order_event", version=1))
    op.execute(sql("fold/fold_work_order", version=1))
    op.execute(sql("fold/event_of", version=1))


def downgrade() -> None:
    op.execute(
        "DROP FUNCTION os_core.event_of("
        "bigint, text, text, bigint, uuid, bigint, text, text, bigint, text, "
        "text, text, text, timestamptz, jsonb, text, timestamptz, timestamptz, bytea)"
    )
    op.execute("DROP AGGREGATE os_core.fold_work_order(os_core.work_order_ledger)")
    op.execute(
        "DROP FUNCTION os_core.apply_work_order_event(os_core.work_orders_current, os_core.work_order_ledger)"
    )
