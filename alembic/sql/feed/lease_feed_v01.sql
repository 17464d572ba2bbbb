-- os_core.lease_feed: lets one owner work outside the database on a consumer's events for p_ttl_ms milliseconds (contract section 16).
-- Returns the fence and the place: read with os_core.read_feed after it, then os_core.ack_feed. The same owner keeps its fence while its
-- lease is unexpired; any other lease gets a higher one. LeaseHeld while another owner holds it.
CREATE OR REPLACE FUNCTION os_core.lease_feed(p_tenant_id text, p_consumer text, p_owner text, p_ttl_ms bigint)
RETURNS TABLE (fence bigint, feed_position bigint, lease_expires_at timestamptz)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _consumer os_core.work_order_feed_consumers;
  _now timestamptz;
  _is_held boolean;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('consumer', p_consumer, 128),
    os_core.identifier_violation('owner', p_owner, 128),
    os_core.integer_violation('ttl_ms', p_ttl_ms, 1, 3600000)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  PERFORM os_core.enroll_feed(p_tenant_id, p_consumer);
  SELECT consumer.* INTO _consumer
  FROM os_core.work_order_feed_consumers AS consumer
  WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  FOR NO KEY UPDATE SKIP LOCKED;
  _now := pg_catalog.clock_timestamp();
  _is_held := _consumer.lease_expires_at > _now;
  IF NOT FOUND OR (_is_held AND _consumer.lease_owner_id <> p_owner) THEN
    -- Without an owner: a transaction has it, which takes its events or asks for the lease.
    PERFORM os_core.refuse(
      'SL010',
      pg_catalog.format('consumer %s of the feed is at work already', p_consumer),
      pg_catalog.jsonb_build_object(
        'consumer', p_consumer,
        'lease_owner_id', _consumer.lease_owner_id,
        'lease_expires_at', os_core.json_time(_consumer.lease_expires_at)
      )
    );
  END IF;
  RETURN QUERY
  UPDATE os_core.work_order_feed_consumers AS consumer
  SET
    fence = CASE WHEN _is_held THEN consumer.fence ELSE consumer.fence + 1 END,
    lease_owner_id = p_owner,
    lease_expires_at = _now + p_ttl_ms * INTERVAL '1 millisecond',
    updated_at = _now
  WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  RETURNING consumer.fence, consumer.feed_position, consumer.lease_expires_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.lease_feed(text, text, text, bigint) TO selene_app;
