"""os_core.work_order_step_attempts and its functions: numbered attempts, exact retries, claim (§8, §9).

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TABLE = "work_order_step_attempts"
SEQUENCE = "os_core.work_order_step_attempts_step_attempt_id_seq"
STEP = ["tenant_id", "work_order_id", "step_id"]
QUEUED = (
    "work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM', 'EXECUTING')"
    " AND NOT external_approval_pending AND steps_due_at IS NOT NULL"
)
CONTRACT = """os_core.is_step_attempt_row(
    step_id, attempt_index, attempt_status, timeout_ms, max_retries, retry_backoff_ms, next_retry_at,
    started_at, finished_at, reason_code, idempotency_key, finish_idempotency_key, created_at, updated_at)"""


def upgrade() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.execute(sql("rule/is_step_attempt_row", version=1))
    op.execute(f"CREATE SEQUENCE {SEQUENCE} AS bigint CACHE 1")
    op.create_table(
        TABLE,
        sa.Column(
            "step_attempt_id",
            sa.BigInteger,
            server_default=sa.text(f"nextval('{SEQUENCE}'::regclass)"),
            nullable=False,
        ),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("work_order_id", text, nullable=False),
        sa.Column("step_id", text, nullable=False),
        sa.Column("attempt_index", sa.Integer, nullable=False),
        sa.Column("attempt_status", text, nullable=False),
        sa.Column("timeout_ms", sa.BigInteger, nullable=False),
        sa.Column("max_retries", sa.Integer, nullable=False),
        sa.Column("retry_backoff_ms", sa.BigInteger, nullable=False),
        sa.Column("next_retry_at", instant),
        sa.Column("started_at", instant, nullable=False),
        sa.Column("finished_at", instant),
        sa.Column("reason_code", sa.BigInteger),
        sa.Column("idempotency_key", text, nullable=False),
        sa.Column("finish_idempotency_key", text),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("updated_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("step_attempt_id", name=op.f("pk_work_order_step_attempts")),
        sa.UniqueConstraint(*STEP, "attempt_index", name=op.f("ux_work_order_step_attempts_index")),
        sa.UniqueConstraint(*STEP, "idempotency_key", name=op.f("ux_work_order_step_attempts_idempotency")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "work_order_id"],
            ["os_core.work_orders_current.tenant_id", "os_core.work_orders_current.work_order_id"],
            name=op.f("fk_work_order_step_attempts_work_order"),
        ),
        sa.CheckConstraint(CONTRACT, name=op.f("ck_work_order_step_attempts_contract")),
        schema="os_core",
    )
    op.execute(f"ALTER SEQUENCE {SEQUENCE} OWNED BY os_core.{TABLE}.step_attempt_id")
    op.create_index(
        op.f("ux_work_order_step_attempts_running"),
        TABLE,
        STEP,
        unique=True,
        schema="os_core",
        postgresql_where=sa.text("attempt_status = 'RUNNING'"),
    )
    op.create_index(
        op.f("ix_work_order_step_attempts_due"),
        TABLE,
        ["tenant_id", "next_retry_at", "step_attempt_id"],
        schema="os_core",
        # With these due_step_retries looks for a following attempt without visiting the row.
        postgresql_include=["work_order_id", "step_id", "attempt_index"],
        postgresql_where=sa.text("next_retry_at IS NOT NULL"),
    )
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{TABLE}"))
    op.execute(sql("table/guard_step_attempt", version=1))
    guard = "os_core.guard_step_attempt"
    op.execute(sql("table/keep_rows", version=1, table=f"os_core.{TABLE}", guard=guard))
    op.execute(f"GRANT SELECT ON os_core.{TABLE} TO selene_app, selene_readonly")
    op.execute(sql("attempt/refuse_attempt", version=1))
    op.execute(sql("attempt/steps_due_at", version=1))
    op.execute(sql("attempt/append_step_event", version=1))
    op.execute(sql("attempt/start_step_attempt", version=1))
    op.execute(sql("attempt/finish_step_attempt", version=1))
    op.execute(sql("attempt/due_step_retries", version=1))
    # The queue of claim: what time alone makes claimable, by when. What waits for an approval or a decision,
    # or has ended, is not in it; what is leased or backs off stands behind.
    op.create_index(
        op.f("ix_work_orders_current_claim"),
        "work_orders_current",
        ["tenant_id", "work_order_status", sa.text("GREATEST(queued_at, steps_due_at)")],
        schema="os_core",
        postgresql_where=sa.text(QUEUED),
    )
    op.execute(sql("lease/claim_work_order", version=1))


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{TABLE}"))
    op.execute("DROP FUNCTION os_core.claim_work_order(text, text, text, bigint, text[])")
    op.drop_index(op.f("ix_work_orders_current_claim"), table_name="work_orders_current", schema="os_core")
    op.execute("DROP FUNCTION os_core.due_step_retries(text, integer)")
    op.execute("DROP FUNCTION os_core.finish_step_attempt(text, bigint, text, bigint, boolean, text, text)")
    op.execute(
        "DROP FUNCTION os_core.start_step_attempt(text, text, text, bigint, bigint, bigint, text, text)"
    )
    op.execute(
        "DROP FUNCTION os_core.append_step_event("
        "os_core.work_orders_current, text, os_core.work_order_step_attempts, boolean, text)"
    )
    op.execute("DROP FUNCTION os_core.steps_due_at(text, text)")
    op.execute("DROP FUNCTION os_core.refuse_attempt(text, os_core.work_order_step_attempts)")
    op.drop_table(TABLE, schema="os_core")
    op.execute("DROP FUNCTION os_core.guard_step_attempt()")
    op.execute(
        "DROP FUNCTION os_core.is_step_attempt_row("
        "text, integer, text, bigint, integer, bigint, timestamptz, timestamptz, timestamptz, bigint, text, "
        "text, timestamptz, timestamptz)"
    )
