-- os_core.ask_field: locks the order, decides whether to ask the user for a field, and records the prompt, if any (contract section 6).
-- If several callers ask at once, one may. The key of a recorded prompt returns that prompt, with the decision that led to it. The
-- prompt has the order's thread and status, and its turn and reason if none are given.
CREATE OR REPLACE FUNCTION os_core.ask_field(
  p_tenant_id text,
  p_work_order_id text,
  p_required_fields text[],
  p_prefilled_fields text[] DEFAULT '{}',
  p_turn_id bigint DEFAULT NULL,
  p_reason_code bigint DEFAULT NULL,
  p_idempotency_key text DEFAULT NULL,
  OUT decision text,
  OUT field_key text,
  OUT prompt_dedupe_key text,
  OUT reason text,
  OUT work_order_event_id bigint,
  OUT work_order_seq bigint,
  OUT replayed boolean,
  OUT created_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _prefilled constant text[] := COALESCE(p_prefilled_fields, '{}');
  _violation text;
  _state os_core.work_orders_current;
  _event os_core.work_order_ledger;
  _prior os_core.work_order_ledger;
BEGIN
  _violation := COALESCE(
    os_core.identifier_violation('work_order_id', p_work_order_id, 128),
    os_core.field_keys_violation('required_fields', p_required_fields, 1, 64),
    os_core.field_keys_violation('prefilled_fields', _prefilled, 0, 4096),
    os_core.integer_violation('turn_id', p_turn_id, 1, 9223372036854775807, FALSE),
    os_core.integer_violation('reason_code', p_reason_code, 1, 4294967295, FALSE),
    os_core.label_violation('idempotency_key', p_idempotency_key, 128, FALSE)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  _state := os_core.lock_projection(p_tenant_id, p_work_order_id);
  _event.tenant_id := p_tenant_id;
  _event.work_order_id := p_work_order_id;
  _event.event_type := 'FIELD_PROMPTED';
  _event.turn_id := p_turn_id;
  _event.reason_code := p_reason_code;
  _event.idempotency_key := p_idempotency_key;

  IF p_idempotency_key IS NOT NULL THEN
    SELECT ledger.* INTO _prior
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_id = p_work_order_id
      AND ledger.idempotency_key = p_idempotency_key;
    IF FOUND THEN
      IF _prior.event_type <> 'FIELD_PROMPTED' THEN
        PERFORM os_core.refuse_replay(NULL, _event, _prior.work_order_event_id);
      END IF;
      _state := NULL;
      FOR _event IN
        SELECT ledger.*
        FROM os_core.work_order_ledger AS ledger
        WHERE ledger.tenant_id = p_tenant_id
          AND ledger.work_order_id = p_work_order_id
          AND ledger.work_order_seq < _prior.work_order_seq
        ORDER BY ledger.work_order_seq
      LOOP
        _state := os_core.apply_work_order_event(_state, _event);
      END LOOP;
      SELECT decided.* INTO decision, field_key, prompt_dedupe_key, reason
      FROM os_core.decide_prompt(_state, p_required_fields, _prefilled) AS decided;
      IF field_key IS DISTINCT FROM _prior.payload ->> 'field_key'
        OR prompt_dedupe_key IS DISTINCT FROM _prior.payload ->> 'prompt_dedupe_key'
      THEN
        -- The prompt was for other required fields, or from a caller with a policy of its own.
        decision := 'ASK';
        field_key := _prior.payload ->> 'field_key';
        prompt_dedupe_key := _prior.payload ->> 'prompt_dedupe_key';
        reason := CASE
          WHEN _state.conflicts_json -> field_key -> 'asked' = 'false' THEN 'POLICY_CONFLICT_REQUIRES_ONE_ASK'
          ELSE 'POLICY_NEXT_FIELD'
        END;
      END IF;
      work_order_event_id := _prior.work_order_event_id;
      work_order_seq := _prior.work_order_seq;
      replayed := TRUE;
      created_at := _prior.created_at;
      RETURN;
    END IF;
  END IF;

  SELECT decided.* INTO decision, field_key, prompt_dedupe_key, reason
  FROM os_core.decide_prompt(_state, p_required_fields, _prefilled) AS decided;
  IF field_key IS NOT NULL THEN
    _event.payload := pg_catalog.jsonb_build_object('field_key', field_key, 'prompt_dedupe_key', prompt_dedupe_key);
    SELECT appended.* INTO work_order_event_id, work_order_seq, replayed, created_at
    FROM os_core.append_work_order_event(_event, NULL, NULL) AS appended;
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.ask_field(text, text, text[], text[], bigint, bigint, text) TO selene_app;
