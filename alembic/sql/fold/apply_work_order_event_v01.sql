-- os_core.apply_work_order_event: the fold: returns the state after one more event (contract sections 5 to 7).
-- p_state is NULL before the first event. Only this function says what an event does to the projection. It never refuses: events
-- that older rules accepted must still replay. It has no SET clause, which would cost a third of its speed, so every name in it
-- is qualified or in pg_catalog.
CREATE OR REPLACE FUNCTION os_core.apply_work_order_event(
  p_state os_core.work_orders_current, p_event os_core.work_order_ledger
)
RETURNS os_core.work_orders_current
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  -- NULL is no, here and in _resolves: a default would be an assignment in every call.
  _changed boolean;
  _resolves boolean;
  _key text;
  _value jsonb;
  _expires_at timestamptz;
BEGIN
  IF p_state.last_seq IS NULL THEN
    p_state.created_at := p_event.created_at;
    p_state.requester_user_id := p_event.payload ->> 'requester_user_id';
    p_state.fields_json := COALESCE(
      pg_catalog.jsonb_path_query_first(p_event.payload, 'strict $.fields ? (@.type() == "object")', '{}', TRUE), '{}'
    );
    p_state.asked_fields_json := '{}';
    p_state.resolved_fields_json := '{}';
    p_state.conflicts_json := '{}';
    p_state.prompt_dedupe_keys_json := '{}';
    p_state.external_approval_pending := FALSE;
    p_state.external_approval_notices := 0;
    p_state.queued_at := p_event.created_at;
    p_state.steps_due_at := p_event.created_at;
    _changed := TRUE;

  ELSIF p_event.event_type IN ('FIELD_SET', 'FIELD_CONFLICT_RESOLVED') THEN
    _key := p_event.payload ->> 'field_key';
    _value := p_event.payload -> 'value';
    IF _key IS NOT NULL AND _value IS NOT NULL THEN
      IF p_state.fields_json -> _key IS DISTINCT FROM _value THEN
        p_state.fields_json := p_state.fields_json || pg_catalog.jsonb_build_object(_key, _value);
        _changed := TRUE;
      END IF;
      _resolves := p_event.event_type = 'FIELD_CONFLICT_RESOLVED';
      IF _resolves THEN
        IF p_state.conflicts_json ? _key THEN
          p_state.conflicts_json := p_state.conflicts_json - _key;
          p_state.resolved_fields_json := p_state.resolved_fields_json - _key;
          _changed := TRUE;
        END IF;
      END IF;
      IF _resolves OR p_state.asked_fields_json ? _key THEN
        -- An equal value does not change the entry: it is not a state change.
        IF _changed OR p_state.resolved_fields_json -> _key -> 'value' IS DISTINCT FROM _value THEN
          p_state.resolved_fields_json := p_state.resolved_fields_json || pg_catalog.jsonb_build_object(
            _key,
            pg_catalog.jsonb_build_object(
              'value', _value, 'resolved_at', os_core.json_time(p_event.created_at), 'seq', p_event.work_order_seq
            )
          );
          _changed := _changed OR _resolves;
        END IF;
      END IF;
    END IF;

  ELSIF p_event.event_type IN ('STATUS_CHANGED', 'WORK_ORDER_CANCELED') THEN
    _changed := p_state.work_order_status IS DISTINCT FROM p_event.work_order_status;

  ELSIF pg_catalog.starts_with(p_event.event_type, 'EXTERNAL_') THEN
    IF p_event.event_type = 'EXTERNAL_APPROVAL_RESOLVED' THEN
      IF p_state.external_approval_pending
        AND p_state.external_approval_request_id IS NOT DISTINCT FROM p_event.payload ->> 'request_id'
      THEN
        p_state.external_approval_pending := FALSE;
        p_state.external_approval_request_id := NULL;
        p_state.external_approval_target_user_id := NULL;
        p_state.external_approval_expires_at := NULL;
        p_state.external_approval_notices := 0;
        _changed := TRUE;
      END IF;

    ELSIF p_event.event_type = 'EXTERNAL_APPROVAL_REQUESTED' THEN
      -- The same request again is not a state change. A request with a terminal status is dropped: nothing can resolve it.
      IF p_event.work_order_status NOT IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') THEN
        IF p_event.payload ? 'expires_at' THEN
          _expires_at := os_core.parse_rfc3339(p_event.payload ->> 'expires_at');
        END IF;
        _changed := TRUE;
        IF p_state.external_approval_pending THEN
          _changed := p_state.external_approval_notices <> 0
            OR p_state.external_approval_request_id IS DISTINCT FROM p_event.payload ->> 'request_id'
            OR p_state.external_approval_target_user_id IS DISTINCT FROM p_event.payload ->> 'target_user_id'
            OR p_state.external_approval_expires_at IS DISTINCT FROM _expires_at;
        END IF;
        p_state.external_approval_pending := TRUE;
        p_state.external_approval_request_id := p_event.payload ->> 'request_id';
        p_state.external_approval_target_user_id := p_event.payload ->> 'target_user_id';
        p_state.external_approval_expires_at := _expires_at;
        p_state.external_approval_notices := 0;
      END IF;

    ELSIF p_event.event_type = 'EXTERNAL_APPROVAL_WAIT_NOTIFIED' THEN
      IF p_state.external_approval_pending
        AND p_state.external_approval_request_id IS NOT DISTINCT FROM p_event.payload ->> 'request_id'
      THEN
        -- At most two notices, the second after the expiry. A first one after the expiry counts as both.
        p_state.external_approval_notices := CASE
          WHEN p_event.created_at >= p_state.external_approval_expires_at THEN 2
          ELSE LEAST(p_state.external_approval_notices + 1, 2)
        END;
      END IF;
    END IF;

  ELSIF p_event.event_type = 'FIELD_PROMPTED' THEN
    _key := p_event.payload ->> 'field_key';
    IF _key IS NOT NULL THEN
      p_state.asked_fields_json := p_state.asked_fields_json || pg_catalog.jsonb_build_object(
        _key,
        pg_catalog.jsonb_build_object(
          'asked_at', os_core.json_time(p_event.created_at),
          'attempts', COALESCE((p_state.asked_fields_json -> _key ->> 'attempts')::bigint, 0) + 1,
          'seq', p_event.work_order_seq
        )
      );
      IF p_state.conflicts_json ? _key THEN
        p_state.conflicts_json := pg_catalog.jsonb_set(p_state.conflicts_json, ARRAY[_key, 'asked'], 'true');
      END IF;
    END IF;
    IF p_event.payload ->> 'prompt_dedupe_key' IS NOT NULL THEN
      p_state.prompt_dedupe_keys_json := p_state.prompt_dedupe_keys_json
        || pg_catalog.jsonb_build_object(p_event.payload ->> 'prompt_dedupe_key', p_event.work_order_seq);
    END IF;

  ELSIF p_event.event_type = 'FIELD_CONFLICT_DETECTED' THEN
    _key := p_event.payload ->> 'field_key';
    IF _key IS NOT NULL AND NOT p_state.conflicts_json ? _key THEN
      p_state.conflicts_json := p_state.conflicts_json || pg_catalog.jsonb_build_object(
        _key, pg_catalog.jsonb_build_object('seq', p_event.work_order_seq, 'asked', FALSE)
      );
      _changed := TRUE;
    END IF;

  ELSIF pg_catalog.starts_with(p_event.event_type, 'STEP_') THEN
    -- The attempt functions say from when the order's steps may go on; null: somebody has to decide.
    IF p_event.payload ? 'steps_due_at' THEN
      p_state.steps_due_at := CASE
        WHEN p_event.payload -> 'steps_due_at' <> 'null'
          THEN COALESCE(os_core.parse_rfc3339(p_event.payload ->> 'steps_due_at'), p_state.steps_due_at)
      END;
    END IF;

  ELSIF p_event.event_type IN ('LEASE_ACQUIRED', 'LEASE_RENEWED') THEN
    p_state.lease_owner_id := p_event.lease_owner_id;
    p_state.lease_token_hash := p_event.lease_token_hash;
    p_state.lease_expires_at := p_event.lease_expires_at;
    p_state.queued_at := COALESCE(p_event.lease_expires_at, p_state.queued_at);

  ELSIF p_event.event_type = 'LEASE_RELEASED' THEN
    p_state.lease_owner_id := NULL;
    p_state.lease_token_hash := NULL;
    p_state.lease_expires_at := NULL;
    p_state.queued_at := p_event.created_at;
    IF p_event.payload ? 'not_before' THEN
      p_state.queued_at := GREATEST(p_event.created_at, os_core.parse_rfc3339(p_event.payload ->> 'not_before'));
    END IF;
  END IF;

  IF p_state.external_approval_pending THEN
    IF p_event.work_order_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') THEN
      p_state.external_approval_pending := FALSE;
      p_state.external_approval_request_id := NULL;
      p_state.external_approval_target_user_id := NULL;
      p_state.external_approval_expires_at := NULL;
      p_state.external_approval_notices := 0;
      -- Prompts, notices, steps and leases never count as a state change, even with a new status.
      _changed := _changed OR p_event.event_type IN (
        'FIELD_SET', 'FIELD_CONFLICT_DETECTED', 'FIELD_CONFLICT_RESOLVED', 'STATUS_CHANGED', 'WORK_ORDER_CANCELED',
        'EXTERNAL_APPROVAL_REQUESTED', 'EXTERNAL_APPROVAL_RESOLVED'
      );
    END IF;
  END IF;

  -- One row constructor in the table's column order is several times cheaper than an assignment for each column.
  RETURN ROW(
    p_event.work_order_id,
    p_event.tenant_id,
    p_event.correlation_id,
    p_state.created_at,
    p_state.requester_user_id,
    p_state.conflicts_json,
    p_state.resolved_fields_json,
    p_state.fields_json,
    p_event.created_at,
    p_event.work_order_event_id,
    CASE WHEN _changed THEN p_event.work_order_seq ELSE p_state.last_state_change_seq END,
    p_event.turn_id,
    p_event.work_order_seq,
    p_event.reason_code,
    pg_catalog.date_bin('5 min', p_event.created_at, '2000-01-01 00:00:00+00'),
    p_event.work_order_status,
    p_event.step_id,
    p_event.step_input_hash,
    p_state.lease_owner_id,
    p_state.lease_token_hash,
    p_state.lease_expires_at,
    p_state.queued_at,
    p_state.steps_due_at,
    p_state.external_approval_pending,
    p_state.external_approval_notices,
    p_state.external_approval_request_id,
    p_state.external_approval_target_user_id,
    p_state.external_approval_expires_at,
    p_state.asked_fields_json,
    p_state.prompt_dedupe_keys_json
  )::os_core.work_orders_current;
END;
$$;
