-- os_core.append_step_event: appends a STEP_* event about an attempt; the rules of contract section 4 hold for it, too.
-- The attempt's row is written first: from it follows when the order's steps may go on. p_timed_out says whether a failed attempt
-- was past its timeout; NULL for other events.
CREATE OR REPLACE FUNCTION os_core.append_step_event(
  p_state os_core.work_orders_current,
  p_event_type text,
  p_attempt os_core.work_order_step_attempts,
  p_timed_out boolean,
  p_lease_token text
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  -- Through variables: a column has a collation, which a call gives to all that the function has.
  _tenant_id constant text := p_attempt.tenant_id;
  _work_order_id constant text := p_attempt.work_order_id;
  _event os_core.work_order_ledger := os_core.event_carried(
    p_state,
    p_event_type,
    pg_catalog.jsonb_strip_nulls(
      pg_catalog.jsonb_build_object(
        'step_attempt_id', p_attempt.step_attempt_id,
        'attempt_index', p_attempt.attempt_index,
        'timed_out', p_timed_out,
        'next_retry_at', os_core.json_time(p_attempt.next_retry_at)
      )
    ) || pg_catalog.jsonb_build_object(
      'steps_due_at', os_core.json_time(os_core.steps_due_at(_tenant_id, _work_order_id))
    )
  );
BEGIN
  _event.step_id := p_attempt.step_id;
  _event.reason_code := p_attempt.reason_code;
  IF p_state.step_id IS DISTINCT FROM p_attempt.step_id THEN
    _event.step_input_hash := NULL;
  END IF;
  PERFORM os_core.append_work_order_event(_event, NULL, p_lease_token);
END;
$$;
