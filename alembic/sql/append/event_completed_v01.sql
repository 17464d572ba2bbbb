-- os_core.event_completed: gives an event the order's own thread, turn, status and reason where it has none (contract section 3).
-- Both lanes of append call it, and only for an event without all four, after os_core.transition_refusal: on an order that has
-- ended, an event without a status is refused and must not repeat the order's.
CREATE OR REPLACE FUNCTION os_core.event_completed(p_state os_core.work_orders_current, p_event os_core.work_order_ledger)
RETURNS os_core.work_order_ledger
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  p_event.correlation_id := COALESCE(p_event.correlation_id, p_state.correlation_id);
  p_event.turn_id := COALESCE(p_event.turn_id, p_state.turn_id);
  p_event.work_order_status := COALESCE(p_event.work_order_status, p_state.work_order_status);
  p_event.reason_code := COALESCE(p_event.reason_code, p_state.last_reason_code);
  RETURN p_event;
END;
$$;
