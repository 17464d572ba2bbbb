-- conversation.append_turn: appends a turn; only tombstones are written elsewhere (contract section 2).
-- Idempotent by key and by turn_id: the same content returns the original, other content is IdempotencyConflict.
-- The insert itself checks user, device and session. Only if it wrote no row, the cause is looked for: first a replay, then what is
-- missing. The foreign key locks the user, whom an erasure locks too. A call that has waited for an erasure was sent before it: its
-- turn is written, and its text is erased with the others (contract section 18).
CREATE OR REPLACE FUNCTION conversation.append_turn(
  p_tenant_id text,
  p_correlation_id uuid,
  p_turn_id bigint,
  p_user_id text,
  p_role text,
  p_source text,
  p_text text,
  p_privacy_scope text,
  p_session_id text DEFAULT NULL,
  p_device_id text DEFAULT NULL,
  p_idempotency_key text DEFAULT NULL
)
RETURNS TABLE (conversation_turn_id bigint, turn_id bigint, text_hash text, created_at timestamptz, replayed boolean)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _prior conversation.conversation_ledger;
  _salt bytea;
  _said_hash text;
  _erasure_id bigint;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := conversation.turn_violation(
    p_correlation_id, p_turn_id, p_user_id, p_role, p_source, p_text, p_privacy_scope, p_session_id, p_device_id, p_idempotency_key
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  SELECT pg_catalog.max(erasure.erasure_id) INTO _erasure_id
  FROM os_core.subject_erasures AS erasure
  WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = p_user_id;
  _salt := os_core.random_salt();
  _said_hash := os_core.salted_hash(_salt, p_text);

  IF os_core.isolation_violation() IS NOT NULL THEN
    -- A later erasure is not in this transaction's snapshot. It has written the user's row anew, which here is SQLSTATE 40001.
    PERFORM FROM os_core.identities AS identity
    WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_user_id
    FOR SHARE;
  END IF;
  FOR _attempt IN 1..3 LOOP
    -- A loop and not INTO: a distributed engine counts what the SELECT gives, and INTO compares.
    FOR _prior IN
      INSERT INTO conversation.conversation_ledger AS turn (
        tenant_id, correlation_id, turn_id, session_id, user_id, device_id, role, source, text_hash, privacy_scope,
        idempotency_key
      )
      SELECT
        p_tenant_id, p_correlation_id, p_turn_id, p_session_id, p_user_id, p_device_id, p_role, p_source, _said_hash, p_privacy_scope,
        p_idempotency_key
      WHERE EXISTS (
          SELECT FROM os_core.identities AS identity WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_user_id
        )
        AND (p_device_id IS NULL OR EXISTS (
          SELECT FROM os_core.devices AS device
          WHERE device.tenant_id = p_tenant_id AND device.user_id = p_user_id AND device.device_id = p_device_id
        ))
        AND (p_session_id IS NULL OR EXISTS (
          SELECT FROM os_core.sessions AS session
          WHERE session.tenant_id = p_tenant_id AND session.user_id = p_user_id AND session.session_id = p_session_id
        ))
      ON CONFLICT DO NOTHING
      RETURNING turn.*
    LOOP
      EXIT;
    END LOOP;
    IF _prior.conversation_turn_id IS NOT NULL THEN
      INSERT INTO conversation.turn_texts (tenant_id, conversation_turn_id, text_hash, salt, text)
      SELECT p_tenant_id, _prior.conversation_turn_id, _said_hash, _salt, p_text
      WHERE NOT EXISTS (
        SELECT FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = p_tenant_id
          AND erasure.subject_id = p_user_id
          AND erasure.erasure_id > COALESCE(_erasure_id, 0)
      );
      RETURN QUERY SELECT _prior.conversation_turn_id, _prior.turn_id, _prior.text_hash, _prior.created_at, FALSE;
      RETURN;
    END IF;

    IF p_idempotency_key IS NOT NULL THEN
      SELECT turn.* INTO _prior
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id
        AND turn.correlation_id = p_correlation_id
        AND turn.idempotency_key = p_idempotency_key;
    END IF;
    IF _prior.conversation_turn_id IS NULL THEN
      SELECT turn.* INTO _prior
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id AND turn.correlation_id = p_correlation_id AND turn.turn_id = p_turn_id;
    END IF;
    EXIT WHEN _prior.conversation_turn_id IS NOT NULL;
    PERFORM os_core.require_owned(p_tenant_id, p_user_id, p_device_id, p_session_id);
    -- All exist now, so one was registered after the insert: try again. If they existed before, the sequence's id is taken.
    IF _attempt = 3 THEN
      PERFORM os_core.refuse_sequence('conversation.conversation_ledger', 'conversation_turn_id');
    END IF;
  END LOOP;
  -- Compare the hashes: so a replay reveals nothing about a hidden text. What was erased, salt and all, is not compared.
  SELECT said.salt INTO _salt
  FROM conversation.turn_texts AS said
  WHERE said.tenant_id = p_tenant_id AND said.conversation_turn_id = _prior.conversation_turn_id;
  IF _prior.turn_id <> p_turn_id
    OR _prior.user_id <> p_user_id
    OR _prior.session_id IS DISTINCT FROM p_session_id
    OR _prior.device_id IS DISTINCT FROM p_device_id
    OR _prior.role <> p_role
    OR _prior.source <> p_source
    OR _prior.privacy_scope <> p_privacy_scope
    OR _prior.text_hash <> os_core.salted_hash(_salt, p_text)
  THEN
    PERFORM conversation.refuse_turn_replay(p_correlation_id, p_turn_id, p_idempotency_key, _prior);
  END IF;
  RETURN QUERY SELECT _prior.conversation_turn_id, _prior.turn_id, _prior.text_hash, _prior.created_at, TRUE;
END;
$$;

GRANT EXECUTE ON FUNCTION conversation.append_turn(
  text, uuid, bigint, text, text, text, text, text, text, text, text
) TO selene_app;
