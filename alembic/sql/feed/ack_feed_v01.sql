-- os_core.ack_feed: moves a leased consumer's place from p_from to p_to (contract section 16).
-- Returns FALSE if this ack has done so before. LeaseLost if the lease was taken over since, or the place is another.
CREATE OR REPLACE FUNCTION os_core.ack_feed(p_tenant_id text, p_consumer text, p_fence bigint, p_from bigint, p_to bigint)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _consumer os_core.work_order_feed_consumers;
  _now timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('consumer', p_consumer, 128),
    os_core.integer_violation('fence', p_fence, 1, 9223372036854775807),
    os_core.integer_violation('from', p_from, 0, 9223372036854775807),
    os_core.integer_violation('to', p_to, p_from, GREATEST(p_from, (
      SELECT head.last_position FROM os_core.work_order_feed_heads AS head WHERE head.tenant_id = p_tenant_id
    )))
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  SELECT consumer.* INTO _consumer
  FROM os_core.work_order_feed_consumers AS consumer
  WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  FOR NO KEY UPDATE;
  IF _consumer.fence = p_fence AND _consumer.feed_position = p_from THEN
    _now := pg_catalog.clock_timestamp();
    UPDATE os_core.work_order_feed_consumers AS consumer
    SET feed_position = p_to, updated_at = _now
    WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer;
    RETURN TRUE;
  ELSIF _consumer.fence = p_fence AND _consumer.feed_position = p_to THEN
    RETURN FALSE;
  END IF;
  PERFORM os_core.refuse(
    'SL011',
    pg_catalog.format('the lease on consumer %s of the feed is lost: its events come again', p_consumer),
    pg_catalog.jsonb_build_object('consumer', p_consumer)
  );
  RETURN FALSE;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.ack_feed(text, text, bigint, bigint, bigint) TO selene_app;
