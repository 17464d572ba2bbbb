"""Ask, cancel, notify once; find orders: pending by requester, all by creation (contract §6, §7 and §9).

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Without it, one user's few orders would be searched among those of all users.
    op.create_index(
        op.f("ix_work_orders_current_pending_requester"),
        "work_orders_current",
        ["tenant_id", "requester_user_id", "updated_bucket"],
        schema="os_core",
        postgresql_where=sa.text("work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM')"),
    )
    op.execute(sql("continuity/decide_prompt", version=1))
    op.execute(sql("continuity/field_keys_violation", version=1))
    op.execute(sql("continuity/ask_field", version=1))
    op.execute(sql("continuity/cancel_work_order", version=1))
    op.execute(sql("continuity/notify_wait", version=1))


def downgrade() -> None:
    op.execute("DROP FUNCTION os_core.notify_wait(text, text, bigint, bigint)")
    op.execute("DROP FUNCTION os_core.cancel_work_order(text, text, bigint, text, text)")
    op.execute("DROP FUNCTION os_core.ask_field(text, text, text[], text[], bigint, bigint, text)")
    op.execute("DROP FUNCTION os_core.field_keys_violation(text, text[], integer, integer)")
    op.execute("DROP FUNCTION os_core.decide_prompt(os_core.work_orders_current, text[], text[])")
    op.drop_index(
        op.f("ix_work_orders_current_pending_requester"), table_name="work_orders_current", schema="os_core"
    )
