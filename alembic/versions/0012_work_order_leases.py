"""os_core.work_order_leases and the lease functions: who may work on a work order (contract §2 and §8).

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TABLE = "work_order_leases"
CONTRACT = """os_core.is_lease_row(
    lease_owner_id, lease_token_hash, lease_state, fence, acquired_at, renewed_at, lease_expires_at,
    released_at, idempotency_key)"""


def upgrade() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.execute(sql("rule/is_lease_row", version=1))
    op.create_table(
        TABLE,
        sa.Column("lease_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("work_order_id", text, nullable=False),
        sa.Column("lease_owner_id", text, nullable=False),
        sa.Column("lease_token_hash", text, nullable=False),
        sa.Column("lease_state", text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("acquired_at", instant, nullable=False),
        sa.Column("renewed_at", instant),
        sa.Column("lease_expires_at", instant, nullable=False),
        sa.Column("released_at", instant),
        sa.Column("idempotency_key", text),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_work_order_leases")),
        # A token stands for one lease of an order, for ever; claim looks for it on all orders.
        sa.UniqueConstraint(
            "tenant_id", "lease_token_hash", "work_order_id", name=op.f("ux_work_order_leases_token")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "work_order_id"],
            ["os_core.work_orders_current.tenant_id", "os_core.work_orders_current.work_order_id"],
            name=op.f("fk_work_order_leases_work_order"),
        ),
        sa.CheckConstraint(CONTRACT, name=op.f("ck_work_order_leases_contract")),
        schema="os_core",
    )
    for name, columns, rows in (
        ("active", ["tenant_id", "work_order_id"], "lease_state = 'ACTIVE'"),
        ("idempotency", ["tenant_id", "work_order_id", "idempotency_key"], "idempotency_key IS NOT NULL"),
    ):
        op.create_index(
            op.f(f"ux_work_order_leases_{name}"),
            TABLE,
            columns,
            unique=True,
            schema="os_core",
            postgresql_where=sa.text(rows),
        )
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{TABLE}"))
    op.execute(sql("table/guard_lease", version=1))
    op.execute(sql("table/keep_rows", version=1, table=f"os_core.{TABLE}", guard="os_core.guard_lease"))
    op.execute(f"GRANT SELECT ON os_core.{TABLE} TO selene_app, selene_readonly")
    op.execute(sql("append/event_carried", version=1))
    op.execute(sql("refusal/refuse_terminal", version=1))
    op.execute(sql("refusal/refuse_key", version=1))
    op.execute(sql("refusal/refuse_token", version=1))
    op.execute(sql("lease/check_lease_call", version=1))
    op.execute(sql("lease/take_lease", version=1))
    op.execute(sql("lease/acquire_lease", version=1))
    op.execute(sql("lease/renew_lease", version=1))
    op.execute(sql("lease/release_lease", version=1))


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{TABLE}"))
    op.execute("DROP FUNCTION os_core.release_lease(text, text, text, timestamptz)")
    op.execute("DROP FUNCTION os_core.renew_lease(text, text, text, bigint)")
    op.execute("DROP FUNCTION os_core.acquire_lease(text, text, text, text, bigint, text)")
    op.execute(
        "DROP FUNCTION os_core.take_lease(os_core.work_orders_current, timestamptz, text, text, bigint, text)"
    )
    op.execute("DROP FUNCTION os_core.check_lease_call(text, text, text, text, bigint, text)")
    op.execute("DROP FUNCTION os_core.refuse_token(text)")
    op.execute("DROP FUNCTION os_core.refuse_key(text, text)")
    op.execute("DROP FUNCTION os_core.refuse_terminal(os_core.work_orders_current, text)")
    op.execute("DROP FUNCTION os_core.event_carried(os_core.work_orders_current, text, jsonb)")
    op.drop_table(TABLE, schema="os_core")
    op.execute("DROP FUNCTION os_core.guard_lease()")
    op.execute(
        "DROP FUNCTION os_core.is_lease_row("
        "text, text, text, bigint, timestamptz, timestamptz, timestamptz, timestamptz, text)"
    )
