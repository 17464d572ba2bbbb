-- os_core.notify_wait: appends EXTERNAL_APPROVAL_WAIT_NOTIFIED for the pending request and returns TRUE, or returns FALSE where there is
-- nothing to say: no request is pending, or the notice was given (contract section 7). Of many callers at once one gets TRUE. The notice has the
-- order's thread and status, and its turn and reason where none is given.
CREATE OR REPLACE FUNCTION os_core.notify_wait(
  p_tenant_id text, p_work_order_id text, p_turn_id bigint DEFAULT NULL, p_reason_code bigint DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _state constant os_core.work_orders_current := os_core.lock_projection(p_tenant_id, p_work_order_id);
  _event os_core.work_order_ledger;
BEGIN
  -- First, so that what is no turn or reason is refused at every time alike.
  _event := os_core.event_from_json(
    p_tenant_id,
    pg_catalog.jsonb_build_object(
      'work_order_id', p_work_order_id,
      'correlation_id', _state.correlation_id,
      'turn_id', COALESCE(p_turn_id, _state.turn_id),
      'event_type', 'EXTERNAL_APPROVAL_WAIT_NOTIFIED',
      'work_order_status', _state.work_order_status,
      'reason_code', COALESCE(p_reason_code, _state.last_reason_code),
      'payload', pg_catalog.jsonb_build_object('request_id', COALESCE(_state.external_approval_request_id, 'none'))
    ),
    NULL
  );
  IF NOT _state.external_approval_pending THEN
    RETURN FALSE;
  END IF;
  -- What is refused as told already is the answer here. Time only ever allows more, so that the append, a moment later, agrees.
  _event.created_at := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
  IF os_core.continuity_refusal(_state, _event) = 'SL008' THEN
    RETURN FALSE;
  END IF;
  PERFORM os_core.append_work_order_event(_event, NULL, NULL);
  RETURN TRUE;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.notify_wait(text, text, bigint, bigint) TO selene_app;
