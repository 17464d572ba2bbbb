-- os_core.release_feed: gives a consumer's lease back, so that others need not wait for its expiry (contract section 16).
-- Returns FALSE if the lease was given back or taken over before.
CREATE OR REPLACE FUNCTION os_core.release_feed(p_tenant_id text, p_consumer text, p_fence bigint)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _now constant timestamptz := pg_catalog.clock_timestamp();
  _violation text;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('consumer', p_consumer, 128),
    os_core.integer_violation('fence', p_fence, 1, 9223372036854775807)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  UPDATE os_core.work_order_feed_consumers AS consumer
  SET lease_owner_id = NULL, lease_expires_at = NULL, updated_at = _now
  WHERE consumer.tenant_id = p_tenant_id
    AND consumer.consumer = p_consumer
    AND consumer.fence = p_fence
    AND consumer.lease_owner_id IS NOT NULL;
  RETURN FOUND;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.release_feed(text, text, bigint) TO selene_app;
