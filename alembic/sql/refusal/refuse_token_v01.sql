-- os_core.refuse_token: raises IdempotencyConflict: the token was given for another owner's lease (contract section 8).
CREATE OR REPLACE FUNCTION os_core.refuse_token(p_work_order_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL005',
    pg_catalog.format('the lease token stands for a lease of another owner on work order %s', p_work_order_id),
    pg_catalog.jsonb_build_object('work_order_id', p_work_order_id)
  );
END;
$$;
