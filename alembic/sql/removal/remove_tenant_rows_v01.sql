-- os_core.remove_tenant_rows: deletes up to p_limit rows of a tenant whose removal is open, children first (contract section 18).
-- For the owner; one call is one short transaction. Returns how many rows of which table it deleted, and is_held where a row could
-- not go yet, because somebody has written one that refers to it. If it returns no row, nothing is left.
CREATE OR REPLACE FUNCTION os_core.remove_tenant_rows(p_tenant_id text, p_limit integer)
RETURNS TABLE (table_name text, removed bigint, is_held boolean)
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _violation text;
  _left bigint := p_limit;
  _order text;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(os_core.integer_violation('limit', p_limit, 1, 100000), os_core.isolation_violation());
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  FOR table_name, _order IN SELECT found.table_name, found.row_order FROM os_core.tenant_tables() AS found LOOP
    is_held := FALSE;
    removed := 0;
    BEGIN
      EXECUTE pg_catalog.format(
        'DELETE FROM %1$s WHERE tenant_id = $1'
        ' AND ctid = ANY(ARRAY(SELECT row.ctid FROM %1$s AS row WHERE row.tenant_id = $1 %2$s LIMIT $2))',
        table_name, _order
      ) USING p_tenant_id, _left;
      GET DIAGNOSTICS removed = ROW_COUNT;
    EXCEPTION
      WHEN foreign_key_violation THEN
        is_held := TRUE;
    END;
    IF removed > 0 OR is_held THEN
      RETURN NEXT;
    END IF;
    _left := _left - removed;
    EXIT WHEN _left = 0;
  END LOOP;
END;
$$;
