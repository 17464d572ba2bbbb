-- os_core.refuse_replay: raises IdempotencyConflict: an event with other content has used the key of p_event.
CREATE OR REPLACE FUNCTION os_core.refuse_replay(p_event_index integer, p_event os_core.work_order_ledger, p_prior_event_id bigint)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL005',
    pg_catalog.format('idempotency key %s stands for another event of work order %s', p_event.idempotency_key, p_event.work_order_id),
    pg_catalog.jsonb_build_object(
      'work_order_id', p_event.work_order_id,
      'idempotency_key', p_event.idempotency_key,
      'work_order_event_id', p_prior_event_id,
      'event_index', p_event_index
    )
  );
END;
$$;
