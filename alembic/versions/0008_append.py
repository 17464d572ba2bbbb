"""The append function, the only way to write the ledger and the projection (contract §4).

Revision ID: 0008
Revises: 0007
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql("rule/is_field_key", version=1))
    op.execute(sql("rule/are_field_keys", version=1))
    op.execute(sql("append/payload_value_violation", version=1))
    op.execute(sql("append/payload_size_violation", version=1))
    op.execute(sql("rule/number_violation", version=1))
    op.execute(sql("append/payload_violation", version=1))
    op.execute(sql("append/event_violation", version=1))
    op.execute(sql("append/event_from_json", version=1))
    op.execute(sql("append/transition_refusal", version=1))
    op.execute(sql("lease/token_hash", version=1))
    op.execute(sql("append/lease_refusal", version=1))
    op.execute(sql("continuity/continuity_refusal", version=1))
    op.execute(sql("append/same_content", version=1))
    op.execute(sql("append/event_completed", version=1))
    op.execute(sql("refusal/refuse_event", version=1))
    op.execute(sql("refusal/refuse_replay", version=1))
    op.execute(sql("refusal/refuse_bound", version=1))
    op.execute(sql("refusal/refuse_damaged", version=1))
    op.execute(sql("refusal/refuse_sequence", version=1))
    op.execute(sql("append/event_hash", version=1))
    op.execute(sql("append/write_projection", version=1))
    op.execute(sql("append/append_work_order_event", version=1))
    op.execute(sql("append/append_work_order_batch", version=1))
    op.execute(sql("append/append_work_order_events", version=1))
    op.execute(sql("append/lock_projection", version=1))
    op.execute(sql("continuity/lock_work_order", version=1))


def downgrade() -> None:
    op.execute("DROP FUNCTION os_core.lock_work_order(text, text)")
    op.execute("DROP FUNCTION os_core.lock_projection(text, text)")
    op.execute("DROP FUNCTION os_core.append_work_order_events(text, jsonb)")
    op.execute("DROP FUNCTION os_core.append_work_order_batch(text, jsonb)")
    op.execute("DROP FUNCTION os_core.append_work_order_event(os_core.work_order_ledger, bigint, text)")
    op.execute("DROP FUNCTION os_core.write_projection(os_core.work_orders_current[], bigint[], boolean[])")
    op.execute("DROP FUNCTION os_core.event_hash(bytea, os_core.work_order_ledger)")
    op.execute("DROP FUNCTION os_core.refuse_sequence(text, text)")
    op.execute("DROP FUNCTION os_core.refuse_damaged(text)")
    op.execute("DROP FUNCTION os_core.refuse_bound(text, text, integer)")
    op.execute("DROP FUNCTION os_core.refuse_replay(integer, os_core.work_order_ledger, bigint)")
    op.execute(
        "DROP FUNCTION os_core.refuse_event("
        "text, integer, os_core.work_order_ledger, os_core.work_orders_current, bigint)"
    )
    op.execute(
        "DROP FUNCTION os_core.event_completed(os_core.work_orders_current, os_core.work_order_ledger)"
    )
    op.execute("DROP FUNCTION os_core.same_content(os_core.work_order_ledger, os_core.work_order_ledger)")
    op.execute(
        "DROP FUNCTION os_core.continuity_refusal(os_core.work_orders_current, os_core.work_order_ledger)"
    )
    op.execute(
        "DROP FUNCTION os_core.lease_refusal(os_core.work_orders_current, os_core.work_order_ledger, text)"
    )
    op.execute("DROP FUNCTION os_core.token_hash(text)")
    op.execute("DROP FUNCTION os_core.transition_refusal(bigint, text, text, text, jsonb, bigint, text)")
    op.execute("DROP FUNCTION os_core.event_from_json(text, jsonb, integer, boolean)")
    op.execute("DROP FUNCTION os_core.event_violation(jsonb)")
    op.execute("DROP FUNCTION os_core.payload_violation(text, jsonb)")
    op.execute("DROP FUNCTION os_core.number_violation(text, jsonb)")
    op.execute("DROP FUNCTION os_core.payload_size_violation(jsonb)")
    op.execute("DROP FUNCTION os_core.payload_value_violation(text, jsonb)")
    op.execute("DROP FUNCTION os_core.are_field_keys(jsonb)")
    op.execute("DROP FUNCTION os_core.is_field_key(text)")
