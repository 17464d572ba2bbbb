-- Only in scripts made by --sql: refuses a database that is not at the revision where the script starts.
DO $$
DECLARE
  _starts_at constant text := '{{starts_at}}';
  _stands_at text := '';
BEGIN
  IF pg_catalog.to_regclass('os_core.alembic_version') IS NOT NULL THEN
    EXECUTE 'SELECT COALESCE(MAX(version_num), '''') FROM os_core.alembic_version' INTO _stands_at;
    IF _stands_at = '' AND _starts_at = '' THEN
      -- A downgrade to base leaves this table empty; the script creates its own.
      DROP TABLE os_core.alembic_version;
    END IF;
  END IF;
  IF _stands_at <> _starts_at THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = pg_catalog.format('the script starts at revision "%s", the database stands at "%s"', _starts_at, _stands_at);
  END IF;
END;
$$;
