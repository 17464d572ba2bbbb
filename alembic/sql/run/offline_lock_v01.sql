-- Only in scripts made by --sql: takes the migration lock for the one transaction that the script is.
DO $$
BEGIN
  IF NOT pg_catalog.pg_try_advisory_xact_lock({{lock_key}}) THEN
    RAISE EXCEPTION USING
      ERRCODE = 'lock_not_available',
      MESSAGE = 'another migration of this database is running: start the script again when it is done';
  END IF;
END;
$$;
