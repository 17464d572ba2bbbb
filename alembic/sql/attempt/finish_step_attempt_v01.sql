-- os_core.finish_step_attempt: ends an attempt and says what follows: DONE, RETRY_AT, WAIT or FAIL (contract section 8).
-- Past its timeout an attempt is FAILED and retryable, whatever the worker reports. If the order has ended, the attempt becomes
-- CANCELED, without an event. The row holds the whole decision, so the same call with the same key gets the same answer.
CREATE OR REPLACE FUNCTION os_core.finish_step_attempt(
  p_tenant_id text,
  p_step_attempt_id bigint,
  p_outcome text,
  p_reason_code bigint,
  p_retryable boolean DEFAULT FALSE,
  p_lease_token text DEFAULT NULL,
  p_idempotency_key text DEFAULT NULL,
  OUT action text,
  OUT next_due_at timestamptz,
  OUT next_attempt_index integer
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _state os_core.work_orders_current;
  _now timestamptz;
  _violation text;
  _refusal text;
  _replays boolean;
  _work_order_id text;
  _timed_out boolean;
  _status text;
  _retries boolean;
  _attempt os_core.work_order_step_attempts;
  _event os_core.work_order_ledger;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.integer_violation('step_attempt_id', p_step_attempt_id, 1, 9223372036854775807),
    CASE WHEN (p_outcome IN ('SUCCEEDED', 'FAILED')) IS NOT TRUE THEN 'outcome: must be one of SUCCEEDED, FAILED' END,
    os_core.integer_violation('reason_code', p_reason_code, 1, 4294967295),
    CASE WHEN p_retryable IS NULL THEN 'retryable: must be true or false' END,
    os_core.lease_token_violation('lease_token', p_lease_token, FALSE),
    os_core.label_violation('idempotency_key', p_idempotency_key, 128, FALSE)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  -- The attempt's work order never changes, so it is read before the lock; its status is read under the lock.
  SELECT attempt.* INTO _attempt
  FROM os_core.work_order_step_attempts AS attempt
  WHERE attempt.tenant_id = p_tenant_id AND attempt.step_attempt_id = p_step_attempt_id;
  IF NOT FOUND THEN
    _attempt.step_attempt_id := p_step_attempt_id;
    PERFORM os_core.refuse_attempt('UNKNOWN', _attempt);
  END IF;
  _work_order_id := _attempt.work_order_id;
  _state := os_core.lock_projection(p_tenant_id, _work_order_id);
  _now := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
  SELECT attempt.* INTO _attempt
  FROM os_core.work_order_step_attempts AS attempt
  WHERE attempt.tenant_id = p_tenant_id AND attempt.step_attempt_id = p_step_attempt_id;

  _timed_out := _attempt.started_at + _attempt.timeout_ms * INTERVAL '1 millisecond' <= COALESCE(_attempt.finished_at, _now);
  _status := CASE WHEN p_outcome = 'SUCCEEDED' AND NOT _timed_out THEN 'SUCCEEDED' ELSE 'FAILED' END;
  _retries := _status = 'FAILED' AND (p_retryable OR _timed_out) AND _attempt.attempt_index <= _attempt.max_retries;
  _replays := _attempt.attempt_status <> 'RUNNING' AND COALESCE(_attempt.finish_idempotency_key = p_idempotency_key, FALSE);
  IF _replays THEN
    IF _attempt.reason_code <> p_reason_code
      OR (
        _attempt.attempt_status <> 'CANCELED'
        AND (_attempt.attempt_status <> _status OR (_attempt.next_retry_at IS NOT NULL) <> _retries)
      )
    THEN
      PERFORM os_core.refuse_key(_attempt.work_order_id, p_idempotency_key);
    END IF;
  ELSE
    -- Check the lease here: if the order has ended, no event is written that would check it.
    _event := os_core.event_carried(_state, 'STEP_FINISHED', '{}');
    _event.created_at := _now;
    _refusal := os_core.lease_refusal(_state, _event, p_lease_token);
    IF _refusal IS NOT NULL THEN
      PERFORM os_core.refuse_event(_refusal, NULL, _event, _state, NULL);
    ELSIF _attempt.attempt_status <> 'RUNNING' THEN
      PERFORM os_core.refuse_attempt('OVER', _attempt);
    END IF;

    _attempt.finished_at := _now;
    _attempt.reason_code := p_reason_code;
    IF os_core.is_terminal(_state.work_order_status) THEN
      _attempt.attempt_status := 'CANCELED';
    ELSE
      _attempt.attempt_status := _status;
      IF _retries THEN
        _attempt.next_retry_at := _now + _attempt.retry_backoff_ms * INTERVAL '1 millisecond';
      END IF;
    END IF;
    UPDATE os_core.work_order_step_attempts AS attempt
    SET
      attempt_status = _attempt.attempt_status,
      next_retry_at = _attempt.next_retry_at,
      finished_at = _attempt.finished_at,
      reason_code = _attempt.reason_code,
      finish_idempotency_key = p_idempotency_key,
      updated_at = _now
    WHERE attempt.tenant_id = p_tenant_id
      AND attempt.work_order_id = _attempt.work_order_id
      AND attempt.step_id = _attempt.step_id
      AND attempt.attempt_index = _attempt.attempt_index;
    IF _attempt.attempt_status = 'SUCCEEDED' THEN
      PERFORM os_core.append_step_event(_state, 'STEP_FINISHED', _attempt, NULL, p_lease_token);
    ELSIF _attempt.attempt_status = 'FAILED' THEN
      PERFORM os_core.append_step_event(_state, 'STEP_FAILED', _attempt, _timed_out, p_lease_token);
      IF _retries THEN
        PERFORM os_core.append_step_event(_state, 'STEP_RETRY_SCHEDULED', _attempt, NULL, p_lease_token);
      END IF;
    END IF;
  END IF;

  action := CASE
    WHEN _attempt.attempt_status = 'SUCCEEDED' THEN 'DONE'
    WHEN _attempt.next_retry_at IS NOT NULL THEN 'RETRY_AT'
    WHEN _attempt.attempt_status = 'FAILED' AND _attempt.attempt_index <= _attempt.max_retries THEN 'WAIT'
    ELSE 'FAIL'
  END;
  next_due_at := _attempt.next_retry_at;
  next_attempt_index := CASE action
    WHEN 'RETRY_AT' THEN _attempt.attempt_index + 1
    WHEN 'WAIT' THEN _attempt.attempt_index
  END;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.finish_step_attempt(text, bigint, text, bigint, boolean, text, text) TO selene_app;
