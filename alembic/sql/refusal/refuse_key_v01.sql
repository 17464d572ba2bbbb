-- os_core.refuse_key: raises IdempotencyConflict: another lease or attempt of the work order has used the key.
CREATE OR REPLACE FUNCTION os_core.refuse_key(p_work_order_id text, p_idempotency_key text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL005',
    pg_catalog.format('idempotency key %s stands for another call on work order %s', p_idempotency_key, p_work_order_id),
    pg_catalog.jsonb_build_object('work_order_id', p_work_order_id, 'idempotency_key', p_idempotency_key)
  );
END;
$$;
