"""conversation.conversation_ledger: what was said, append-only, and its functions (contract §2).

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLE = "conversation_ledger"
READABLE = (
    "conversation_turn_id, tenant_id, correlation_id, turn_id, session_id, user_id, device_id, role, source,"
    " text_hash, privacy_scope, created_at, idempotency_key, tombstone_of_conversation_turn_id,"
    " tombstone_reason_code"
)
CONTRACT = """conversation.is_turn_row(
    conversation_turn_id, turn_id, role, source, text, privacy_scope, created_at, idempotency_key,
    tombstone_of_conversation_turn_id, tombstone_reason_code)"""


def upgrade() -> None:
    op.execute(sql("conversation/text_hash", version=1))
    op.execute(sql("rule/is_turn_row", version=1))
    create_table()
    op.execute(sql("table/tenant_isolation", version=1, table=f"conversation.{TABLE}"))
    op.execute(sql("table/append_only", version=1, table=f"conversation.{TABLE}"))
    # Every column but the text: read_turns returns texts, without those that a tombstone hides.
    op.execute(f"GRANT SELECT ({READABLE}) ON conversation.{TABLE} TO selene_app, selene_readonly")
    # ANALYZE would copy texts into the statistics, and keep them after a tombstone.
    op.execute(f"ALTER TABLE conversation.{TABLE} ALTER COLUMN text SET STATISTICS 0")
    op.execute(sql("conversation/turn_violation", version=1))
    op.execute(sql("conversation/refuse_turn_replay", version=1))
    op.execute(sql("conversation/refuse_tombstone", version=1))
    op.execute(sql("conversation/append_turn", version=1))
    op.execute(sql("conversation/tombstone_turn", version=1))
    op.execute(sql("conversation/read_turns", version=1))
    # Readers call it together with read_turns; it returns its argument or raises.
    op.execute("GRANT EXECUTE ON FUNCTION os_core.require_tenant(text) TO selene_readonly")


def create_table() -> None:
    text = sa.Text(collation="C")
    # The sequence needs CACHE 1, the default.
    op.execute("CREATE SEQUENCE conversation.conversation_ledger_conversation_turn_id_seq AS bigint CACHE 1")
    op.create_table(
        TABLE,
        sa.Column(
            "conversation_turn_id",
            sa.BigInteger,
            server_default=sa.text(
                "nextval('conversation.conversation_ledger_conversation_turn_id_seq'::regclass)"
            ),
            nullable=False,
        ),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("correlation_id", sa.Uuid, nullable=False),
        sa.Column("turn_id", sa.BigInteger, nullable=False),
        sa.Column("session_id", text),
        sa.Column("user_id", text, nullable=False),
        sa.Column("device_id", text),
        sa.Column("role", text, nullable=False),
        sa.Column("source", text, nullable=False),
        sa.Column("text", text, nullable=False),
        # Generated: no writer can set another hash, not even the owner.
        sa.Column(
            "text_hash", text, sa.Computed("conversation.text_hash(text)", persisted=True), nullable=False
        ),
        sa.Column("privacy_scope", text, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("idempotency_key", text),
        sa.Column("tombstone_of_conversation_turn_id", sa.BigInteger),
        sa.Column("tombstone_reason_code", sa.BigInteger),
        sa.PrimaryKeyConstraint("conversation_turn_id", name=op.f("pk_conversation_ledger")),
        sa.UniqueConstraint(
            "tenant_id", "correlation_id", "turn_id", name=op.f("ux_conversation_ledger_tenant_turn")
        ),
        # The foreign key of tombstones leads here: a turn of the same tenant and conversation.
        sa.UniqueConstraint(
            "tenant_id",
            "correlation_id",
            "conversation_turn_id",
            name=op.f("ux_conversation_ledger_tenant_conversation_turn"),
        ),
        *foreign_keys(),
        sa.CheckConstraint(CONTRACT, name=op.f("ck_conversation_ledger_contract")),
        schema="conversation",
    )
    op.execute(
        "ALTER SEQUENCE conversation.conversation_ledger_conversation_turn_id_seq"
        f" OWNED BY conversation.{TABLE}.conversation_turn_id"
    )
    for name, column in (
        ("ux_conversation_ledger_idempotency", "idempotency_key"),
        ("ux_conversation_ledger_tombstone", "tombstone_of_conversation_turn_id"),
    ):
        op.create_index(
            op.f(name),
            TABLE,
            ["tenant_id", "correlation_id", column],
            unique=True,
            schema="conversation",
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )


def foreign_keys() -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint(
            columns, [f"{table}.{column}" for column in referred], name=op.f(f"fk_conversation_ledger_{name}")
        )
        for name, columns, table, referred in (
            ("user", ["tenant_id", "user_id"], "os_core.identities", ["tenant_id", "user_id"]),
            (
                "device",
                ["tenant_id", "user_id", "device_id"],
                "os_core.devices",
                ["tenant_id", "user_id", "device_id"],
            ),
            (
                "session",
                ["tenant_id", "user_id", "session_id"],
                "os_core.sessions",
                ["tenant_id", "user_id", "session_id"],
            ),
            (
                "tombstone",
                ["tenant_id", "correlation_id", "tombstone_of_conversation_turn_id"],
                f"conversation.{TABLE}",
                ["tenant_id", "correlation_id", "conversation_turn_id"],
            ),
        )
    ]


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        op.execute(sql("run/refuse_data_loss", version=1, table=f"conversation.{TABLE}"))
    op.execute("REVOKE EXECUTE ON FUNCTION os_core.require_tenant(text) FROM selene_readonly")
    op.execute("DROP FUNCTION conversation.read_turns(text, uuid, bigint, integer)")
    op.execute("DROP FUNCTION conversation.tombstone_turn(text, uuid, bigint, bigint, bigint, text)")
    op.execute(
        "DROP FUNCTION conversation.append_turn("
        "text, uuid, bigint, text, text, text, text, text, text, text, text)"
    )
    op.execute("DROP FUNCTION conversation.refuse_tombstone(text, uuid, bigint)")
    op.execute(
        "DROP FUNCTION conversation.refuse_turn_replay(uuid, bigint, text, conversation.conversation_ledger)"
    )
    op.execute(
        "DROP FUNCTION conversation.turn_violation("
        "uuid, bigint, text, text, text, text, text, text, text, text)"
    )
    op.drop_table(TABLE, schema="conversation")
    op.execute(
        "DROP FUNCTION conversation.is_turn_row("
        "bigint, bigint, text, text, text, text, timestamptz, text, bigint, bigint)"
    )
    op.execute("DROP FUNCTION conversation.text_hash(text)")
