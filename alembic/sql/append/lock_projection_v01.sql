-- os_core.lock_projection: locks a work order's projection row until the end of the transaction, and returns it.
-- For functions of ours that decide by the row and then append. Raises WorkOrderNotFound.
CREATE OR REPLACE FUNCTION os_core.lock_projection(p_tenant_id text, p_work_order_id text)
RETURNS os_core.work_orders_current
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _state os_core.work_orders_current;
  _event os_core.work_order_ledger;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  IF os_core.is_identifier(p_work_order_id, 128) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.identifier_violation('work_order_id', p_work_order_id, 128));
  END IF;
  _state := current
  FROM os_core.work_orders_current AS current
  WHERE current.tenant_id = p_tenant_id AND current.work_order_id = p_work_order_id
  FOR NO KEY UPDATE;
  IF _state.last_seq IS NULL THEN
    _event.tenant_id := p_tenant_id;
    _event.work_order_id := p_work_order_id;
    PERFORM os_core.refuse_event('SL016', NULL, _event, _state, NULL);
  END IF;
  RETURN _state;
END;
$$;
