-- os_core.payload_value_violation: returns 'payload.key: rule' if a value is invalid for its key, or NULL (contract section 3).
CREATE OR REPLACE FUNCTION os_core.payload_value_violation(p_key text, p_value jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  -- Stays NULL if the value is not text: then it breaks every rule for text.
  _text text;
BEGIN
  IF p_key = 'value' THEN
    RETURN NULL;
  END IF;
  IF p_value::text LIKE '"%' THEN
    _text := p_value #>> '{}';
  END IF;
  CASE p_key
    WHEN 'field_key' THEN
      IF os_core.is_field_key(_text) IS NOT TRUE THEN
        RETURN 'payload.field_key: must be 1..64 ASCII letters, digits or _.:-';
      END IF;
    WHEN 'requester_user_id', 'request_id', 'target_user_id' THEN
      IF os_core.is_identifier(_text, 128) IS NOT TRUE THEN
        RETURN os_core.identifier_violation('payload.' || p_key, _text, 128);
      END IF;
    WHEN 'outcome' THEN
      IF (_text IN ('APPROVED', 'REJECTED', 'EXPIRED')) IS NOT TRUE THEN
        RETURN 'payload.outcome: must be one of APPROVED, REJECTED, EXPIRED';
      END IF;
    WHEN 'prompt_dedupe_key' THEN
      RETURN os_core.label_violation('payload.prompt_dedupe_key', _text, 128);
    WHEN 'previous_status' THEN
      IF os_core.is_work_order_status(_text) IS NOT TRUE THEN
        RETURN 'payload.previous_status: must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING, DONE, REFUSED, FAILED, CANCELED';
      END IF;
    WHEN 'note' THEN
      IF (pg_catalog.char_length(_text) <= 4096) IS NOT TRUE THEN
        RETURN 'payload.note: must be text of at most 4096 characters';
      END IF;
    WHEN 'expires_at' THEN
      RETURN os_core.time_violation('payload.expires_at', _text);
    WHEN 'candidates' THEN
      IF pg_catalog.jsonb_typeof(p_value) <> 'array' THEN
        RETURN 'payload.candidates: must be a list';
      END IF;
    WHEN 'fields' THEN
      IF pg_catalog.jsonb_typeof(p_value) = 'object' THEN
        IF os_core.are_field_keys(p_value) THEN
          RETURN NULL;
        END IF;
      END IF;
      RETURN 'payload.fields: must be an object whose keys are 1..64 ASCII letters, digits or _.:-';
  END CASE;
  RETURN NULL;
END;
$$;
