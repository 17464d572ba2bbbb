-- os_core.refuse_attempt: raises AttemptConflict with a reason in one word (contract section 8).
-- start: RUNNING, SUCCEEDED, NOT_DUE, BUDGET_SPENT. finish: OVER, UNKNOWN.
CREATE OR REPLACE FUNCTION os_core.refuse_attempt(p_reason text, p_attempt os_core.work_order_step_attempts)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL012',
    CASE p_reason
      WHEN 'RUNNING' THEN pg_catalog.format('attempt %s of step %s is running', p_attempt.attempt_index, p_attempt.step_id)
      WHEN 'SUCCEEDED' THEN pg_catalog.format('attempt %s of step %s has succeeded', p_attempt.attempt_index, p_attempt.step_id)
      WHEN 'NOT_DUE' THEN pg_catalog.format(
        'the retry of step %s is due at %s', p_attempt.step_id, os_core.json_time(p_attempt.next_retry_at)
      )
      WHEN 'BUDGET_SPENT' THEN pg_catalog.format(
        'step %s was attempted %s times: the retries are spent', p_attempt.step_id, p_attempt.attempt_index
      )
      WHEN 'OVER' THEN pg_catalog.format(
        'attempt %s of step %s is over: %s', p_attempt.attempt_index, p_attempt.step_id, p_attempt.attempt_status
      )
      WHEN 'UNKNOWN' THEN pg_catalog.format('there is no attempt %s', p_attempt.step_attempt_id)
    END,
    pg_catalog.jsonb_build_object(
      'work_order_id', p_attempt.work_order_id,
      'step_id', p_attempt.step_id,
      'step_attempt_id', p_attempt.step_attempt_id,
      'attempt_index', p_attempt.attempt_index,
      'reason', p_reason,
      'next_retry_at', os_core.json_time(p_attempt.next_retry_at)
    )
  );
END;
$$;
