"""Nobody rewrites the work-order ledger (contract §11); a tenant's removal leaves a record (contract §18).

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = "os_core.work_order_ledger"
REMOVALS = "tenant_removals"


def upgrade() -> None:
    create_removals()
    op.execute(sql("removal/removal_is_open", version=1))
    op.execute(sql("table/reject_mutation", version=1))
    for table in (TABLE, f"os_core.{REMOVALS}"):
        op.execute(sql("table/append_only", version=1, table=table))


def create_removals() -> None:
    text = sa.Text(collation="C")
    op.execute(f"CREATE SEQUENCE os_core.{REMOVALS}_removal_id_seq AS bigint CACHE 1")
    op.create_table(
        REMOVALS,
        sa.Column(
            "removal_id",
            sa.BigInteger,
            server_default=sa.text(f"nextval('os_core.{REMOVALS}_removal_id_seq'::regclass)"),
            nullable=False,
        ),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("removal_state", text, nullable=False),
        sa.Column("recorded_by", text, server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("removal_id", name=op.f("pk_tenant_removals")),
        sa.UniqueConstraint("tenant_id", "removal_id", name=op.f("ux_tenant_removals_tenant_removal")),
        sa.CheckConstraint(
            "os_core.is_identifier(tenant_id, 64) AND removal_state IN ('OPENED', 'CLOSED')"
            " AND os_core.is_portable_time(recorded_at)",
            name=op.f("ck_tenant_removals_contract"),
        ),
        schema="os_core",
    )
    op.execute(f"ALTER SEQUENCE os_core.{REMOVALS}_removal_id_seq OWNED BY os_core.{REMOVALS}.removal_id")
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{REMOVALS}"))
    op.execute(f"GRANT SELECT ON os_core.{REMOVALS} TO selene_app, selene_readonly")


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{REMOVALS}"))
    op.execute(f"DROP TRIGGER reject_mutation_statement ON {TABLE}")
    op.execute(f"DROP TRIGGER reject_mutation_row ON {TABLE}")
    op.drop_table(REMOVALS, schema="os_core")
    op.execute("DROP FUNCTION os_core.reject_mutation()")
    op.execute("DROP FUNCTION os_core.removal_is_open(text)")
