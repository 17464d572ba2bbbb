-- os_core.is_terminal: the statuses after which nothing follows (contract section 3). Where every append passes, the list stands
-- written out instead, because a call costs more than it: tests hold those places to this one.
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
