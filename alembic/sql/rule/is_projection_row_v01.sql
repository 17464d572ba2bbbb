-- os_core.is_projection_row: the CHECK of os_core.work_orders_current (contract section 2).
-- Tenant and work order are not checked here: the foreign key leads to a ledger row, which was checked.
-- No SET clause: see os_core.is_identifier.
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
AS $$
BEGIN
  RETURN os_core.is_work_order_status(p_work_order_status)
    AND LEAST(p_turn_id, p_last_seq, p_last_reason_code) OPERATOR(pg_catalog.>=) 1
    AND p_last_reason_code OPERATOR(pg_catalog.<=) 4294967295
    AND p_external_approval_notices OPERATOR(pg_catalog.=) ANY ('{0, 1, 2}');
END;
$$;
