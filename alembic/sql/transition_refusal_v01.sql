-- os_core.transition_refusal: the SQLSTATE with which steps 3 and 4 of SPEC.md section 4 refuse an event on a state, or NULL.
-- p_canceled_by: the event type that canceled the order earlier in the same batch; its counterpart is still recorded.
CREATE OR REPLACE FUNCTION os_core.transition_refusal(
  p_state os_core.work_orders_current, p_event os_core.work_order_ledger, p_expected_seq bigint, p_canceled_by text
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN CASE
    WHEN p_expected_seq <> COALESCE(p_state.last_seq, 0) THEN 'SL006'
    WHEN p_state.last_seq IS NULL THEN CASE WHEN p_event.event_type <> 'WORK_ORDER_CREATED' THEN 'SL016' END
    WHEN p_event.event_type = 'WORK_ORDER_CREATED' THEN 'SL007'
    WHEN p_event.work_order_status = 'CANCELED' AND p_event.event_type NOT IN ('WORK_ORDER_CANCELED', 'STATUS_CHANGED') THEN 'SL004'
    WHEN p_state.work_order_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') AND p_event.work_order_status <> 'CANCELED' THEN 'SL007'
    WHEN p_state.work_order_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
      AND COALESCE(p_canceled_by = p_event.event_type, TRUE) THEN 'SL004'
    WHEN p_event.event_type = 'STATUS_CHANGED' AND p_event.payload ->> 'previous_status' <> p_state.work_order_status THEN 'SL007'
  END;
END;
$$;
