-- os_core.same_content: decides whether two events have the same content, so that the second is a replay (contract section 4, step 2).
-- Idempotency is decided by it: another content under a used key is IdempotencyConflict.
CREATE OR REPLACE FUNCTION os_core.same_content(p_one os_core.work_order_ledger, p_other os_core.work_order_ledger)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN p_one.correlation_id = p_other.correlation_id
    AND p_one.turn_id = p_other.turn_id
    AND p_one.event_type = p_other.event_type
    AND p_one.work_order_status = p_other.work_order_status
    AND p_one.reason_code = p_other.reason_code
    AND p_one.step_id IS NOT DISTINCT FROM p_other.step_id
    AND p_one.step_input_hash IS NOT DISTINCT FROM p_other.step_input_hash
    AND p_one.payload = p_other.payload;
END;
$$;
