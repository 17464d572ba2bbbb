-- os_core.payload_text_violation: 'payload.key: rule' where a key that is present is not text of its kind (SPEC.md section 3).
CREATE OR REPLACE FUNCTION os_core.payload_text_violation(p_payload jsonb, p_key text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _text constant text := p_payload ->> p_key;
BEGIN
  IF NOT p_payload ? p_key THEN
    RETURN NULL;
  ELSIF pg_catalog.jsonb_typeof(p_payload -> p_key) <> 'string' THEN
    RETURN pg_catalog.format('payload.%s: must be a string', p_key);
  END IF;
  CASE p_key
    WHEN 'field_key' THEN
      IF NOT os_core.is_field_key(_text) THEN
        RETURN 'payload.field_key: must be 1..64 of A-Za-z0-9_.:-';
      END IF;
    WHEN 'requester_user_id', 'request_id', 'target_user_id' THEN
      IF NOT os_core.is_identifier(_text, 128) THEN
        RETURN pg_catalog.format('payload.%s: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit', p_key);
      END IF;
    WHEN 'prompt_dedupe_key' THEN
      IF NOT os_core.is_label(_text, 128) THEN
        RETURN 'payload.prompt_dedupe_key: must be 1..128 characters without control characters or white space at the ends';
      END IF;
    WHEN 'previous_status' THEN
      IF NOT os_core.is_work_order_status(_text) THEN
        RETURN 'payload.previous_status: must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING, DONE, REFUSED, FAILED, CANCELED';
      END IF;
    WHEN 'outcome' THEN
      IF _text NOT IN ('APPROVED', 'REJECTED', 'EXPIRED') THEN
        RETURN 'payload.outcome: must be APPROVED, REJECTED or EXPIRED';
      END IF;
    WHEN 'expires_at' THEN
      IF os_core.parse_rfc3339(_text) IS NULL THEN
        RETURN 'payload.expires_at: must be a time with an offset as in RFC 3339, in the years 1 to 9999 of UTC';
      END IF;
    WHEN 'note' THEN
      IF pg_catalog.char_length(_text) > 4096 THEN
        RETURN 'payload.note: must be at most 4096 characters';
      END IF;
  END CASE;
  RETURN NULL;
END;
$$;
