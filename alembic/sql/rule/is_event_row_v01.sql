-- os_core.is_event_row: the CHECK of os_core.work_order_ledger (contract sections 2 and 3).
-- One function instead of a CHECK for each column: every statement parses and plans each CHECK again, which cost more than the rest
-- of an insert. A single append has no other judge of these rules, so the row that breaks one is refused here, in words. A row that is
-- not to be written yet has no created_at: then the answer is only FALSE.
-- Every function that an expression names costs something in every transaction, called or not. So the rules of columns that are
-- mostly NULL have an expression of their own. It takes the row, and not seventeen columns: each would be read and planned anew by
-- every statement. A record, so that it is there before the table, and a copy of the table can have the CHECK. No SET clause: see
-- os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_event_row(p_event record)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _holds boolean := os_core.is_identifier(p_event.tenant_id, 64)
    AND os_core.is_identifier(p_event.work_order_id, 128)
    AND LEAST(p_event.work_order_seq, p_event.turn_id, p_event.reason_code) OPERATOR(pg_catalog.>=) 1
    AND os_core.is_event_type(p_event.event_type)
    AND os_core.is_work_order_status(p_event.work_order_status)
    AND p_event.reason_code OPERATOR(pg_catalog.<=) 4294967295
    AND os_core.is_payload(p_event.payload)
    AND (p_event.idempotency_key IS NULL OR os_core.is_label(p_event.idempotency_key, 128))
    AND (p_event.occurred_at IS NULL OR os_core.is_portable_time(p_event.occurred_at))
    AND os_core.is_portable_time(p_event.created_at)
    AND pg_catalog.octet_length(p_event.event_hash) OPERATOR(pg_catalog.=) 32;
  _violation pg_catalog.text;
BEGIN
  IF _holds IS NOT FALSE AND (
    p_event.step_id IS NOT NULL
    OR p_event.step_input_hash IS NOT NULL
    OR p_event.lease_owner_id IS NOT NULL
    OR p_event.lease_token_hash IS NOT NULL
    OR p_event.lease_expires_at IS NOT NULL
  ) THEN
    _holds := (p_event.step_id IS NULL OR os_core.is_identifier(p_event.step_id, 96))
      AND (p_event.step_input_hash IS NULL OR os_core.is_label(p_event.step_input_hash, 128))
      AND (p_event.lease_owner_id IS NULL OR os_core.is_identifier(p_event.lease_owner_id, 128))
      AND (p_event.lease_token_hash IS NULL OR os_core.is_label(p_event.lease_token_hash, 128))
      AND (p_event.lease_expires_at IS NULL OR os_core.is_portable_time(p_event.lease_expires_at));
  END IF;
  IF _holds IS FALSE AND p_event.created_at IS NOT NULL AND NOT pg_catalog.starts_with(p_event.event_type, 'LEASE_') THEN
    -- Of the columns alone: STEP_STARTED stands for every known type, because it requires nothing else.
    _violation := os_core.event_violation(
      pg_catalog.jsonb_strip_nulls(
        pg_catalog.jsonb_build_object(
          'work_order_id', p_event.work_order_id,
          'turn_id', p_event.turn_id,
          'event_type', CASE WHEN os_core.is_event_type(p_event.event_type) THEN 'STEP_STARTED' ELSE p_event.event_type END,
          'work_order_status', p_event.work_order_status,
          'reason_code', p_event.reason_code,
          'step_id', p_event.step_id,
          'step_input_hash', p_event.step_input_hash,
          'idempotency_key', p_event.idempotency_key,
          'occurred_at', os_core.json_time(p_event.occurred_at)
        )
      ) OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('payload', CASE WHEN os_core.is_payload(p_event.payload) THEN '{}' ELSE p_event.payload END)
    );
    IF _violation IS NOT NULL THEN
      PERFORM os_core.refuse_contract(0, _violation);
    END IF;
  END IF;
  RETURN _holds;
END;
$$;
