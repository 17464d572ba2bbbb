-- os_core.is_event_type: the event types of contract section 3. No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_event_type(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN '[
    "WORK_ORDER_CREATED",
    "FIELD_SET",
    "FIELD_PROMPTED",
    "FIELD_CONFLICT_DETECTED",
    "FIELD_CONFLICT_RESOLVED",
    "STATUS_CHANGED",
    "STEP_STARTED",
    "STEP_FINISHED",
    "STEP_FAILED",
    "STEP_RETRY_SCHEDULED",
    "LEASE_ACQUIRED",
    "LEASE_RENEWED",
    "LEASE_RELEASED",
    "EXTERNAL_APPROVAL_REQUESTED",
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED",
    "EXTERNAL_APPROVAL_RESOLVED",
    "WORK_ORDER_CANCELED"
  ]'::pg_catalog.jsonb OPERATOR(pg_catalog.?) p_text;
END;
$$;
