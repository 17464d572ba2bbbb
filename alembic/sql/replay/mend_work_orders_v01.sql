-- os_core.mend_work_orders: repairs the projection rows of some work orders from their ledgers, and returns how many changed.
-- It locks the rows first and reads the ledger after that, so that no append is lost (contract section 5).
-- Called by os_core.rebuild_range only, for rows that were found to differ.
CREATE OR REPLACE FUNCTION os_core.mend_work_orders(p_tenant_id text, p_ids text[])
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _ids text[] := p_ids;
  _holders text[];
  _unavailable text[] := '{}';
  _facts text;
  _states os_core.work_orders_current[];
  _last_seqs bigint[];
  _id text;
  _changed bigint;
BEGIN
  LOOP
    BEGIN
      PERFORM
      FROM os_core.work_orders_current AS current
      WHERE current.tenant_id = p_tenant_id AND current.work_order_id = ANY(_ids)
      ORDER BY current.work_order_id
      FOR NO KEY UPDATE;

      -- Delete rows without events. They go first, because one may hold a correlation_id that another order needs. A row that a
      -- foreign key references stays, and verify goes on naming it.
      _changed := 0;
      FOR _id IN
        SELECT current.work_order_id
        FROM os_core.work_orders_current AS current
        WHERE current.tenant_id = p_tenant_id
          AND current.work_order_id = ANY(_ids)
          AND NOT EXISTS (
            SELECT FROM os_core.work_order_ledger AS ledger
            WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = current.work_order_id
          )
      LOOP
        BEGIN
          DELETE FROM os_core.work_orders_current AS current
          WHERE current.tenant_id = p_tenant_id AND current.work_order_id = _id;
          _changed := _changed + 1;
        EXCEPTION
          WHEN foreign_key_violation THEN
            NULL;
        END;
      END LOOP;

      SELECT
        pg_catalog.array_agg(folded.state),
        pg_catalog.array_agg(current.last_seq)
      INTO _states, _last_seqs
      FROM (
        SELECT os_core.fold_work_order(
          os_core.event_of(
            ledger.work_order_event_id, ledger.tenant_id, ledger.work_order_id, ledger.work_order_seq, ledger.correlation_id,
            ledger.turn_id, ledger.event_type, ledger.work_order_status, ledger.reason_code, ledger.step_id,
            ledger.step_input_hash, ledger.lease_owner_id, ledger.lease_token_hash, ledger.lease_expires_at, ledger.payload,
            ledger.idempotency_key, ledger.occurred_at, ledger.created_at, ledger.event_hash
          )
          ORDER BY ledger.work_order_seq
        ) AS state
        FROM os_core.work_order_ledger AS ledger
        WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = ANY(_ids) AND ledger.work_order_id <> ALL(_unavailable)
        GROUP BY ledger.work_order_id
        OFFSET 0
      ) AS folded
      LEFT JOIN os_core.work_orders_current AS current
        ON current.tenant_id = p_tenant_id AND current.work_order_id = (folded.state).work_order_id
      WHERE current.work_order_id IS NULL OR current *<> folded.state;

      IF _states IS NOT NULL THEN
        _changed := _changed + pg_catalog.cardinality(_states);
        PERFORM os_core.write_projection(
          _states, _last_seqs, pg_catalog.array_fill(TRUE, ARRAY[pg_catalog.cardinality(_states)])
        );
      END IF;
      EXIT;
    EXCEPTION
      WHEN SQLSTATE 'SL014' THEN
        -- A row outside the set wrongly holds a correlation_id that one inside needs: repair both together.
        SELECT pg_catalog.array_agg(current.work_order_id) INTO _holders
        FROM os_core.work_orders_current AS current
        WHERE current.tenant_id = p_tenant_id
          AND current.correlation_id = ANY(SELECT state.correlation_id FROM pg_catalog.unnest(_states) AS state)
          AND current.work_order_id <> ALL(_ids);
        IF _holders IS NULL THEN
          RAISE;
        END IF;
        _ids := _ids || _holders;
      WHEN SQLSTATE 'SL015' THEN
        -- Another tenant's row has this id and must be repaired there first. Leave this order out; verify goes on naming it.
        GET STACKED DIAGNOSTICS _facts = PG_EXCEPTION_DETAIL;
        _unavailable := _unavailable || (_facts::jsonb ->> 'work_order_id');
      WHEN serialization_failure THEN
        -- Another rebuild has just written a missing row: lock it and compare again, if the snapshot can show it.
        IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
          RAISE;
        END IF;
    END;
  END LOOP;

  RETURN _changed;
END;
$$;
