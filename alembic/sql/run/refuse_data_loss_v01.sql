-- {{table}}: refuses a downgrade while the table has rows (contract section 11).
-- FORCE would hide the rows from the owner, so it is lifted first; the transaction drops the table or is rolled back. row_security = off
-- raises an error if a policy would still filter.
ALTER TABLE {{table}} NO FORCE ROW LEVEL SECURITY;

DO $$
BEGIN
  SET LOCAL row_security = off;
  IF EXISTS (SELECT FROM {{table}}) THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = 'downgrade refused: {{table}} has rows. Tell it explicitly to destroy them: selene-core downgrade --allow-data-loss, or alembic -x allow-data-loss=yes';
  END IF;
END;
$$;
