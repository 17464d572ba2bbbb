-- os_core.no_tenant: raises TenantScopeViolation if the transaction has no tenant; else it is FALSE. Part of every policy: a row of
-- another tenant fails the policy, and a row written without a tenant gets this error.
-- It takes the row's tenant, so that nobody calls it before there is a row; it does not depend on it. IMMUTABLE, because a distributed
-- engine sends an UPDATE to its node only if it need not evaluate anything on the way. Nothing is remembered but FALSE.
CREATE OR REPLACE FUNCTION os_core.no_tenant(p_tenant_id text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF NULLIF(pg_catalog.current_setting('selene.tenant_id', TRUE), '') IS NULL THEN
    PERFORM os_core.refuse('SL002', 'no tenant is set for this transaction: SET LOCAL selene.tenant_id first', '{}');
  END IF;
  RETURN FALSE;
END;
$$;
