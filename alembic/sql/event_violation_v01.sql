-- os_core.event_violation: the first rule of the event contract (SPEC.md sections 2 and 3) that a JSON event breaks, as
-- 'field: rule', or NULL. A JSON value's own text tells its type and content in one look: a string has quotes, a number none.
CREATE OR REPLACE FUNCTION os_core.event_violation(p_event jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _unknown jsonb;
BEGIN
  IF pg_catalog.jsonb_typeof(p_event) <> 'object' THEN
    RETURN 'event: must be an object';
  END IF;
  _unknown := p_event - '{work_order_id,correlation_id,turn_id,event_type,work_order_status,reason_code,step_id,step_input_hash,payload,idempotency_key,occurred_at,expected_seq,lease_token}'::text[];
  IF _unknown <> '{}' THEN
    RETURN pg_catalog.concat(pg_catalog.left(pg_catalog.min(key.name), 60), ': is not a column that a caller may give')
    FROM pg_catalog.jsonb_object_keys(_unknown) AS key (name);
  END IF;
  RETURN CASE
    WHEN ((p_event -> 'work_order_id')::text ~ '^"' AND os_core.is_identifier(p_event ->> 'work_order_id', 128)) IS NOT TRUE
      THEN 'work_order_id: must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN ((p_event -> 'correlation_id')::text ~ '^"' AND os_core.is_uuid(p_event ->> 'correlation_id')) IS NOT TRUE
      THEN 'correlation_id: must be a UUID written 8-4-4-4-12'
    WHEN ((p_event -> 'turn_id')::text ~ '^[1-9][0-9]*$' AND (p_event ->> 'turn_id')::numeric <= 9223372036854775807) IS NOT TRUE
      THEN 'turn_id: must be an integer from 1 to 9223372036854775807'
    WHEN ((p_event -> 'event_type')::text ~ '^"' AND os_core.is_event_type(p_event ->> 'event_type')) IS NOT TRUE
      THEN 'event_type: must be one of the event types of the contract'
    WHEN p_event ->> 'event_type' LIKE 'LEASE%'
      THEN 'event_type: LEASE_* events are written by the lease functions only'
    WHEN ((p_event -> 'work_order_status')::text ~ '^"' AND os_core.is_work_order_status(p_event ->> 'work_order_status')) IS NOT TRUE
      THEN 'work_order_status: must be one of DRAFT, CLARIFY, CONFIRM, EXECUTING, DONE, REFUSED, FAILED, CANCELED'
    WHEN ((p_event -> 'reason_code')::text ~ '^[1-9][0-9]*$' AND (p_event ->> 'reason_code')::numeric <= 4294967295) IS NOT TRUE
      THEN 'reason_code: must be an integer from 1 to 4294967295'
    WHEN p_event ->> 'step_id' IS NOT NULL
      AND NOT ((p_event -> 'step_id')::text ~ '^"' AND os_core.is_identifier(p_event ->> 'step_id', 96))
      THEN 'step_id: must be 1..96 ASCII letters, digits or ._:/@+-, starting with a letter or digit'
    WHEN p_event ->> 'step_input_hash' IS NOT NULL
      AND NOT ((p_event -> 'step_input_hash')::text ~ '^"' AND os_core.is_label(p_event ->> 'step_input_hash', 128))
      THEN 'step_input_hash: must be 1..128 characters without control characters or white space at the ends'
    WHEN p_event ->> 'idempotency_key' IS NOT NULL
      AND NOT ((p_event -> 'idempotency_key')::text ~ '^"' AND os_core.is_label(p_event ->> 'idempotency_key', 128))
      THEN 'idempotency_key: must be 1..128 characters without control characters or white space at the ends'
    WHEN p_event ->> 'occurred_at' IS NOT NULL
      AND NOT ((p_event -> 'occurred_at')::text ~ '^"' AND os_core.parse_rfc3339(p_event ->> 'occurred_at') IS NOT NULL)
      THEN 'occurred_at: must be a time with an offset as in RFC 3339, in the years 1 to 9999 of UTC'
    WHEN p_event ->> 'expected_seq' IS NOT NULL
      AND NOT os_core.is_event_seq((p_event -> 'expected_seq')::text)
      THEN 'expected_seq: must be an integer from 0 to 9223372036854775807'
    WHEN p_event ->> 'lease_token' IS NOT NULL
      AND NOT ((p_event -> 'lease_token')::text ~ '^"' AND os_core.is_lease_token(p_event ->> 'lease_token'))
      THEN 'lease_token: must be 16..128 printable ASCII characters without blanks'
    WHEN p_event ->> 'event_type' = 'WORK_ORDER_CREATED' AND p_event ->> 'work_order_status' IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED')
      THEN 'work_order_status: WORK_ORDER_CREATED needs a non-terminal status'
    WHEN p_event ->> 'event_type' = 'WORK_ORDER_CANCELED' AND p_event ->> 'work_order_status' <> 'CANCELED'
      THEN 'work_order_status: WORK_ORDER_CANCELED needs the status CANCELED'
    WHEN pg_catalog.jsonb_typeof(p_event -> 'payload') <> 'object'
      THEN 'payload: must be an object'
    WHEN pg_catalog.octet_length((p_event -> 'payload')::text) > 16384
      THEN 'payload: must be at most 16384 bytes as text'
    WHEN NOT os_core.is_payload(p_event -> 'payload')
      THEN 'payload: must nest at most 32 levels and hold finite numbers, integers within 64 bits'
    ELSE os_core.payload_violation(p_event ->> 'event_type', COALESCE(p_event -> 'payload', '{}'))
  END;
END;
$$;
