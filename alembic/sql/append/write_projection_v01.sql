-- os_core.write_projection: writes states as projection rows, in sets, and returns how many (contract section 4, step 7).
-- It updates a row only if its last_seq is still that in p_last_seqs, and inserts where p_last_seqs is NULL. p_moved says which rows
-- get a new correlation_id, and may be NULL. If another order has it and keeps it, the call is refused before it writes, so it does not
-- wait for that order; for new orders alone this is asked after a conflict. Two rows of one call may exchange theirs: both get a random
-- one meanwhile. Inserts are sorted by work_order_id, so two tenants with the same new ids wait in one order. Two calls that take the
-- same two correlation_ids in opposite orders can still deadlock: the one that PostgreSQL stops rolls back and tries again.
-- Only ids and correlation_ids can conflict, so only they are written in a subtransaction: there, a row that the caller has locked gets
-- a MultiXact.
-- Planner settings: a plan made for an empty table must not scan a full one.
CREATE OR REPLACE FUNCTION os_core.write_projection(
  p_states os_core.work_orders_current[], p_last_seqs bigint[], p_moved boolean[]
)
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
  _count constant integer := pg_catalog.cardinality(p_states);
  _held constant integer := COALESCE(_count - pg_catalog.cardinality(pg_catalog.array_positions(p_last_seqs, NULL)), 0);
  _moves constant boolean := COALESCE(TRUE = ANY(p_moved), FALSE);
  _new os_core.work_orders_current[];
  _tenant_id constant text := (p_states[1]).tenant_id;
  _salt text;
  _attempts integer := 0;
  _updated integer;
  _written bigint;
  _constraint text;
  _state os_core.work_orders_current;
  _work_order_id text;
  _correlation_id uuid;
