-- conversation.turn_violation: returns the first rule that a new turn breaks, as 'field: rule', or NULL (contract section 2).
-- It never shows a value: texts must not get into messages and logs.
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
  RETURN COALESCE(
    CASE WHEN p_correlation_id IS NULL THEN 'correlation_id: must be a UUID as 8-4-4-4-12 hexadecimal digits' END,
    -- The last place is left for a tombstone that hides this turn.
    os_core.integer_violation('turn_id', p_turn_id, 1, 9223372036854775806),
    os_core.identifier_violation('user_id', p_user_id, 128),
    CASE WHEN (p_role IN ('USER', 'SELENE')) IS NOT TRUE THEN 'role: must be one of USER, SELENE' END,
    CASE
      WHEN (p_source IN ('VOICE_TRANSCRIPT', 'TYPED_TEXT', 'SELENE_OUTPUT')) IS NOT TRUE
        THEN 'source: must be one of VOICE_TRANSCRIPT, TYPED_TEXT, SELENE_OUTPUT; TOMBSTONE is written by tombstone_turn only'
    END,
    CASE
      WHEN (pg_catalog.octet_length(p_text) <= 65536) IS NOT TRUE
        THEN 'text: must be text of at most 65536 bytes in UTF-8, without NUL or lone surrogates'
    END,
    CASE
      WHEN (p_privacy_scope IN ('PUBLIC_CHAT', 'PRIVATE_DELIVERY')) IS NOT TRUE
        THEN 'privacy_scope: must be one of PUBLIC_CHAT, PRIVATE_DELIVERY'
    END,
    os_core.identifier_violation('session_id', p_session_id, 128, FALSE),
    os_core.identifier_violation('device_id', p_device_id, 128, FALSE),
    os_core.label_violation('idempotency_key', p_idempotency_key, 128, FALSE)
  );
END;
$$;
