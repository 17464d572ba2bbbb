-- os_core.poll_feed: gives positions as os_core.advance_feed does, and tells whether there are events for a consumer (contract section 16).
-- One call where a consumer looks for news; it makes the consumer, too. Call it in a transaction of its own. If it returns FALSE and the
-- consumer was there, it has only read, unless the feed had something to settle.
CREATE OR REPLACE FUNCTION os_core.poll_feed(p_tenant_id text, p_consumer text, p_limit integer DEFAULT 10000)
RETURNS boolean
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
BEGIN
  -- First: a transaction that has written before can set no mark.
  PERFORM os_core.advance_feed(p_tenant_id, p_limit);
  PERFORM os_core.enroll_feed(p_tenant_id, p_consumer);
  RETURN EXISTS (
    SELECT FROM os_core.work_order_feed_consumers AS consumer
    JOIN os_core.work_order_feed AS feed
      ON feed.tenant_id = p_tenant_id AND feed.feed_position > consumer.feed_position
    WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  );
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.poll_feed(text, text, integer) TO selene_app;
