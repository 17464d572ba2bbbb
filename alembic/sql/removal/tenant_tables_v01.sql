-- os_core.tenant_tables: returns the tables from which the removal of a tenant deletes, children before their parents.
-- The records of removals stay, and the heads of feeds: the positions of a tenant that comes again go on (contract section 18).
-- On a distributed engine the parts of a table are tables, too: with the name of the whole and a number.
-- row_order is set where a row may refer to an earlier one of its own table.
CREATE OR REPLACE FUNCTION os_core.tenant_tables()
RETURNS TABLE (table_name text, row_order text)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _done oid[] := '{}';
  _next oid;
BEGIN
  LOOP
    SELECT class.oid INTO _next
    FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_attribute AS tenant ON tenant.attrelid = class.oid AND tenant.attname = 'tenant_id'
    WHERE class.relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
      AND class.relkind IN ('r', 'p')
      AND NOT class.relispartition
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_class AS whole
        WHERE whole.relnamespace = class.relnamespace
          AND class.relname = whole.relname || pg_catalog.substring(class.relname, '_[0-9]+$')
      )
      AND class.relname NOT IN ('tenant_removals', 'work_order_feed_heads')
      AND class.oid <> ALL(_done)
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS child
        WHERE child.contype = 'f'
          AND child.confrelid = class.oid
          AND child.conrelid <> class.oid
          AND child.conrelid <> ALL(_done)
      )
    ORDER BY class.relname
    LIMIT 1;
    EXIT WHEN NOT FOUND;
    _done := _done || _next;
    RETURN QUERY
    SELECT _next::regclass::text, (
      SELECT pg_catalog.format('ORDER BY %I DESC', own.attname)
      FROM pg_catalog.pg_constraint AS self
      JOIN pg_catalog.pg_index AS key ON key.indrelid = _next AND key.indisprimary
      JOIN pg_catalog.pg_attribute AS own ON own.attrelid = _next AND own.attnum = key.indkey[key.indnkeyatts - 1]
      WHERE self.contype = 'f' AND self.conrelid = _next AND self.confrelid = _next
      LIMIT 1
    );
  END LOOP;
END;
$$;
