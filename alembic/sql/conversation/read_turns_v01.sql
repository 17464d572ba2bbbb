-- conversation.read_turns: returns the next p_limit turns of a conversation after turn p_after (0: from the first), in order.
-- The only way for the roles to read texts (contract section 2). A hidden text is NULL; its hash stays, with the tombstone's
-- reason and id. An erased text is NULL, too; a tombstone's is ''.
-- Planner settings: a plan made for an empty table must not scan or sort a full one.
CREATE OR REPLACE FUNCTION conversation.read_turns(p_tenant_id text, p_correlation_id uuid, p_after bigint, p_limit integer)
RETURNS TABLE (
  conversation_turn_id bigint,
  tenant_id text,
  correlation_id uuid,
  turn_id bigint,
  session_id text,
  user_id text,
  device_id text,
  role text,
  source text,
  text text,
  text_hash text,
  privacy_scope text,
  created_at timestamptz,
  idempotency_key text,
  tombstone_of_conversation_turn_id bigint,
  tombstone_reason_code bigint,
  tombstoned_by_conversation_turn_id bigint
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 1000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('limit', p_limit, 1, 1000));
  END IF;
  IF (p_after >= 0) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('after', p_after, 0, 9223372036854775807));
  END IF;
  RETURN QUERY
  SELECT
    turn.conversation_turn_id,
    turn.tenant_id,
    turn.correlation_id,
    turn.turn_id,
    turn.session_id,
    turn.user_id,
    turn.device_id,
    turn.role,
    turn.source,
    CASE
      WHEN turn.source = 'TOMBSTONE' THEN ''
      WHEN tombstone.conversation_turn_id IS NULL THEN said.text
    END,
    turn.text_hash,
    turn.privacy_scope,
    turn.created_at,
    turn.idempotency_key,
    turn.tombstone_of_conversation_turn_id,
    COALESCE(turn.tombstone_reason_code, tombstone.tombstone_reason_code),
    tombstone.conversation_turn_id
  FROM conversation.conversation_ledger AS turn
  -- One index probe for each turn: LIMIT prevents a join, which looks as cheap while the table is empty.
  LEFT JOIN LATERAL (
    SELECT
      hiding.conversation_turn_id,
      hiding.tombstone_reason_code
    FROM conversation.conversation_ledger AS hiding
    WHERE hiding.tenant_id = p_tenant_id
      AND hiding.correlation_id = p_correlation_id
      AND hiding.tombstone_of_conversation_turn_id = turn.conversation_turn_id
    LIMIT 1
  ) AS tombstone ON TRUE
  LEFT JOIN LATERAL (
    SELECT of_turn.text
    FROM conversation.turn_texts AS of_turn
    WHERE of_turn.tenant_id = p_tenant_id AND of_turn.conversation_turn_id = turn.conversation_turn_id
    LIMIT 1
  ) AS said ON TRUE
  WHERE turn.tenant_id = p_tenant_id AND turn.correlation_id = p_correlation_id AND turn.turn_id > p_after
  ORDER BY turn.turn_id
  LIMIT p_limit;
END;
$$;

GRANT EXECUTE ON FUNCTION conversation.read_turns(text, uuid, bigint, integer) TO selene_app, selene_readonly;
