-- os_core.due_step_retries: the attempts after which the next one may start now, oldest first (SPEC.md section 8): the last of their step,
-- failed with their retry due, or running past their timeout with a retry left; on work orders that go on and wait for no approval.
-- A list and no claim: of those who start the same, os_core.start_step_attempt lets one through. Each part walks an index in order and
-- probes for what follows; the limit ends it.
CREATE OR REPLACE FUNCTION os_core.due_step_retries(p_tenant_id text, p_limit integer)
RETURNS SETOF os_core.work_order_step_attempts
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _now constant timestamptz := pg_catalog.clock_timestamp();
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 1000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, 'limit: must be an integer from 1 to 1000');
  END IF;
  RETURN QUERY
  SELECT (due.attempt).*
  FROM (
    (
      SELECT
        attempt,
        attempt.next_retry_at AS due_at
      FROM os_core.work_order_step_attempts AS attempt
      WHERE attempt.tenant_id = p_tenant_id
        AND attempt.next_retry_at <= _now
        AND NOT EXISTS (
          SELECT FROM os_core.work_order_step_attempts AS following
          WHERE following.tenant_id = p_tenant_id
            AND following.work_order_id = attempt.work_order_id
            AND following.step_id = attempt.step_id
            AND following.attempt_index = attempt.attempt_index + 1
        )
        AND EXISTS (
          SELECT FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = p_tenant_id
            AND current.work_order_id = attempt.work_order_id
            AND current.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
            AND NOT current.external_approval_pending
        )
      ORDER BY attempt.next_retry_at, attempt.step_attempt_id
      LIMIT p_limit
    )
    UNION ALL
    (
      SELECT
        attempt,
        attempt.started_at + attempt.timeout_ms * INTERVAL '1 millisecond' AS due_at
      FROM os_core.work_order_step_attempts AS attempt
      WHERE attempt.tenant_id = p_tenant_id
        AND attempt.attempt_status = 'RUNNING'
        AND attempt.started_at + attempt.timeout_ms * INTERVAL '1 millisecond' <= _now
        AND attempt.attempt_index <= attempt.max_retries
        AND EXISTS (
          SELECT FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = p_tenant_id
            AND current.work_order_id = attempt.work_order_id
            AND current.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
            AND NOT current.external_approval_pending
        )
      ORDER BY 2, attempt.step_attempt_id
      LIMIT p_limit
    )
  ) AS due
  ORDER BY due.due_at, (due.attempt).step_attempt_id
  LIMIT p_limit;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.due_step_retries(text, integer) TO selene_app;
