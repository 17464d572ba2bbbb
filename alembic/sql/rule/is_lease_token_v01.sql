-- os_core.is_lease_token: 16..128 printable ASCII characters without blanks (contract section 8).
CREATE OR REPLACE FUNCTION os_core.is_lease_token(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.octet_length(p_text) BETWEEN 16 AND 128 AND p_text ~ '^[!-~]+$';
END;
$$;
