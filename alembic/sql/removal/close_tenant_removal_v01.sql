-- os_core.close_tenant_removal: writes the record that closes DELETE again, if no row of the tenant is left (contract section 18).
-- For the owner. Returns whether the removal is closed now. What somebody writes later stays, whole.
CREATE OR REPLACE FUNCTION os_core.close_tenant_removal(p_tenant_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _violation text;
  _state text;
  _table text;
  _found boolean;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := os_core.isolation_violation();
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;
  SELECT removal.removal_state INTO _state
  FROM os_core.tenant_removals AS removal
  WHERE removal.tenant_id = p_tenant_id
  ORDER BY removal.removal_id DESC
  LIMIT 1;
  IF _state IS DISTINCT FROM 'OPENED' THEN
    RETURN TRUE;
  END IF;
  FOR _table IN SELECT found.table_name FROM os_core.tenant_tables() AS found LOOP
    EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE tenant_id = $1)', _table) INTO _found USING p_tenant_id;
    IF _found THEN
      RETURN FALSE;
    END IF;
  END LOOP;
  INSERT INTO os_core.tenant_removals (tenant_id, removal_state) VALUES (p_tenant_id, 'CLOSED');
  RETURN TRUE;
END;
$$;
