-- os_core.no_tenant: raises TenantScopeViolation. VOLATILE, so that the planner does not call it in advance.
CREATE OR REPLACE FUNCTION os_core.no_tenant()
RETURNS text
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse('SL002', 'no tenant is set for this transaction: SET LOCAL selene.tenant_id first', '{}');
  RETURN NULL;
END;
$$;
