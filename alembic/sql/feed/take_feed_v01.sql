-- os_core.take_feed: returns the consumer's next p_limit events and moves its place past them, in the caller's transaction (contract section 16).
-- What the caller writes in the same transaction happens exactly once: a rollback takes the place back, too. Returns nothing while
-- another transaction has the consumer, or a lease on it. A call that has nothing to return only reads.
CREATE OR REPLACE FUNCTION os_core.take_feed(p_tenant_id text, p_consumer text, p_limit integer)
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
SET enable_sort = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _consumer os_core.work_order_feed_consumers;
  _count integer;
  _last bigint;
  _now timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('consumer', p_consumer, 128),
    os_core.integer_violation('limit', p_limit, 1, 1000)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  PERFORM os_core.enroll_feed(p_tenant_id, p_consumer);
  -- A lock is an xid, and a commit that waits for the disk: look before it is taken.
  IF NOT EXISTS (
    SELECT FROM os_core.work_order_feed_consumers AS consumer
    JOIN os_core.work_order_feed AS feed
      ON feed.tenant_id = p_tenant_id AND feed.feed_position > consumer.feed_position
    WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  ) THEN
    RETURN;
  END IF;
  SELECT consumer.* INTO _consumer
  FROM os_core.work_order_feed_consumers AS consumer
  WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  FOR NO KEY UPDATE SKIP LOCKED;
  _now := pg_catalog.clock_timestamp();
  IF _consumer.consumer IS NULL OR _consumer.lease_expires_at > _now THEN
    RETURN;
  END IF;
  -- Counted, not computed: the positions of a tenant that was removed are gone.
  SELECT pg_catalog.count(*), pg_catalog.max(following.feed_position) INTO _count, _last
  FROM (
    SELECT feed.feed_position
    FROM os_core.work_order_feed AS feed
    WHERE feed.tenant_id = p_tenant_id AND feed.feed_position > _consumer.feed_position
    ORDER BY feed.feed_position
    LIMIT p_limit
  ) AS following;
  IF _count = 0 THEN
    RETURN;
  END IF;
  UPDATE os_core.work_order_feed_consumers AS consumer
  SET feed_position = _last, updated_at = _now
  WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer;
  RETURN QUERY
  SELECT
    taken.feed_position,
    taken.work_order_event_id,
    taken.tenant_id,
    taken.work_order_id,
    taken.work_order_seq,
    taken.correlation_id,
    taken.turn_id,
    taken.event_type,
    taken.work_order_status,
    taken.reason_code,
    taken.step_id,
    taken.step_input_hash,
    taken.lease_owner_id,
    taken.lease_token_hash,
    taken.lease_expires_at,
    taken.payload,
    taken.idempotency_key,
    taken.occurred_at,
    taken.created_at,
    taken.event_hash
  FROM os_core.read_feed(p_tenant_id, _consumer.feed_position, _count) AS taken;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.take_feed(text, text, integer) TO selene_app;
