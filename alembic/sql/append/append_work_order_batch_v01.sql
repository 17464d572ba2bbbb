-- os_core.append_work_order_batch: does the seven steps of contract section 4 for several events, with sets of rows.
-- Called by os_core.append_work_order_events only; the results are arrays, in the order of the events. If another transaction creates one
-- of the batch's new orders first, the subtransaction is rolled back, which releases all locks, before the batch waits again. So two
-- batches never wait for each other. A set costs as much as many steps of a loop: a statement is left out if no event needs it.
CREATE OR REPLACE FUNCTION os_core.append_work_order_batch(
  p_tenant_id text,
  p_events jsonb,
  OUT event_ids bigint[],
  OUT seqs bigint[],
  OUT replays boolean[],
  OUT times timestamptz[]
)
LANGUAGE plpgsql
VOLATILE
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
  _count constant integer := pg_catalog.jsonb_array_length(p_events);
  _events os_core.work_order_ledger[];
  _order_ids text[];
  _keys text[];
  _sorted bigint[];
  _ids text[] := '{}';
  _slots integer[];
  _firsts integer[];
  _first integer;
  _next integer;
  _states os_core.work_orders_current[];
  _held_ids text[];
  _held_seqs bigint[];
  _held_event_ids bigint[];
  _moved boolean[];
  _hashes bytea[];
  _canceled_by text[];
  _prior_ids bigint[];
  _priors os_core.work_order_ledger[];
  _slot integer := 0;
  _loaded integer;
  _constraint text;
  _damaged text;
  _xid xid8;
  _json jsonb;
  _state os_core.work_orders_current;
  _event os_core.work_order_ledger;
  _prior os_core.work_order_ledger;
  _refusal text;
  _bound text;
  _expected_seqs bigint[];
  _lease_tokens text[];
  _written integer;
  _new os_core.work_order_ledger[];
