-- os_core.guard_step_attempt: the trigger function of os_core.work_order_step_attempts (contract section 2).
-- It also holds for the owner and in replica mode. A finished row never changes; a RUNNING one never changes what it was started with.
-- Only the removal of a tenant deletes rows (contract section 18).
CREATE OR REPLACE FUNCTION os_core.guard_step_attempt()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _table constant text := COALESCE(TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME);
  _rest os_core.work_order_step_attempts;
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.attempt_status = 'RUNNING' THEN
    _rest := NEW;
    _rest.attempt_status := OLD.attempt_status;
    _rest.next_retry_at := OLD.next_retry_at;
    _rest.finished_at := OLD.finished_at;
    _rest.reason_code := OLD.reason_code;
    _rest.finish_idempotency_key := OLD.finish_idempotency_key;
    _rest.updated_at := OLD.updated_at;
    IF _rest IS NOT DISTINCT FROM OLD THEN
      RETURN NEW;
    END IF;
  END IF;
  IF TG_OP = 'DELETE' THEN
    IF os_core.removal_is_open(OLD.tenant_id) THEN
      RETURN OLD;
    END IF;
  END IF;
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s keeps every attempt as it ended: %s is refused', _table, TG_OP),
    pg_catalog.jsonb_build_object('table', _table, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
