-- os_core.payload_violation: returns the first rule that a payload breaks for its event type, as 'field: rule', or NULL.
-- The table of contract section 3, as code.
CREATE OR REPLACE FUNCTION os_core.payload_violation(p_event_type text, p_payload jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  CASE p_event_type
    WHEN 'FIELD_SET', 'FIELD_CONFLICT_RESOLVED' THEN
      -- The most frequent event is checked in one expression.
      IF p_payload ? 'value' AND p_payload - '{field_key,value}'::text[] = '{}'
        AND (p_payload -> 'field_key')::text ~ '^"' AND os_core.is_field_key(p_payload ->> 'field_key')
      THEN
        RETURN NULL;
      END IF;
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{field_key,value}', '{}');
    WHEN 'STEP_STARTED', 'STEP_FINISHED', 'STEP_FAILED', 'STEP_RETRY_SCHEDULED' THEN
      RETURN NULL;
    WHEN 'STATUS_CHANGED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{}', '{previous_status,note}');
    WHEN 'WORK_ORDER_CREATED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{}', '{fields,requester_user_id}');
    WHEN 'WORK_ORDER_CANCELED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{}', '{note}');
    WHEN 'FIELD_PROMPTED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{field_key,prompt_dedupe_key}', '{}');
    WHEN 'FIELD_CONFLICT_DETECTED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{field_key}', '{candidates}');
    WHEN 'EXTERNAL_APPROVAL_REQUESTED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{request_id,target_user_id}', '{expires_at}');
    WHEN 'EXTERNAL_APPROVAL_WAIT_NOTIFIED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{request_id}', '{}');
    WHEN 'EXTERNAL_APPROVAL_RESOLVED' THEN
      RETURN os_core.payload_keys_violation(p_event_type, p_payload, '{request_id,outcome}', '{}');
    ELSE
      -- An event type without a WHEN is refused; a test fails for it.
      RETURN 'event_type: has no rules for its payload';
  END CASE;
END;
$$;
