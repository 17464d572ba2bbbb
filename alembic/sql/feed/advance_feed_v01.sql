-- os_core.advance_feed: gives the tenant's events that have none their positions, in the order of their ids (contract section 16).
-- The erasure of a person has drawn such an id, too. So what is said of events here holds for erasures.
-- Returns how many, at most p_limit; NULL if another transaction is at it. Call it in a transaction of its own: the head stays locked to
-- its end. A call that has nothing to do only reads. OFFSET 0 keeps the searches from becoming joins: each probes an index.
-- Why no event is left behind: a transaction has its xid before it draws an event id. So all ids up to one that was drawn before this
-- transaction had an xid belong to lower xids. Once the oldest running xid is not below ours, no event can still come with such an id.
CREATE OR REPLACE FUNCTION os_core.advance_feed(p_tenant_id text, p_limit integer DEFAULT 10000)
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  -- Only an xid that is younger than the ids may bear witness to them.
  _is_fresh constant boolean := pg_catalog.pg_current_xact_id_if_assigned() IS NULL;
  _drawn bigint;
  _highest bigint;
  _has_moved boolean := FALSE;
  _xmin bigint;
  _xmax bigint;
  _head os_core.work_order_feed_heads;
  _certain bigint;
  _settled bigint;
  _is_settled boolean;
  _count integer;
  _last bigint;
  _newest bigint;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 10000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('limit', p_limit, 1, 10000));
  END IF;

  SELECT head.* INTO _head FROM os_core.work_order_feed_heads AS head WHERE head.tenant_id = p_tenant_id;
  _settled := COALESCE(_head.settled_event_id, 0);
  -- Read as a table: pg_sequence_last_value() takes a lock that writers take.
  SELECT drawn.last_value INTO _drawn FROM os_core.work_order_ledger_work_order_event_id_seq AS drawn;
  -- The highest id of this node. A database that was never distributed is a node whose ids go up to 2^48.
  _highest := _drawn | 281474976710655;
  IF _highest > 281474976710655 THEN
    _has_moved := os_core.feed_has_moved(p_tenant_id, _settled, _drawn);
  END IF;
  IF _has_moved THEN
    _settled := 0;
    _highest := 9223372036854775807;
  ELSIF _drawn < GREATEST(_settled, _head.mark_event_id) THEN
    -- Set back, it would give ids that are settled already, or by the mark: nobody would look for them.
    PERFORM os_core.refuse_sequence('os_core.work_order_ledger', 'work_order_event_id');
  END IF;
  _is_settled := NOT EXISTS (
    SELECT FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_event_id > _settled
      AND ledger.work_order_event_id <= _highest
  );
  IF _is_settled AND NOT EXISTS (
    SELECT FROM os_core.subject_erasures AS erasure
    WHERE erasure.tenant_id = p_tenant_id
      AND erasure.drawn_event_id > _settled
      AND erasure.drawn_event_id <= _highest
  ) THEN
    RETURN 0;
  END IF;
  IF _has_moved THEN
    NULL;  -- the head has to be brought to this node
  ELSIF NOT EXISTS (
    SELECT FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_event_id > _settled
      AND ledger.work_order_event_id <= _highest
      AND NOT EXISTS (
        SELECT FROM os_core.work_order_feed AS feed
        WHERE feed.tenant_id = p_tenant_id AND feed.work_order_event_id = ledger.work_order_event_id
        OFFSET 0
      )
  ) AND NOT EXISTS (
    SELECT FROM os_core.subject_erasures AS erasure
    WHERE erasure.tenant_id = p_tenant_id
      AND erasure.drawn_event_id > _settled
      AND erasure.drawn_event_id <= _highest
      AND NOT EXISTS (
        SELECT FROM os_core.work_order_feed AS feed
        WHERE feed.tenant_id = p_tenant_id AND feed.erasure_id = erasure.erasure_id
        OFFSET 0
      )
  ) THEN
    _xmin := pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint;
    _xmax := pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint;
    -- All have positions. What may be left to do is to settle, or to set a mark for the next call to settle.
    IF _is_settled THEN
      RETURN 0;
    ELSIF _head.mark_event_id > _settled AND _head.mark_xid < _xmax THEN
      IF _head.mark_xid > _xmin THEN
        RETURN 0;
      END IF;
    ELSIF NOT _is_fresh THEN
      RETURN 0;
    END IF;
  END IF;

  IF os_core.removal_is_open(p_tenant_id) THEN
    -- Positions go before events. Who gives new ones would show them to consumers again.
    RETURN 0;
  END IF;
  LOOP
    SELECT head.* INTO _head
    FROM os_core.work_order_feed_heads AS head
    WHERE head.tenant_id = p_tenant_id
    FOR NO KEY UPDATE SKIP LOCKED;
    EXIT WHEN FOUND;
    IF EXISTS (SELECT FROM os_core.work_order_feed_heads AS head WHERE head.tenant_id = p_tenant_id) THEN
      RETURN NULL;
    END IF;
    -- The first call of a tenant. ON CONFLICT would wait for another first one to its end.
    IF NOT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('os_core.work_order_feed_heads ' || p_tenant_id, 0)) THEN
      RETURN NULL;
    END IF;
    INSERT INTO os_core.work_order_feed_heads (tenant_id, last_position, settled_event_id, mark_event_id)
    VALUES (p_tenant_id, 0, 0, 0)
    ON CONFLICT DO NOTHING;
  END LOOP;
  _settled := _head.settled_event_id;

  IF _has_moved THEN
    -- In the order of time: ids of several nodes do not order. Each work order's times never go down.
    WITH numbered AS (
      INSERT INTO os_core.work_order_feed AS feed (tenant_id, feed_position, work_order_event_id, erasure_id)
      SELECT
        p_tenant_id,
        _head.last_position + pg_catalog.row_number() OVER (
          ORDER BY found.created_at, found.work_order_seq, found.work_order_event_id, found.erasure_id
        ),
        found.work_order_event_id,
        found.erasure_id
      FROM (
        SELECT ledger.created_at, ledger.work_order_seq, ledger.work_order_event_id, NULL::bigint AS erasure_id
        FROM os_core.work_order_ledger AS ledger
        WHERE ledger.tenant_id = p_tenant_id
          AND NOT EXISTS (
            SELECT FROM os_core.work_order_feed AS fed
            WHERE fed.tenant_id = p_tenant_id AND fed.work_order_event_id = ledger.work_order_event_id
            OFFSET 0
          )
        UNION ALL
        SELECT erasure.erased_at, NULL, NULL, erasure.erasure_id
        FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = p_tenant_id
          AND NOT EXISTS (
            SELECT FROM os_core.work_order_feed AS fed
            WHERE fed.tenant_id = p_tenant_id AND fed.erasure_id = erasure.erasure_id
            OFFSET 0
          )
        ORDER BY created_at, work_order_seq, work_order_event_id, erasure_id
        LIMIT p_limit
      ) AS found
      RETURNING feed.work_order_event_id
    )
    SELECT pg_catalog.count(*) INTO _count FROM numbered;
    _head.mark_event_id := 0;
    -- Settled on this node is nothing yet. At 0 the next call goes on here.
    _highest := _drawn | 281474976710655;
    _settled := CASE WHEN _count < p_limit THEN _highest - 281474976710655 ELSE 0 END;
  ELSE
    -- Before the search and its snapshot: what is over by now, the search sees.
    _xmin := pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint;
    IF _head.mark_event_id > _settled AND _head.mark_xid <= _xmin THEN
      _certain := _head.mark_event_id;
    END IF;
    -- Counted by RETURNING: a distributed engine reports what an INSERT with SELECT has selected.
    WITH numbered AS (
      INSERT INTO os_core.work_order_feed AS feed (tenant_id, feed_position, work_order_event_id, erasure_id)
      SELECT
        p_tenant_id,
        _head.last_position + pg_catalog.row_number() OVER (ORDER BY found.drawn_event_id),
        found.work_order_event_id,
        found.erasure_id
      FROM (
        (
          SELECT ledger.work_order_event_id AS drawn_event_id, ledger.work_order_event_id, NULL::bigint AS erasure_id
          FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_event_id > _settled
            AND ledger.work_order_event_id <= _highest
            AND NOT EXISTS (
              SELECT FROM os_core.work_order_feed AS fed
              WHERE fed.tenant_id = p_tenant_id AND fed.work_order_event_id = ledger.work_order_event_id
              OFFSET 0
            )
          ORDER BY ledger.work_order_event_id
        )
        UNION ALL
        (
          SELECT erasure.drawn_event_id, NULL, erasure.erasure_id
          FROM os_core.subject_erasures AS erasure
          WHERE erasure.tenant_id = p_tenant_id
            AND erasure.drawn_event_id > _settled
            AND erasure.drawn_event_id <= _highest
            AND NOT EXISTS (
              SELECT FROM os_core.work_order_feed AS fed
              WHERE fed.tenant_id = p_tenant_id AND fed.erasure_id = erasure.erasure_id
              OFFSET 0
            )
          ORDER BY erasure.drawn_event_id
        )
        ORDER BY drawn_event_id
        LIMIT p_limit
      ) AS found
      RETURNING feed.work_order_event_id
    )
    SELECT pg_catalog.count(*), pg_catalog.max(numbered.work_order_event_id) INTO _count, _last FROM numbered;
    IF _count = p_limit AND _certain > COALESCE(_last, 0) THEN
      -- Nobody has looked at what is above the last event.
      _certain := _last;
    END IF;
    _settled := GREATEST(_settled, _certain);
  END IF;

  IF _is_fresh AND (
    _head.mark_event_id <= _settled OR _head.mark_xid > pg_catalog.pg_current_xact_id()::text::bigint
  ) THEN
    -- The old mark is used up, or comes from another cluster, whose xids are not ours. The new one is not above the newest event, so that
    -- a sequence that is restored to the ledger's last id is above all marks. So erasures that came after it are looked at again.
    SELECT ledger.work_order_event_id INTO _newest
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_event_id <= _highest
    ORDER BY ledger.work_order_event_id DESC
    LIMIT 1;
    _head.mark_event_id := COALESCE(LEAST(_drawn, _newest), 0);
    _head.mark_xid := pg_catalog.pg_current_xact_id()::text::bigint;
  END IF;
  UPDATE os_core.work_order_feed_heads AS head
  SET
    last_position = head.last_position + _count,
    settled_event_id = _settled,
    mark_event_id = _head.mark_event_id,
    mark_xid = _head.mark_xid
  WHERE head.tenant_id = p_tenant_id;
  RETURN _count;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.advance_feed(text, integer) TO selene_app;
