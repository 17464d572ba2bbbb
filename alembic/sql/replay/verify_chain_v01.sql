-- os_core.verify_chain: returns the events whose hash is not that of their columns and of the event before (contract section 17).
-- Of one work order, or of the tenant. It only reads, a part at a time.
CREATE OR REPLACE FUNCTION os_core.verify_chain(p_tenant_id text, p_work_order_id text DEFAULT NULL)
RETURNS TABLE (work_order_id text, work_order_seq bigint, problem text)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _after text := COALESCE(p_work_order_id, '');
  _after_seq bigint;
  _broken jsonb;
BEGIN
  LOOP
    SELECT part.broken, part.last_work_order_id, part.last_seq INTO _broken, _after, _after_seq
    FROM os_core.verify_chain_part(p_tenant_id, _after, _after_seq, p_work_order_id, 10000) AS part;
    RETURN QUERY
    SELECT link.work_order_id, link.work_order_seq, link.problem
    FROM pg_catalog.jsonb_to_recordset(_broken) AS link (work_order_id text, work_order_seq bigint, problem text);
    EXIT WHEN _after IS NULL;
  END LOOP;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.verify_chain(text, text) TO selene_app;
