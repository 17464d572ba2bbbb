-- os_core.start_step_attempt: starts the next attempt of a step (contract section 8).
-- A RUNNING attempt past its timeout is closed first: it failed at its deadline, and its retry is due from then on. A backoff
-- counted from now would start again at every refused call, and a dead worker would block the step.
-- After a failure that is not retryable, a person or another engine decides: this call means "once more".
CREATE OR REPLACE FUNCTION os_core.start_step_attempt(
  p_tenant_id text,
  p_work_order_id text,
  p_step_id text,
  p_timeout_ms bigint,
  p_max_retries bigint,
  p_retry_backoff_ms bigint,
  p_idempotency_key text,
  p_lease_token text DEFAULT NULL
)
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
ROWS 1
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
  _deadline timestamptz;
  _last os_core.work_order_step_attempts;
  _attempt os_core.work_order_step_attempts;
  _event os_core.work_order_ledger;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('work_order_id', p_work_order_id, 128),
    os_core.identifier_violation('step_id', p_step_id, 96),
    os_core.integer_violation('timeout_ms', p_timeout_ms, 1, 31536000000),
    os_core.integer_violation('max_retries', p_max_retries, 0, 1024),
    os_core.integer_violation('retry_backoff_ms', p_retry_backoff_ms, 1, 31536000000),
    os_core.lease_token_violation('lease_token', p_lease_token, FALSE),
    os_core.label_violation('idempotency_key', p_idempotency_key, 128)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  _state := os_core.lock_projection(p_tenant_id, p_work_order_id);
  _now := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);

  <<started>>
  BEGIN
    -- A replay comes before every refusal: it returns the row as it is now.
    SELECT attempt.* INTO _attempt
    FROM os_core.work_order_step_attempts AS attempt
    WHERE attempt.tenant_id = p_tenant_id
      AND attempt.work_order_id = p_work_order_id
      AND attempt.step_id = p_step_id
      AND attempt.idempotency_key = p_idempotency_key;
    IF FOUND THEN
      IF _attempt.timeout_ms <> p_timeout_ms
        OR _attempt.max_retries <> p_max_retries
        OR _attempt.retry_backoff_ms <> p_retry_backoff_ms
      THEN
        PERFORM os_core.refuse_key(p_work_order_id, p_idempotency_key);
      END IF;
      EXIT started;
    END IF;

    -- Check the lease here, too, so that a worker that lost it gets LeaseLost before any other refusal.
    PERFORM os_core.refuse_terminal(_state, 'STEP_STARTED');
    _event := os_core.event_carried(_state, 'STEP_STARTED', '{}');
    _event.created_at := _now;
    _refusal := os_core.lease_refusal(_state, _event, p_lease_token);
    IF _refusal IS NOT NULL THEN
      PERFORM os_core.refuse_event(_refusal, NULL, _event, _state, NULL);
    END IF;

    SELECT attempt.* INTO _last
    FROM os_core.work_order_step_attempts AS attempt
    WHERE attempt.tenant_id = p_tenant_id AND attempt.work_order_id = p_work_order_id AND attempt.step_id = p_step_id
    ORDER BY attempt.attempt_index DESC
    LIMIT 1;
    _deadline := _last.started_at + _last.timeout_ms * INTERVAL '1 millisecond';
    CASE
      WHEN _last.step_attempt_id IS NULL THEN
        NULL;
      WHEN _last.attempt_status = 'RUNNING' AND _deadline > _now THEN
        PERFORM os_core.refuse_attempt('RUNNING', _last);
      WHEN _last.attempt_status = 'SUCCEEDED' THEN
        PERFORM os_core.refuse_attempt('SUCCEEDED', _last);
      WHEN _last.attempt_index > p_max_retries THEN
        PERFORM os_core.refuse_attempt('BUDGET_SPENT', _last);
      WHEN _last.next_retry_at > _now THEN
        PERFORM os_core.refuse_attempt('NOT_DUE', _last);
      WHEN _last.attempt_status = 'RUNNING' THEN
        _last.attempt_status := 'FAILED';
        _last.finished_at := _deadline;
        _last.reason_code := _state.last_reason_code;
        IF _last.attempt_index <= _last.max_retries THEN
          _last.next_retry_at := _deadline;
        END IF;
        UPDATE os_core.work_order_step_attempts AS attempt
        SET
          attempt_status = _last.attempt_status,
          next_retry_at = _last.next_retry_at,
          finished_at = _last.finished_at,
          reason_code = _last.reason_code,
          updated_at = _now
        WHERE attempt.tenant_id = p_tenant_id
          AND attempt.work_order_id = p_work_order_id
          AND attempt.step_id = p_step_id
          AND attempt.attempt_index = _last.attempt_index;
        PERFORM os_core.append_step_event(_state, 'STEP_FAILED', _last, TRUE, p_lease_token);
      ELSE
        NULL;
    END CASE;

    _attempt.step_attempt_id := pg_catalog.nextval('os_core.work_order_step_attempts_step_attempt_id_seq');
    IF _attempt.step_attempt_id <= _last.step_attempt_id
      AND _attempt.step_attempt_id >> 48 = _last.step_attempt_id >> 48
    THEN
      PERFORM os_core.refuse_sequence('os_core.work_order_step_attempts', 'step_attempt_id');
    END IF;
    _attempt.tenant_id := p_tenant_id;
    _attempt.work_order_id := p_work_order_id;
    _attempt.step_id := p_step_id;
    _attempt.attempt_index := COALESCE(_last.attempt_index, 0) + 1;
    _attempt.attempt_status := 'RUNNING';
    _attempt.timeout_ms := p_timeout_ms;
    _attempt.max_retries := p_max_retries;
    _attempt.retry_backoff_ms := p_retry_backoff_ms;
    _attempt.started_at := _now;
    _attempt.idempotency_key := p_idempotency_key;
    _attempt.created_at := _now;
    _attempt.updated_at := _now;
    INSERT INTO os_core.work_order_step_attempts (
      step_attempt_id,
      tenant_id,
      work_order_id,
      step_id,
      attempt_index,
      attempt_status,
      timeout_ms,
      max_retries,
      retry_backoff_ms,
      next_retry_at,
      started_at,
      finished_at,
      reason_code,
      idempotency_key,
      finish_idempotency_key,
      created_at,
      updated_at
    )
    VALUES (
      _attempt.step_attempt_id,
      _attempt.tenant_id,
      _attempt.work_order_id,
      _attempt.step_id,
      _attempt.attempt_index,
      _attempt.attempt_status,
      _attempt.timeout_ms,
      _attempt.max_retries,
      _attempt.retry_backoff_ms,
      _attempt.next_retry_at,
      _attempt.started_at,
      _attempt.finished_at,
      _attempt.reason_code,
      _attempt.idempotency_key,
      _attempt.finish_idempotency_key,
      _attempt.created_at,
      _attempt.updated_at
    )
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      PERFORM os_core.refuse_sequence('os_core.work_order_step_attempts', 'step_attempt_id');
    END IF;
    PERFORM os_core.append_step_event(_state, 'STEP_STARTED', _attempt, NULL, p_lease_token);
  END started;
  RETURN QUERY
  SELECT
    _attempt.step_attempt_id,
    _attempt.tenant_id,
    _attempt.work_order_id,
    _attempt.step_id,
    _attempt.attempt_index,
    _attempt.attempt_status,
    _attempt.timeout_ms,
    _attempt.max_retries,
    _attempt.retry_backoff_ms,
    _attempt.next_retry_at,
    _attempt.started_at,
    _attempt.finished_at,
    _attempt.reason_code,
    _attempt.idempotency_key,
    _attempt.finish_idempotency_key,
    _attempt.created_at,
    _attempt.updated_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.start_step_attempt(text, text, text, bigint, bigint, bigint, text, text) TO selene_app;
