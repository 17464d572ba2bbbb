-- os_core.refuse_damaged: raises ProjectionDamaged: the projection row is not the fold of the ledger.
CREATE OR REPLACE FUNCTION os_core.refuse_damaged(p_work_order_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL017',
    pg_catalog.format('the projection row of work order %s does not match its ledger: rebuild it first', p_work_order_id),
    pg_catalog.jsonb_build_object('work_order_id', p_work_order_id)
  );
END;
$$;
