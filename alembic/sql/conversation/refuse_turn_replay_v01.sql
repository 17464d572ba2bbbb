-- conversation.refuse_turn_replay: raises IdempotencyConflict: the turn_id or key is used by another turn of the conversation.
CREATE OR REPLACE FUNCTION conversation.refuse_turn_replay(
  p_correlation_id uuid, p_turn_id bigint, p_idempotency_key text, p_prior conversation.conversation_ledger
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL005',
    CASE
      WHEN p_prior.idempotency_key = p_idempotency_key
        THEN pg_catalog.format('idempotency key %s stands for another turn of conversation %s', p_idempotency_key, p_correlation_id)
      ELSE pg_catalog.format('turn %s of conversation %s is another one', p_turn_id, p_correlation_id)
    END,
    pg_catalog.jsonb_build_object(
      'correlation_id', p_correlation_id,
      'turn_id', p_turn_id,
      'idempotency_key', p_idempotency_key,
      'conversation_turn_id', p_prior.conversation_turn_id
    )
  );
END;
$$;
