-- os_core.no_tenant: raises TenantScopeViolation if the transaction has no tenant; else it is FALSE. Part of every policy: a row of
-- another tenant fails the policy, and a row written without a tenant gets this error.
-- VOLATILE, so that the planner does not call it in advance.
CREATE OR REPLACE FUNCTION os_core.no_tenant()
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF NULLIF(pg_catalog.current_setting('selene.tenant_id', TRUE), '') IS NULL THEN
    PERFORM os_core.refuse('SL002', 'no tenant is set for this transaction: SET LOCAL selene.tenant_id first', '{}');
  END IF;
  RETURN FALSE;
END;
$$;
