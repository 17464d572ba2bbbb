-- conversation.is_turn_row: the CHECK of conversation.conversation_ledger (contract section 2).
-- Tenant, user, device and session are not checked here: the foreign keys lead to rows that were checked.
-- A tombstone has a reason, an earlier turn to hide (ids are compared within the range of one node only), and no text: its hash is that of nothing, without a salt.
CREATE OR REPLACE FUNCTION conversation.is_turn_row(
  p_conversation_turn_id bigint,
  p_turn_id bigint,
  p_role text,
  p_source text,
  p_text_hash text,
  p_privacy_scope text,
  p_created_at timestamptz,
  p_idempotency_key text,
  p_tombstone_of_conversation_turn_id bigint,
  p_tombstone_reason_code bigint
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN p_turn_id >= 1
    AND p_role IN ('USER', 'SELENE')
    AND p_privacy_scope IN ('PUBLIC_CHAT', 'PRIVATE_DELIVERY')
    AND p_text_hash ~ '^[0-9a-f]{64}$'
    AND os_core.is_portable_time(p_created_at)
    AND (p_idempotency_key IS NULL OR os_core.is_label(p_idempotency_key, 128))
    AND CASE
      WHEN p_source IN ('VOICE_TRANSCRIPT', 'TYPED_TEXT', 'SELENE_OUTPUT')
        THEN p_tombstone_of_conversation_turn_id IS NULL AND p_tombstone_reason_code IS NULL
      WHEN p_source = 'TOMBSTONE'
        THEN p_text_hash = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
          AND (
            p_tombstone_of_conversation_turn_id < p_conversation_turn_id
            OR p_tombstone_of_conversation_turn_id >> 48 <> p_conversation_turn_id >> 48
          ) IS TRUE
          AND (p_tombstone_reason_code BETWEEN 1 AND 4294967295) IS TRUE
      ELSE FALSE
    END;
END;
$$;
