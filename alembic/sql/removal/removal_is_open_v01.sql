-- os_core.removal_is_open: tells a guard whether its DELETE belongs to the removal of a tenant (contract section 18).
-- The row's tenant must be the transaction's, and its last record in os_core.tenant_removals must be OPENED. A statement has no row:
-- there p_tenant_id is NULL, and the transaction's tenant counts. So a statement that meets no row is judged, too.
-- A record opens nothing for the transaction that writes it: it is committed before the first row goes.
-- Without a transaction's tenant every statement is refused. Only logical replication has rows without a statement: they went on the
-- publisher, by its clock, and the publisher's record has come before them.
CREATE OR REPLACE FUNCTION os_core.removal_is_open(p_tenant_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
  _tenant_id constant text := NULLIF(pg_catalog.current_setting('selene.tenant_id', TRUE), '');
BEGIN
  RETURN COALESCE(COALESCE(p_tenant_id, _tenant_id) = COALESCE(_tenant_id, p_tenant_id) AND (
    SELECT removal.removal_state = 'OPENED' AND (_tenant_id IS NULL OR removal.recorded_at < pg_catalog.transaction_timestamp())
    FROM os_core.tenant_removals AS removal
    WHERE removal.tenant_id = COALESCE(_tenant_id, p_tenant_id)
    ORDER BY removal.removal_id DESC
    LIMIT 1
  ), FALSE);
END;
$$;
