-- os_core.due_step_retries: returns the attempts whose retry may start now, oldest first (contract section 8).
-- Each is the last attempt of its step: FAILED with its retry due, or RUNNING past its timeout with a retry left. Orders that have
-- ended or wait for an approval are left out. This reserves nothing: if several workers start the same retry, one wins.
-- OFFSET 0 keeps the subqueries in this order and their probes from becoming joins, so the LIMIT stops the index scans early.
-- Planned at each call: a plan made for an empty table would last. JIT is off: before PostgreSQL 18 a planner node that is
-- switched off, here the sort, costs more than jit_above_cost.
CREATE OR REPLACE FUNCTION os_core.due_step_retries(p_tenant_id text, p_limit integer)
RETURNS TABLE (
  step_attempt_id bigint,
  tenant_id text,
  work_order_id text,
  step_id text,
  attempt_index integer,
  attempt_status text,
  timeout_ms bigint,
  max_retries integer,
  retry_backoff_ms bigint,
  next_retry_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,
  reason_code bigint,
  idempotency_key text,
  finish_idempotency_key text,
  created_at timestamptz,
  updated_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
  _now constant timestamptz := pg_catalog.clock_timestamp();
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 1000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('limit', p_limit, 1, 1000));
  END IF;
  RETURN QUERY
  SELECT
    attempt.step_attempt_id,
    attempt.tenant_id,
    attempt.work_order_id,
    attempt.step_id,
    attempt.attempt_index,
    attempt.attempt_status,
    attempt.timeout_ms,
    attempt.max_retries,
    attempt.retry_backoff_ms,
    attempt.next_retry_at,
    attempt.started_at,
    attempt.finished_at,
    attempt.reason_code,
    attempt.idempotency_key,
    attempt.finish_idempotency_key,
    attempt.created_at,
    attempt.updated_at
  FROM (
    (
      SELECT
        pending.step_attempt_id,
        pending.due_at
      FROM (
        SELECT
          failed.step_attempt_id,
          failed.next_retry_at AS due_at,
          failed.work_order_id
        FROM os_core.work_order_step_attempts AS failed
        WHERE failed.tenant_id = p_tenant_id
          AND failed.next_retry_at <= _now
          AND NOT EXISTS (
            SELECT FROM os_core.work_order_step_attempts AS following
            WHERE following.tenant_id = p_tenant_id
              AND following.work_order_id = failed.work_order_id
              AND following.step_id = failed.step_id
              AND following.attempt_index = failed.attempt_index + 1
            OFFSET 0
          )
        ORDER BY failed.next_retry_at, failed.step_attempt_id
        OFFSET 0
      ) AS pending
      WHERE EXISTS (
        SELECT FROM os_core.work_orders_current AS current
        WHERE current.tenant_id = p_tenant_id
          AND current.work_order_id = pending.work_order_id
          AND current.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
          AND NOT current.external_approval_pending
        OFFSET 0
      )
      ORDER BY pending.due_at, pending.step_attempt_id
      LIMIT p_limit
    )
    UNION ALL
    (
      SELECT
        running.step_attempt_id,
        running.started_at + running.timeout_ms * INTERVAL '1 millisecond' AS due_at
      FROM os_core.work_order_step_attempts AS running
      WHERE running.tenant_id = p_tenant_id
        AND running.attempt_status = 'RUNNING'
        AND running.started_at + running.timeout_ms * INTERVAL '1 millisecond' <= _now
        AND running.attempt_index <= running.max_retries
        AND EXISTS (
          SELECT FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = p_tenant_id
            AND current.work_order_id = running.work_order_id
            AND current.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
            AND NOT current.external_approval_pending
          OFFSET 0
        )
      ORDER BY 2, 1
      LIMIT p_limit
    )
    ORDER BY 2, 1
    LIMIT p_limit
  ) AS due
  CROSS JOIN LATERAL (
    SELECT whole.*
    FROM os_core.work_order_step_attempts AS whole
    WHERE whole.tenant_id = p_tenant_id AND whole.step_attempt_id = due.step_attempt_id
    OFFSET 0
  ) AS attempt
  ORDER BY due.due_at, due.step_attempt_id;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.due_step_retries(text, integer) TO selene_app;
