-- os_core.reject_mutation: the trigger function that makes a table append-only (contract section 11).
-- Only the removal of a tenant deletes rows (contract section 18), and never the records of removals.
-- The table's name is the trigger's argument: on a distributed engine the trigger fires on a part of it.
CREATE OR REPLACE FUNCTION os_core.reject_mutation()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _table constant text := COALESCE(TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME);
BEGIN
  IF TG_OP = 'DELETE' AND _table <> 'os_core.tenant_removals' THEN
    IF os_core.removal_is_open(OLD.tenant_id) THEN
      RETURN OLD;
    END IF;
  END IF;
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s is append-only: %s is refused', _table, TG_OP),
    pg_catalog.jsonb_build_object('table', _table, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
