-- os_core.rebuild_work_orders: rebuilds the next p_limit work orders of a tenant after p_after ('': from the first).
-- For callers that run one short transaction for each group (contract section 5). last_work_order_id is NULL if none was left.
CREATE OR REPLACE FUNCTION os_core.rebuild_work_orders(p_tenant_id text, p_after text, p_limit integer)
RETURNS TABLE (work_orders bigint, events bigint, changed bigint, last_work_order_id text)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  -- A variable: under row-level security COALESCE is not an index condition, and each call would start at the first order.
  _after constant text := COALESCE(p_after, '');
  _ids text[];
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 10000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('limit', p_limit, 1, 10000));
  END IF;

  -- One index probe finds the next id in the ledger, however many events an order has. Rows without events come from the projection.
  WITH RECURSIVE known AS (
    (
      SELECT ledger.work_order_id
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id > _after
      ORDER BY ledger.work_order_id
      LIMIT 1
    )
    UNION ALL
    SELECT following.work_order_id
    FROM known
    CROSS JOIN LATERAL (
      SELECT ledger.work_order_id
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id > known.work_order_id
      ORDER BY ledger.work_order_id
      LIMIT 1
    ) AS following
  ),

  first_known AS (
    SELECT known.work_order_id FROM known LIMIT p_limit
  ),

  first_projected AS (
    SELECT current.work_order_id
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_tenant_id AND current.work_order_id > _after
    ORDER BY current.work_order_id
    LIMIT p_limit
  )

  SELECT pg_catalog.array_agg(next.work_order_id ORDER BY next.work_order_id) INTO _ids
  FROM (
    SELECT first_known.work_order_id FROM first_known
    UNION
    SELECT first_projected.work_order_id FROM first_projected
    ORDER BY 1
    LIMIT p_limit
  ) AS next;

  IF _ids IS NULL THEN
    RETURN QUERY SELECT 0::bigint, 0::bigint, 0::bigint, NULL::text;
    RETURN;
  END IF;
  RETURN QUERY
  SELECT rebuilt.work_orders, rebuilt.events, rebuilt.changed, _ids[pg_catalog.cardinality(_ids)]
  FROM os_core.rebuild_range(p_tenant_id, _ids[1], _ids[pg_catalog.cardinality(_ids)]) AS rebuilt;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.rebuild_work_orders(text, text, integer) TO selene_app;
