-- os_core.count_tenant_rows: counts what the removal of a tenant deletes, by table (contract section 18). For the owner.
CREATE OR REPLACE FUNCTION os_core.count_tenant_rows(p_tenant_id text)
RETURNS TABLE (table_name text, row_count bigint)
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  FOR table_name IN SELECT found.table_name FROM os_core.tenant_tables() AS found LOOP
    EXECUTE pg_catalog.format('SELECT count(*) FROM %s WHERE tenant_id = $1', table_name) INTO row_count USING p_tenant_id;
    RETURN NEXT;
  END LOOP;
END;
$$;
