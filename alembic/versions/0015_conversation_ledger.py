"""conversation.conversation_ledger: what was said, append-only, and its functions (contract §2).

The texts are in a table of their own, from which the erasure of a person deletes them (contract §18).

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
TEXTS = "turn_texts"
ERASURES = "subject_erasures"
CONTRACT = """conversation.is_turn_row(
    conversation_turn_id, turn_id, role, source, text_hash, privacy_scope, created_at, idempotency_key,
    tombstone_of_conversation_turn_id, tombstone_reason_code)"""


def upgrade() -> None:
    create_erasures()
    op.execute(sql("erasure/salted_hash", version=1))
    op.execute(sql("erasure/isolation_violation", version=1))
    op.execute(sql("erasure/random_salt", version=1))
    op.execute(sql("rule/is_turn_row", version=1))
    create_table()
    op.execute(sql("table/tenant_isolation", version=1, table=f"conversation.{TABLE}"))
    op.execute(sql("table/append_only", version=1, table=f"conversation.{TABLE}"))
    op.execute(f"GRANT SELECT ON conversation.{TABLE} TO selene_app, selene_readonly")
    create_texts()
    op.execute(sql("conversation/turn_violation", version=1))
    op.execute(sql("conversation/refuse_turn_replay", version=1))
    op.execute(sql("conversation/refuse_tombstone", version=1))
    op.execute(sql("conversation/append_turn", version=1))
    op.execute(sql("conversation/tombstone_turn", version=1))
    op.execute(sql("conversation/read_turns", version=1))
    # Readers call it together with read_turns; it returns its argument or raises.
    op.execute("GRANT EXECUTE ON FUNCTION os_core.require_tenant(text) TO selene_readonly")


def create_erasures() -> None:
    text = sa.Text(collation="C")
    op.execute(f"CREATE SEQUENCE os_core.{ERASURES}_erasure_id_seq AS bigint CACHE 1")
    op.create_table(
        ERASURES,
        sa.Column(
            "erasure_id",
            sa.BigInteger,
            server_default=sa.text(f"nextval('os_core.{ERASURES}_erasure_id_seq'::regclass)"),
            nullable=False,
        ),
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("subject_id", text, nullable=False),
        sa.Column("reason_code", sa.BigInteger, nullable=False),
        sa.Column("values_erased", sa.BigInteger, nullable=False),
        sa.Column("texts_erased", sa.BigInteger, nullable=False),
        sa.Column("erased_by", text, server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        # An id of the ledger's: the place of the erasure among the events, for the feed.
        sa.Column(
            "drawn_event_id",
            sa.BigInteger,
            server_default=sa.text("nextval('os_core.work_order_ledger_work_order_event_id_seq'::regclass)"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("erasure_id", name=op.f("pk_subject_erasures")),
        sa.UniqueConstraint("tenant_id", "erasure_id", name=op.f("ux_subject_erasures_tenant_erasure")),
        sa.UniqueConstraint(
            "tenant_id", "subject_id", "erasure_id", name=op.f("ux_subject_erasures_tenant_subject")
        ),
        sa.CheckConstraint(
            "os_core.is_identifier(tenant_id, 64) AND os_core.is_identifier(subject_id, 128)"
            " AND reason_code >= 1 AND reason_code <= 4294967295"
            " AND values_erased >= 0 AND texts_erased >= 0 AND os_core.is_portable_time(erased_at)",
            name=op.f("ck_subject_erasures_contract"),
        ),
        schema="os_core",
    )
    op.create_index(
        op.f(f"ix_{ERASURES}_tenant_event"), ERASURES, ["tenant_id", "drawn_event_id"], schema="os_core"
    )
    op.execute(f"ALTER SEQUENCE os_core.{ERASURES}_erasure_id_seq OWNED BY os_core.{ERASURES}.erasure_id")
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{ERASURES}"))
    op.execute(sql("table/append_only", version=1, table=f"os_core.{ERASURES}"))
    op.execute(f"GRANT SELECT ON os_core.{ERASURES} TO selene_app, selene_readonly")


def create_texts() -> None:
    text = sa.Text(collation="C")
    op.create_table(
        TEXTS,
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("conversation_turn_id", sa.BigInteger, nullable=False),
        sa.Column("text_hash", text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("text", text, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "conversation_turn_id", name=op.f("pk_turn_texts")),
        # The turn keeps the hash: nobody can put another text in the place of this one.
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_turn_id", "text_hash"],
            [
                f"conversation.{TABLE}.tenant_id",
                f"conversation.{TABLE}.conversation_turn_id",
                f"conversation.{TABLE}.text_hash",
            ],
            name=op.f("fk_turn_texts_turn"),
        ),
        sa.CheckConstraint(
            "octet_length(salt) = 32 AND octet_length(text) <= 65536"
            " AND text_hash = os_core.salted_hash(salt, text)",
            name=op.f("ck_turn_texts_contract"),
        ),
        schema="conversation",
    )
    op.execute(sql("table/tenant_isolation", version=1, table=f"conversation.{TEXTS}"))
    op.execute(sql("table/guard_erasable", version=1))
    op.execute(sql("table/erasable", version=1, table=f"conversation.{TEXTS}"))
    # Neither salt nor text: read_turns returns texts, without those that a tombstone hides.
    op.execute(
        f"GRANT SELECT (tenant_id, conversation_turn_id, text_hash) ON conversation.{TEXTS}"
        " TO selene_app, selene_readonly"
    )
    # ANALYZE would copy them into the statistics, and keep them after an erasure or a tombstone.
    for column in ("salt", "text"):
        op.execute(f"ALTER TABLE conversation.{TEXTS} ALTER COLUMN {column} SET STATISTICS 0")


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
        sa.Column("text_hash", text, nullable=False),
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
        # The foreign key of texts leads here.
        sa.UniqueConstraint(
            "tenant_id",
            "conversation_turn_id",
            "text_hash",
            name=op.f("ux_conversation_ledger_tenant_text"),
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
    # An erasure finds what a person has said.
    op.create_index(
        op.f("ix_conversation_ledger_tenant_user"),
        TABLE,
        ["tenant_id", "user_id", "conversation_turn_id"],
        schema="conversation",
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
        op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{ERASURES}"))
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
    op.drop_table(TEXTS, schema="conversation")
    op.execute("DROP FUNCTION os_core.guard_erasable()")
    op.drop_table(TABLE, schema="conversation")
    op.execute(
        "DROP FUNCTION conversation.is_turn_row("
        "bigint, bigint, text, text, text, text, timestamptz, text, bigint, bigint)"
    )
    op.execute("DROP FUNCTION os_core.random_salt()")
    op.execute("DROP FUNCTION os_core.isolation_violation()")
    op.execute("DROP FUNCTION os_core.salted_hash(bytea, text)")
    op.drop_table(ERASURES, schema="os_core")
