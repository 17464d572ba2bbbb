-- os_core.event_violation: returns the first rule that a JSON event breaks, as 'field: rule', or NULL (contract sections 2 and 3).
-- It checks the known keys in the order below, then unknown keys, then what the event type requires of envelope and payload.
-- Python uses the same order and the same sentences.
CREATE OR REPLACE FUNCTION os_core.event_violation(p_event jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _required text[] := '{work_order_id,event_type}';
  _keys constant text[] := '{work_order_id,correlation_id,turn_id,event_type,work_order_status,reason_code,payload,step_id,step_input_hash,idempotency_key,occurred_at,expected_seq,lease_token}';
  _event_type constant text := p_event ->> 'event_type';
  _key text;
  _value jsonb;
  _text text;
  _number numeric;
  _violation text;
BEGIN
  IF pg_catalog.jsonb_typeof(p_event) <> 'object' THEN
    RETURN 'event: must be an object';
  END IF;
  FOREACH _key IN ARRAY _keys LOOP
    _value := p_event -> _key;
    IF _value IS NULL AND _key = ANY(_required) THEN
      RETURN _key || ': is required';
    END IF;
    CONTINUE WHEN _value IS NULL OR _value = 'null' AND _key <> ALL(_required) AND _key <> 'payload';
    -- '' breaks every rule for text and NULL every rule for numbers, so a value of another type gets the same sentence.
    _text := CASE WHEN pg_catalog.jsonb_typeof(_value) = 'string' THEN p_event ->> _key ELSE '' END;
    _number := CASE WHEN _value::text ~ '^-?[0-9]+$' THEN _value::text::numeric END;
    CASE _key
      WHEN 'work_order_id' THEN
        _violation := os_core.identifier_violation(_key, _text, 128);
      WHEN 'correlation_id' THEN
        IF NOT os_core.is_uuid(_text) THEN
          _violation := 'correlation_id: must be a UUID as 8-4-4-4-12 hexadecimal digits';
        END IF;
      WHEN 'turn_id' THEN
        _violation := os_core.integer_violation(_key, _number, 1, 9223372036854775807);
      WHEN 'event_type' THEN
        IF NOT os_core.is_event_type(_text) OR _text LIKE 'LEASE%' THEN
          _violation := 'event_type: must be one of WORK_ORDER_CREATED, FIELD_SET, FIELD_PROMPTED, FIELD_CONFLICT_DETECTED, '
            'FIELD_CONFLICT_RESOLVED, STATUS_CHANGED, STEP_STARTED, STEP_FINISHED, STEP_FAILED, STEP_RETRY_SCHEDULED, '
            'EXTERNAL_APPROVAL_REQUESTED, EXTERNAL_APPROVAL_WAIT_NOTIFIED, EXTERNAL_APPROVAL_RESOLVED, WORK_ORDER_CANCELED; '
            'LEASE_* are written by the lease functions only';
        END IF;
      WHEN 'work_order_status' THEN
        IF NOT os_core.is_work_order_status(_text) THEN
          _violation := 'work_order_status: must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING, DONE, REFUSED, FAILED, CANCELED';
        END IF;
      WHEN 'reason_code' THEN
        _violation := os_core.integer_violation(_key, _number, 1, 4294967295);
      WHEN 'payload' THEN
        IF pg_catalog.jsonb_typeof(_value) <> 'object' THEN
          _violation := 'payload: must be an object';
        ELSIF NOT os_core.is_payload(_value) THEN
          _violation := COALESCE(os_core.payload_size_violation(_value), os_core.number_violation(_key, _value));
        END IF;
      WHEN 'step_id' THEN
        _violation := os_core.identifier_violation(_key, _text, 96);
      WHEN 'step_input_hash', 'idempotency_key' THEN
        _violation := os_core.label_violation(_key, _text, 128);
      WHEN 'occurred_at' THEN
        _violation := os_core.time_violation(_key, _text);
      WHEN 'expected_seq' THEN
        _violation := os_core.integer_violation(_key, _number, 0, 9223372036854775807);
      WHEN 'lease_token' THEN
        _violation := os_core.lease_token_violation(_key, _text);
    END CASE;
    IF _violation IS NOT NULL THEN
      RETURN _violation;
    END IF;
  END LOOP;
  IF p_event - _keys <> '{}' THEN
    -- The first in jsonb's order: by length, then by bytes.
    RETURN pg_catalog.concat(os_core.key_shown(unknown.key), ': is not a key of an event')
    FROM pg_catalog.jsonb_object_keys(p_event - _keys) AS unknown (key)
    LIMIT 1;
  END IF;
  -- What may be left out of other events.
  _required := CASE _event_type
    WHEN 'WORK_ORDER_CREATED' THEN '{correlation_id,turn_id,work_order_status,reason_code}'
    WHEN 'STATUS_CHANGED' THEN '{work_order_status}'
    WHEN 'WORK_ORDER_CANCELED' THEN '{reason_code}'
    ELSE '{}'
  END;
  FOREACH _key IN ARRAY _required LOOP
    IF p_event ->> _key IS NULL THEN
      RETURN pg_catalog.concat(_key, ': is required by ', _event_type);
    END IF;
  END LOOP;
  RETURN CASE
    WHEN _event_type = 'WORK_ORDER_CREATED' AND os_core.is_terminal(p_event ->> 'work_order_status')
      THEN 'work_order_status: must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING in WORK_ORDER_CREATED'
    WHEN _event_type = 'WORK_ORDER_CANCELED' AND p_event ->> 'work_order_status' <> 'CANCELED'
      THEN 'work_order_status: must be CANCELED in WORK_ORDER_CANCELED'
    WHEN _event_type = 'STATUS_CHANGED' AND p_event ->> 'work_order_status' = 'CANCELED' AND p_event ->> 'reason_code' IS NULL
      THEN 'reason_code: is required by STATUS_CHANGED to CANCELED'
    ELSE COALESCE(
      os_core.payload_violation(_event_type, COALESCE(p_event -> 'payload', '{}')),
      CASE WHEN (p_event -> 'payload')::text LIKE '%"$%' THEN os_core.personal_violation(p_event -> 'payload') END
    )
  END;
END;
$$;
