-- os_core.feed_status: returns where the consumers of the tenant's feed stand, or one of them (contract section 16). It only reads.
-- behind: positions after its place that are there, and events without a position; these are counted up to 10,000. waiting_since: when the first of
-- all these was appended.
CREATE OR REPLACE FUNCTION os_core.feed_status(p_tenant_id text, p_consumer text DEFAULT NULL)
RETURNS TABLE (
  consumer text,
  feed_position bigint,
  last_position bigint,
  behind bigint,
  waiting_since timestamptz,
  lease_owner_id text,
  lease_expires_at timestamptz,
  updated_at timestamptz
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
  _head os_core.work_order_feed_heads;
  _settled bigint;
  _drawn bigint;
  _highest bigint;
  _gone bigint;
  _unnumbered bigint;
  _first timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF p_consumer IS NOT NULL AND os_core.is_identifier(p_consumer, 128) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.identifier_violation('consumer', p_consumer, 128));
  END IF;
  SELECT head.* INTO _head FROM os_core.work_order_feed_heads AS head WHERE head.tenant_id = p_tenant_id;
  -- A variable: behind row-level security an index takes no COALESCE.
  _settled := COALESCE(_head.settled_event_id, 0);
  SELECT drawn.last_value INTO _drawn FROM os_core.work_order_ledger_work_order_event_id_seq AS drawn;
  _highest := _drawn | 281474976710655;
  IF _highest > 281474976710655 THEN
    -- A node of a distributed database: see os_core.feed_has_moved.
    IF os_core.feed_has_moved(p_tenant_id, _settled, _drawn) THEN
      _settled := 0;
      _highest := 9223372036854775807;
    END IF;
  END IF;
  -- What was removed with the tenant is not waited for.
  _gone := COALESCE(
    (
      SELECT feed.feed_position - 1
      FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id
      ORDER BY feed.feed_position
      LIMIT 1
    ),
    _head.last_position
  );
  SELECT pg_catalog.count(*), pg_catalog.min(found.created_at) INTO _unnumbered, _first
  FROM (
    (
      SELECT ledger.created_at
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id
        AND ledger.work_order_event_id > _settled
        AND ledger.work_order_event_id <= _highest
        AND NOT EXISTS (
          SELECT FROM os_core.work_order_feed AS feed
          WHERE feed.tenant_id = p_tenant_id AND feed.work_order_event_id = ledger.work_order_event_id
          OFFSET 0
        )
      ORDER BY ledger.work_order_event_id
      LIMIT 10000
    )
    UNION ALL
    (
      SELECT erasure.erased_at
      FROM os_core.subject_erasures AS erasure
      WHERE erasure.tenant_id = p_tenant_id
        AND erasure.drawn_event_id > _settled
        AND erasure.drawn_event_id <= _highest
        AND NOT EXISTS (
          SELECT FROM os_core.work_order_feed AS feed
          WHERE feed.tenant_id = p_tenant_id AND feed.erasure_id = erasure.erasure_id
          OFFSET 0
        )
      ORDER BY erasure.drawn_event_id
      LIMIT 10000
    )
    LIMIT 10000
  ) AS found;
  RETURN QUERY
  SELECT
    listed.consumer,
    listed.feed_position,
    COALESCE(_head.last_position, 0),
    COALESCE(_head.last_position - GREATEST(listed.feed_position, _gone), 0) + _unnumbered,
    COALESCE(
      (
        SELECT COALESCE(ledger.created_at, erasure.erased_at)
        FROM os_core.work_order_feed AS feed
        LEFT JOIN LATERAL (
          SELECT event.created_at
          FROM os_core.work_order_ledger AS event
          WHERE event.tenant_id = p_tenant_id AND event.work_order_event_id = feed.work_order_event_id
          LIMIT 1
        ) AS ledger ON TRUE
        LEFT JOIN LATERAL (
          SELECT erased.erased_at
          FROM os_core.subject_erasures AS erased
          WHERE erased.tenant_id = p_tenant_id AND erased.erasure_id = feed.erasure_id
          LIMIT 1
        ) AS erasure ON TRUE
        WHERE feed.tenant_id = p_tenant_id AND feed.feed_position > listed.feed_position
        ORDER BY feed.feed_position
        LIMIT 1
      ),
      _first
    ),
    listed.lease_owner_id,
    listed.lease_expires_at,
    listed.updated_at
  FROM os_core.work_order_feed_consumers AS listed
  WHERE listed.tenant_id = p_tenant_id AND (p_consumer IS NULL OR listed.consumer = p_consumer)
  ORDER BY listed.consumer;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.feed_status(text, text) TO selene_app, selene_readonly;
