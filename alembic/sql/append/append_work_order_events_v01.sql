-- os_core.append_work_order_events: the only way for callers to write the work-order ledger and its projection (contract section 4).
-- One event goes to os_core.append_work_order_event, several go to os_core.append_work_order_batch. Both use the same rules and fold.
CREATE OR REPLACE FUNCTION os_core.append_work_order_events(p_tenant_id text, p_events jsonb)
RETURNS TABLE (work_order_event_id bigint, work_order_seq bigint, replayed boolean, created_at timestamptz)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _event os_core.work_order_ledger;
  _appended record;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  IF p_events @@ '$.type() == "array" && $.size() == 1' THEN
    _event := os_core.event_from_json(p_tenant_id, p_events -> 0, 0, TRUE);
    -- Rare, and so looked for in the text: a person's value, or a reference to one (contract section 18).
    IF _event.payload::text LIKE '%"$%' THEN
      _event.payload := os_core.refer_value(p_tenant_id, _event.payload, _event.payload::text, p_events);
    END IF;
    -- Assigned and not selected: a query has an executor of its own.
    _appended := os_core.append_work_order_event(
      _event,
      (p_events #>> '{0,expected_seq}')::bigint,
      p_events #>> '{0,lease_token}'
    );
    work_order_event_id := _appended.work_order_event_id;
    work_order_seq := _appended.work_order_seq;
    replayed := _appended.replayed;
    created_at := _appended.created_at;
    RETURN NEXT;
  ELSIF p_events @@ '$.type() == "array" && $.size() >= 2 && $.size() <= 1000' THEN
    IF p_events::text LIKE '%"$%' THEN
      p_events := os_core.refer_personal(p_tenant_id, p_events);
    END IF;
    _appended := os_core.append_work_order_batch(p_tenant_id, p_events);
    RETURN QUERY
    SELECT result.*
    FROM ROWS FROM (
      pg_catalog.unnest(_appended.event_ids), pg_catalog.unnest(_appended.seqs),
      pg_catalog.unnest(_appended.replays), pg_catalog.unnest(_appended.times)
    ) AS result;
  ELSE
    PERFORM os_core.refuse_contract(NULL, 'events: must be an array of 1..1000 events');
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.append_work_order_events(text, jsonb) TO selene_app;
