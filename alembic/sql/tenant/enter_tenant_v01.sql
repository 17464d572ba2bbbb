-- os_core.enter_tenant: makes p_tenant_id the transaction's tenant, or raises TenantScopeViolation if it has another (contract section 10).
-- It returns p_tenant_id, so that it can be assigned: a PERFORM is a query, which has an executor of its own.
CREATE OR REPLACE FUNCTION os_core.enter_tenant(p_tenant_id text)
RETURNS text
LANGUAGE plpgsql
VOLATILE
AS $$
DECLARE
  _tenant_id constant text := pg_catalog.current_setting('selene.tenant_id', TRUE);
BEGIN
  IF os_core.is_identifier(p_tenant_id, 64) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.identifier_violation('tenant_id', p_tenant_id, 64));
  END IF;
  IF NULLIF(_tenant_id, '') IS NULL THEN
    p_tenant_id := pg_catalog.set_config('selene.tenant_id', p_tenant_id, TRUE);
  ELSIF _tenant_id <> p_tenant_id THEN
    PERFORM os_core.require_tenant(p_tenant_id);
  END IF;
  RETURN p_tenant_id;
END;
$$;
