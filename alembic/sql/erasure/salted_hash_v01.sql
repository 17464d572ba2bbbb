-- os_core.salted_hash: returns the SHA-256 of a salt and a text in UTF-8, in hexadecimal digits.
-- Without the salt nobody can find the text by trying. IMMUTABLE is true although the encoding could matter: `upgrade` refuses a database
-- that is not UTF8. No SET clause, which costs more than the hash: every name in it is qualified.
CREATE OR REPLACE FUNCTION os_core.salted_hash(p_salt bytea, p_text text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.encode(pg_catalog.sha256(pg_catalog.byteacat(p_salt, pg_catalog.convert_to(p_text, 'UTF8'))), 'hex');
END;
$$;
