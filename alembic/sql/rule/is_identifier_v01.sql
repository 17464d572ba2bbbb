-- os_core.is_identifier: 1..p_most ASCII letters, digits and ._:/@+-, starting with a letter or digit (contract section 2, Ids).
-- Called for every id of every row, so it has no SET clause, which would double its cost; its names are qualified instead.
-- PL/pgSQL and not SQL: an inlined function is planned again by every statement that checks a constraint.
CREATE OR REPLACE FUNCTION os_core.is_identifier(p_text text, p_most integer)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.octet_length(p_text) OPERATOR(pg_catalog.<=) p_most
    AND p_text OPERATOR(pg_catalog.~) '^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$';
END;
$$;
