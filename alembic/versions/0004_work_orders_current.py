"""os_core.work_orders_current: the projection, one row a work order (contract §2).

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = "work_orders_current"
CONTRACT = """os_core.is_projection_row(
    turn_id, work_order_status, last_seq, last_reason_code,
    external_approval_notices)"""

# Those of list_orders (contract §9): a range for each status. Only a change of status or lease touches them.
LISTS = (
    ("status", [], None),
    ("requester", ["requester_user_id"], "requester_user_id IS NOT NULL"),
    ("lease_owner", ["lease_owner_id"], "lease_owner_id IS NOT NULL"),
)


def upgrade() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.create_table(
        TABLE,
        # WAL holds an update from the first byte that changes to the last. So what every append changes is
        # in the middle, what few change further away, and what nothing changes at the beginning.
        sa.Column("work_order_id", text, nullable=False),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("correlation_id", sa.Uuid, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("requester_user_id", text),
        sa.Column("conflicts_json", postgresql.JSONB, nullable=False),
        sa.Column("resolved_fields_json", postgresql.JSONB, nullable=False),
        sa.Column("fields_json", postgresql.JSONB, nullable=False),
        sa.Column("last_updated_at", instant, nullable=False),
        sa.Column("last_event_id", sa.BigInteger, nullable=False),
        sa.Column("last_state_change_seq", sa.BigInteger, nullable=False),
        sa.Column("turn_id", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("last_reason_code", sa.BigInteger, nullable=False),
        sa.Column("updated_bucket", instant, nullable=False),
        sa.Column("work_order_status", text, nullable=False),
        sa.Column("step_id", text),
        sa.Column("step_input_hash", text),
        sa.Column("lease_owner_id", text),
        sa.Column("lease_token_hash", text),
        sa.Column("lease_expires_at", instant),
        # For claim (contract §9): no append but those of leases and attempts changes the two.
        sa.Column("queued_at", instant, nullable=False),
        sa.Column("steps_due_at", instant),
        sa.Column("external_approval_pending", sa.Boolean, nullable=False),
        sa.Column("external_approval_notices", sa.SmallInteger, nullable=False),
        sa.Column("external_approval_request_id", text),
        sa.Column("external_approval_target_user_id", text),
        sa.Column("external_approval_expires_at", instant),
        sa.Column("asked_fields_json", postgresql.JSONB, nullable=False),
        sa.Column("prompt_dedupe_keys_json", postgresql.JSONB, nullable=False),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_work_orders_current")),
        sa.UniqueConstraint(
            "tenant_id",
            "correlation_id",
            name=op.f("ux_work_orders_current_tenant_correlation"),
            # Else it is narrower than the index by order, and plans for few rows take it in that one's place.
            postgresql_include=["work_order_id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "work_order_id", "last_event_id"],
            [
                "os_core.work_order_ledger.tenant_id",
                "os_core.work_order_ledger.work_order_id",
                "os_core.work_order_ledger.work_order_event_id",
            ],
            name=op.f("fk_work_orders_current_last_event"),
        ),
        sa.CheckConstraint(CONTRACT, name=op.f("ck_work_orders_current_contract")),
        schema="os_core",
        # Room for the next version of a row on its page: an update that changes no index is then HOT.
        postgresql_with={"fillfactor": 70},
    )
    for name, columns, rows in LISTS:
        op.create_index(
            op.f(f"ix_work_orders_current_{name}"),
            TABLE,
            ["tenant_id", *columns, "work_order_status", "created_at", "work_order_id"],
            schema="os_core",
            postgresql_where=rows and sa.text(rows),
        )
    # The index of list_pending (contract §9): by bucket. No index holds a column that every append changes.
    op.create_index(
        op.f("ix_work_orders_current_pending"),
        TABLE,
        ["tenant_id", "updated_bucket"],
        schema="os_core",
        postgresql_where=sa.text("work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM')"),
    )
    # The last index: of several that cost the same, the planner takes the newest. A plan that was made while
    # the table was empty must find an order by its id, and must do so still when there are a million.
    op.create_unique_constraint(
        op.f("ux_work_orders_current_tenant_work_order"),
        TABLE,
        ["tenant_id", "work_order_id"],
        schema="os_core",
    )


def downgrade() -> None:
    op.drop_table(TABLE, schema="os_core")
