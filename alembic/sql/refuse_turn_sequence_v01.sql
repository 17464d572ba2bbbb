-- conversation.refuse_turn_sequence: raises an operator's error: the sequence yields ids that the ledger has already, as after a restore
-- without it. No SL code: no caller can act on it.
CREATE OR REPLACE FUNCTION conversation.refuse_turn_sequence()
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION USING
    ERRCODE = 'object_not_in_prerequisite_state',
    MESSAGE = 'the sequence of conversation turn ids is behind the ledger',
    HINT = 'Let a superuser run: SELECT setval(''conversation.conversation_ledger_conversation_turn_id_seq'','
      ' (SELECT max(conversation_turn_id) FROM conversation.conversation_ledger));';
END;
$$;
