-- os_core.append_work_order_batch: does the seven steps of contract section 4 for several events, with sets of rows.
-- Called by os_core.append_work_order_events only. If another transaction creates one of the batch's new orders first, the
-- subtransaction is rolled back, which releases all locks, before the batch waits again. So two batches never wait for each other.
CREATE OR REPLACE FUNCTION os_core.append_work_order_batch(p_tenant_id text, p_events jsonb)
RETURNS TABLE (work_order_event_id bigint, work_order_seq bigint, replayed boolean, created_at timestamptz)
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _lost boolean := FALSE;
  _events os_core.work_order_ledger[];
  _expected_seqs bigint[];
  _lease_tokens text[];
  _ids text[];
  _slots integer[];
  _firsts integer[];
  _states os_core.work_orders_current[];
  _held_seqs bigint[];
  _held_correlations uuid[];
  _touched boolean[];
  _canceled_by text[];
  _priors os_core.work_order_ledger[];
  _slot integer;
  _loaded integer;
  _damaged text;
  _written integer;
  _state os_core.work_orders_current;
  _event os_core.work_order_ledger;
  _prior os_core.work_order_ledger;
  _refusal text;
  _bound text;
  _row record;
  _new os_core.work_order_ledger[];
  _event_ids bigint[];
  _seqs bigint[];
  _replays boolean[];
  _times timestamptz[];
