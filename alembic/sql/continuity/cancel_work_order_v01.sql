-- os_core.cancel_work_order: appends WORK_ORDER_CANCELED with the order's thread and turn (contract section 9).
CREATE OR REPLACE FUNCTION os_core.cancel_work_order(
  p_tenant_id text, p_work_order_id text, p_reason_code bigint, p_idempotency_key text, p_note text DEFAULT NULL
)
RETURNS TABLE (work_order_event_id bigint, work_order_seq bigint, replayed boolean, created_at timestamptz)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF p_idempotency_key IS NULL THEN
    PERFORM os_core.refuse_contract(NULL, 'idempotency_key: is required to cancel');
  END IF;
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  RETURN QUERY
  SELECT appended.*
  FROM os_core.append_work_order_event(
    os_core.event_from_json(
      p_tenant_id,
      pg_catalog.jsonb_build_object(
        'work_order_id', p_work_order_id,
        'event_type', 'WORK_ORDER_CANCELED',
        'reason_code', p_reason_code,
        'payload', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('note', p_note)),
        'idempotency_key', p_idempotency_key
      ),
      NULL
    ),
    NULL,
    NULL
  ) AS appended;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.cancel_work_order(text, text, bigint, text, text) TO selene_app;
