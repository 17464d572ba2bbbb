-- conversation.text_hash: SHA-256 of a text in UTF-8, in hexadecimal. Immutable in fact: `upgrade` refuses a database of another encoding.
CREATE OR REPLACE FUNCTION conversation.text_hash(p_text text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_text, 'UTF8')), 'hex');
END;
$$;
