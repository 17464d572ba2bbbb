-- os_core.event_hash: makes the hash of an event, in format 1 (contract section 17). Both lanes and os_core.verify_chain call it.
-- It is the SHA-256 of the hash before (32 zero bytes for a first event) and a JSON array of the format's number and the columns. No
-- setting changes it: JSON writes times in ISO 8601 whatever DateStyle says, and an interval of zero is UTC whatever TimeZone says.
-- A later column makes a later format. No SET clause, which costs more than the array: every name in it is qualified.
CREATE OR REPLACE FUNCTION os_core.event_hash(p_before bytea, p_event os_core.work_order_ledger)
RETURNS bytea
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.sha256(pg_catalog.byteacat(
    COALESCE(p_before, E'\\x0000000000000000000000000000000000000000000000000000000000000000'::pg_catalog.bytea),
    pg_catalog.convert_to(pg_catalog.json_build_array(
      1,
      p_event.work_order_event_id,
      p_event.tenant_id,
      p_event.work_order_id,
      p_event.work_order_seq,
      p_event.correlation_id,
      p_event.turn_id,
      p_event.event_type,
      p_event.work_order_status,
      p_event.reason_code,
      p_event.step_id,
      p_event.step_input_hash,
      p_event.lease_owner_id,
      p_event.lease_token_hash,
      pg_catalog.timezone('0'::pg_catalog.interval, p_event.lease_expires_at),
      p_event.payload,
      p_event.idempotency_key,
      pg_catalog.timezone('0'::pg_catalog.interval, p_event.occurred_at),
      pg_catalog.timezone('0'::pg_catalog.interval, p_event.created_at)
    )::pg_catalog.text, 'UTF8')
  ));
END;
$$;
