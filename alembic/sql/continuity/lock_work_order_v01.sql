-- os_core.lock_work_order: locks a work order's projection row until the end of the transaction, and returns it (contract section 6, ask).
-- For callers that decide by it and then append: selene_app may not lock rows itself. Raises WorkOrderNotFound.
CREATE OR REPLACE FUNCTION os_core.lock_work_order(p_tenant_id text, p_work_order_id text)
RETURNS TABLE (
  work_order_id text,
  tenant_id text,
  correlation_id uuid,
  turn_id bigint,
  work_order_status text,
  last_event_id bigint,
  last_seq bigint,
  last_reason_code bigint,
  last_updated_at timestamptz,
  created_at timestamptz,
  requester_user_id text,
  step_id text,
  step_input_hash text,
  lease_owner_id text,
  lease_token_hash text,
  lease_expires_at timestamptz,
  fields_json jsonb,
  asked_fields_json jsonb,
  resolved_fields_json jsonb,
  conflicts_json jsonb,
  prompt_dedupe_keys_json jsonb,
  external_approval_pending boolean,
  external_approval_request_id text,
  external_approval_target_user_id text,
  external_approval_expires_at timestamptz,
  external_approval_notices smallint,
  last_state_change_seq bigint,
  queued_at timestamptz,
  steps_due_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _state constant os_core.work_orders_current := os_core.lock_projection(p_tenant_id, p_work_order_id);
BEGIN
  RETURN QUERY
  SELECT
    _state.work_order_id,
    _state.tenant_id,
    _state.correlation_id,
    _state.turn_id,
    _state.work_order_status,
    _state.last_event_id,
    _state.last_seq,
    _state.last_reason_code,
    _state.last_updated_at,
    _state.created_at,
    _state.requester_user_id,
    _state.step_id,
    _state.step_input_hash,
    _state.lease_owner_id,
    _state.lease_token_hash,
    _state.lease_expires_at,
    _state.fields_json,
    _state.asked_fields_json,
    _state.resolved_fields_json,
    _state.conflicts_json,
    _state.prompt_dedupe_keys_json,
    _state.external_approval_pending,
    _state.external_approval_request_id,
    _state.external_approval_target_user_id,
    _state.external_approval_expires_at,
    _state.external_approval_notices,
    _state.last_state_change_seq,
    _state.queued_at,
    _state.steps_due_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.lock_work_order(text, text) TO selene_app;
