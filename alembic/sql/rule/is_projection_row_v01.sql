-- os_core.is_projection_row: the CHECK of os_core.work_orders_current (contract section 2).
-- Tenant and work order are not checked here: the foreign key leads to a ledger row, which was checked.
CREATE OR REPLACE FUNCTION os_core.is_projection_row(
  p_turn_id bigint,
  p_work_order_status text,
  p_last_seq bigint,
  p_last_reason_code bigint,
  p_external_approval_notices smallint
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_work_order_status(p_work_order_status)
    AND LEAST(p_turn_id, p_last_seq, p_last_reason_code) >= 1
    AND p_last_reason_code <= 4294967295
    AND p_external_approval_notices BETWEEN 0 AND 2;
END;
$$;
