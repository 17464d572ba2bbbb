-- os_core.read_feed: returns the next p_limit events of the feed after position p_after (0: from the first), in order (contract section 16).
-- The erasure of a person has a position, too: its event_type is SUBJECT_ERASED, it has no work order, and its payload names the subject.
-- It only reads, so it works on a replica, too. Positions are given by os_core.advance_feed, on the primary.
-- Planner settings: a plan made for an empty table must not scan or sort a full one.
-- The ledger is read by ranges of ids, and not by a search for each event: that costs a hundredth of the blocks.
CREATE OR REPLACE FUNCTION os_core.read_feed(p_tenant_id text, p_after bigint, p_limit integer)
RETURNS TABLE (
  feed_position bigint,
  work_order_event_id bigint,
  tenant_id text,
  work_order_id text,
  work_order_seq bigint,
  correlation_id uuid,
  turn_id bigint,
  event_type text,
  work_order_status text,
  reason_code bigint,
  step_id text,
  step_input_hash text,
  lease_owner_id text,
  lease_token_hash text,
  lease_expires_at timestamptz,
  payload jsonb,
  idempotency_key text,
  occurred_at timestamptz,
  created_at timestamptz,
  event_hash bytea
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _count bigint;
  _events bigint;
  _until bigint;
  _ids bigint[];
  _positions bigint[];
  _erasure_ids bigint[];
  _erasure_positions bigint[];
  _least_shift bigint;
  _most_shift bigint;
  _middle bigint;
  _firsts bigint[];
  _lasts bigint[];
  _returned bigint;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.integer_violation('after', p_after, 0, 9223372036854775807),
    os_core.integer_violation('limit', p_limit, 1, 1000)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  SELECT
    pg_catalog.count(*),
    pg_catalog.count(page.work_order_event_id),
    pg_catalog.max(page.feed_position),
    pg_catalog.array_agg(page.work_order_event_id),
    pg_catalog.array_agg(page.feed_position),
    pg_catalog.array_agg(page.erasure_id) FILTER (WHERE page.erasure_id IS NOT NULL),
    pg_catalog.min(page.work_order_event_id - page.feed_position),
    pg_catalog.max(page.work_order_event_id - page.feed_position)
  INTO _count, _events, _until, _ids, _positions, _erasure_ids, _least_shift, _most_shift
  FROM (
    SELECT feed.feed_position, feed.work_order_event_id, feed.erasure_id
    FROM os_core.work_order_feed AS feed
    WHERE feed.tenant_id = p_tenant_id AND feed.feed_position > p_after
    ORDER BY feed.feed_position
    LIMIT p_limit
  ) AS page;
  IF _count = 0 THEN
    RETURN;
  END IF;

  IF _events = _count AND _least_shift = _most_shift AND _until - _positions[1] = _count - 1 THEN
    -- Ids and positions run together. So the range holds no other event, and there is nothing to sort.
    RETURN QUERY
    SELECT
      ledger.work_order_event_id - _least_shift,
      ledger.work_order_event_id,
      ledger.tenant_id,
      ledger.work_order_id,
      ledger.work_order_seq,
      ledger.correlation_id,
      ledger.turn_id,
      ledger.event_type,
      ledger.work_order_status,
      ledger.reason_code,
      ledger.step_id,
      ledger.step_input_hash,
      ledger.lease_owner_id,
      ledger.lease_token_hash,
      ledger.lease_expires_at,
      ledger.payload,
      ledger.idempotency_key,
      ledger.occurred_at,
      ledger.created_at,
      ledger.event_hash
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND ledger.work_order_event_id BETWEEN _positions[1] + _least_shift AND _until + _least_shift
    ORDER BY ledger.work_order_event_id;
  ELSE
    -- From position order into the order of the ids. An erasure has no event id.
    SELECT
      pg_catalog.array_agg(page.id ORDER BY page.id) FILTER (WHERE page.id IS NOT NULL),
      pg_catalog.array_agg(page.feed_position ORDER BY page.id) FILTER (WHERE page.id IS NOT NULL),
      pg_catalog.array_agg(page.feed_position ORDER BY page.feed_position) FILTER (WHERE page.id IS NULL)
    INTO _ids, _positions, _erasure_positions
    FROM ROWS FROM (pg_catalog.unnest(_ids), pg_catalog.unnest(_positions)) AS page (id, feed_position);
    _firsts := _ids[1:1];
    _lasts := _ids[_events:_events];
    _middle := _ids[_events - _events / 4] - _ids[1 + _events / 4];
    -- Divided, not multiplied: ids may be anywhere within 64 bits.
    IF (_lasts[1] - _firsts[1]) / 4 > GREATEST(_events / 2, _middle) THEN
      -- What committed late may lie far from the others: a range ends where a gap is far wider than those of the middle half.
      SELECT pg_catalog.array_agg(range.first ORDER BY range.first), pg_catalog.array_agg(range.last ORDER BY range.first)
      INTO _firsts, _lasts
      FROM (
        SELECT pg_catalog.min(numbered.id) AS first, pg_catalog.max(numbered.id) AS last
        FROM (
          SELECT
            event.id,
            pg_catalog.count(*) FILTER (WHERE event.gap / 16 > GREATEST(2, _middle / _events)) OVER (ORDER BY event.id) AS number
          FROM (
            SELECT each.id, each.id - pg_catalog.lag(each.id) OVER (ORDER BY each.id) AS gap
            FROM pg_catalog.unnest(_ids) AS each (id)
          ) AS event
        ) AS numbered
        GROUP BY numbered.number
      ) AS range;
    END IF;
    RETURN QUERY
    SELECT
      _positions[event.nth],
      event.work_order_event_id,
      event.tenant_id,
      event.work_order_id,
      event.work_order_seq,
      event.correlation_id,
      event.turn_id,
      event.event_type,
      event.work_order_status,
      event.reason_code,
      event.step_id,
      event.step_input_hash,
      event.lease_owner_id,
      event.lease_token_hash,
      event.lease_expires_at,
      event.payload,
      event.idempotency_key,
      event.occurred_at,
      event.created_at,
      event.event_hash
    FROM ROWS FROM (pg_catalog.unnest(_firsts), pg_catalog.unnest(_lasts)) AS range (first, last)
    CROSS JOIN LATERAL (
      -- (SELECT _ids): one plain array for the statement. Else each call would copy it.
      SELECT ledger.*, pg_catalog.width_bucket(ledger.work_order_event_id, (SELECT _ids)) AS nth
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_event_id BETWEEN range.first AND range.last
      OFFSET 0
    ) AS event
    WHERE event.work_order_event_id = _ids[event.nth]
    UNION ALL
    SELECT
      told.feed_position, NULL, p_tenant_id, NULL, NULL, NULL, NULL, 'SUBJECT_ERASED', NULL, erasure.reason_code, NULL, NULL, NULL, NULL, NULL,
      pg_catalog.jsonb_build_object('subject_id', erasure.subject_id), NULL, NULL, erasure.erased_at, NULL
    FROM ROWS FROM (pg_catalog.unnest(_erasure_positions), pg_catalog.unnest(_erasure_ids)) AS told (feed_position, erasure_id)
    CROSS JOIN LATERAL (
      SELECT erased.*
      FROM os_core.subject_erasures AS erased
      WHERE erased.tenant_id = p_tenant_id AND erased.erasure_id = told.erasure_id
      LIMIT 1
    ) AS erasure
    ORDER BY 1;
  END IF;
  GET DIAGNOSTICS _returned = ROW_COUNT;
  IF _returned <> _count THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = pg_catalog.format('the feed of tenant %s has a position without its event', p_tenant_id),
      HINT = 'os_core.verify_feed() names it. While the tenant is being removed, this is no fault.';
  END IF;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.read_feed(text, bigint, integer) TO selene_app, selene_readonly;
