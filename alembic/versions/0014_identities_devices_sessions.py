"""os_core.identities, devices and sessions, and the functions that write them (contract §2).

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

from selene_core.sql_files import sql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLES = ("identities", "devices", "sessions")
IDENTITY = "os_core.is_identity_row(tenant_id, user_id, speaker_id, primary_language, status, created_at)"
DEVICE = "os_core.is_device_row(device_id, device_type, last_seen_at, audio_profile_ref)"
SESSION = "os_core.is_session_row(session_id, session_state, opened_at, last_activity_at, closed_at)"


def upgrade() -> None:
    op.execute(sql("rule/is_language_tag", version=1))
    op.execute(sql("rule/is_identity_row", version=1))
    op.execute(sql("rule/is_device_row", version=1))
    op.execute(sql("rule/is_session_row", version=1))
    create_identities()
    create_devices()
    create_sessions()
    for table in TABLES:
        op.execute(sql("table/tenant_isolation", version=1, table=f"os_core.{table}"))
        op.execute(f"GRANT SELECT ON os_core.{table} TO selene_app, selene_readonly")
    op.execute(sql("identity/require_owned", version=1))
    op.execute(sql("identity/refuse_session_state", version=1))
    op.execute(sql("identity/lock_session", version=1))
    op.execute(sql("identity/register_identity", version=1))
    op.execute(sql("identity/register_device", version=1))
    op.execute(sql("identity/open_session", version=1))
    op.execute(sql("identity/touch_session", version=1))
    op.execute(sql("identity/move_session", version=1))


def create_identities() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "identities",
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("speaker_id", text),
        sa.Column("primary_language", text),
        sa.Column("status", text, nullable=False),
        sa.Column("created_at", instant, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_identities")),
        sa.CheckConstraint(IDENTITY, name=op.f("ck_identities_contract")),
        schema="os_core",
    )


def create_devices() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "devices",
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("device_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("device_type", text, nullable=False),
        sa.Column("last_seen_at", instant, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("audio_profile_ref", text),
        sa.PrimaryKeyConstraint("tenant_id", "device_id", name=op.f("pk_devices")),
        # Foreign keys of sessions and turns lead here: a device of that user. It also lists a user's devices.
        sa.UniqueConstraint("tenant_id", "user_id", "device_id", name=op.f("ux_devices_tenant_user_device")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["os_core.identities.tenant_id", "os_core.identities.user_id"],
            name=op.f("fk_devices_user"),
        ),
        sa.CheckConstraint(DEVICE, name=op.f("ck_devices_contract")),
        schema="os_core",
    )


def create_sessions() -> None:
    text = sa.Text(collation="C")
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "sessions",
        sa.Column("tenant_id", text, nullable=False),
        sa.Column("session_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("device_id", text, nullable=False),
        sa.Column("session_state", text, nullable=False),
        sa.Column("opened_at", instant, nullable=False),
        sa.Column("last_activity_at", instant, nullable=False),
        sa.Column("closed_at", instant),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", name=op.f("pk_sessions")),
        sa.UniqueConstraint(
            "tenant_id", "user_id", "session_id", name=op.f("ux_sessions_tenant_user_session")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["os_core.identities.tenant_id", "os_core.identities.user_id"],
            name=op.f("fk_sessions_user"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id", "device_id"],
            ["os_core.devices.tenant_id", "os_core.devices.user_id", "os_core.devices.device_id"],
            name=op.f("fk_sessions_device"),
        ),
        sa.CheckConstraint(SESSION, name=op.f("ck_sessions_contract")),
        schema="os_core",
    )


def downgrade() -> None:
    if not op.get_context().opts.get("allow_data_loss"):
        # Devices and sessions belong to users: if there are no identities, there are none of these.
        op.execute(sql("run/refuse_data_loss", version=1, table="os_core.identities"))
    op.execute("DROP FUNCTION os_core.move_session(text, text, text)")
    op.execute("DROP FUNCTION os_core.touch_session(text, text)")
    op.execute("DROP FUNCTION os_core.open_session(text, text, text, text)")
    op.execute("DROP FUNCTION os_core.register_device(text, text, text, text, text)")
    op.execute("DROP FUNCTION os_core.register_identity(text, text, text, text, text)")
    op.execute("DROP FUNCTION os_core.lock_session(text, text)")
    op.execute("DROP FUNCTION os_core.refuse_session_state(os_core.sessions, text)")
    op.execute("DROP FUNCTION os_core.require_owned(text, text, text, text)")
    for table in reversed(TABLES):
        op.drop_table(table, schema="os_core")
    op.execute("DROP FUNCTION os_core.is_session_row(text, text, timestamptz, timestamptz, timestamptz)")
    op.execute("DROP FUNCTION os_core.is_device_row(text, text, timestamptz, text)")
    op.execute("DROP FUNCTION os_core.is_identity_row(text, text, text, text, text, timestamptz)")
    op.execute("DROP FUNCTION os_core.is_language_tag(text)")
