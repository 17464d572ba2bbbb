-- os_core.event_from_json: turns a caller's JSON event into a ledger row, or raises ContractViolation (contract section 3).
-- Every append comes through here, so it checks as much as it can at once: JSON types, casts, then the rules of the event's type. Only
-- for an invalid event does os_core.event_violation look for the sentence. With p_unjudged the rules of the row's columns are left to
-- the CHECK, which is os_core.is_event_row too: then whoever ends without an insert asks it first. Thread, turn, status and reason stay
-- NULL where they are left out; a cancel's status is CANCELED.
CREATE OR REPLACE FUNCTION os_core.event_from_json(
  p_tenant_id text, p_event jsonb, p_event_index integer, p_unjudged boolean DEFAULT FALSE
)
RETURNS os_core.work_order_ledger
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _event os_core.work_order_ledger;
  _valid boolean := p_event @@ '$.type() == "object"
      && $.work_order_id.type() == "string" && $.event_type.type() == "string"
      && !($.work_order_status.type() != "string" && $.work_order_status.type() != "null")
      && !($.correlation_id.type() != "string" && $.correlation_id.type() != "null")
      && ($.turn_id.type() == "number" && $.turn_id >= 1 && $.turn_id <= 9223372036854775807 || $.turn_id.type() == "null" || !exists($.turn_id))
      && ($.reason_code.type() == "number" && $.reason_code >= 1 && $.reason_code <= 4294967295 || $.reason_code.type() == "null" || !exists($.reason_code))
      && !($.step_id.type() != "string" && $.step_id.type() != "null")
      && !($.step_input_hash.type() != "string" && $.step_input_hash.type() != "null")
      && !($.idempotency_key.type() != "string" && $.idempotency_key.type() != "null")
      && !($.payload.type() != "object")'
    AND p_event - '{work_order_id,correlation_id,turn_id,event_type,work_order_status,reason_code,step_id,step_input_hash,payload,idempotency_key,occurred_at,expected_seq,lease_token}'::text[] = '{}'
    AND os_core.is_uuid(p_event ->> 'correlation_id') IS NOT FALSE
    AND (p_event ->> 'turn_id' LIKE '%.%') IS NOT TRUE
    AND (p_event ->> 'reason_code' LIKE '%.%') IS NOT TRUE;
BEGIN
  IF p_event ? 'occurred_at' AND _valid THEN
    -- Not cast by jsonb_populate_record: see os_core.parse_rfc3339.
    _event.occurred_at := os_core.parse_rfc3339(p_event ->> 'occurred_at');
    IF _event.occurred_at IS NULL THEN
      _valid := p_event ->> 'occurred_at' IS NULL;
    ELSE
      p_event := p_event - 'occurred_at';
    END IF;
  END IF;
  IF p_event ?| '{expected_seq,lease_token}' AND _valid THEN
    _valid := p_event @@ '!($.lease_token.type() != "string" && $.lease_token.type() != "null")
        && !($.expected_seq.type() != "number" && $.expected_seq.type() != "null")'
      AND (p_event ->> 'expected_seq' IS NULL OR os_core.is_event_seq(p_event ->> 'expected_seq'))
      AND (p_event ->> 'lease_token' IS NULL OR os_core.is_lease_token(p_event ->> 'lease_token'));
  END IF;
  IF _valid THEN
    _event.payload := '{}';
    _event := pg_catalog.jsonb_populate_record(_event, p_event);
    _event.tenant_id := p_tenant_id;
    IF _event.event_type IN ('WORK_ORDER_CREATED', 'STATUS_CHANGED', 'WORK_ORDER_CANCELED') THEN
      IF _event.event_type = 'WORK_ORDER_CREATED' THEN
        _valid := _event.correlation_id IS NOT NULL AND _event.turn_id IS NOT NULL AND _event.reason_code IS NOT NULL
          AND COALESCE(_event.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED'), FALSE);
      ELSIF _event.event_type = 'STATUS_CHANGED' THEN
        _valid := _event.work_order_status IS NOT NULL
          AND (_event.reason_code IS NOT NULL OR _event.work_order_status <> 'CANCELED');
      ELSE
        _event.work_order_status := COALESCE(_event.work_order_status, 'CANCELED');
        _valid := _event.work_order_status = 'CANCELED' AND _event.reason_code IS NOT NULL;
      END IF;
    END IF;
    IF _valid AND os_core.payload_violation(_event.event_type, _event.payload) IS NULL THEN
      IF p_unjudged THEN
        RETURN _event;
      ELSIF os_core.is_event_row(_event) IS NOT FALSE THEN
        RETURN _event;
      END IF;
    END IF;
  END IF;
  PERFORM os_core.refuse_contract(
    p_event_index, COALESCE(os_core.event_violation(p_event), 'event: breaks the contract')
  );
  RETURN NULL;
END;
$$;
