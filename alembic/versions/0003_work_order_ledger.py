"""os_core.work_order_ledger: every event of every work order (contract §2).

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from selene_core.sql_files import sql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "work_order_ledger"
CONTRACT = "os_core.is_event_row(work_order_ledger)"


def upgrade() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    # The sequence needs CACHE 1, the default: cached ids would be used out of order.
    op.execute("CREATE SEQUENCE os_core.work_order_ledger_work_order_event_id_seq AS bigint CACHE 1")
    op.create_table(
        TABLE,
        sa.Column(
            "work_order_event_id",
            sa.BigInteger,
            server_default=sa.text("nextval('os_core.work_order_ledger_work_order_event_id_seq'::regclass)"),
            nullable=False,
        ),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("work_order_id", text, nullable=False),
        sa.Column("work_order_seq", sa.BigInteger, nullable=False),
        sa.Column("correlation_id", sa.Uuid, nullable=False),
        sa.Column("turn_id", sa.BigInteger, nullable=False),
        sa.Column("event_type", text, nullable=False),
        sa.Column("work_order_status", text, nullable=False),
        sa.Column("reason_code", sa.BigInteger, nullable=False),
        sa.Column("step_id", text),
        sa.Column("step_input_hash", text),
        sa.Column("lease_owner_id", text),
        sa.Column("lease_token_hash", text),
        sa.Column("lease_expires_at", instant),
        sa.Column("payload", postgresql.JSONB, nullable=False),
        sa.Column("idempotency_key", text),
        sa.Column("occurred_at", instant),
        sa.Column("created_at", instant, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("event_hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("work_order_event_id", name=op.f("pk_work_order_ledger")),
        sa.CheckConstraint(CONTRACT, name=op.f("ck_work_order_ledger_contract")),
        schema="os_core",
    )
    op.execute(
        "ALTER SEQUENCE os_core.work_order_ledger_work_order_event_id_seq"
        " OWNED BY os_core.work_order_ledger.work_order_event_id"
    )
    # The feed looks here for a tenant's events by id.
    op.create_index(
        op.f("ix_work_order_ledger_tenant_event"),
        TABLE,
        ["tenant_id", "work_order_event_id"],
        schema="os_core",
    )
    # In this order: of indexes that cost the same, the planner takes the newest. Plans that are made while
    # the table is empty last, and none may walk through a tenant's events to find one.
    for name, column in (("seq", "work_order_seq"), ("event", "work_order_event_id")):
        op.create_unique_constraint(
            op.f(f"ux_work_order_ledger_tenant_work_order_{name}"),
            TABLE,
            ["tenant_id", "work_order_id", column],
            schema="os_core",
        )
    op.create_index(
        op.f("ux_work_order_ledger_idempotency"),
        TABLE,
        ["tenant_id", "work_order_id", "idempotency_key"],
        unique=True,
        schema="os_core",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        op.execute(sql("run/refuse_data_loss", version=1, table="os_core.work_order_ledger"))
    op.drop_table(TABLE, schema="os_core")
