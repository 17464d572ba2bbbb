-- os_core.verify_feed: returns what is wrong with the tenant's feed, each with the position, event or consumer (contract section 16).
-- It only reads, all that it judges in one statement and so on one snapshot, and believes nothing but the ledger.
CREATE OR REPLACE FUNCTION os_core.verify_feed(p_tenant_id text)
RETURNS TABLE (feed_position bigint, work_order_event_id bigint, work_order_id text, consumer text, problem text)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
  _drawn bigint;
  _settled bigint;
  _is_settled_elsewhere boolean := FALSE;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  SELECT drawn.last_value INTO _drawn FROM os_core.work_order_ledger_work_order_event_id_seq AS drawn;
  IF _drawn >> 48 > 0 THEN
    -- A node of a distributed database. Once the feed's head is here, all that other nodes gave has positions.
    SELECT head.settled_event_id INTO _settled FROM os_core.work_order_feed_heads AS head WHERE head.tenant_id = p_tenant_id;
    _is_settled_elsewhere := NOT os_core.feed_has_moved(p_tenant_id, COALESCE(_settled, 0), _drawn);
  END IF;
  RETURN QUERY
  WITH removal AS (
    -- The positions of a removed tenant are gone; they go on if it comes again.
    SELECT FROM os_core.tenant_removals AS each
    WHERE each.tenant_id = p_tenant_id
  ),
  head AS (
    SELECT each.last_position, each.settled_event_id
    FROM os_core.work_order_feed_heads AS each
    WHERE each.tenant_id = p_tenant_id
  ),
  numbered AS (
    SELECT
      feed.feed_position,
      feed.work_order_event_id,
      feed.erasure_id,
      erasure.erasure_id AS record_id,
      pg_catalog.count(*) OVER (PARTITION BY feed.erasure_id, feed.work_order_event_id) AS positions,
      ledger.work_order_id,
      ledger.work_order_seq,
      pg_catalog.row_number() OVER (PARTITION BY ledger.work_order_id ORDER BY feed.feed_position) AS nth,
      pg_catalog.lag(feed.feed_position, 1, 0::bigint) OVER (ORDER BY feed.feed_position) AS before,
      pg_catalog.lead(feed.feed_position) OVER (ORDER BY feed.feed_position) AS following
    FROM os_core.work_order_feed AS feed
    LEFT JOIN os_core.work_order_ledger AS ledger
      ON ledger.tenant_id = p_tenant_id AND ledger.work_order_event_id = feed.work_order_event_id
    LEFT JOIN os_core.subject_erasures AS erasure
      ON erasure.tenant_id = p_tenant_id AND erasure.erasure_id = feed.erasure_id
    WHERE feed.tenant_id = p_tenant_id
  )
  SELECT
    NULL::bigint,
    ledger.work_order_event_id,
    ledger.work_order_id,
    NULL::text,
    'the event was never given a position'
  FROM os_core.work_order_ledger AS ledger
  WHERE ledger.tenant_id = p_tenant_id
    AND (
      ledger.work_order_event_id <= (SELECT head.settled_event_id FROM head)
      AND ledger.work_order_event_id >> 48 = (SELECT head.settled_event_id >> 48 FROM head)
      OR _is_settled_elsewhere AND ledger.work_order_event_id >> 48 <> _drawn >> 48
    )
    AND NOT EXISTS (
      SELECT FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id AND feed.work_order_event_id = ledger.work_order_event_id
    )
  UNION ALL
  SELECT
    NULL,
    NULL,
    NULL,
    NULL,
    pg_catalog.format('the erasure %s was never given a position', erasure.erasure_id)
  FROM os_core.subject_erasures AS erasure
  WHERE erasure.tenant_id = p_tenant_id
    AND (
      erasure.drawn_event_id <= (SELECT head.settled_event_id FROM head)
      AND erasure.drawn_event_id >> 48 = (SELECT head.settled_event_id >> 48 FROM head)
      OR _is_settled_elsewhere AND erasure.drawn_event_id >> 48 <> _drawn >> 48
    )
    AND NOT EXISTS (
      SELECT FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id AND feed.erasure_id = erasure.erasure_id
    )
  UNION ALL
  SELECT
    numbered.feed_position,
    numbered.work_order_event_id,
    numbered.work_order_id,
    NULL::text,
    found.problem
  FROM numbered
  CROSS JOIN LATERAL (
    VALUES
    (numbered.work_order_seq IS NULL AND numbered.erasure_id IS NULL, 'the position has no event in the ledger'),
    (
      numbered.erasure_id <> COALESCE(numbered.record_id, 0),
      pg_catalog.format('the erasure %s has no record', numbered.erasure_id)
    ),
    (
      numbered.erasure_id IS NOT NULL AND numbered.positions > 1,
      pg_catalog.format('the erasure %s has another position, too', numbered.erasure_id)
    ),
    (numbered.nth <> numbered.work_order_seq, 'the event is out of the order of its work order'),
    (
      numbered.before <> numbered.feed_position - 1 AND NOT (numbered.before = 0 AND EXISTS (SELECT FROM removal)),
      'the position before is missing'
    ),
    (
      numbered.following IS NULL
      AND numbered.feed_position IS DISTINCT FROM (SELECT head.last_position FROM head),
      'the last position is not that of the feed''s head'
    )
  ) AS found (is_broken, problem)
  WHERE found.is_broken
  UNION ALL
  SELECT
    head.last_position,
    NULL::bigint,
    NULL::text,
    NULL::text,
    'the feed has no positions, and its head has one'
  FROM head
  WHERE head.last_position > 0 AND NOT EXISTS (SELECT FROM numbered) AND NOT EXISTS (SELECT FROM removal)
  UNION ALL
  SELECT
    listed.feed_position,
    NULL::bigint,
    NULL::text,
    listed.consumer,
    'the consumer is ahead of the feed'
  FROM os_core.work_order_feed_consumers AS listed
  WHERE listed.tenant_id = p_tenant_id
    AND listed.feed_position > COALESCE((SELECT head.last_position FROM head), 0)
  ORDER BY 1 NULLS FIRST, 2, 4;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.verify_feed(text) TO selene_app;
