-- os_core.event_carried: builds a ledger row for an event that our own functions write.
-- It repeats the order's step, so renewing a lease during a step does not erase the step from the projection. Thread, turn, status
-- and reason are left out, which means the same for them: see os_core.event_completed. It has no idempotency key: our functions recognise a replay by their own rows (contract section 8).
CREATE OR REPLACE FUNCTION os_core.event_carried(p_state os_core.work_orders_current, p_event_type text, p_payload jsonb)
RETURNS os_core.work_order_ledger
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _event os_core.work_order_ledger;
BEGIN
  _event.tenant_id := p_state.tenant_id;
  _event.work_order_id := p_state.work_order_id;
  _event.event_type := p_event_type;
  _event.step_id := p_state.step_id;
  _event.step_input_hash := p_state.step_input_hash;
  _event.payload := p_payload;
  RETURN _event;
END;
$$;
