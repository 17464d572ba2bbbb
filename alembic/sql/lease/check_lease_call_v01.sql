-- os_core.check_lease_call: raises ContractViolation for invalid arguments of a lease function (contract section 8).
-- p_takes: 'owner' for a function with owner and ttl_ms, 'claim' for the same without a work order, 'ttl_ms' for one with ttl_ms, NULL
-- for neither. It never shows a value.
CREATE OR REPLACE FUNCTION os_core.check_lease_call(
  p_takes text, p_work_order_id text, p_owner text, p_token text, p_ttl_ms bigint, p_idempotency_key text
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _violation constant text := COALESCE(
    CASE WHEN p_takes IS DISTINCT FROM 'claim' THEN os_core.identifier_violation('work_order_id', p_work_order_id, 128) END,
    CASE WHEN p_takes IN ('owner', 'claim') THEN os_core.identifier_violation('owner', p_owner, 128) END,
    os_core.lease_token_violation('token', p_token),
    CASE WHEN p_takes IN ('owner', 'claim', 'ttl_ms') THEN os_core.integer_violation('ttl_ms', p_ttl_ms, 1, 3600000) END,
    os_core.label_violation('idempotency_key', p_idempotency_key, 128, FALSE)
  );
BEGIN
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
END;
$$;
