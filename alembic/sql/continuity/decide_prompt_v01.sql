-- os_core.decide_prompt: decides on at most one prompt: the first required field that may be asked (contract section 6).
-- Whether a field may be asked is for os_core.continuity_refusal to say. Python has a pure twin; random states are put to both.
CREATE OR REPLACE FUNCTION os_core.decide_prompt(
  p_state os_core.work_orders_current,
  p_required_fields text[],
  p_prefilled_fields text[],
  OUT decision text,
  OUT field_key text,
  OUT prompt_dedupe_key text,
  OUT reason text
)
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _event os_core.work_order_ledger;
  _key text;
  _dedupe_key text;
  _suppressed boolean := FALSE;
BEGIN
  IF p_state.external_approval_pending THEN
    decision := 'WAIT';
    reason := 'POLICY_APPROVAL_PENDING';
    RETURN;
  END IF;
  _event.event_type := 'FIELD_PROMPTED';
  FOREACH _key IN ARRAY p_required_fields LOOP
    CONTINUE WHEN _key = ANY(p_prefilled_fields)
      OR ((p_state.fields_json ? _key OR p_state.resolved_fields_json ? _key) AND NOT p_state.conflicts_json ? _key);
    _dedupe_key := pg_catalog.concat(_key, '#', COALESCE((p_state.asked_fields_json -> _key ->> 'attempts')::bigint, 0) + 1);
    _event.payload := pg_catalog.jsonb_build_object('field_key', _key, 'prompt_dedupe_key', _dedupe_key);
    IF os_core.continuity_refusal(p_state, _event) IS NULL THEN
      field_key := _key;
      prompt_dedupe_key := _dedupe_key;
      decision := CASE WHEN _suppressed AND NOT p_state.conflicts_json ? _key THEN 'ASK_DIFFERENT_FIELD' ELSE 'ASK' END;
      reason := CASE
        WHEN p_state.conflicts_json ? _key THEN 'POLICY_CONFLICT_REQUIRES_ONE_ASK'
        WHEN _suppressed THEN 'POLICY_ALREADY_ASKED'
        ELSE 'POLICY_NEXT_FIELD'
      END;
      RETURN;
    END IF;
    _suppressed := TRUE;
  END LOOP;
  decision := CASE WHEN _suppressed THEN 'STOP' ELSE 'SKIP' END;
  reason := CASE WHEN _suppressed THEN 'POLICY_ALREADY_ASKED' ELSE 'POLICY_FIELD_ALREADY_KNOWN' END;
END;
$$;
