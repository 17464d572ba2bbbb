-- os_core.is_work_order_status: the statuses of contract section 3. No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_work_order_status(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN p_text OPERATOR(pg_catalog.=) ANY ('{DRAFT, CLARIFY, CONFIRM, EXECUTING, DONE, REFUSED, FAILED, CANCELED}');
END;
$$;
