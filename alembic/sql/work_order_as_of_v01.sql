-- os_core.work_order_as_of: the state of a work order as it then was: after the event p_seq or p_event_id, or after the last event
-- created at or before p_at (exactly one of the three); no row before its creation (SPEC.md section 5).
CREATE OR REPLACE FUNCTION os_core.work_order_as_of(
  p_tenant_id text, p_work_order_id text, p_seq bigint DEFAULT NULL, p_event_id bigint DEFAULT NULL, p_at timestamptz DEFAULT NULL
)
RETURNS SETOF os_core.work_orders_current
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
  _state os_core.work_orders_current;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF pg_catalog.num_nonnulls(p_seq, p_event_id, p_at) <> 1 THEN
    PERFORM os_core.refuse_contract(NULL, 'as_of: takes exactly one of seq, event_id and at');
  END IF;
  -- A variable and not (state).*: a session keeps the columns of that, also when a later revision has added one.
  _state := (
    SELECT os_core.fold_work_order(ledger ORDER BY ledger.work_order_seq)
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_id = p_work_order_id
      AND (p_seq IS NULL OR ledger.work_order_seq <= p_seq)
      AND (p_event_id IS NULL OR ledger.work_order_event_id <= p_event_id)
      AND (p_at IS NULL OR ledger.created_at <= p_at)
  );
  IF _state.last_seq IS NOT NULL THEN
    RETURN NEXT _state;
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.work_order_as_of(text, text, bigint, bigint, timestamptz) TO selene_app;
