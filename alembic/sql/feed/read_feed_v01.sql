-- os_core.read_feed: returns the next p_limit events of the feed after position p_after (0: from the first), in order (contract section 16).
-- The erasure of a person has a position, too: its event_type is SUBJECT_ERASED, it has no work order, and its payload names the subject.
-- It only reads, so it works on a replica, too. Positions are given by os_core.advance_feed, on the primary.
-- Planner settings: a plan made for an empty table must not scan or sort a full one.
-- A long page of events that follow each other in the ledger, too, is read there as one range: that costs a hundredth of the blocks.
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
SET enable_nestloop = off
SET enable_sort = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _shortest_range constant integer := 20;
  _violation text;
  _count bigint;
  _until bigint;
  _first bigint;
  _last bigint;
  _is_range boolean;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.integer_violation('after', p_after, 0, 9223372036854775807),
    os_core.integer_violation('limit', p_limit, 1, 1000)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  IF p_limit >= _shortest_range THEN
    SELECT
      pg_catalog.count(*),
      pg_catalog.max(page.feed_position),
      pg_catalog.min(page.work_order_event_id),
      pg_catalog.max(page.work_order_event_id),
      pg_catalog.bool_and(page.work_order_event_id IS NOT NULL AND page.work_order_event_id > page.id_before)
    INTO _count, _until, _first, _last, _is_range
    FROM (
      SELECT
        feed.feed_position,
        feed.work_order_event_id,
        pg_catalog.lag(feed.work_order_event_id, 1, 0::bigint) OVER (ORDER BY feed.feed_position) AS id_before
      FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id AND feed.feed_position > p_after
      ORDER BY feed.feed_position
      LIMIT p_limit
    ) AS page;
    -- Not where many events of other pages lie between its own.
    _is_range := _is_range AND _count >= _shortest_range AND (
      _last - _first < 2 * _count
      OR NOT EXISTS (
        SELECT FROM os_core.work_order_feed AS feed
        WHERE feed.tenant_id = p_tenant_id AND feed.work_order_event_id BETWEEN _first AND _last
        OFFSET 2 * _count
      )
    );
  END IF;
  IF _is_range THEN
    RETURN QUERY
    SELECT feed.feed_position, ledger.*
    FROM os_core.work_order_feed AS feed
    LEFT JOIN os_core.work_order_ledger AS ledger
      ON ledger.tenant_id = p_tenant_id
        AND ledger.work_order_event_id = feed.work_order_event_id
        AND ledger.work_order_event_id BETWEEN _first AND _last
    WHERE feed.tenant_id = p_tenant_id
      AND feed.work_order_event_id BETWEEN _first AND _last
      AND feed.feed_position > p_after
      AND feed.feed_position <= _until
    ORDER BY feed.work_order_event_id;
    RETURN;
  END IF;
  RETURN QUERY
  SELECT
    feed.feed_position,
    ledger.work_order_event_id,
    feed.tenant_id,
    ledger.work_order_id,
    ledger.work_order_seq,
    ledger.correlation_id,
    ledger.turn_id,
    COALESCE(ledger.event_type, CASE WHEN feed.erasure_id IS NOT NULL THEN 'SUBJECT_ERASED' END),
    ledger.work_order_status,
    COALESCE(ledger.reason_code, erasure.reason_code),
    ledger.step_id,
    ledger.step_input_hash,
    ledger.lease_owner_id,
    ledger.lease_token_hash,
    ledger.lease_expires_at,
    COALESCE(ledger.payload, pg_catalog.jsonb_build_object('subject_id', erasure.subject_id)),
    ledger.idempotency_key,
    ledger.occurred_at,
    COALESCE(ledger.created_at, erasure.erased_at),
    ledger.event_hash
  FROM os_core.work_order_feed AS feed
  -- One index probe for each position: LIMIT prevents a join, which looks as cheap while the tables are empty.
  LEFT JOIN LATERAL (
    SELECT event.*
    FROM os_core.work_order_ledger AS event
    WHERE event.tenant_id = p_tenant_id AND event.work_order_event_id = feed.work_order_event_id
    LIMIT 1
  ) AS ledger ON TRUE
  LEFT JOIN LATERAL (
    SELECT erased.*
    FROM os_core.subject_erasures AS erased
    WHERE erased.tenant_id = p_tenant_id AND erased.erasure_id = feed.erasure_id
    LIMIT 1
  ) AS erasure ON TRUE
  WHERE feed.tenant_id = p_tenant_id AND feed.feed_position > p_after
  ORDER BY feed.feed_position
  LIMIT p_limit;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.read_feed(text, bigint, integer) TO selene_app, selene_readonly;
