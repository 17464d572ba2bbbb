-- os_core.refuse_damaged: raises ProjectionDamaged: the ledger has events that the order's projection row does not know.
CREATE OR REPLACE FUNCTION os_core.refuse_damaged(p_work_order_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL017',
    pg_catalog.format('the projection row of work order %s is missing or behind its ledger: rebuild it first', p_work_order_id),
    pg_catalog.jsonb_build_object('work_order_id', p_work_order_id)
  );
END;
$$;
