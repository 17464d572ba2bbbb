-- os_core.event_of: makes a row of the ledger from its columns.
-- On a distributed engine a table's part has a row type of its own, which no function of ours takes. A cast of ROW(...) would fail in a
-- call that waits while a later revision adds a column.
CREATE OR REPLACE FUNCTION os_core.event_of(
  p_work_order_event_id bigint,
  p_tenant_id text,
  p_work_order_id text,
  p_work_order_seq bigint,
  p_correlation_id uuid,
  p_turn_id bigint,
  p_event_type text,
  p_work_order_status text,
  p_reason_code bigint,
  p_step_id text,
  p_step_input_hash text,
  p_lease_owner_id text,
  p_lease_token_hash text,
  p_lease_expires_at timestamptz,
  p_payload jsonb,
  p_idempotency_key text,
  p_occurred_at timestamptz,
  p_created_at timestamptz,
  p_event_hash bytea
)
RETURNS os_core.work_order_ledger
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _event os_core.work_order_ledger;
BEGIN
  _event.work_order_event_id := p_work_order_event_id;
  _event.tenant_id := p_tenant_id;
  _event.work_order_id := p_work_order_id;
  _event.work_order_seq := p_work_order_seq;
  _event.correlation_id := p_correlation_id;
  _event.turn_id := p_turn_id;
  _event.event_type := p_event_type;
  _event.work_order_status := p_work_order_status;
  _event.reason_code := p_reason_code;
  _event.step_id := p_step_id;
  _event.step_input_hash := p_step_input_hash;
  _event.lease_owner_id := p_lease_owner_id;
  _event.lease_token_hash := p_lease_token_hash;
  _event.lease_expires_at := p_lease_expires_at;
  _event.payload := p_payload;
  _event.idempotency_key := p_idempotency_key;
  _event.occurred_at := p_occurred_at;
  _event.created_at := p_created_at;
  _event.event_hash := p_event_hash;
  RETURN _event;
END;
$$;
