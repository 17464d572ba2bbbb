-- os_core.isolation_violation: returns 'isolation: rule' in a transaction that keeps its first snapshot, or NULL.
-- Such a transaction does not see what was committed after it began: it would leave that behind.
CREATE OR REPLACE FUNCTION os_core.isolation_violation()
RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF pg_catalog.current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    RETURN 'isolation: must be READ COMMITTED, to see what others have committed meanwhile';
  END IF;
  RETURN NULL;
END;
$$;
