-- os_core.steps_due_at: returns from when the steps of a work order may go on (contract sections 8 and 9).
-- NULL: the last attempt of a step waits for a decision, or has spent its retries. '-infinity': there was no attempt. An attempt
-- that runs is due at its deadline, when it counts as failed and retryable; on its last try nothing is due. One index probe a step.
CREATE OR REPLACE FUNCTION os_core.steps_due_at(p_tenant_id text, p_work_order_id text)
RETURNS timestamptz
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
  RETURN (
    WITH RECURSIVE step AS (
      (
        SELECT attempt.*
        FROM os_core.work_order_step_attempts AS attempt
        WHERE attempt.tenant_id = p_tenant_id AND attempt.work_order_id = p_work_order_id
        ORDER BY attempt.step_id DESC, attempt.attempt_index DESC
        LIMIT 1
      )
      UNION ALL
      SELECT following.*
      FROM step
      CROSS JOIN LATERAL (
        SELECT attempt.*
        FROM os_core.work_order_step_attempts AS attempt
        WHERE attempt.tenant_id = p_tenant_id
          AND attempt.work_order_id = p_work_order_id
          AND attempt.step_id < step.step_id
        ORDER BY attempt.step_id DESC, attempt.attempt_index DESC
        LIMIT 1
      ) AS following
    ),

    due AS (
      SELECT
        CASE
          WHEN step.attempt_status IN ('SUCCEEDED', 'CANCELED') THEN step.finished_at
          WHEN step.attempt_status = 'FAILED' THEN step.next_retry_at
          WHEN step.attempt_index <= step.max_retries THEN step.started_at + step.timeout_ms * INTERVAL '1 millisecond'
        END AS at
      FROM step
    )

    SELECT CASE WHEN pg_catalog.bool_and(due.at IS NOT NULL) IS NOT FALSE THEN COALESCE(pg_catalog.max(due.at), '-infinity') END
    FROM due
  );
END;
$$;
