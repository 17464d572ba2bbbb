"""Personal values by reference, the erasure of a person, and the removal of a tenant (contract §18).

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FUNCTIONS = (
    "erasure/reference",
    "erasure/reserved_nodes",
    "erasure/is_reserved_node",
    "erasure/canonical_json",
    "erasure/personal_violation",
    "erasure/payload_as_recorded",
    "erasure/refer_personal",
    "erasure/refer_value",
    "erasure/erase_subject",
    "erasure/resolve_values",
    "removal/tenant_tables",
    "removal/open_tenant_removal",
    "removal/count_tenant_rows",
    "removal/remove_tenant_rows",
    "removal/close_tenant_removal",
)
SIGNATURES = (
    "close_tenant_removal(text)",
    "remove_tenant_rows(text, integer)",
    "count_tenant_rows(text)",
    "open_tenant_removal(text)",
    "tenant_tables()",
    "resolve_values(text, jsonb)",
    "erase_subject(text, text, bigint)",
    "refer_value(text, jsonb, text, jsonb)",
    "refer_personal(text, jsonb, boolean)",
    "payload_as_recorded(text, jsonb, jsonb)",
    "personal_violation(jsonb)",
    "canonical_json(jsonb)",
    "is_reserved_node(jsonb)",
    "reserved_nodes(jsonb)",
    "reference(text, text)",
)
TABLES = ("subjects", "subject_values")
HIDDEN = {"subjects": ("salt",), "subject_values": ("salt", "value")}
READABLE = {
    "subjects": "tenant_id, subject_id, was_erased, created_at",
    "subject_values": "tenant_id, subject_id, value_ref, created_at",
}


def upgrade() -> None:
    create_subjects()
    create_values()
    for table in TABLES:
        op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{table}"))
        op.execute(sql("table/erasable", version=1, table=f"os_core.{table}"))
        # Neither salts nor values: resolve_values returns values, and nothing returns a salt.
        op.execute(f"GRANT SELECT ({READABLE[table]}) ON os_core.{table} TO selene_app, selene_readonly")
        # ANALYZE would copy them into the statistics, and keep them after an erasure.
        for column in HIDDEN[table]:
            op.execute(f"ALTER TABLE os_core.{table} ALTER COLUMN {column} SET STATISTICS 0")
    for function in FUNCTIONS:
        op.execute(sql(function, version=1))


def create_subjects() -> None:
    text = sa.Text(collation="C")
    op.create_table(
        "subjects",
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("subject_id", text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        # Retries of calls from before the erasure are only looked for where there was one.
        sa.Column("was_erased", sa.Boolean, nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("tenant_id", "subject_id", name=op.f("pk_subjects")),
        # The foreign key of values leads here: a subject has one salt.
        sa.UniqueConstraint("tenant_id", "subject_id", "salt", name=op.f("ux_subjects_tenant_salt")),
        sa.CheckConstraint(
            "os_core.is_identifier(tenant_id, 64) AND os_core.is_identifier(subject_id, 128)"
            " AND octet_length(salt) = 32 AND os_core.is_portable_time(created_at)",
            name=op.f("ck_subjects_contract"),
        ),
        schema="os_core",
    )


def create_values() -> None:
    text = sa.Text(collation="C")
    op.create_table(
        "subject_values",
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("subject_id", text, nullable=False),
        sa.Column("value_ref", text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.dialects.postgresql.JSONB, nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("tenant_id", "subject_id", "value_ref", name=op.f("pk_subject_values")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "subject_id", "salt"],
            ["os_core.subjects.tenant_id", "os_core.subjects.subject_id", "os_core.subjects.salt"],
            name=op.f("fk_subject_values_subject"),
        ),
        # The reference commits to the value: nobody can put another one under it.
        sa.CheckConstraint(
            "value_ref = os_core.salted_hash(salt, value::text)", name=op.f("ck_subject_values_contract")
        ),
        schema="os_core",
    )


def created_at() -> sa.Column[object]:
    return sa.Column(
        "created_at",
        sa.DateTime(timezone=True),
        server_default=sa.text("clock_timestamp()"),
        nullable=False,
    )


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        for table in TABLES:
            op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{table}"))
    for signature in SIGNATURES:
        op.execute(f"DROP FUNCTION os_core.{signature}")
    for table in reversed(TABLES):
        op.drop_table(table, schema="os_core")
