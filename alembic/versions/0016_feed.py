"""The feed: a tenant's work-order events by position, for consumers (contract §16).

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

FEED = "work_order_feed"
HEADS = "work_order_feed_heads"
CONSUMERS = "work_order_feed_consumers"


def upgrade() -> None:
    create_tables()
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{FEED}"))
    op.execute(sql("table/append_only", version=1, table=f"os_core.{FEED}"))
    op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{HEADS}"))
    op.execute(sql("feed/consumer_isolation", version=1))
    op.execute(f"GRANT SELECT ON os_core.{FEED}, os_core.{HEADS} TO selene_app, selene_readonly")
    # selene_feed sees these columns of every tenant. So a login that is in selene_app, too, sees no more.
    op.execute(
        f"GRANT SELECT (tenant_id, consumer, feed_position) ON os_core.{CONSUMERS}"
        " TO selene_app, selene_readonly, selene_feed"
    )
    op.execute("GRANT USAGE ON SCHEMA os_core TO selene_feed")
    op.execute(sql("feed/feed_has_moved", version=1))
    op.execute(sql("feed/advance_feed", version=1))
    op.execute(sql("feed/read_feed", version=1))
    op.execute(sql("feed/enroll_feed", version=1))
    op.execute(sql("feed/poll_feed", version=1))
    op.execute(sql("feed/take_feed", version=1))
    op.execute(sql("feed/lease_feed", version=1))
    op.execute(sql("feed/ack_feed", version=1))
    op.execute(sql("feed/release_feed", version=1))
    op.execute(sql("feed/feed_status", version=1))
    op.execute(sql("feed/verify_feed", version=1))


def create_tables() -> None:
    text = sa.Text(collation="C")
    op.create_table(
        FEED,
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("feed_position", sa.BigInteger, nullable=False),
        # One of the two: a position holds an event, or the erasure of a person.
        sa.Column("work_order_event_id", sa.BigInteger),
        sa.Column("erasure_id", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant_id", "feed_position", name=op.f("pk_work_order_feed")),
        # An event has one position, whatever happens. No foreign key: it would lock every event's row.
        sa.UniqueConstraint("tenant_id", "work_order_event_id", name=op.f("ux_work_order_feed_tenant_event")),
        sa.CheckConstraint(
            "feed_position > 0 AND (work_order_event_id IS NULL) <> (erasure_id IS NULL)",
            name=op.f("ck_work_order_feed_contract"),
        ),
        schema="os_core",
    )
    op.create_index(
        op.f("ux_work_order_feed_tenant_erasure"),
        FEED,
        ["tenant_id", "erasure_id"],
        unique=True,
        schema="os_core",
        postgresql_where=sa.text("erasure_id IS NOT NULL"),
    )
    # A row for each tenant. Its lock makes positions gapless, and visible in their order.
    # settled_event_id: every event up to this id has its position, and no transaction can still bring one.
    # mark_*: its next value. All ids up to mark_event_id were drawn by transactions below mark_xid.
    op.create_table(
        HEADS,
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("last_position", sa.BigInteger, nullable=False),
        sa.Column("settled_event_id", sa.BigInteger, nullable=False),
        sa.Column("mark_event_id", sa.BigInteger, nullable=False),
        sa.Column("mark_xid", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_work_order_feed_heads")),
        sa.CheckConstraint(
            "last_position >= 0 AND settled_event_id >= 0 AND mark_event_id >= 0",
            name=op.f("ck_work_order_feed_heads_contract"),
        ),
        schema="os_core",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        CONSUMERS,
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("consumer", text, nullable=False),
        sa.Column("feed_position", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("lease_owner_id", text),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "consumer", name=op.f("pk_work_order_feed_consumers")),
        sa.CheckConstraint(
            "os_core.is_identifier(consumer, 128) AND feed_position >= 0 AND fence >= 0"
            " AND (lease_owner_id IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("ck_work_order_feed_consumers_contract"),
        ),
        schema="os_core",
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        for table in (FEED, CONSUMERS):
            op.execute(sql("run/refuse_data_loss", version=1, table=f"os_core.{table}"))
    op.execute("DROP FUNCTION os_core.verify_feed(text)")
    op.execute("DROP FUNCTION os_core.feed_status(text, text)")
    op.execute("DROP FUNCTION os_core.release_feed(text, text, bigint)")
    op.execute("DROP FUNCTION os_core.ack_feed(text, text, bigint, bigint, bigint)")
    op.execute("DROP FUNCTION os_core.lease_feed(text, text, text, bigint)")
    op.execute("DROP FUNCTION os_core.take_feed(text, text, integer)")
    op.execute("DROP FUNCTION os_core.poll_feed(text, text, integer)")
    op.execute("DROP FUNCTION os_core.enroll_feed(text, text)")
    op.execute("DROP FUNCTION os_core.read_feed(text, bigint, integer)")
    op.execute("DROP FUNCTION os_core.advance_feed(text, integer)")
    op.execute("DROP FUNCTION os_core.feed_has_moved(text, bigint, bigint)")
    op.execute("REVOKE USAGE ON SCHEMA os_core FROM selene_feed")
    for table in (CONSUMERS, HEADS, FEED):
        op.drop_table(table, schema="os_core")
