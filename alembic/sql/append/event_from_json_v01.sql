-- os_core.event_from_json: turns a caller's JSON event into a ledger row, or raises ContractViolation (contract section 3).
-- Every append comes through here, so it checks as much as it can at once: JSON types, casts, then os_core.is_event_row.
-- Only for an invalid event does os_core.event_violation look for the sentence.
CREATE OR REPLACE FUNCTION os_core.event_from_json(p_tenant_id text, p_event jsonb, p_event_index integer)
RETURNS os_core.work_order_ledger
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _event os_core.work_order_ledger;
BEGIN
  IF pg_catalog.jsonb_typeof(p_event) = 'object'
    AND p_event - '{work_order_id,correlation_id,turn_id,event_type,work_order_status,reason_code,step_id,step_input_hash,payload,idempotency_key,occurred_at,expected_seq,lease_token}'::text[] = '{}'
    AND p_event @@ '$.work_order_id.type() == "string" && $.event_type.type() == "string"
      && $.work_order_status.type() == "string" && $.correlation_id.type() == "string"
      && $.turn_id.type() == "number" && $.turn_id >= 1 && $.turn_id <= 9223372036854775807
      && $.reason_code.type() == "number" && $.reason_code >= 1 && $.reason_code <= 4294967295
      && !($.step_id.type() != "string" && $.step_id.type() != "null")
      && !($.step_input_hash.type() != "string" && $.step_input_hash.type() != "null")
      && !($.idempotency_key.type() != "string" && $.idempotency_key.type() != "null")
      && !($.payload.type() != "object")
      && !($.lease_token.type() != "string" && $.lease_token.type() != "null")
      && !($.occurred_at.type() != "string" && $.occurred_at.type() != "null")
      && !($.expected_seq.type() != "number" && $.expected_seq.type() != "null")'
    AND os_core.is_uuid(p_event ->> 'correlation_id')
    AND p_event ->> 'turn_id' NOT LIKE '%.%'
    AND p_event ->> 'reason_code' NOT LIKE '%.%'
    AND (p_event ->> 'expected_seq' IS NULL OR os_core.is_event_seq(p_event ->> 'expected_seq'))
    AND (p_event ->> 'lease_token' IS NULL OR os_core.is_lease_token(p_event ->> 'lease_token'))
  THEN
    _event.payload := '{}';
    IF p_event ->> 'occurred_at' IS NOT NULL THEN
      -- Not cast by jsonb_populate_record: see os_core.parse_rfc3339.
      _event.occurred_at := os_core.parse_rfc3339(p_event ->> 'occurred_at');
      IF _event.occurred_at IS NULL THEN
        PERFORM os_core.refuse_contract(p_event_index, os_core.event_violation(p_event));
      END IF;
      p_event := p_event - 'occurred_at';
    END IF;
    _event := pg_catalog.jsonb_populate_record(_event, p_event);
    _event.tenant_id := p_tenant_id;
    IF os_core.is_event_row(
        p_tenant_id, _event.work_order_id, NULL, _event.turn_id, _event.event_type, _event.work_order_status, _event.reason_code,
        _event.step_id, _event.step_input_hash, NULL, NULL, NULL, _event.payload, _event.idempotency_key, _event.occurred_at, NULL, NULL
      ) IS NOT FALSE
      AND _event.event_type NOT LIKE 'LEASE%'
      AND (_event.event_type <> 'WORK_ORDER_CREATED' OR _event.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED'))
      AND (_event.event_type <> 'WORK_ORDER_CANCELED' OR _event.work_order_status = 'CANCELED')
      AND os_core.payload_violation(_event.event_type, _event.payload) IS NULL
    THEN
      RETURN _event;
    END IF;
  END IF;
  PERFORM os_core.refuse_contract(
    p_event_index, COALESCE(os_core.event_violation(p_event), 'event: breaks the contract')
  );
  RETURN NULL;
END;
$$;
