-- os_core.same_content: decides whether a given event has the content of a recorded one, so that it is a replay (contract section 4,
-- step 2). Idempotency is decided by it: another content under a used key is IdempotencyConflict. What the given event leaves out of
-- thread, turn, status and reason compares with nothing.
CREATE OR REPLACE FUNCTION os_core.same_content(p_recorded os_core.work_order_ledger, p_given os_core.work_order_ledger)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN p_recorded.event_type = p_given.event_type
    AND (p_recorded.correlation_id = p_given.correlation_id) IS NOT FALSE
    AND (p_recorded.turn_id = p_given.turn_id) IS NOT FALSE
    AND (p_recorded.work_order_status = p_given.work_order_status) IS NOT FALSE
    AND (p_recorded.reason_code = p_given.reason_code) IS NOT FALSE
    AND p_recorded.step_id IS NOT DISTINCT FROM p_given.step_id
    AND p_recorded.step_input_hash IS NOT DISTINCT FROM p_given.step_input_hash
    AND p_recorded.payload = p_given.payload;
END;
$$;
