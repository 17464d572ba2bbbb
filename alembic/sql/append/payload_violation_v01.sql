-- os_core.payload_violation: returns the first rule that a payload breaks for its event type, as 'field: rule', or NULL.
-- The table of contract section 3, as code: the keys that a type requires, and those that it allows besides; without an entry among
-- the latter any object will do. It checks the required keys, then the optional ones, then unknown keys. A payload of the most frequent
-- form is seen to be good by one expression, with the same rules; whatever fails there is looked at key by key.
CREATE OR REPLACE FUNCTION os_core.payload_violation(p_event_type text, p_payload jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _required text[];
  _optional text[];
  _key text;
  _violation text;
BEGIN
  IF p_event_type IN ('FIELD_SET', 'FIELD_CONFLICT_RESOLVED') THEN
    IF p_payload @@ 'exists($.value) && $.field_key.type() == "string"'
      AND p_payload - '{field_key,value}'::text[] = '{}'
      AND os_core.is_field_key(p_payload ->> 'field_key')
    THEN
      RETURN NULL;
    END IF;
  ELSIF p_event_type = 'WORK_ORDER_CREATED' THEN
    IF p_payload @@ '!($.fields.type() != "object") && !($.requester_user_id.type() != "string")'
      AND p_payload - '{fields,requester_user_id}'::text[] = '{}'
      AND os_core.is_identifier(p_payload ->> 'requester_user_id', 128) IS NOT FALSE
      AND os_core.are_field_keys(p_payload -> 'fields') IS NOT FALSE
    THEN
      RETURN NULL;
    END IF;
  ELSIF p_payload = '{}' OR p_event_type LIKE 'STEP%' THEN
    NULL;
  ELSIF p_event_type LIKE 'EXTERNAL%' THEN
    IF p_event_type = 'EXTERNAL_APPROVAL_REQUESTED' THEN
      IF p_payload @@ '$.request_id.type() == "string" && $.target_user_id.type() == "string"'
        AND p_payload - '{request_id,target_user_id}'::text[] = '{}'
        AND os_core.is_identifier(p_payload ->> 'request_id', 128)
        AND os_core.is_identifier(p_payload ->> 'target_user_id', 128)
      THEN
        RETURN NULL;
      END IF;
    ELSIF p_payload @@ '$.request_id.type() == "string"'
      AND p_payload - 'request_id'::text
        = (CASE p_event_type WHEN 'EXTERNAL_APPROVAL_RESOLVED' THEN '{"outcome": "APPROVED"}'::jsonb ELSE '{}' END)
      AND os_core.is_identifier(p_payload ->> 'request_id', 128)
    THEN
      RETURN NULL;
    END IF;
  ELSIF p_event_type = 'FIELD_PROMPTED' THEN
    IF p_payload @@ '$.field_key.type() == "string" && $.prompt_dedupe_key.type() == "string"'
      AND p_payload - '{field_key,prompt_dedupe_key}'::text[] = '{}'
      AND os_core.is_field_key(p_payload ->> 'field_key')
      AND os_core.is_label(p_payload ->> 'prompt_dedupe_key', 128)
    THEN
      RETURN NULL;
    END IF;
  ELSIF p_event_type = 'FIELD_CONFLICT_DETECTED' THEN
    IF p_payload @@ '$.field_key.type() == "string" && !($.candidates.type() != "array")'
      AND p_payload - '{field_key,candidates}'::text[] = '{}'
      AND os_core.is_field_key(p_payload ->> 'field_key')
    THEN
      RETURN NULL;
    END IF;
  END IF;

  _required := '{
    "WORK_ORDER_CREATED": "{}",
    "FIELD_SET": "{field_key,value}",
    "FIELD_PROMPTED": "{field_key,prompt_dedupe_key}",
    "FIELD_CONFLICT_DETECTED": "{field_key}",
    "FIELD_CONFLICT_RESOLVED": "{field_key,value}",
    "STATUS_CHANGED": "{}",
    "STEP_STARTED": "{}",
    "STEP_FINISHED": "{}",
    "STEP_FAILED": "{}",
    "STEP_RETRY_SCHEDULED": "{}",
    "EXTERNAL_APPROVAL_REQUESTED": "{request_id,target_user_id}",
    "EXTERNAL_APPROVAL_WAIT_NOTIFIED": "{request_id}",
    "EXTERNAL_APPROVAL_RESOLVED": "{request_id,outcome}",
    "WORK_ORDER_CANCELED": "{}"
  }'::jsonb ->> p_event_type;
  IF _required IS NULL THEN
    -- A type without an entry is refused; a test fails for it.
    RETURN 'event_type: has no rules for its payload';
  END IF;
  FOREACH _key IN ARRAY _required LOOP
    IF p_payload ? _key THEN
      _violation := os_core.payload_value_violation(_key, p_payload -> _key);
      IF _violation IS NOT NULL THEN
        RETURN _violation;
      END IF;
    ELSE
      RETURN pg_catalog.format('payload.%s: is required by %s', _key, p_event_type);
    END IF;
  END LOOP;
  p_payload := p_payload - _required;
  IF p_payload <> '{}' THEN
    _optional := '{
      "WORK_ORDER_CREATED": "{fields,requester_user_id}",
      "FIELD_SET": "{}",
      "FIELD_PROMPTED": "{}",
      "FIELD_CONFLICT_DETECTED": "{candidates}",
      "FIELD_CONFLICT_RESOLVED": "{}",
      "STATUS_CHANGED": "{previous_status,note}",
      "EXTERNAL_APPROVAL_REQUESTED": "{expires_at}",
      "EXTERNAL_APPROVAL_WAIT_NOTIFIED": "{}",
      "EXTERNAL_APPROVAL_RESOLVED": "{}",
      "WORK_ORDER_CANCELED": "{note}"
    }'::jsonb ->> p_event_type;
    IF _optional IS NULL THEN
      RETURN NULL;
    END IF;
    FOREACH _key IN ARRAY _optional LOOP
      IF p_payload ? _key THEN
        _violation := os_core.payload_value_violation(_key, p_payload -> _key);
        IF _violation IS NOT NULL THEN
          RETURN _violation;
        END IF;
      END IF;
    END LOOP;
    p_payload := p_payload - _optional;
    IF p_payload <> '{}' THEN
      -- The first in jsonb's order: by length, then by bytes.
      RETURN pg_catalog.format('payload.%s: is not a key of %s', os_core.key_shown(unknown.key), p_event_type)
      FROM pg_catalog.jsonb_object_keys(p_payload) AS unknown (key)
      LIMIT 1;
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
