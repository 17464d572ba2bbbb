-- os_core.is_field_key: 1..64 of A-Za-z0-9_.:- (contract section 2). No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_field_key(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.octet_length(p_text) OPERATOR(pg_catalog.<=) 64 AND p_text OPERATOR(pg_catalog.~) '^[A-Za-z0-9_.:-]+$';
END;
$$;
