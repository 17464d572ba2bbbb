-- os_core.require_tenant: returns p_tenant_id if it is the transaction's tenant, else raises TenantScopeViolation (contract section 10).
CREATE OR REPLACE FUNCTION os_core.require_tenant(p_tenant_id text)
RETURNS text
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _tenant_id text := NULLIF(pg_catalog.current_setting('selene.tenant_id', TRUE), '');
BEGIN
  IF _tenant_id IS NULL THEN
    PERFORM os_core.no_tenant(p_tenant_id);
  ELSIF _tenant_id IS DISTINCT FROM p_tenant_id THEN
    PERFORM os_core.refuse('SL002', 'the transaction belongs to another tenant', '{}');
  END IF;
  RETURN p_tenant_id;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.require_tenant(text) TO selene_app;