BEGIN
  IF _held = 0 THEN
    _new := p_states;
  ELSIF _held < _count THEN
    SELECT pg_catalog.array_agg(p_states[slot.slot]) INTO _new
    FROM pg_catalog.generate_subscripts(p_states, 1) AS slot (slot)
    WHERE p_last_seqs[slot.slot] IS NULL;
  END IF;

  WHILE _held < _count OR _moves LOOP
    IF _attempts > 0 OR _moves THEN
      SELECT next.work_order_id, next.correlation_id INTO _work_order_id, _correlation_id
      FROM pg_catalog.unnest(p_states) WITH ORDINALITY AS next
      WHERE (p_moved[next.ordinality] OR p_last_seqs[next.ordinality] IS NULL)
        AND EXISTS (
          SELECT FROM os_core.work_orders_current AS holder
          WHERE holder.tenant_id = next.tenant_id
            AND holder.correlation_id = next.correlation_id
            AND holder.work_order_id <> next.work_order_id
            AND NOT EXISTS (
              SELECT FROM pg_catalog.unnest(p_states) AS leaver
              WHERE leaver.work_order_id = holder.work_order_id AND leaver.correlation_id <> next.correlation_id
            )
        )
      LIMIT 1;
      IF NOT FOUND AND _count > 1 THEN
        SELECT pg_catalog.max(next.work_order_id), next.correlation_id INTO _work_order_id, _correlation_id
        FROM pg_catalog.unnest(p_states) AS next
        GROUP BY next.correlation_id
        HAVING pg_catalog.count(*) > 1
        LIMIT 1;
      END IF;
      IF FOUND THEN
        PERFORM os_core.refuse(
          'SL014',
          pg_catalog.format('correlation_id %s is held by another work order', _correlation_id),
          pg_catalog.jsonb_build_object('work_order_id', _work_order_id, 'correlation_id', _correlation_id)
        );
      END IF;
    END IF;

    BEGIN
      IF _moves THEN
        IF _attempts > 0 THEN
          _salt := pg_catalog.gen_random_uuid()::text;
          UPDATE os_core.work_orders_current AS current
          SET correlation_id = pg_catalog.md5(_salt || next.work_order_id)::uuid
          FROM pg_catalog.unnest(p_states) WITH ORDINALITY AS next
          WHERE p_moved[next.ordinality]
            AND current.tenant_id = next.tenant_id
            AND current.work_order_id = next.work_order_id
            AND current.correlation_id <> next.correlation_id;
        END IF;
        UPDATE os_core.work_orders_current AS current
        SET correlation_id = next.correlation_id
        FROM pg_catalog.unnest(p_states) WITH ORDINALITY AS next
        WHERE p_moved[next.ordinality]
          AND current.tenant_id = next.tenant_id
          AND current.work_order_id = next.work_order_id
          AND current.correlation_id <> next.correlation_id;
      END IF;
      IF _held < _count THEN
        -- RETURNING, because an engine that distributes would copy the rows otherwise, which row-level security forbids.
        FOR _written IN
          INSERT INTO os_core.work_orders_current AS current
          SELECT next.*
          FROM pg_catalog.unnest(_new) AS next
          ORDER BY next.work_order_id
          RETURNING current.last_seq
        LOOP
          EXIT;
        END LOOP;
      END IF;
      EXIT;
    EXCEPTION
      WHEN unique_violation THEN
        GET STACKED DIAGNOSTICS _constraint = CONSTRAINT_NAME;
      WHEN deadlock_detected THEN
        -- The subtransaction has released what this call held. Wait, so that the other call gets it first.
        PERFORM pg_catalog.pg_sleep((_attempts + 1) * (0.05 + 0.05 * pg_catalog.random()));
        _constraint := NULL;
    END;

    IF _constraint LIKE 'pk_work_orders_current%' THEN
      -- Another tenant has one of the new ids. To find out which, insert each with a random correlation_id.
      FOREACH _state IN ARRAY p_states LOOP
        IF NOT EXISTS (
          SELECT FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = _tenant_id AND current.work_order_id = _state.work_order_id
        ) THEN
          _state.correlation_id := pg_catalog.gen_random_uuid();
          -- Counted by RETURNING: an engine that distributes may report the rows that were selected.
          _written := NULL;
          FOR _written IN
            INSERT INTO os_core.work_orders_current AS current
            SELECT _state.*
            ON CONFLICT DO NOTHING
            RETURNING current.last_seq
          LOOP
            EXIT;
          END LOOP;
          IF _written IS NULL THEN
            PERFORM os_core.refuse(
              'SL015',
              pg_catalog.format('work_order_id %s is not available', _state.work_order_id),
              pg_catalog.jsonb_build_object('work_order_id', _state.work_order_id)
            );
          END IF;
        END IF;
      END LOOP;
    END IF;
    _attempts := _attempts + 1;
    -- Above READ COMMITTED the snapshot does not show the holder. An id that became free meanwhile is for the caller's next try.
    IF _constraint LIKE 'pk_work_orders_current%'
      OR _attempts > 8
      OR (_attempts > 1 AND pg_catalog.current_setting('transaction_isolation') <> 'read committed')
    THEN
      RAISE EXCEPTION USING
        ERRCODE = 'serialization_failure',
        MESSAGE = 'could not serialize access: a correlation_id or work_order_id has just been taken';
    END IF;
  END LOOP;

  IF _held > 0 THEN
    UPDATE os_core.work_orders_current AS current
    SET
      correlation_id = next.correlation_id,
      turn_id = next.turn_id,
      work_order_status = next.work_order_status,
      last_event_id = next.last_event_id,
      last_seq = next.last_seq,
      last_reason_code = next.last_reason_code,
      last_updated_at = next.last_updated_at,
      created_at = next.created_at,
      requester_user_id = next.requester_user_id,
      step_id = next.step_id,
      step_input_hash = next.step_input_hash,
      lease_owner_id = next.lease_owner_id,
      lease_token_hash = next.lease_token_hash,
      lease_expires_at = next.lease_expires_at,
      fields_json = next.fields_json,
      asked_fields_json = next.asked_fields_json,
      resolved_fields_json = next.resolved_fields_json,
      conflicts_json = next.conflicts_json,
      prompt_dedupe_keys_json = next.prompt_dedupe_keys_json,
      external_approval_pending = next.external_approval_pending,
      external_approval_request_id = next.external_approval_request_id,
      external_approval_target_user_id = next.external_approval_target_user_id,
      external_approval_expires_at = next.external_approval_expires_at,
      external_approval_notices = next.external_approval_notices,
      last_state_change_seq = next.last_state_change_seq,
      updated_bucket = next.updated_bucket,
      queued_at = next.queued_at,
      steps_due_at = next.steps_due_at
    FROM pg_catalog.unnest(p_states) WITH ORDINALITY AS next
    -- By the value, a plan for an empty table would walk through the tenant. The scale-out profile has the value.
    WHERE current.tenant_id = next.tenant_id
      AND current.work_order_id = next.work_order_id
      AND current.last_seq = p_last_seqs[next.ordinality];
    GET DIAGNOSTICS _updated = ROW_COUNT;
    IF _updated <> _held THEN
      -- Not reached as long as every writer locks the row first. If it is, the projection would not be the fold.
      PERFORM os_core.refuse('SL006', 'a projection row changed under its lock', '{}');
    END IF;
  END IF;
  RETURN _count;
END;
$$;
