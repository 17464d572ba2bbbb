-- os_core.enroll_feed: makes a consumer of the tenant's feed, at position 0 (contract section 16). Returns FALSE if it is there already, or
-- while the tenant is being removed: there is nothing to consume, and a consumer that polls would hold up the removal.
CREATE OR REPLACE FUNCTION os_core.enroll_feed(p_tenant_id text, p_consumer text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF os_core.is_identifier(p_consumer, 128) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.identifier_violation('consumer', p_consumer, 128));
  END IF;
  -- Looked for first, because a call that finds it must not write.
  IF EXISTS (
    SELECT FROM os_core.work_order_feed_consumers AS consumer
    WHERE consumer.tenant_id = p_tenant_id AND consumer.consumer = p_consumer
  ) THEN
    RETURN FALSE;
  END IF;
  IF os_core.removal_is_open(p_tenant_id) THEN
    RETURN FALSE;
  END IF;
  INSERT INTO os_core.work_order_feed_consumers (tenant_id, consumer, feed_position, fence, updated_at)
  VALUES (p_tenant_id, p_consumer, 0, 0, pg_catalog.clock_timestamp())
  ON CONFLICT DO NOTHING;
  RETURN FOUND;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.enroll_feed(text, text) TO selene_app;
