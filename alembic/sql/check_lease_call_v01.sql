-- os_core.check_lease_call: raises ContractViolation where a call of a lease function breaks its input contract (SPEC.md section 8).
-- p_takes: 'owner' for one that takes owner and ttl_ms, 'ttl_ms' for one that takes that, NULL for neither. No message shows a value.
CREATE OR REPLACE FUNCTION os_core.check_lease_call(
  p_takes text, p_work_order_id text, p_owner text, p_token text, p_ttl_ms bigint, p_idempotency_key text
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _violation constant text := CASE
    WHEN os_core.is_identifier(p_work_order_id, 128) IS NOT TRUE
      THEN 'work_order_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN p_takes = 'owner' AND os_core.is_identifier(p_owner, 128) IS NOT TRUE
      THEN 'owner: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN os_core.is_lease_token(p_token) IS NOT TRUE
      THEN 'token: must be 16..128 printable ASCII characters without blanks'
    WHEN p_takes IN ('owner', 'ttl_ms') AND (p_ttl_ms BETWEEN 1 AND 3600000) IS NOT TRUE
      THEN 'ttl_ms: must be an integer from 1 to 3600000'
    WHEN p_idempotency_key IS NOT NULL AND NOT os_core.is_label(p_idempotency_key, 128)
      THEN 'idempotency_key: must be 1..128 characters without control characters or white space at the ends'
  END;
BEGIN
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
END;
$$;
