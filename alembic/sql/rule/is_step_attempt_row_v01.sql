-- os_core.is_step_attempt_row: the CHECK of os_core.work_order_step_attempts (contract section 2).
-- Tenant and work order are not checked here: the foreign key leads to a projection row, which was checked.
-- A retry is due only after a failure, and only if retries are left.
CREATE OR REPLACE FUNCTION os_core.is_step_attempt_row(
  p_step_id text,
  p_attempt_index integer,
  p_attempt_status text,
  p_timeout_ms bigint,
  p_max_retries integer,
  p_retry_backoff_ms bigint,
  p_next_retry_at timestamptz,
  p_started_at timestamptz,
  p_finished_at timestamptz,
  p_reason_code bigint,
  p_idempotency_key text,
  p_finish_idempotency_key text,
  p_created_at timestamptz,
  p_updated_at timestamptz
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_identifier(p_step_id, 96)
    AND p_attempt_status IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELED')
    AND p_timeout_ms BETWEEN 1 AND 31536000000
    AND p_max_retries BETWEEN 0 AND 1024
    AND p_retry_backoff_ms BETWEEN 1 AND 31536000000
    AND p_attempt_index BETWEEN 1 AND p_max_retries + 1
    AND (p_attempt_status = 'RUNNING') = (p_finished_at IS NULL)
    AND (p_finished_at IS NULL) = (p_reason_code IS NULL)
    AND (p_finished_at IS NULL OR p_finished_at >= p_started_at AND os_core.is_portable_time(p_finished_at))
    AND (p_reason_code IS NULL OR p_reason_code BETWEEN 1 AND 4294967295)
    AND (
      p_next_retry_at IS NULL
      OR p_attempt_status = 'FAILED'
      AND p_attempt_index <= p_max_retries
      AND p_next_retry_at >= p_finished_at
      AND os_core.is_portable_time(p_next_retry_at)
    )
    AND os_core.is_label(p_idempotency_key, 128)
    AND (p_finish_idempotency_key IS NULL OR p_finished_at IS NOT NULL AND os_core.is_label(p_finish_idempotency_key, 128))
    AND os_core.is_portable_time(p_started_at)
    AND os_core.is_portable_time(p_created_at)
    AND os_core.is_portable_time(p_updated_at)
    AND p_updated_at >= p_created_at;
END;
$$;
