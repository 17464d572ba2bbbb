-- os_core.rebuild_range: folds the work orders from p_first to p_last and repairs the rows that differ (contract section 5).
-- Called by the two rebuild functions only. Ledger and projection are compared on one snapshot, which has an append in both tables
-- or in neither. So what differs has really drifted, and only that is locked.
-- The subquery is sorted like the index, so the fold needs no sort for each order. JIT is off: it would compile again for
-- every group of orders.
CREATE OR REPLACE FUNCTION os_core.rebuild_range(
  p_tenant_id text, p_first text, p_last text, OUT work_orders bigint, OUT events bigint, OUT changed bigint
)
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _drifted text[];
  _orphans text[];
  _known bigint;
  _held bigint;
BEGIN
  SELECT
    pg_catalog.count(*),
    COALESCE(pg_catalog.sum(folded.events), 0),
    pg_catalog.count(current.work_order_id),
    pg_catalog.array_agg(folded.work_order_id) FILTER (WHERE current.work_order_id IS NULL OR current *<> folded.state),
    (
      SELECT pg_catalog.count(*)
      FROM os_core.work_orders_current AS row
      WHERE row.tenant_id = p_tenant_id AND row.work_order_id BETWEEN p_first AND p_last
    )
  INTO work_orders, events, _known, _drifted, _held
  FROM (
    SELECT
      sorted.work_order_id,
      pg_catalog.count(*) AS events,
      os_core.fold_work_order(sorted.event) AS state
    FROM (
      SELECT
        ledger.work_order_id,
        os_core.event_of(
          ledger.work_order_event_id, ledger.tenant_id, ledger.work_order_id, ledger.work_order_seq, ledger.correlation_id,
          ledger.turn_id, ledger.event_type, ledger.work_order_status, ledger.reason_code, ledger.step_id,
          ledger.step_input_hash, ledger.lease_owner_id, ledger.lease_token_hash, ledger.lease_expires_at, ledger.payload,
          ledger.idempotency_key, ledger.occurred_at, ledger.created_at, ledger.event_hash
        ) AS event
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id BETWEEN p_first AND p_last
      ORDER BY ledger.work_order_id, ledger.work_order_seq
      OFFSET 0
    ) AS sorted
    GROUP BY sorted.work_order_id
    OFFSET 0
  ) AS folded
  LEFT JOIN os_core.work_orders_current AS current
    ON current.tenant_id = p_tenant_id AND current.work_order_id = folded.work_order_id;

  IF _held > _known THEN
    SELECT pg_catalog.array_agg(current.work_order_id) INTO _orphans
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_tenant_id
      AND current.work_order_id BETWEEN p_first AND p_last
      AND NOT EXISTS (
        SELECT FROM os_core.work_order_ledger AS ledger
        WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = current.work_order_id
      );
  END IF;
  changed := 0;
  IF _drifted IS NOT NULL OR _orphans IS NOT NULL THEN
    changed := os_core.mend_work_orders(p_tenant_id, _drifted || _orphans);
  END IF;
END;
$$;
