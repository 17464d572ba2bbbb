-- os_core.open_tenant_removal: writes the record that opens DELETE for the rows of a tenant, once committed (contract section 18).
-- For the owner. Returns whether it wrote one: FALSE if the last removal was interrupted, and is open still.
CREATE OR REPLACE FUNCTION os_core.open_tenant_removal(p_tenant_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _state text;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  SELECT removal.removal_state INTO _state
  FROM os_core.tenant_removals AS removal
  WHERE removal.tenant_id = p_tenant_id
  ORDER BY removal.removal_id DESC
  LIMIT 1;
  IF _state = 'OPENED' THEN
    RETURN FALSE;
  END IF;
  INSERT INTO os_core.tenant_removals (tenant_id, removal_state) VALUES (p_tenant_id, 'OPENED');
  RETURN TRUE;
END;
$$;
