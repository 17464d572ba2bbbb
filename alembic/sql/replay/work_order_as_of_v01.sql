-- os_core.work_order_as_of: returns the state of a work order at an earlier time; no row before its creation (contract section 5).
-- Exactly one of: p_seq and p_event_id (after that event), p_at (after the last event created by then).
CREATE OR REPLACE FUNCTION os_core.work_order_as_of(
  p_tenant_id text, p_work_order_id text, p_seq bigint DEFAULT NULL, p_event_id bigint DEFAULT NULL, p_at timestamptz DEFAULT NULL
)
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
  updated_bucket timestamptz,
  queued_at timestamptz,
  steps_due_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
  _state os_core.work_orders_current;
  _event os_core.work_order_ledger;
  _seq bigint := p_seq;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF pg_catalog.num_nonnulls(p_seq, p_event_id, p_at) <> 1 THEN
    PERFORM os_core.refuse_contract(NULL, 'as_of: takes exactly one of seq, event_id and at');
  END IF;
  IF p_event_id IS NOT NULL THEN
    -- By the event's place in its order: ids of several nodes do not order. Between two ids it is the place before.
    SELECT ledger.work_order_seq INTO _seq
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = p_work_order_id
      AND ledger.work_order_event_id = p_event_id;
    IF _seq IS NULL THEN
      SELECT pg_catalog.max(ledger.work_order_seq) INTO _seq
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = p_work_order_id
        AND ledger.work_order_event_id < p_event_id;
    END IF;
    _seq := COALESCE(_seq, 0);
  END IF;
  FOR _event IN
    SELECT ledger.*
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_id = p_work_order_id
      AND (_seq IS NULL OR ledger.work_order_seq <= _seq)
      AND (p_at IS NULL OR ledger.created_at <= p_at)
    ORDER BY ledger.work_order_seq
  LOOP
    _state := os_core.apply_work_order_event(_state, _event);
  END LOOP;
  IF _state.last_seq IS NOT NULL THEN
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
      _state.updated_bucket,
      _state.queued_at,
      _state.steps_due_at;
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.work_order_as_of(text, text, bigint, bigint, timestamptz) TO selene_app;
