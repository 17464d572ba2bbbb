-- os_core.is_terminal: the statuses that end a work order (contract section 3).
-- Where every append passes, the list is written out, because a call costs more. Tests compare those places with this one.
CREATE OR REPLACE FUNCTION os_core.is_terminal(p_status text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED');
END;
$$;
