-- os_core.append_work_order_events: the only way for callers to write the work-order ledger and its projection (contract section 4).
-- One event goes to os_core.append_work_order_event, several go to os_core.append_work_order_batch. Both use the same rules and fold.
CREATE OR REPLACE FUNCTION os_core.append_work_order_events(p_tenant_id text, p_events jsonb)
RETURNS TABLE (work_order_event_id bigint, work_order_seq bigint, replayed boolean, created_at timestamptz)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (pg_catalog.jsonb_typeof(p_events) = 'array' AND pg_catalog.jsonb_array_length(p_events) BETWEEN 1 AND 1000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, 'events: must be an array of 1..1000 events');
  END IF;
  IF pg_catalog.jsonb_array_length(p_events) = 1 THEN
    IF (p_events -> 0 -> 'payload')::text LIKE '%"$%' THEN
      p_events := os_core.refer_personal(p_tenant_id, p_events);
    END IF;
    RETURN QUERY
    SELECT appended.*
    FROM os_core.append_work_order_event(
      os_core.event_from_json(p_tenant_id, p_events -> 0, 0),
      (p_events -> 0 ->> 'expected_seq')::bigint,
      p_events -> 0 ->> 'lease_token'
    ) AS appended;
  ELSE
    IF p_events::text LIKE '%"$%' THEN
      p_events := os_core.refer_personal(p_tenant_id, p_events);
    END IF;
    RETURN QUERY SELECT appended.* FROM os_core.append_work_order_batch(p_tenant_id, p_events) AS appended;
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.append_work_order_events(text, jsonb) TO selene_app;
