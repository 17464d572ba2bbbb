"""The tables for SQLAlchemy: a copy of what alembic/versions makes. A test compares the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from selene_core.store.digests import Digest
from selene_core.store.instants import Instant

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement

METADATA: Final = MetaData(
    schema="os_core",
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "ux_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)
IS_PENDING: Final = "work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM')"
"""The predicate of the indexes for what is pending: a query says it in the same words to be served by one."""


def bucket_of(at: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return the bucket of a time, as the fold computes updated_bucket: every append within it is HOT."""
    return func.date_bin(text("interval '5 min'"), at, text("timestamptz '2000-01-01 00:00:00+00'"))


_ID: Final = Text(collation="C")
_INSTANT: Final = Instant()

work_order_ledger: Final = Table(
    "work_order_ledger",
    METADATA,
    Column(
        "work_order_event_id",
        BigInteger,
        server_default=text("nextval('os_core.work_order_ledger_work_order_event_id_seq'::regclass)"),
        nullable=False,
    ),
    Column("tenant_id", _ID, nullable=False),
    Column("work_order_id", _ID, nullable=False),
    Column("work_order_seq", BigInteger, nullable=False),
    Column("correlation_id", Uuid, nullable=False),
    Column("turn_id", BigInteger, nullable=False),
    Column("event_type", _ID, nullable=False),
    Column("work_order_status", _ID, nullable=False),
    Column("reason_code", BigInteger, nullable=False),
    Column("step_id", _ID),
    Column("step_input_hash", _ID),
    Column("lease_owner_id", _ID),
    Column("lease_token_hash", _ID),
    Column("lease_expires_at", _INSTANT),
    Column("payload", JSONB, nullable=False),
    Column("idempotency_key", _ID),
    Column("occurred_at", _INSTANT),
    Column("created_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    Column("event_hash", Digest, nullable=False),
    PrimaryKeyConstraint("work_order_event_id", name="pk_work_order_ledger"),
    UniqueConstraint(
        "tenant_id",
        "work_order_id",
        "work_order_event_id",
        name="ux_work_order_ledger_tenant_work_order_event",
    ),
    UniqueConstraint(
        "tenant_id", "work_order_id", "work_order_seq", name="ux_work_order_ledger_tenant_work_order_seq"
    ),
    CheckConstraint("os_core.is_event_row(work_order_ledger)", name="contract"),
    Index(
        "ux_work_order_ledger_idempotency",
        "tenant_id",
        "work_order_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("ix_work_order_ledger_tenant_event", "tenant_id", "work_order_event_id"),
)

work_orders_current: Final = Table(
    "work_orders_current",
    METADATA,
    Column("work_order_id", _ID, nullable=False),
    Column("tenant_id", _ID, nullable=False),
    Column("correlation_id", Uuid, nullable=False),
    Column("created_at", _INSTANT, nullable=False),
    Column("requester_user_id", _ID),
    Column("conflicts_json", JSONB, nullable=False),
    Column("resolved_fields_json", JSONB, nullable=False),
    Column("fields_json", JSONB, nullable=False),
    Column("last_updated_at", _INSTANT, nullable=False),
    Column("last_event_id", BigInteger, nullable=False),
    Column("last_state_change_seq", BigInteger, nullable=False),
    Column("turn_id", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("last_reason_code", BigInteger, nullable=False),
    Column("updated_bucket", _INSTANT, nullable=False),
    Column("work_order_status", _ID, nullable=False),
    Column("step_id", _ID),
    Column("step_input_hash", _ID),
    Column("lease_owner_id", _ID),
    Column("lease_token_hash", _ID),
    Column("lease_expires_at", _INSTANT),
    Column("queued_at", _INSTANT, nullable=False),
    Column("steps_due_at", _INSTANT),
    Column("external_approval_pending", Boolean, nullable=False),
    Column("external_approval_notices", SmallInteger, nullable=False),
    Column("external_approval_request_id", _ID),
    Column("external_approval_target_user_id", _ID),
    Column("external_approval_expires_at", _INSTANT),
    Column("asked_fields_json", JSONB, nullable=False),
    Column("prompt_dedupe_keys_json", JSONB, nullable=False),
    PrimaryKeyConstraint("work_order_id", name="pk_work_orders_current"),
    UniqueConstraint("tenant_id", "work_order_id", name="ux_work_orders_current_tenant_work_order"),
    UniqueConstraint(
        "tenant_id",
        "correlation_id",
        name="ux_work_orders_current_tenant_correlation",
        postgresql_include=["work_order_id"],
    ),
    ForeignKeyConstraint(
        ["tenant_id", "work_order_id", "last_event_id"],
        [
            "os_core.work_order_ledger.tenant_id",
            "os_core.work_order_ledger.work_order_id",
            "os_core.work_order_ledger.work_order_event_id",
        ],
        name="fk_work_orders_current_last_event",
    ),
    CheckConstraint(
        "os_core.is_projection_row(turn_id, work_order_status, last_seq, last_reason_code,"
        " external_approval_notices)",
        name="contract",
    ),
    Index(
        "ix_work_orders_current_pending",
        "tenant_id",
        "updated_bucket",
        postgresql_where=text(IS_PENDING),
    ),
    Index(
        "ix_work_orders_current_pending_requester",
        "tenant_id",
        "requester_user_id",
        "updated_bucket",
        postgresql_where=text(IS_PENDING),
    ),
    Index(
        "ix_work_orders_current_status",
        "tenant_id",
        "work_order_status",
        "created_at",
        "work_order_id",
    ),
    Index(
        "ix_work_orders_current_requester",
        "tenant_id",
        "requester_user_id",
        "work_order_status",
        "created_at",
        "work_order_id",
        postgresql_where=text("requester_user_id IS NOT NULL"),
    ),
    Index(
        "ix_work_orders_current_lease_owner",
        "tenant_id",
        "lease_owner_id",
        "work_order_status",
        "created_at",
        "work_order_id",
        postgresql_where=text("lease_owner_id IS NOT NULL"),
    ),
    Index(
        "ix_work_orders_current_claim",
        "tenant_id",
        "work_order_status",
        text("GREATEST(queued_at, steps_due_at)"),
        postgresql_where=text(
            "work_order_status IN ('DRAFT', 'CLARIFY', 'CONFIRM', 'EXECUTING')"
            " AND NOT external_approval_pending AND steps_due_at IS NOT NULL"
        ),
    ),
    postgresql_with={"fillfactor": 70},
)

work_order_leases: Final = Table(
    "work_order_leases",
    METADATA,
    Column("lease_id", Uuid, nullable=False),
    Column("tenant_id", _ID, nullable=False),
    Column("work_order_id", _ID, nullable=False),
    Column("lease_owner_id", _ID, nullable=False),
    Column("lease_token_hash", _ID, nullable=False),
    Column("lease_state", _ID, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("acquired_at", _INSTANT, nullable=False),
    Column("renewed_at", _INSTANT),
    Column("lease_expires_at", _INSTANT, nullable=False),
    Column("released_at", _INSTANT),
    Column("idempotency_key", _ID),
    PrimaryKeyConstraint("lease_id", name="pk_work_order_leases"),
    UniqueConstraint("tenant_id", "lease_token_hash", "work_order_id", name="ux_work_order_leases_token"),
    ForeignKeyConstraint(
        ["tenant_id", "work_order_id"],
        ["os_core.work_orders_current.tenant_id", "os_core.work_orders_current.work_order_id"],
        name="fk_work_order_leases_work_order",
    ),
    CheckConstraint(
        "os_core.is_lease_row(lease_owner_id, lease_token_hash, lease_state, fence, acquired_at, renewed_at,"
        " lease_expires_at, released_at, idempotency_key)",
        name="contract",
    ),
    Index(
        "ux_work_order_leases_active",
        "tenant_id",
        "work_order_id",
        unique=True,
        postgresql_where=text("lease_state = 'ACTIVE'"),
    ),
    Index(
        "ux_work_order_leases_idempotency",
        "tenant_id",
        "work_order_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

work_order_step_attempts: Final = Table(
    "work_order_step_attempts",
    METADATA,
    Column(
        "step_attempt_id",
        BigInteger,
        server_default=text("nextval('os_core.work_order_step_attempts_step_attempt_id_seq'::regclass)"),
        nullable=False,
    ),
    Column("tenant_id", _ID, nullable=False),
    Column("work_order_id", _ID, nullable=False),
    Column("step_id", _ID, nullable=False),
    Column("attempt_index", Integer, nullable=False),
    Column("attempt_status", _ID, nullable=False),
    Column("timeout_ms", BigInteger, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("retry_backoff_ms", BigInteger, nullable=False),
    Column("next_retry_at", _INSTANT),
    Column("started_at", _INSTANT, nullable=False),
    Column("finished_at", _INSTANT),
    Column("reason_code", BigInteger),
    Column("idempotency_key", _ID, nullable=False),
    Column("finish_idempotency_key", _ID),
    Column("created_at", _INSTANT, nullable=False),
    Column("updated_at", _INSTANT, nullable=False),
    PrimaryKeyConstraint("step_attempt_id", name="pk_work_order_step_attempts"),
    UniqueConstraint(
        "tenant_id", "work_order_id", "step_id", "attempt_index", name="ux_work_order_step_attempts_index"
    ),
    UniqueConstraint(
        "tenant_id",
        "work_order_id",
        "step_id",
        "idempotency_key",
        name="ux_work_order_step_attempts_idempotency",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "work_order_id"],
        ["os_core.work_orders_current.tenant_id", "os_core.work_orders_current.work_order_id"],
        name="fk_work_order_step_attempts_work_order",
    ),
    CheckConstraint(
        "os_core.is_step_attempt_row(step_id, attempt_index, attempt_status, timeout_ms, max_retries,"
        " retry_backoff_ms, next_retry_at, started_at, finished_at, reason_code, idempotency_key,"
        " finish_idempotency_key, created_at, updated_at)",
        name="contract",
    ),
    Index(
        "ux_work_order_step_attempts_running",
        "tenant_id",
        "work_order_id",
        "step_id",
        unique=True,
        postgresql_where=text("attempt_status = 'RUNNING'"),
    ),
    Index(
        "ix_work_order_step_attempts_due",
        "tenant_id",
        "next_retry_at",
        "step_attempt_id",
        postgresql_include=["work_order_id", "step_id", "attempt_index"],
        postgresql_where=text("next_retry_at IS NOT NULL"),
    ),
)

identities: Final = Table(
    "identities",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("speaker_id", _ID),
    Column("primary_language", _ID),
    Column("status", _ID, nullable=False),
    Column("created_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    PrimaryKeyConstraint("tenant_id", "user_id", name="pk_identities"),
    CheckConstraint(
        "os_core.is_identity_row(tenant_id, user_id, speaker_id, primary_language, status, created_at)",
        name="contract",
    ),
)

devices: Final = Table(
    "devices",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("device_id", _ID, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("device_type", _ID, nullable=False),
    Column("last_seen_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    Column("audio_profile_ref", _ID),
    PrimaryKeyConstraint("tenant_id", "device_id", name="pk_devices"),
    UniqueConstraint("tenant_id", "user_id", "device_id", name="ux_devices_tenant_user_device"),
    ForeignKeyConstraint(
        ["tenant_id", "user_id"],
        ["os_core.identities.tenant_id", "os_core.identities.user_id"],
        name="fk_devices_user",
    ),
    CheckConstraint(
        "os_core.is_device_row(device_id, device_type, last_seen_at, audio_profile_ref)", name="contract"
    ),
)

sessions: Final = Table(
    "sessions",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("session_id", _ID, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("device_id", _ID, nullable=False),
    Column("session_state", _ID, nullable=False),
    Column("opened_at", _INSTANT, nullable=False),
    Column("last_activity_at", _INSTANT, nullable=False),
    Column("closed_at", _INSTANT),
    PrimaryKeyConstraint("tenant_id", "session_id", name="pk_sessions"),
    UniqueConstraint("tenant_id", "user_id", "session_id", name="ux_sessions_tenant_user_session"),
    ForeignKeyConstraint(
        ["tenant_id", "user_id"],
        ["os_core.identities.tenant_id", "os_core.identities.user_id"],
        name="fk_sessions_user",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "user_id", "device_id"],
        ["os_core.devices.tenant_id", "os_core.devices.user_id", "os_core.devices.device_id"],
        name="fk_sessions_device",
    ),
    CheckConstraint(
        "os_core.is_session_row(session_id, session_state, opened_at, last_activity_at, closed_at)",
        name="contract",
    ),
)

conversation_ledger: Final = Table(
    "conversation_ledger",
    METADATA,
    Column(
        "conversation_turn_id",
        BigInteger,
        server_default=text("nextval('conversation.conversation_ledger_conversation_turn_id_seq'::regclass)"),
        nullable=False,
    ),
    Column("tenant_id", _ID, nullable=False),
    Column("correlation_id", Uuid, nullable=False),
    Column("turn_id", BigInteger, nullable=False),
    Column("session_id", _ID),
    Column("user_id", _ID, nullable=False),
    Column("device_id", _ID),
    Column("role", _ID, nullable=False),
    Column("source", _ID, nullable=False),
    Column("text_hash", _ID, nullable=False),
    Column("privacy_scope", _ID, nullable=False),
    Column("created_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    Column("idempotency_key", _ID),
    Column("tombstone_of_conversation_turn_id", BigInteger),
    Column("tombstone_reason_code", BigInteger),
    PrimaryKeyConstraint("conversation_turn_id", name="pk_conversation_ledger"),
    UniqueConstraint("tenant_id", "correlation_id", "turn_id", name="ux_conversation_ledger_tenant_turn"),
    UniqueConstraint(
        "tenant_id",
        "correlation_id",
        "conversation_turn_id",
        name="ux_conversation_ledger_tenant_conversation_turn",
    ),
    UniqueConstraint(
        "tenant_id", "conversation_turn_id", "text_hash", name="ux_conversation_ledger_tenant_text"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "user_id"],
        ["os_core.identities.tenant_id", "os_core.identities.user_id"],
        name="fk_conversation_ledger_user",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "user_id", "device_id"],
        ["os_core.devices.tenant_id", "os_core.devices.user_id", "os_core.devices.device_id"],
        name="fk_conversation_ledger_device",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "user_id", "session_id"],
        ["os_core.sessions.tenant_id", "os_core.sessions.user_id", "os_core.sessions.session_id"],
        name="fk_conversation_ledger_session",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "correlation_id", "tombstone_of_conversation_turn_id"],
        [
            "conversation.conversation_ledger.tenant_id",
            "conversation.conversation_ledger.correlation_id",
            "conversation.conversation_ledger.conversation_turn_id",
        ],
        name="fk_conversation_ledger_tombstone",
    ),
    CheckConstraint(
        "conversation.is_turn_row(conversation_turn_id, turn_id, role, source, text_hash,"
        " privacy_scope, created_at, idempotency_key, tombstone_of_conversation_turn_id,"
        " tombstone_reason_code)",
        name="contract",
    ),
    Index(
        "ux_conversation_ledger_idempotency",
        "tenant_id",
        "correlation_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index(
        "ux_conversation_ledger_tombstone",
        "tenant_id",
        "correlation_id",
        "tombstone_of_conversation_turn_id",
        unique=True,
        postgresql_where=text("tombstone_of_conversation_turn_id IS NOT NULL"),
    ),
    Index("ix_conversation_ledger_tenant_user", "tenant_id", "user_id", "conversation_turn_id"),
    schema="conversation",
)

turn_texts: Final = Table(
    "turn_texts",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("conversation_turn_id", BigInteger, nullable=False),
    Column("text_hash", _ID, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("text", _ID, nullable=False),
    PrimaryKeyConstraint("tenant_id", "conversation_turn_id", name="pk_turn_texts"),
    ForeignKeyConstraint(
        ["tenant_id", "conversation_turn_id", "text_hash"],
        [
            "conversation.conversation_ledger.tenant_id",
            "conversation.conversation_ledger.conversation_turn_id",
            "conversation.conversation_ledger.text_hash",
        ],
        name="fk_turn_texts_turn",
    ),
    CheckConstraint(
        "octet_length(salt) = 32 AND octet_length(text) <= 65536"
        " AND text_hash = os_core.salted_hash(salt, text)",
        name="contract",
    ),
    schema="conversation",
)

subject_erasures: Final = Table(
    "subject_erasures",
    METADATA,
    Column(
        "erasure_id",
        BigInteger,
        server_default=text("nextval('os_core.subject_erasures_erasure_id_seq'::regclass)"),
        nullable=False,
    ),
    Column("tenant_id", _ID, nullable=False),
    Column("subject_id", _ID, nullable=False),
    Column("reason_code", BigInteger, nullable=False),
    Column("values_erased", BigInteger, nullable=False),
    Column("texts_erased", BigInteger, nullable=False),
    Column("erased_by", _ID, server_default=text("SESSION_USER"), nullable=False),
    Column("erased_at", _INSTANT, nullable=False),
    Column(
        "drawn_event_id",
        BigInteger,
        server_default=text("nextval('os_core.work_order_ledger_work_order_event_id_seq'::regclass)"),
        nullable=False,
    ),
    PrimaryKeyConstraint("erasure_id", name="pk_subject_erasures"),
    UniqueConstraint("tenant_id", "erasure_id", name="ux_subject_erasures_tenant_erasure"),
    UniqueConstraint("tenant_id", "subject_id", "erasure_id", name="ux_subject_erasures_tenant_subject"),
    Index("ix_subject_erasures_tenant_event", "tenant_id", "drawn_event_id"),
    CheckConstraint(
        "os_core.is_identifier(tenant_id, 64) AND os_core.is_identifier(subject_id, 128)"
        " AND reason_code >= 1 AND reason_code <= 4294967295"
        " AND values_erased >= 0 AND texts_erased >= 0 AND os_core.is_portable_time(erased_at)",
        name="contract",
    ),
)

subjects: Final = Table(
    "subjects",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("subject_id", _ID, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("was_erased", Boolean, nullable=False),
    Column("created_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    PrimaryKeyConstraint("tenant_id", "subject_id", name="pk_subjects"),
    UniqueConstraint("tenant_id", "subject_id", "salt", name="ux_subjects_tenant_salt"),
    CheckConstraint(
        "os_core.is_identifier(tenant_id, 64) AND os_core.is_identifier(subject_id, 128)"
        " AND octet_length(salt) = 32 AND os_core.is_portable_time(created_at)",
        name="contract",
    ),
)

subject_values: Final = Table(
    "subject_values",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("subject_id", _ID, nullable=False),
    Column("value_ref", _ID, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("value", JSONB, nullable=False),
    Column("created_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    PrimaryKeyConstraint("tenant_id", "subject_id", "value_ref", name="pk_subject_values"),
    ForeignKeyConstraint(
        ["tenant_id", "subject_id", "salt"],
        ["os_core.subjects.tenant_id", "os_core.subjects.subject_id", "os_core.subjects.salt"],
        name="fk_subject_values_subject",
    ),
    CheckConstraint("value_ref = os_core.salted_hash(salt, value::text)", name="contract"),
)

tenant_removals: Final = Table(
    "tenant_removals",
    METADATA,
    Column(
        "removal_id",
        BigInteger,
        server_default=text("nextval('os_core.tenant_removals_removal_id_seq'::regclass)"),
        nullable=False,
    ),
    Column("tenant_id", _ID, nullable=False),
    Column("removal_state", _ID, nullable=False),
    Column("recorded_by", _ID, server_default=text("SESSION_USER"), nullable=False),
    Column("recorded_at", _INSTANT, server_default=text("clock_timestamp()"), nullable=False),
    PrimaryKeyConstraint("removal_id", name="pk_tenant_removals"),
    UniqueConstraint("tenant_id", "removal_id", name="ux_tenant_removals_tenant_removal"),
    CheckConstraint(
        "os_core.is_identifier(tenant_id, 64) AND removal_state IN ('OPENED', 'CLOSED')"
        " AND os_core.is_portable_time(recorded_at)",
        name="contract",
    ),
)

work_order_feed: Final = Table(
    "work_order_feed",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("feed_position", BigInteger, nullable=False),
    Column("work_order_event_id", BigInteger),
    Column("erasure_id", BigInteger),
    PrimaryKeyConstraint("tenant_id", "feed_position", name="pk_work_order_feed"),
    UniqueConstraint("tenant_id", "work_order_event_id", name="ux_work_order_feed_tenant_event"),
    Index(
        "ux_work_order_feed_tenant_erasure",
        "tenant_id",
        "erasure_id",
        unique=True,
        postgresql_where=text("erasure_id IS NOT NULL"),
    ),
    CheckConstraint(
        "feed_position > 0 AND (work_order_event_id IS NULL) <> (erasure_id IS NULL)", name="contract"
    ),
)

work_order_feed_heads: Final = Table(
    "work_order_feed_heads",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    Column("settled_event_id", BigInteger, nullable=False),
    Column("mark_event_id", BigInteger, nullable=False),
    Column("mark_xid", BigInteger),
    PrimaryKeyConstraint("tenant_id", name="pk_work_order_feed_heads"),
    CheckConstraint("last_position >= 0 AND settled_event_id >= 0 AND mark_event_id >= 0", name="contract"),
    postgresql_with={"fillfactor": 50},
)

work_order_feed_consumers: Final = Table(
    "work_order_feed_consumers",
    METADATA,
    Column("tenant_id", _ID, nullable=False),
    Column("consumer", _ID, nullable=False),
    Column("feed_position", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("lease_owner_id", _ID),
    Column("lease_expires_at", _INSTANT),
    Column("updated_at", _INSTANT, nullable=False),
    PrimaryKeyConstraint("tenant_id", "consumer", name="pk_work_order_feed_consumers"),
    CheckConstraint(
        "os_core.is_identifier(consumer, 128) AND feed_position >= 0 AND fence >= 0"
        " AND (lease_owner_id IS NULL) = (lease_expires_at IS NULL)",
        name="contract",
    ),
    postgresql_with={"fillfactor": 50},
)
