-- os_core.notify_wait: records that the user is told of the wait for an approval; TRUE if this caller must tell (contract section 7).
-- FALSE if no request is pending, or the user was told already. If several callers ask at once, one gets TRUE.
-- The event has the order's thread and status, and its turn and reason if none are given.
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
  -- First, so that an invalid turn or reason is always refused, even if nothing is pending.
  _event := os_core.event_from_json(
    p_tenant_id,
    pg_catalog.jsonb_build_object(
      'work_order_id', p_work_order_id,
      'turn_id', p_turn_id,
      'event_type', 'EXTERNAL_APPROVAL_WAIT_NOTIFIED',
      'reason_code', p_reason_code,
      'payload', pg_catalog.jsonb_build_object('request_id', COALESCE(_state.external_approval_request_id, 'none'))
    ),
    NULL
  );
  IF NOT _state.external_approval_pending THEN
    RETURN FALSE;
  END IF;
  -- SL008 means that the user was told. Later times only allow more, so the append a moment later is not refused.
  _event.created_at := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
  IF os_core.continuity_refusal(_state, _event) = 'SL008' THEN
    RETURN FALSE;
  END IF;
  PERFORM os_core.append_work_order_event(_event, NULL, NULL);
  RETURN TRUE;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.notify_wait(text, text, bigint, bigint) TO selene_app;
