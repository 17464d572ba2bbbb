-- os_core.refuse_event: raises the error for an SQLSTATE of steps 3 to 6 (contract section 4), with the facts that callers need.
CREATE OR REPLACE FUNCTION os_core.refuse_event(
  p_sqlstate text,
  p_event_index integer,
  p_event os_core.work_order_ledger,
  p_state os_core.work_orders_current,
  p_expected_seq bigint
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _last_seq constant bigint := COALESCE(p_state.last_seq, 0);
  _message text;
  _facts jsonb := pg_catalog.jsonb_build_object('work_order_id', p_event.work_order_id, 'event_index', p_event_index);
BEGIN
  -- An order that seems to be missing may have lost its projection row.
  IF p_state.last_seq IS NULL
    AND EXISTS (
      SELECT FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_event.tenant_id AND ledger.work_order_id = p_event.work_order_id
    )
    AND NOT EXISTS (
      SELECT FROM os_core.work_orders_current AS current
      WHERE current.tenant_id = p_event.tenant_id AND current.work_order_id = p_event.work_order_id
    )
  THEN
    PERFORM os_core.refuse_damaged(p_event.work_order_id);
  END IF;
  CASE p_sqlstate
    WHEN 'SL004' THEN
      _message := CASE
        WHEN p_event.event_type IN ('WORK_ORDER_CANCELED', 'STATUS_CHANGED')
          THEN pg_catalog.format('work order %s is %s and cannot be canceled', p_event.work_order_id, p_state.work_order_status)
        ELSE pg_catalog.format('%s cannot cancel: only WORK_ORDER_CANCELED and STATUS_CHANGED can', p_event.event_type)
      END;
      _facts := _facts || pg_catalog.jsonb_build_object('work_order_status', p_state.work_order_status);
    WHEN 'SL006' THEN
      _message := pg_catalog.format(
        'work order %s stands at seq %s, not at the expected %s', p_event.work_order_id, _last_seq, p_expected_seq
      );
      _facts := _facts || pg_catalog.jsonb_build_object('expected_seq', p_expected_seq, 'last_seq', _last_seq);
    WHEN 'SL007' THEN
      _message := CASE
        WHEN p_event.event_type = 'WORK_ORDER_CREATED'
          THEN pg_catalog.format('work order %s exists already', p_event.work_order_id)
        WHEN os_core.is_terminal(p_state.work_order_status) AND p_event.work_order_status IS DISTINCT FROM 'CANCELED'
          THEN pg_catalog.format('work order %s is %s: nothing follows', p_event.work_order_id, p_state.work_order_status)
        WHEN p_event.event_type LIKE 'EXTERNAL_APPROVAL%'
          AND p_state.external_approval_request_id = p_event.payload ->> 'request_id'
          THEN pg_catalog.format('approval request %s has not expired', p_event.payload ->> 'request_id')
        WHEN p_event.event_type LIKE 'EXTERNAL_APPROVAL%'
          THEN pg_catalog.format(
            'approval request %s is not pending on work order %s', p_event.payload ->> 'request_id', p_event.work_order_id
          )
        ELSE pg_catalog.format(
          'work order %s is %s, not the previous_status %s',
          p_event.work_order_id, p_state.work_order_status, p_event.payload ->> 'previous_status'
        )
      END;
      _facts := _facts || pg_catalog.jsonb_build_object(
        'work_order_status', p_state.work_order_status, 'event_type', p_event.event_type
      );
    WHEN 'SL008' THEN
      _message := CASE
        WHEN p_event.event_type = 'EXTERNAL_APPROVAL_WAIT_NOTIFIED'
          THEN pg_catalog.format('the wait for approval request %s was told already', p_event.payload ->> 'request_id')
        ELSE pg_catalog.format('field %s was asked or answered already', p_event.payload ->> 'field_key')
      END;
      _facts := _facts || pg_catalog.jsonb_build_object(
        'field_key', p_event.payload ->> 'field_key', 'request_id', p_event.payload ->> 'request_id'
      );
    WHEN 'SL009' THEN
      _message := pg_catalog.format(
        'work order %s waits for approval request %s: %s with status %s is refused',
        p_event.work_order_id, p_state.external_approval_request_id, p_event.event_type, p_event.work_order_status
      );
      _facts := _facts || pg_catalog.jsonb_build_object('request_id', p_state.external_approval_request_id);
    WHEN 'SL010' THEN
      _message := pg_catalog.format(
        '%s holds the lease on work order %s until %s',
        p_state.lease_owner_id, p_event.work_order_id, os_core.json_time(p_state.lease_expires_at)
      );
      _facts := _facts || pg_catalog.jsonb_build_object(
        'lease_owner_id', p_state.lease_owner_id, 'lease_expires_at', os_core.json_time(p_state.lease_expires_at)
      );
    WHEN 'SL011' THEN
      _message := pg_catalog.format('the lease token is not that of an active lease on work order %s', p_event.work_order_id);
    WHEN 'SL016' THEN
      _message := pg_catalog.format('work order %s does not exist', p_event.work_order_id);
  END CASE;
  PERFORM os_core.refuse(p_sqlstate, _message, _facts);
END;
$$;
