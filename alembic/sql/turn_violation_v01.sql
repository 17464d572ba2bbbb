-- conversation.turn_violation: the first rule of SPEC.md section 2 that a turn to append breaks, as 'field: rule', or NULL. It never shows
-- a value: what was said stays out of messages and logs.
CREATE OR REPLACE FUNCTION conversation.turn_violation(
  p_correlation_id uuid,
  p_turn_id bigint,
  p_user_id text,
  p_role text,
  p_source text,
  p_text text,
  p_privacy_scope text,
  p_session_id text,
  p_device_id text,
  p_idempotency_key text
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN CASE
    WHEN p_correlation_id IS NULL THEN 'correlation_id: must be a UUID'
    -- One place is left after it, for the tombstone that hides it.
    WHEN (p_turn_id BETWEEN 1 AND 9223372036854775806) IS NOT TRUE THEN 'turn_id: must be an integer from 1 to 9223372036854775806'
    WHEN os_core.is_identifier(p_user_id, 128) IS NOT TRUE
      THEN 'user_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN (p_role IN ('USER', 'SELENE')) IS NOT TRUE THEN 'role: must be one of USER, SELENE'
    WHEN p_source = 'TOMBSTONE' THEN 'source: TOMBSTONE is written by conversation.tombstone_turn only'
    WHEN (p_source IN ('VOICE_TRANSCRIPT', 'TYPED_TEXT', 'SELENE_OUTPUT')) IS NOT TRUE
      THEN 'source: must be one of VOICE_TRANSCRIPT, TYPED_TEXT, SELENE_OUTPUT'
    WHEN (pg_catalog.octet_length(p_text) <= 65536) IS NOT TRUE THEN 'text: must be text of at most 65536 bytes in UTF-8'
    WHEN (p_privacy_scope IN ('PUBLIC_CHAT', 'PRIVATE_DELIVERY')) IS NOT TRUE
      THEN 'privacy_scope: must be one of PUBLIC_CHAT, PRIVATE_DELIVERY'
    WHEN NOT os_core.is_identifier(p_session_id, 128)
      THEN 'session_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN NOT os_core.is_identifier(p_device_id, 128)
      THEN 'device_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN NOT os_core.is_label(p_idempotency_key, 128)
      THEN 'idempotency_key: must be 1..128 characters without control characters or white space at the ends'
  END;
END;
$$;
