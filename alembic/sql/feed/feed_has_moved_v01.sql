-- os_core.feed_has_moved: tells whether events may have no position because the tenant came from another node (contract section 16).
-- Each node of a distributed database gives ids of a range of its own, which are not in order with those of another. What another node
-- gave is committed before the tenant is here. So of each other range, the newest event and the newest erasure tell whether all have
-- positions.
CREATE OR REPLACE FUNCTION os_core.feed_has_moved(p_tenant_id text, p_settled bigint, p_drawn bigint)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
  _below bigint := 9223372036854775807;
  _newest bigint;
  _erased bigint;
  _erasure_id bigint;
BEGIN
  IF p_settled >> 48 <> p_drawn >> 48 THEN
    RETURN TRUE;
  END IF;
  LOOP
    SELECT ledger.work_order_event_id INTO _newest
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_event_id < _below
    ORDER BY ledger.work_order_event_id DESC
    LIMIT 1;
    SELECT erasure.drawn_event_id, erasure.erasure_id INTO _erased, _erasure_id
    FROM os_core.subject_erasures AS erasure
    WHERE erasure.tenant_id = p_tenant_id AND erasure.drawn_event_id < _below
    ORDER BY erasure.drawn_event_id DESC
    LIMIT 1;
    EXIT WHEN _newest IS NULL AND _erased IS NULL;
    IF _newest >> 48 <> p_drawn >> 48 AND NOT EXISTS (
      SELECT FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id AND feed.work_order_event_id = _newest
    ) OR _erased >> 48 <> p_drawn >> 48 AND NOT EXISTS (
      SELECT FROM os_core.work_order_feed AS feed
      WHERE feed.tenant_id = p_tenant_id AND feed.erasure_id = _erasure_id
    ) THEN
      RETURN TRUE;
    END IF;
    _below := (GREATEST(_newest, _erased) >> 48) << 48;
  END LOOP;
  RETURN FALSE;
END;
$$;
