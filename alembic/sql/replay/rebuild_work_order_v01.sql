-- os_core.rebuild_work_order: writes one projection row again as the fold of its ledger (contract section 5).
CREATE OR REPLACE FUNCTION os_core.rebuild_work_order(p_tenant_id text, p_work_order_id text)
RETURNS TABLE (work_orders bigint, events bigint, changed bigint)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  RETURN QUERY
  SELECT rebuilt.work_orders, rebuilt.events, rebuilt.changed
  FROM os_core.rebuild_range(p_tenant_id, p_work_order_id, p_work_order_id) AS rebuilt;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.rebuild_work_order(text, text) TO selene_app;
