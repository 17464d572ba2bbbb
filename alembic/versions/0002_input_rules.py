"""The functions that CHECKs and the append function share: what an id, a label, a time, a JSON value must be.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

from selene_core.sql_files import sql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql("refusal/refuse", version=1))
    op.execute(sql("rule/is_identifier", version=1))
    op.execute(sql("rule/is_label", version=1))
    op.execute(sql("rule/is_uuid", version=1))
    op.execute(sql("rule/is_payload", version=1))
    op.execute(sql("rule/is_portable_time", version=1))
    op.execute(sql("rule/parse_rfc3339", version=1))
    op.execute(sql("rule/json_time", version=1))
    op.execute(sql("rule/is_event_type", version=1))
    op.execute(sql("rule/is_work_order_status", version=1))
    op.execute(sql("rule/is_event_seq", version=1))
    op.execute(sql("rule/is_lease_token", version=1))
    op.execute(sql("rule/is_event_row", version=1))
    op.execute(sql("rule/is_projection_row", version=1))
    op.execute(sql("rule/exceeded_bound", version=1))
    op.execute(sql("rule/is_terminal", version=1))
    op.execute(sql("rule/key_shown", version=1))
    op.execute(sql("rule/identifier_violation", version=1))
    op.execute(sql("rule/label_violation", version=1))
    op.execute(sql("rule/integer_violation", version=1))
    op.execute(sql("rule/time_violation", version=1))
    op.execute(sql("rule/lease_token_violation", version=1))


def downgrade() -> None:
    op.execute("DROP FUNCTION os_core.lease_token_violation(text, text, boolean)")
    op.execute("DROP FUNCTION os_core.time_violation(text, text)")
    op.execute("DROP FUNCTION os_core.integer_violation(text, numeric, bigint, bigint, boolean)")
    op.execute("DROP FUNCTION os_core.label_violation(text, text, integer, boolean)")
    op.execute("DROP FUNCTION os_core.identifier_violation(text, text, integer, boolean)")
    op.execute("DROP FUNCTION os_core.key_shown(text)")
    op.execute("DROP FUNCTION os_core.is_terminal(text)")
    op.execute("DROP FUNCTION os_core.exceeded_bound(jsonb, jsonb, jsonb, jsonb, jsonb)")
    op.execute("DROP FUNCTION os_core.is_projection_row(bigint, text, bigint, bigint, smallint)")
    op.execute("DROP FUNCTION os_core.is_event_row(record)")
    op.execute("DROP FUNCTION os_core.is_lease_token(text)")
    op.execute("DROP FUNCTION os_core.is_event_seq(text)")
    op.execute("DROP FUNCTION os_core.is_work_order_status(text)")
    op.execute("DROP FUNCTION os_core.is_event_type(text)")
    op.execute("DROP FUNCTION os_core.json_time(timestamptz)")
    op.execute("DROP FUNCTION os_core.parse_rfc3339(text)")
    op.execute("DROP FUNCTION os_core.is_portable_time(timestamptz)")
    op.execute("DROP FUNCTION os_core.is_payload(jsonb)")
    op.execute("DROP FUNCTION os_core.is_uuid(text)")
    op.execute("DROP FUNCTION os_core.is_label(text, integer)")
    op.execute("DROP FUNCTION os_core.is_identifier(text, integer)")
    op.execute("DROP FUNCTION os_core.refuse(text, text, jsonb)")
