-- os_core.token_hash: returns the SHA-256 of a lease token in hexadecimal digits; only this is stored (contract sections 2 and 8).
CREATE OR REPLACE FUNCTION os_core.token_hash(p_token text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_token, 'UTF8')), 'hex');
END;
$$;
