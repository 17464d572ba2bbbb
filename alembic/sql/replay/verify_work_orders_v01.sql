-- os_core.verify_work_orders: returns the work orders whose projection is not the fold of their ledger (contract section 5).
-- Also those whose work_order_seq is not 1..n. It only reads, in one statement and so on one snapshot. The subquery is sorted, so
-- the fold gets each order's events in sequence.
CREATE OR REPLACE FUNCTION os_core.verify_work_orders(p_tenant_id text, p_work_order_id text DEFAULT NULL)
RETURNS TABLE (work_order_id text, problem text)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  RETURN QUERY
  SELECT
    COALESCE(folded.work_order_id, held.work_order_id),
    CASE
      WHEN folded.work_order_id IS NULL THEN 'the projection row has no events'
      WHEN folded.broken THEN 'work_order_seq is not 1..n'
      WHEN held.work_order_id IS NULL THEN 'the projection row is missing'
      ELSE 'the projection row differs in ' || (
        SELECT pg_catalog.string_agg(field.key, ', ' ORDER BY field.key)
        FROM pg_catalog.jsonb_each(pg_catalog.to_jsonb(folded.state)) AS field
        WHERE field.value::text <> (pg_catalog.to_jsonb(held.state) -> field.key)::text
      )
    END
  FROM (
    SELECT
      sorted.work_order_id,
      pg_catalog.min(sorted.work_order_seq) <> 1
      OR pg_catalog.max(sorted.work_order_seq) <> pg_catalog.count(*) AS broken,
      os_core.fold_work_order(sorted.event) AS state
    FROM (
      SELECT
        ledger.work_order_id,
        ledger.work_order_seq,
        os_core.event_of(
          ledger.work_order_event_id, ledger.tenant_id, ledger.work_order_id, ledger.work_order_seq, ledger.correlation_id,
          ledger.turn_id, ledger.event_type, ledger.work_order_status, ledger.reason_code, ledger.step_id,
          ledger.step_input_hash, ledger.lease_owner_id, ledger.lease_token_hash, ledger.lease_expires_at, ledger.payload,
          ledger.idempotency_key, ledger.occurred_at, ledger.created_at, ledger.event_hash
        ) AS event
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND (p_work_order_id IS NULL OR ledger.work_order_id = p_work_order_id)
      ORDER BY ledger.work_order_id, ledger.work_order_seq
      OFFSET 0
    ) AS sorted
    GROUP BY sorted.work_order_id
  ) AS folded
  FULL JOIN (
    SELECT
      current.work_order_id,
      current AS state
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_tenant_id AND (p_work_order_id IS NULL OR current.work_order_id = p_work_order_id)
  ) AS held ON held.work_order_id = folded.work_order_id
  WHERE folded.work_order_id IS NULL OR held.work_order_id IS NULL OR folded.broken OR held.state *<> folded.state
  ORDER BY 1;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.verify_work_orders(text, text) TO selene_app;
