-- conversation.refuse_tombstone: raises TombstoneConflict; p_problem says why the turn cannot be hidden.
CREATE OR REPLACE FUNCTION conversation.refuse_tombstone(p_problem text, p_correlation_id uuid, p_conversation_turn_id bigint)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL026',
    pg_catalog.format('the turn with the id %s %s', p_conversation_turn_id, p_problem),
    pg_catalog.jsonb_build_object('correlation_id', p_correlation_id, 'conversation_turn_id', p_conversation_turn_id)
  );
END;
$$;
