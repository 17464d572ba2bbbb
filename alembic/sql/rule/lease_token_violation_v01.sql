-- os_core.lease_token_violation: returns 'field: rule' if a value is not a lease token (contract section 8), or NULL.
-- It never shows the token. No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.lease_token_violation(p_field text, p_value text, p_required boolean DEFAULT TRUE)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  IF p_value IS NULL AND NOT p_required OR os_core.is_lease_token(p_value) THEN
    RETURN NULL;
  END IF;
  RETURN pg_catalog.concat(p_field, ': must be 16..128 printable ASCII characters without blanks');
END;
$$;
