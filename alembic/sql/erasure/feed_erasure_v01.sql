-- os_core.feed_erasure: gives the erasure of a person its position in the tenant's feed (contract sections 16 and 18).
-- Unlike that of an event, it is given at once: the head is locked last, and stays locked to the end of the transaction. So positions
-- are gapless, and become visible in their order.
CREATE OR REPLACE FUNCTION os_core.feed_erasure(p_tenant_id text, p_erasure_id bigint)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _position bigint;
BEGIN
  LOOP
    UPDATE os_core.work_order_feed_heads AS head
    SET last_position = head.last_position + 1
    WHERE head.tenant_id = p_tenant_id
    RETURNING head.last_position INTO _position;
    EXIT WHEN _position IS NOT NULL;
    INSERT INTO os_core.work_order_feed_heads (tenant_id, last_position, settled_event_id, mark_event_id)
    VALUES (p_tenant_id, 0, 0, 0)
    ON CONFLICT DO NOTHING;
  END LOOP;
  INSERT INTO os_core.work_order_feed (tenant_id, feed_position, erasure_id) VALUES (p_tenant_id, _position, p_erasure_id);
END;
$$;
