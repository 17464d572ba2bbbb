-- os_core.refuse_sequence: raises an error for the operator: a sequence gives ids that the table has already, or lower ones.
-- This happens after a restore without the sequence. No SL code: a caller cannot act on it.
CREATE OR REPLACE FUNCTION os_core.refuse_sequence(p_table text, p_column text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION USING
    ERRCODE = 'object_not_in_prerequisite_state',
    MESSAGE = pg_catalog.format('the sequence of %s is behind %s', p_column, p_table),
    HINT = pg_catalog.format(
      'Let a superuser run: SELECT setval(''%1$s_%2$s_seq'', (SELECT max(%2$s) FROM %1$s));', p_table, p_column
    );
END;
$$;
