-- conversation.tombstone_turn: appends a tombstone, which hides the text of an earlier turn for good (contract section 2).
-- The tombstone gets p_turn_id, or the place after the last turn. It repeats user, device, session, role and privacy of the hidden
-- turn. A turn has one tombstone: the same call again is a replay, another reason or place is TombstoneConflict. A turn that is
-- not in this tenant's conversation is ConversationTurnNotFound, even if another tenant has it.
CREATE OR REPLACE FUNCTION conversation.tombstone_turn(
  p_tenant_id text,
  p_correlation_id uuid,
  p_conversation_turn_id bigint,
  p_reason_code bigint,
  p_turn_id bigint DEFAULT NULL,
  p_idempotency_key text DEFAULT NULL
)
RETURNS TABLE (conversation_turn_id bigint, turn_id bigint, text_hash text, created_at timestamptz, replayed boolean)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _target conversation.conversation_ledger;
  _prior conversation.conversation_ledger;
  _turn_id bigint := p_turn_id;
  _id bigint;
  _lost boolean := FALSE;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    CASE WHEN p_correlation_id IS NULL THEN 'correlation_id: must be a UUID as 8-4-4-4-12 hexadecimal digits' END,
    os_core.integer_violation('conversation_turn_id', p_conversation_turn_id, 1, 9223372036854775807),
    os_core.integer_violation('reason_code', p_reason_code, 1, 4294967295),
    os_core.integer_violation('turn_id', p_turn_id, 1, 9223372036854775807, FALSE),
    os_core.label_violation('idempotency_key', p_idempotency_key, 128, FALSE)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  LOOP
    IF p_idempotency_key IS NOT NULL THEN
      SELECT turn.* INTO _prior
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id
        AND turn.correlation_id = p_correlation_id
        AND turn.idempotency_key = p_idempotency_key;
      IF _prior.tombstone_of_conversation_turn_id IS DISTINCT FROM p_conversation_turn_id AND FOUND THEN
        PERFORM conversation.refuse_turn_replay(p_correlation_id, p_turn_id, p_idempotency_key, _prior);
      END IF;
    END IF;
    SELECT turn.* INTO _prior
    FROM conversation.conversation_ledger AS turn
    WHERE turn.tenant_id = p_tenant_id
      AND turn.correlation_id = p_correlation_id
      AND turn.tombstone_of_conversation_turn_id = p_conversation_turn_id;
    IF FOUND THEN
      IF _prior.tombstone_reason_code <> p_reason_code OR _prior.turn_id <> p_turn_id THEN
        PERFORM conversation.refuse_tombstone('is hidden by another tombstone already', p_correlation_id, p_conversation_turn_id);
      END IF;
      RETURN QUERY SELECT _prior.conversation_turn_id, _prior.turn_id, _prior.text_hash, _prior.created_at, TRUE;
      RETURN;
    END IF;

    IF NOT _lost THEN
      SELECT turn.* INTO _target
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id
        AND turn.correlation_id = p_correlation_id
        AND turn.conversation_turn_id = p_conversation_turn_id;
      IF NOT FOUND THEN
        PERFORM os_core.refuse(
          'SL025',
          pg_catalog.format('conversation %s has no turn with the id %s', p_correlation_id, p_conversation_turn_id),
          pg_catalog.jsonb_build_object('correlation_id', p_correlation_id, 'conversation_turn_id', p_conversation_turn_id)
        );
      ELSIF _target.source = 'TOMBSTONE' THEN
        PERFORM conversation.refuse_tombstone('is a tombstone itself', p_correlation_id, p_conversation_turn_id);
      ELSIF p_turn_id <= _target.turn_id THEN
        PERFORM os_core.refuse_contract(NULL, 'turn_id: must be greater than that of the turn to hide');
      END IF;
    ELSE
      -- The conflict is not the key and not the turn to hide, so it is the place: another turn has taken it.
      SELECT turn.* INTO _prior
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id AND turn.correlation_id = p_correlation_id AND turn.turn_id = _turn_id;
      IF NOT FOUND THEN
        PERFORM os_core.refuse_sequence('conversation.conversation_ledger', 'conversation_turn_id');
      ELSIF p_turn_id IS NOT NULL THEN
        PERFORM conversation.refuse_turn_replay(p_correlation_id, p_turn_id, p_idempotency_key, _prior);
      END IF;
    END IF;

    IF p_turn_id IS NULL THEN
      SELECT turn.turn_id INTO _turn_id
      FROM conversation.conversation_ledger AS turn
      WHERE turn.tenant_id = p_tenant_id AND turn.correlation_id = p_correlation_id
      ORDER BY turn.turn_id DESC
      LIMIT 1;
      IF _turn_id = 9223372036854775807 THEN
        PERFORM os_core.refuse_contract(NULL, 'turn_id: there is no place after the last, name a free one');
      END IF;
      _turn_id := _turn_id + 1;
    END IF;
    _id := pg_catalog.nextval('conversation.conversation_ledger_conversation_turn_id_seq');
    -- Compared within the range of one node only (contract section 16).
    IF _id <= p_conversation_turn_id AND _id >> 48 = p_conversation_turn_id >> 48 THEN
      PERFORM os_core.refuse_sequence('conversation.conversation_ledger', 'conversation_turn_id');
    END IF;
    RETURN QUERY
    INSERT INTO conversation.conversation_ledger AS turn (
      conversation_turn_id, tenant_id, correlation_id, turn_id, session_id, user_id, device_id, role, source, text_hash, privacy_scope,
      idempotency_key, tombstone_of_conversation_turn_id, tombstone_reason_code
    )
    VALUES (
      _id, p_tenant_id, p_correlation_id, _turn_id, _target.session_id, _target.user_id, _target.device_id, _target.role, 'TOMBSTONE',
      os_core.salted_hash('', ''), _target.privacy_scope, p_idempotency_key, p_conversation_turn_id, p_reason_code
    )
    ON CONFLICT DO NOTHING
    RETURNING turn.conversation_turn_id, turn.turn_id, turn.text_hash, turn.created_at, FALSE;
    EXIT WHEN FOUND;
    _lost := TRUE;
  END LOOP;
END;
$$;

GRANT EXECUTE ON FUNCTION conversation.tombstone_turn(text, uuid, bigint, bigint, bigint, text) TO selene_app;
