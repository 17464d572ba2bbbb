-- os_core.refuse_bound: raises BoundExceeded; p_bound is 'column unit limit' from os_core.exceeded_bound.
CREATE OR REPLACE FUNCTION os_core.refuse_bound(p_work_order_id text, p_bound text, p_event_index integer)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _parts constant text[] := pg_catalog.string_to_array(p_bound, ' ');
BEGIN
  PERFORM os_core.refuse(
    'SL013',
    pg_catalog.format('%s of work order %s would exceed %s %s', _parts[1], p_work_order_id, _parts[3], _parts[2]),
    pg_catalog.jsonb_build_object(
      'work_order_id', p_work_order_id, 'bound', _parts[1], 'limit', _parts[3]::bigint, 'event_index', p_event_index
    )
  );
END;
$$;