BEGIN
  -- The rules of the columns are left to the CHECK.
  FOR _ordinal IN 1.._count LOOP
    _json := p_events -> (_ordinal - 1);
    _event := os_core.event_from_json(p_tenant_id, _json, _ordinal - 1, TRUE);
    _events[_ordinal] := _event;
    _order_ids[_ordinal] := _event.work_order_id;
    _keys[_ordinal] := _event.idempotency_key;
    IF _json ?| '{expected_seq,lease_token}' THEN
      _expected_seqs[_ordinal] := _json ->> 'expected_seq';
      _lease_tokens[_ordinal] := _json ->> 'lease_token';
    END IF;
  END LOOP;
  SELECT pg_catalog.array_agg(
    event.ordinal ORDER BY event.work_order_id COLLATE "C", event.idempotency_key COLLATE "C", event.ordinal
  ) INTO _sorted
  FROM ROWS FROM (
    pg_catalog.unnest(_order_ids), pg_catalog.unnest(_keys)
  ) WITH ORDINALITY AS event (work_order_id, idempotency_key, ordinal);
  -- Each order has a slot, sorted by id. An event whose key an earlier one of the batch has is led to the first that has it.
  FOREACH _next IN ARRAY _sorted LOOP
    IF _order_ids[_next] = _ids[_slot] THEN
      IF _keys[_next] = _keys[_first] THEN
        _firsts[_next] := _first;
      ELSE
        _first := _next;
      END IF;
    ELSE
      _slot := _slot + 1;
      _ids[_slot] := _order_ids[_next];
      _first := _next;
    END IF;
    _slots[_next] := _slot;
  END LOOP;

  LOOP
    BEGIN
      _moved := NULL;
      _hashes := NULL;
      _canceled_by := NULL;
      _priors := NULL;
      _new := NULL;
      _loaded := NULL;

      -- Step 1: lock the rows one by one, sorted by id; take numbers after that.
      SELECT
        pg_catalog.array_agg(locked.work_order_id),
        pg_catalog.array_agg(locked.last_seq),
        pg_catalog.array_agg(locked.last_event_id),
        pg_catalog.array_agg(locked.state)
      INTO _held_ids, _held_seqs, _held_event_ids, _states
      FROM (
        SELECT held.*
        FROM pg_catalog.unnest(_ids) AS wanted (work_order_id)
        -- The table's own row: that of a subquery has no type, and would become a state by way of its text.
        CROSS JOIN LATERAL (
          SELECT current.work_order_id, current.last_seq, current.last_event_id, current AS state
          FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = p_tenant_id AND current.work_order_id = wanted.work_order_id
          FOR NO KEY UPDATE
        ) AS held
      ) AS locked;
      IF pg_catalog.cardinality(_held_ids) < pg_catalog.cardinality(_ids) THEN
        -- Both are sorted, so the rows can move to their slots in place, from the end.
        _slot := pg_catalog.cardinality(_held_ids);
        FOR _place IN REVERSE pg_catalog.cardinality(_ids)..1 LOOP
          IF _held_ids[_slot] = _ids[_place] THEN
            _states[_place] := _states[_slot];
            _held_seqs[_place] := _held_seqs[_slot];
            _held_event_ids[_place] := _held_event_ids[_slot];
            _slot := _slot - 1;
          ELSE
            _states[_place] := NULL;
            _held_seqs[_place] := NULL;
          END IF;
        END LOOP;
      END IF;
      IF _constraint IS NOT NULL THEN
        -- A conflict is no race if the order has no row now, or if its row, which is locked, is behind its ledger.
        SELECT slot.work_order_id INTO _damaged
        FROM ROWS FROM (pg_catalog.unnest(_ids), pg_catalog.unnest(_held_seqs)) AS slot (work_order_id, last_seq)
        WHERE EXISTS (
          SELECT FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_id = slot.work_order_id
            AND ledger.work_order_seq > COALESCE(slot.last_seq, 0)
        )
          AND (
            slot.last_seq IS NOT NULL
            OR NOT EXISTS (
              SELECT FROM os_core.work_orders_current AS current
              WHERE current.tenant_id = p_tenant_id AND current.work_order_id = slot.work_order_id
            )
          )
        LIMIT 1;
        IF _damaged IS NOT NULL THEN
          PERFORM os_core.refuse_damaged(_damaged);
        END IF;
        IF _constraint LIKE ANY ('{pk_work_order_ledger%,ux_work_order_ledger_tenant_work_order_event%}') THEN
          PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
        END IF;
      END IF;

      IF _held_ids IS NOT NULL THEN
        -- The last event of each order, whose hash the next one continues.
        SELECT pg_catalog.array_agg((
          SELECT ledger.event_hash
          FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_id = slot.work_order_id
            AND ledger.work_order_seq = slot.last_seq
            AND ledger.work_order_event_id = slot.last_event_id
        )) INTO _hashes
        FROM ROWS FROM (pg_catalog.unnest(_ids), pg_catalog.unnest(_held_seqs), pg_catalog.unnest(_held_event_ids))
          AS slot (work_order_id, last_seq, last_event_id);

        -- Step 2: look for used keys, under the locks.
        IF pg_catalog.array_to_string(_keys, '') <> '' THEN
          SELECT pg_catalog.array_agg((
            SELECT ledger.work_order_event_id
            FROM os_core.work_order_ledger AS ledger
            WHERE ledger.tenant_id = p_tenant_id
              AND ledger.work_order_id = event.work_order_id
              AND ledger.idempotency_key = event.idempotency_key
              AND _held_seqs[event.slot] IS NOT NULL
          )) INTO _prior_ids
          FROM ROWS FROM (
            pg_catalog.unnest(_order_ids), pg_catalog.unnest(_keys), pg_catalog.unnest(_slots)
          ) AS event (work_order_id, idempotency_key, slot);
          IF pg_catalog.cardinality(pg_catalog.array_positions(_prior_ids, NULL)) < _count THEN
            -- By its columns: a distributed engine has no whole row of a table.
            SELECT pg_catalog.array_agg((
              SELECT os_core.event_of(
                ledger.work_order_event_id, ledger.tenant_id, ledger.work_order_id, ledger.work_order_seq, ledger.correlation_id,
                ledger.turn_id, ledger.event_type, ledger.work_order_status, ledger.reason_code, ledger.step_id,
                ledger.step_input_hash, ledger.lease_owner_id, ledger.lease_token_hash, ledger.lease_expires_at, ledger.payload,
                ledger.idempotency_key, ledger.occurred_at, ledger.created_at, ledger.event_hash
              )
              FROM os_core.work_order_ledger AS ledger
              WHERE ledger.tenant_id = p_tenant_id
                AND ledger.work_order_id = event.work_order_id
                AND ledger.work_order_event_id = event.prior_id
            )) INTO _priors
            FROM ROWS FROM (
              pg_catalog.unnest(_order_ids), pg_catalog.unnest(_prior_ids)
            ) AS event (work_order_id, prior_id);
          END IF;
        END IF;
      END IF;

      -- The feed judges ids by xids, so the xid comes before the ids.
      _xid := pg_catalog.pg_current_xact_id();
      FOR _ordinal IN 1.._count LOOP
        _event := _events[_ordinal];
        _slot := _slots[_ordinal];
        IF _priors IS NOT NULL OR _firsts IS NOT NULL THEN
          _prior := _priors[_ordinal];
          IF _prior.work_order_event_id IS NULL AND _firsts[_ordinal] IS NOT NULL THEN
            -- The first event with this key is in _new, as it was completed. _new holds the events that are no replays, in order.
            _prior := _new[pg_catalog.cardinality(pg_catalog.array_positions(replays[1:_firsts[_ordinal]], FALSE))];
          END IF;
          IF _prior.work_order_event_id IS NOT NULL THEN
            IF NOT os_core.same_content(_prior, _event) THEN
              -- If the prior event is in this batch, it has no id: the refusal rolls it back.
              PERFORM os_core.refuse_replay(_ordinal - 1, _event, (_priors[_ordinal]).work_order_event_id);
            END IF;
            event_ids[_ordinal] := _prior.work_order_event_id;
            seqs[_ordinal] := _prior.work_order_seq;
            replays[_ordinal] := TRUE;
            times[_ordinal] := _prior.created_at;
            CONTINUE;
          END IF;
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
          _event.payload, _expected_seqs[_ordinal], _canceled_by[_slot]
        );
        IF _refusal IS NULL AND (
          _event.correlation_id IS NULL OR _event.turn_id IS NULL OR _event.work_order_status IS NULL OR _event.reason_code IS NULL
        ) THEN
          -- _events keeps what was given: after a lost race the events are completed anew.
          _event := os_core.event_completed(_state, _event);
        END IF;
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
        IF _event.correlation_id <> _state.correlation_id THEN
          _moved[_slot] := TRUE;
        END IF;

        _event.work_order_event_id := pg_catalog.nextval('os_core.work_order_ledger_work_order_event_id_seq');
        IF _event.work_order_event_id <= _state.last_event_id THEN
          -- Each node gives ids of a range of its own.
          IF _event.work_order_event_id >> 48 = _state.last_event_id >> 48 THEN
            PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
          END IF;
        END IF;
        _event.work_order_seq := COALESCE(_state.last_seq, 0) + 1;
        _state := os_core.apply_work_order_event(_state, _event);
        IF _event.event_type LIKE ANY ('{FIELD%,WORK_ORDER_CREATED}') THEN
          _bound := os_core.exceeded_bound(
            _state.fields_json, _state.asked_fields_json, _state.resolved_fields_json,
            _state.conflicts_json, _state.prompt_dedupe_keys_json
          );
          IF _bound IS NOT NULL THEN
            PERFORM os_core.refuse_bound(_event.work_order_id, _bound, _ordinal - 1);
          END IF;
        END IF;
        IF _hashes[_slot] IS NULL AND _event.work_order_seq > 1 THEN
          -- A projection row that is ahead of its ledger must not make a gap in the numbers.
          PERFORM os_core.refuse_damaged(_event.work_order_id);
        END IF;
        _event.event_hash := os_core.event_hash(_hashes[_slot], _event);
        _hashes[_slot] := _event.event_hash;
        _new := _new || _event;
        event_ids[_ordinal] := _event.work_order_event_id;
        seqs[_ordinal] := _event.work_order_seq;
        replays[_ordinal] := FALSE;
        times[_ordinal] := _event.created_at;
      END LOOP;
      EXIT WHEN _new IS NULL;
      _states[_loaded] := _state;

      -- Step 7. First events are sorted too: a batch that waits for another's order holds no order with a later id. Used keys were
      -- looked for, so there is no ON CONFLICT, which looks into each unique index twice.
      -- RETURNING, because an engine that distributes would copy the rows otherwise, which row-level security forbids.
      FOR _slot IN
        INSERT INTO os_core.work_order_ledger AS ledger
        SELECT event.*
        FROM pg_catalog.unnest(_new) AS event
        ORDER BY event.work_order_id, event.work_order_seq
        RETURNING 1
      LOOP
        EXIT;
      END LOOP;
      IF TRUE = ANY(replays) THEN
        -- Without the orders that have replays only.
        SELECT
          pg_catalog.array_agg(_states[slot.slot] ORDER BY slot.slot),
          pg_catalog.array_agg(_held_seqs[slot.slot] ORDER BY slot.slot),
          pg_catalog.array_agg(_moved[slot.slot] ORDER BY slot.slot)
        INTO _states, _held_seqs, _moved
        FROM pg_catalog.generate_subscripts(_ids, 1) AS slot (slot)
        WHERE (_states[slot.slot]).last_seq IS DISTINCT FROM _held_seqs[slot.slot];
      END IF;
      -- Assigned and not performed: a query has an executor of its own.
      _written := os_core.write_projection(_states, _held_seqs, _moved);
      EXIT;
    EXCEPTION
      WHEN unique_violation THEN
        IF _constraint IS NOT NULL AND pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
          -- The snapshot does not show the order that another transaction has created.
          RAISE EXCEPTION USING
            ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access: another transaction has just created one of the work orders';
        END IF;
        GET STACKED DIAGNOSTICS _constraint = CONSTRAINT_NAME;
        IF _constraint NOT LIKE ALL ('{pk_work_order_ledger%,ux_work_order_ledger%}') THEN
          RAISE;
        END IF;
      -- SL000 stands for the whole class SL.
      WHEN SQLSTATE 'SL000' OR object_not_in_prerequisite_state THEN
        -- The first event that breaks the contract is told before anything else.
        FOR _index IN 0.._count - 1 LOOP
          _event := os_core.event_from_json(p_tenant_id, p_events -> _index, _index);
        END LOOP;
        RAISE;
    END;
  END LOOP;
END;
$$;
