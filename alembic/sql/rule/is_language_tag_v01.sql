-- os_core.is_language_tag: a language tag of at most 35 characters in the form of BCP 47, such as pt-BR.
-- It does not look up whether the language exists.
CREATE OR REPLACE FUNCTION os_core.is_language_tag(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN pg_catalog.octet_length(p_text) <= 35 AND p_text ~ '^[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*$';
END;
$$;
