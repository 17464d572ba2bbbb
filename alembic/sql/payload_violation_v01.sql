-- os_core.payload_violation: the first rule of the payload table in SPEC.md section 3 that a payload breaks, as 'field: rule', or NULL.
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
      -- The event that comes most is cleared in one expression.
      IF p_payload ? 'value' AND p_payload - '{field_key,value}'::text[] = '{}'
        AND (p_payload -> 'field_key')::text ~ '^"' AND os_core.is_field_key(p_payload ->> 'field_key')
      THEN
        RETURN NULL;
      END IF;
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{field_key,value}', '{}'),
        os_core.payload_text_violation(p_payload, 'field_key')
      );
    WHEN 'STEP_STARTED', 'STEP_FINISHED', 'STEP_FAILED', 'STEP_RETRY_SCHEDULED' THEN
      RETURN NULL;
    WHEN 'STATUS_CHANGED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{}', '{previous_status,note}'),
        os_core.payload_text_violation(p_payload, 'previous_status'),
        os_core.payload_text_violation(p_payload, 'note')
      );
    WHEN 'WORK_ORDER_CREATED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{}', '{fields,requester_user_id}'),
        CASE
          WHEN pg_catalog.jsonb_typeof(p_payload -> 'fields') <> 'object' THEN 'payload.fields: must be an object'
          WHEN EXISTS (
            SELECT FROM pg_catalog.jsonb_object_keys(COALESCE(p_payload -> 'fields', '{}')) AS field (key)
            WHERE NOT os_core.is_field_key(field.key)
          ) THEN 'payload.fields: keys must be 1..64 of A-Za-z0-9_.:-'
        END,
        os_core.payload_text_violation(p_payload, 'requester_user_id')
      );
    WHEN 'WORK_ORDER_CANCELED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{}', '{note}'),
        os_core.payload_text_violation(p_payload, 'note')
      );
    WHEN 'FIELD_PROMPTED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{field_key,prompt_dedupe_key}', '{}'),
        os_core.payload_text_violation(p_payload, 'field_key'),
        os_core.payload_text_violation(p_payload, 'prompt_dedupe_key')
      );
    WHEN 'FIELD_CONFLICT_DETECTED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{field_key}', '{candidates}'),
        os_core.payload_text_violation(p_payload, 'field_key'),
        CASE WHEN pg_catalog.jsonb_typeof(p_payload -> 'candidates') <> 'array' THEN 'payload.candidates: must be a list' END
      );
    WHEN 'EXTERNAL_APPROVAL_REQUESTED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{request_id,target_user_id}', '{expires_at}'),
        os_core.payload_text_violation(p_payload, 'request_id'),
        os_core.payload_text_violation(p_payload, 'target_user_id'),
        os_core.payload_text_violation(p_payload, 'expires_at')
      );
    WHEN 'EXTERNAL_APPROVAL_WAIT_NOTIFIED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{request_id}', '{}'),
        os_core.payload_text_violation(p_payload, 'request_id')
      );
    WHEN 'EXTERNAL_APPROVAL_RESOLVED' THEN
      RETURN COALESCE(
        os_core.payload_keys_violation(p_payload, '{request_id,outcome}', '{}'),
        os_core.payload_text_violation(p_payload, 'request_id'),
        os_core.payload_text_violation(p_payload, 'outcome')
      );
  END CASE;
END;
$$;
