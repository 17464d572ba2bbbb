-- os_core.append_work_order_event: does the seven steps of contract section 4 for one event of a caller or of our own functions.
-- It sets id, seq, created_at and event_hash. What p_event leaves out of thread, turn, status and reason is the order's; all other
-- columns come from p_event. Idempotency is decided at step 2, by what was given.
CREATE OR REPLACE FUNCTION os_core.append_work_order_event(
  p_event os_core.work_order_ledger,
  p_expected_seq bigint,
  p_lease_token text,
  OUT work_order_event_id bigint,
  OUT work_order_seq bigint,
  OUT replayed boolean,
  OUT created_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
AS $$
DECLARE
  _prior os_core.work_order_ledger;
  _given os_core.work_order_ledger;
  _state os_core.work_orders_current;
  _next os_core.work_orders_current;
  _refusal text;
  _bound text;
  _lost boolean;
BEGIN
  LOOP
    -- Step 1: lock the row, take a number after that.
    -- As one value: a list of thirty columns costs more.
    _state := current
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_event.tenant_id AND current.work_order_id = p_event.work_order_id
    FOR NO KEY UPDATE;

    -- Steps 3 to 6. A refused event may still be a replay, so step 2 comes before anything is raised.
    p_event.created_at := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
    _refusal := os_core.transition_refusal(
      _state.last_seq, _state.work_order_status, p_event.event_type, p_event.work_order_status,
      p_event.payload, p_expected_seq, NULL
    );
    IF _refusal IS NULL AND (
      p_event.correlation_id IS NULL OR p_event.turn_id IS NULL OR p_event.work_order_status IS NULL OR p_event.reason_code IS NULL
    ) THEN
      _given := p_event;
      p_event := os_core.event_completed(_state, p_event);
    END IF;
    IF _refusal IS NULL AND (p_lease_token IS NOT NULL OR _state.lease_expires_at IS NOT NULL) THEN
      _refusal := os_core.lease_refusal(_state, p_event, p_lease_token);
    END IF;
    IF _refusal IS NULL AND (
      _state.external_approval_pending
      OR p_event.event_type IN ('FIELD_PROMPTED', 'EXTERNAL_APPROVAL_WAIT_NOTIFIED', 'EXTERNAL_APPROVAL_RESOLVED')
    ) THEN
      _refusal := os_core.continuity_refusal(_state, p_event);
    END IF;

    -- Step 7. A new order's conflict means that another transaction has created it.
    IF _refusal IS NULL THEN
      -- The feed judges ids by xids, so the xid comes before the id. An order that is there gave one with its lock. An IF costs more.
      p_event.work_order_event_id := CASE
        WHEN _state.last_seq IS NULL AND pg_catalog.pg_current_xact_id() IS NULL THEN NULL
        ELSE pg_catalog.nextval('os_core.work_order_ledger_work_order_event_id_seq')
      END;
      IF p_event.work_order_event_id <= _state.last_event_id THEN
        -- Each node gives ids of a range of its own.
        IF p_event.work_order_event_id >> 48 = _state.last_event_id >> 48 THEN
          PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
        END IF;
      END IF;
      p_event.work_order_seq := COALESCE(_state.last_seq, 0) + 1;
      _next := os_core.apply_work_order_event(_state, p_event);
      IF p_event.event_type LIKE ANY ('{FIELD%,WORK_ORDER_CREATED}') THEN
        _bound := os_core.exceeded_bound(
          _next.fields_json, _next.asked_fields_json, _next.resolved_fields_json,
          _next.conflicts_json, _next.prompt_dedupe_keys_json
        );
      END IF;
      IF _state.last_seq IS NULL THEN
        p_event.event_hash := os_core.event_hash(NULL, p_event);
        IF _bound IS NULL THEN
          INSERT INTO os_core.work_order_ledger (
            work_order_event_id, tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type,
            work_order_status, reason_code, step_id, step_input_hash, lease_owner_id, lease_token_hash, lease_expires_at,
            payload, idempotency_key, occurred_at, created_at, event_hash
          )
          VALUES (
            p_event.work_order_event_id, p_event.tenant_id, p_event.work_order_id, p_event.work_order_seq,
            p_event.correlation_id, p_event.turn_id, p_event.event_type, p_event.work_order_status, p_event.reason_code,
            p_event.step_id, p_event.step_input_hash, p_event.lease_owner_id, p_event.lease_token_hash,
            p_event.lease_expires_at, p_event.payload, p_event.idempotency_key, p_event.occurred_at, p_event.created_at,
            p_event.event_hash
          )
          ON CONFLICT DO NOTHING;
          EXIT WHEN FOUND;
        END IF;
      ELSE
        -- The order's newest event must be the one that the row shows, and the key must be new. This is asked under the lock, so
        -- no other transaction can write either meanwhile. ON CONFLICT would ask for as much after all else, and write more WAL.
        p_event.event_hash := CASE
          WHEN ledger.work_order_seq = _state.last_seq AND ledger.work_order_event_id = _state.last_event_id
            THEN os_core.event_hash(ledger.event_hash, p_event)
        END
        FROM os_core.work_order_ledger AS ledger
        WHERE ledger.tenant_id = p_event.tenant_id
          AND ledger.work_order_id = p_event.work_order_id
          AND ledger.work_order_seq >= _state.last_seq
          AND NOT EXISTS (
            SELECT FROM os_core.work_order_ledger AS used
            WHERE used.tenant_id = p_event.tenant_id
              AND used.work_order_id = p_event.work_order_id
              AND used.idempotency_key = p_event.idempotency_key
          )
        ORDER BY ledger.work_order_seq DESC
        LIMIT 1;
        IF _bound IS NULL AND p_event.event_hash IS NOT NULL THEN
          INSERT INTO os_core.work_order_ledger (
            work_order_event_id, tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type,
            work_order_status, reason_code, step_id, step_input_hash, lease_owner_id, lease_token_hash, lease_expires_at,
            payload, idempotency_key, occurred_at, created_at, event_hash
          )
          VALUES (
            p_event.work_order_event_id, p_event.tenant_id, p_event.work_order_id, p_event.work_order_seq,
            p_event.correlation_id, p_event.turn_id, p_event.event_type, p_event.work_order_status, p_event.reason_code,
            p_event.step_id, p_event.step_input_hash, p_event.lease_owner_id, p_event.lease_token_hash,
            p_event.lease_expires_at, p_event.payload, p_event.idempotency_key, p_event.occurred_at, p_event.created_at,
            p_event.event_hash
          );
          EXIT;
        END IF;
      END IF;
    END IF;

    -- Step 2, idempotency: a used key returns the original, or refuses other content.
    IF p_event.idempotency_key IS NOT NULL AND _state.last_seq IS NOT NULL THEN
      _prior := ledger
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_event.tenant_id
        AND ledger.work_order_id = p_event.work_order_id
        AND ledger.idempotency_key = p_event.idempotency_key;
      IF _prior.work_order_event_id IS NOT NULL AND os_core.same_content(_prior, COALESCE(_given, p_event)) THEN
        work_order_event_id := _prior.work_order_event_id;
        work_order_seq := _prior.work_order_seq;
        replayed := TRUE;
        created_at := _prior.created_at;
        RETURN;
      END IF;
    END IF;

    -- No row was written, so its CHECK has judged nothing; what breaks the contract is told before anything else. A replay is
    -- judged already: its content is that of a row, and its time was read.
    IF os_core.is_event_row(p_event) IS FALSE THEN
      PERFORM os_core.refuse_contract(0, 'event: breaks the contract');
    END IF;
    IF _prior.work_order_event_id IS NOT NULL THEN
      PERFORM os_core.refuse_replay(0, p_event, _prior.work_order_event_id);
    END IF;
    IF _refusal IS NOT NULL THEN
      PERFORM os_core.refuse_event(_refusal, 0, p_event, _state, p_expected_seq);
    ELSIF _bound IS NOT NULL THEN
      PERFORM os_core.refuse_bound(p_event.work_order_id, _bound, 0);
    ELSIF NOT EXISTS (
      SELECT FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_event.tenant_id AND ledger.work_order_id = p_event.work_order_id
    ) THEN
      PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
    ELSIF _lost THEN
      -- Looked at twice: a distributed engine may lose a lock with a part of the table that moves (there, the profile's INSERT
      -- notices it by ON CONFLICT, too). So only a row that is missing, or behind or ahead of its ledger, leads here.
      PERFORM os_core.refuse_damaged(p_event.work_order_id);
    END IF;
    _lost := TRUE;
  END LOOP;

  IF _state.correlation_id = p_event.correlation_id THEN
    UPDATE os_core.work_orders_current AS current
    SET
      turn_id = _next.turn_id,
      work_order_status = _next.work_order_status,
      last_event_id = _next.last_event_id,
      last_seq = _next.last_seq,
      last_reason_code = _next.last_reason_code,
      last_updated_at = _next.last_updated_at,
      step_id = _next.step_id,
      step_input_hash = _next.step_input_hash,
      lease_owner_id = _next.lease_owner_id,
      lease_token_hash = _next.lease_token_hash,
      lease_expires_at = _next.lease_expires_at,
      fields_json = _next.fields_json,
      asked_fields_json = _next.asked_fields_json,
      resolved_fields_json = _next.resolved_fields_json,
      conflicts_json = _next.conflicts_json,
      prompt_dedupe_keys_json = _next.prompt_dedupe_keys_json,
      external_approval_pending = _next.external_approval_pending,
      external_approval_request_id = _next.external_approval_request_id,
      external_approval_target_user_id = _next.external_approval_target_user_id,
      external_approval_expires_at = _next.external_approval_expires_at,
      external_approval_notices = _next.external_approval_notices,
      last_state_change_seq = _next.last_state_change_seq,
      updated_bucket = _next.updated_bucket,
      queued_at = _next.queued_at,
      steps_due_at = _next.steps_due_at
    WHERE current.tenant_id = p_event.tenant_id
      AND current.work_order_id = p_event.work_order_id
      AND current.last_seq = _state.last_seq;
    IF NOT FOUND THEN
      PERFORM os_core.refuse('SL006', 'a projection row changed under its lock', '{}');
    END IF;
  ELSE
    IF _state.last_seq IS NULL THEN
      -- VALUES, not SELECT, and the tenant as a value: so FOUND is to be relied on in an engine that distributes, too.
      -- (_next) is one value: a list of thirty costs more.
      INSERT INTO os_core.work_orders_current (
        work_order_id, tenant_id, correlation_id, turn_id, work_order_status, last_event_id, last_seq, last_reason_code,
        last_updated_at, created_at, requester_user_id, step_id, step_input_hash, lease_owner_id, lease_token_hash,
        lease_expires_at, fields_json, asked_fields_json, resolved_fields_json, conflicts_json, prompt_dedupe_keys_json,
        external_approval_pending, external_approval_request_id, external_approval_target_user_id,
        external_approval_expires_at, external_approval_notices, last_state_change_seq, updated_bucket, queued_at,
        steps_due_at
      )
      VALUES (
        (_next).work_order_id, p_event.tenant_id, (_next).correlation_id, (_next).turn_id, (_next).work_order_status,
        (_next).last_event_id, (_next).last_seq, (_next).last_reason_code, (_next).last_updated_at, (_next).created_at,
        (_next).requester_user_id, (_next).step_id, (_next).step_input_hash, (_next).lease_owner_id,
        (_next).lease_token_hash, (_next).lease_expires_at, (_next).fields_json, (_next).asked_fields_json,
        (_next).resolved_fields_json, (_next).conflicts_json, (_next).prompt_dedupe_keys_json,
        (_next).external_approval_pending, (_next).external_approval_request_id,
        (_next).external_approval_target_user_id, (_next).external_approval_expires_at,
        (_next).external_approval_notices, (_next).last_state_change_seq, (_next).updated_bucket, (_next).queued_at,
        (_next).steps_due_at
      )
      ON CONFLICT DO NOTHING;
    END IF;
    IF _state.last_seq IS NOT NULL OR NOT FOUND THEN
      -- A new thread, or a new order whose id or thread is taken: os_core.write_projection finds out by whom.
      PERFORM os_core.write_projection(ARRAY[_next], ARRAY[_state.last_seq], ARRAY[TRUE]);
    END IF;
  END IF;
  work_order_event_id := p_event.work_order_event_id;
  work_order_seq := p_event.work_order_seq;
  replayed := FALSE;
  created_at := p_event.created_at;
END;
$$;
