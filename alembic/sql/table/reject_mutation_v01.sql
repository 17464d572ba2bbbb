-- os_core.reject_mutation: the trigger function that makes a table append-only (contract section 11).
CREATE OR REPLACE FUNCTION os_core.reject_mutation()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s.%s is append-only: %s is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP),
    pg_catalog.jsonb_build_object('table', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