BEGIN
  SELECT
    pg_catalog.array_agg(os_core.event_from_json(p_tenant_id, item.value, item.ordinal::integer - 1) ORDER BY item.ordinal),
    pg_catalog.array_agg((item.value ->> 'expected_seq')::bigint ORDER BY item.ordinal),
    pg_catalog.array_agg(item.value ->> 'lease_token' ORDER BY item.ordinal)
  INTO _events, _expected_seqs, _lease_tokens
  FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS item (value, ordinal);
  SELECT
    pg_catalog.array_agg(event.slot ORDER BY event.ordinal),
    pg_catalog.array_agg(event.first ORDER BY event.ordinal),
    pg_catalog.array_agg(event.work_order_id ORDER BY event.slot) FILTER (WHERE event.leads)
  INTO _slots, _firsts, _ids
  FROM (
    SELECT
      event.ordinal,
      event.work_order_id,
      pg_catalog.dense_rank() OVER (ORDER BY event.work_order_id) AS slot,
      pg_catalog.row_number() OVER (PARTITION BY event.work_order_id ORDER BY event.ordinal) = 1 AS leads,
      pg_catalog.min(event.ordinal) OVER (PARTITION BY event.work_order_id, event.idempotency_key) AS first
    FROM pg_catalog.unnest(_events) WITH ORDINALITY AS event (
      work_order_event_id, tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type, work_order_status,
      reason_code, step_id, step_input_hash, lease_owner_id, lease_token_hash, lease_expires_at, payload, idempotency_key,
      occurred_at, created_at, ordinal
    )
  ) AS event;

  LOOP
    BEGIN
      _held_seqs := pg_catalog.array_fill(NULL::bigint, ARRAY[pg_catalog.cardinality(_ids)]);
      _held_correlations := pg_catalog.array_fill(NULL::uuid, ARRAY[pg_catalog.cardinality(_ids)]);
      _touched := pg_catalog.array_fill(FALSE, ARRAY[pg_catalog.cardinality(_ids)]);
      _canceled_by := pg_catalog.array_fill(NULL::text, ARRAY[pg_catalog.cardinality(_ids)]);
      _states := pg_catalog.array_fill(NULL::os_core.work_orders_current, ARRAY[pg_catalog.cardinality(_ids)]);
      _priors := NULL;
      _new := NULL;
      _loaded := NULL;

      -- Step 1: lock the rows one by one, sorted by id; take numbers after that. _ids has the same order, so one pass is enough.
      _slot := 1;
      FOR _state IN
        SELECT current.*
        FROM os_core.work_orders_current AS current
        WHERE current.tenant_id = p_tenant_id AND current.work_order_id = ANY(_ids)
        ORDER BY current.work_order_id
        FOR NO KEY UPDATE
      LOOP
        WHILE _ids[_slot] <> _state.work_order_id LOOP
          _slot := _slot + 1;
        END LOOP;
        _states[_slot] := _state;
        _held_seqs[_slot] := _state.last_seq;
        _held_correlations[_slot] := _state.correlation_id;
      END LOOP;
      IF _lost THEN
        SELECT _ids[slot.slot] INTO _damaged
        FROM pg_catalog.generate_subscripts(_ids, 1) AS slot (slot)
        WHERE _held_seqs[slot.slot] IS NULL
          AND EXISTS (
            SELECT FROM os_core.work_order_ledger AS ledger
            WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = _ids[slot.slot]
          )
          AND NOT EXISTS (
            SELECT FROM os_core.work_orders_current AS current
            WHERE current.tenant_id = p_tenant_id AND current.work_order_id = _ids[slot.slot]
          )
        LIMIT 1;
        IF FOUND THEN
          PERFORM os_core.refuse_damaged(_damaged);
        END IF;
      END IF;

      -- Step 2: look for used keys, under the locks.
      FOR _row IN
        SELECT slot.ordinal, prior AS event
        FROM pg_catalog.generate_subscripts(_events, 1) AS slot (ordinal)
        CROSS JOIN LATERAL (
          SELECT ledger.*
          FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_id = (_events[slot.ordinal]).work_order_id
            AND ledger.idempotency_key = (_events[slot.ordinal]).idempotency_key
          LIMIT 1
        ) AS prior
        WHERE (_events[slot.ordinal]).idempotency_key IS NOT NULL AND _held_seqs[_slots[slot.ordinal]] IS NOT NULL
      LOOP
        _priors[_row.ordinal] := _row.event;
      END LOOP;

      -- The feed judges ids by xids, so the xid comes before the ids.
      PERFORM pg_catalog.pg_current_xact_id();
      FOR _ordinal IN 1..pg_catalog.cardinality(_events) LOOP
        _event := _events[_ordinal];
        _slot := _slots[_ordinal];
        _prior := NULL;
        IF _priors IS NOT NULL THEN
          _prior := _priors[_ordinal];
        END IF;
        IF _prior.work_order_event_id IS NULL AND _event.idempotency_key IS NOT NULL AND _firsts[_ordinal] < _ordinal THEN
          _prior := _events[_firsts[_ordinal]];
          _prior.work_order_event_id := _event_ids[_firsts[_ordinal]];
          _prior.work_order_seq := _seqs[_firsts[_ordinal]];
          _prior.created_at := _times[_firsts[_ordinal]];
        END IF;
        IF _prior.work_order_event_id IS NOT NULL THEN
          IF NOT os_core.same_content(_prior, _event) THEN
            -- If the prior event is in this batch, it has no id: the refusal rolls it back.
            PERFORM os_core.refuse_replay(_ordinal - 1, _event, (_priors[_ordinal]).work_order_event_id);
          END IF;
          _event_ids[_ordinal] := _prior.work_order_event_id;
          _seqs[_ordinal] := _prior.work_order_seq;
          _replays[_ordinal] := TRUE;
          _times[_ordinal] := _prior.created_at;
          CONTINUE;
        END IF;

        -- _state holds one order's state until an event of another order comes.
        IF _loaded IS DISTINCT FROM _slot THEN
          IF _loaded IS NOT NULL THEN
            _states[_loaded] := _state;
          END IF;
          _state := _states[_slot];
          _loaded := _slot;
        END IF;

        -- Steps 3 to 6.
        _event.created_at := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
        _refusal := os_core.transition_refusal(
          _state.last_seq, _state.work_order_status, _event.event_type, _event.work_order_status,
          _event.payload ->> 'previous_status', _expected_seqs[_ordinal], _canceled_by[_slot]
        );
        IF _refusal IS NULL AND (_lease_tokens[_ordinal] IS NOT NULL OR _state.lease_expires_at IS NOT NULL) THEN
          _refusal := os_core.lease_refusal(_state, _event, _lease_tokens[_ordinal]);
        END IF;
        IF _refusal IS NULL AND (
          _state.external_approval_pending
          OR _event.event_type IN ('FIELD_PROMPTED', 'EXTERNAL_APPROVAL_WAIT_NOTIFIED', 'EXTERNAL_APPROVAL_RESOLVED')
        ) THEN
          _refusal := os_core.continuity_refusal(_state, _event);
        END IF;
        IF _refusal IS NOT NULL THEN
          PERFORM os_core.refuse_event(_refusal, _ordinal - 1, _event, _state, _expected_seqs[_ordinal]);
        END IF;
        IF _event.work_order_status = 'CANCELED' THEN
          -- The other cancel type may follow once; after it the order is closed.
          _canceled_by[_slot] := CASE WHEN _canceled_by[_slot] IS NULL THEN _event.event_type END;
        END IF;

        _event.work_order_event_id := pg_catalog.nextval('os_core.work_order_ledger_work_order_event_id_seq');
        IF _event.work_order_event_id <= _state.last_event_id THEN
          PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
        END IF;
        _event.work_order_seq := COALESCE(_state.last_seq, 0) + 1;
        _state := os_core.apply_work_order_event(_state, _event);
        IF _event.event_type LIKE 'FIELD%' OR _event.event_type = 'WORK_ORDER_CREATED' THEN
          _bound := os_core.exceeded_bound(
            _state.fields_json, _state.asked_fields_json, _state.resolved_fields_json,
            _state.conflicts_json, _state.prompt_dedupe_keys_json
          );
          IF _bound IS NOT NULL THEN
            PERFORM os_core.refuse_bound(_event.work_order_id, _bound, _ordinal - 1);
          END IF;
        END IF;
        _touched[_slot] := TRUE;
        _new := _new || _event;
        _event_ids[_ordinal] := _event.work_order_event_id;
        _seqs[_ordinal] := _event.work_order_seq;
        _replays[_ordinal] := FALSE;
        _times[_ordinal] := _event.created_at;
      END LOOP;
      EXIT WHEN _new IS NULL;
      _states[_loaded] := _state;

      -- A projection row that is ahead of its ledger must not make a gap in the numbers.
      SELECT _ids[slot.slot] INTO _damaged
      FROM pg_catalog.generate_subscripts(_ids, 1) AS slot (slot)
      WHERE _touched[slot.slot]
        AND _held_seqs[slot.slot] IS NOT NULL
        AND NOT EXISTS (
          SELECT FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_id = _ids[slot.slot]
            AND ledger.work_order_seq = _held_seqs[slot.slot]
        )
      LIMIT 1;
      IF FOUND THEN
        PERFORM os_core.refuse_damaged(_damaged);
      END IF;

      -- Step 7. First events are sorted too: a batch that waits for another's order holds no order with a later id.
      INSERT INTO os_core.work_order_ledger
      SELECT event.*
      FROM pg_catalog.unnest(_new) AS event
      ORDER BY event.work_order_id, event.work_order_seq
      ON CONFLICT DO NOTHING;
      GET DIAGNOSTICS _written = ROW_COUNT;
      IF _written < pg_catalog.cardinality(_new) THEN
        -- An order whose row is locked has a conflict only if the row is behind its ledger.
        SELECT _ids[slot.slot] INTO _damaged
        FROM pg_catalog.generate_subscripts(_ids, 1) AS slot (slot)
        WHERE _held_seqs[slot.slot] IS NOT NULL
          AND EXISTS (
            SELECT FROM os_core.work_order_ledger AS ledger
            WHERE ledger.tenant_id = p_tenant_id
              AND ledger.work_order_id = _ids[slot.slot]
              AND ledger.work_order_seq = _held_seqs[slot.slot] + 1
              AND ledger.work_order_event_id <> ALL(_event_ids)
          )
        LIMIT 1;
        IF FOUND THEN
          PERFORM os_core.refuse_damaged(_damaged);
        END IF;
        IF NOT EXISTS (
          SELECT FROM pg_catalog.generate_subscripts(_ids, 1) AS slot (slot)
          WHERE _touched[slot.slot]
            AND _held_seqs[slot.slot] IS NULL
            AND EXISTS (
              SELECT FROM os_core.work_order_ledger AS ledger
              WHERE ledger.tenant_id = p_tenant_id
                AND ledger.work_order_id = _ids[slot.slot]
                AND ledger.work_order_event_id <> ALL(_event_ids)
            )
        ) THEN
          PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
        END IF;
        RAISE SQLSTATE 'SLXXX';
      END IF;
      PERFORM os_core.write_projection(
        pg_catalog.array_agg(_states[slot.slot] ORDER BY slot.slot),
        pg_catalog.array_agg(_held_seqs[slot.slot] ORDER BY slot.slot),
        pg_catalog.array_agg(
          (_states[slot.slot]).correlation_id IS DISTINCT FROM _held_correlations[slot.slot] ORDER BY slot.slot
        )
      )
      FROM pg_catalog.generate_subscripts(_states, 1) AS slot (slot)
      WHERE _touched[slot.slot];
      EXIT;
    EXCEPTION
      WHEN SQLSTATE 'SLXXX' THEN
        _lost := TRUE;
    END;
  END LOOP;

  RETURN QUERY
  SELECT result.*
  FROM ROWS FROM (
    pg_catalog.unnest(_event_ids), pg_catalog.unnest(_seqs), pg_catalog.unnest(_replays), pg_catalog.unnest(_times)
  ) AS result;
END;
$$;
