-- os_core.reject_mutation: the trigger function that makes a table append-only (contract section 11).
-- Only the removal of a tenant deletes rows (contract section 18), and never the records of removals.
CREATE OR REPLACE FUNCTION os_core.reject_mutation()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF TG_OP = 'DELETE' AND TG_TABLE_NAME <> 'tenant_removals' THEN
    IF os_core.removal_is_open(OLD.tenant_id) THEN
      RETURN OLD;
    END IF;
  END IF;
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s.%s is append-only: %s is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP),
    pg_catalog.jsonb_build_object('table', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
