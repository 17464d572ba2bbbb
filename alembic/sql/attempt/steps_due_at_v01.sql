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
DECLARE
  _attempt os_core.work_order_step_attempts;
  _at timestamptz;
  _due_at timestamptz := '-infinity';
BEGIN
  SELECT attempt.* INTO _attempt
  FROM os_core.work_order_step_attempts AS attempt
  WHERE attempt.tenant_id = p_tenant_id AND attempt.work_order_id = p_work_order_id
  ORDER BY attempt.step_id DESC, attempt.attempt_index DESC
  LIMIT 1;
  WHILE _attempt.step_id IS NOT NULL LOOP
    _at := CASE
      WHEN _attempt.attempt_status IN ('SUCCEEDED', 'CANCELED') THEN _attempt.finished_at
      WHEN _attempt.attempt_status = 'FAILED' THEN _attempt.next_retry_at
      WHEN _attempt.attempt_index <= _attempt.max_retries
        THEN _attempt.started_at + _attempt.timeout_ms * INTERVAL '1 millisecond'
    END;
    IF _at IS NULL THEN
      RETURN NULL;
    END IF;
    _due_at := GREATEST(_due_at, _at);
    SELECT attempt.* INTO _attempt
    FROM os_core.work_order_step_attempts AS attempt
    WHERE attempt.tenant_id = p_tenant_id
      AND attempt.work_order_id = p_work_order_id
      AND attempt.step_id < _attempt.step_id
    ORDER BY attempt.step_id DESC, attempt.attempt_index DESC
    LIMIT 1;
  END LOOP;
  RETURN _due_at;
END;
$$;
