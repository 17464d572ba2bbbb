-- os_core.payload_size_violation: returns 'field: rule' if a payload is too large or too deep (contract section 2), or NULL.
-- os_core.is_payload checks the same limits in one expression, because every append calls it. Tests at the limits compare the two.
CREATE OR REPLACE FUNCTION os_core.payload_size_violation(p_payload jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF pg_catalog.octet_length(p_payload::text) > 16384
    OR pg_catalog.jsonb_path_exists(p_payload, 'strict $.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
  THEN
    RETURN 'payload: must be at most 16384 bytes as jsonb text, and nested at most 32 levels deep';
  END IF;
  RETURN NULL;
END;
$$;
