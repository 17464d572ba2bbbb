-- os_core.is_uuid: a UUID written as 8-4-4-4-12; the cast alone would accept braces and other groupings.
-- LIKE checks where the hyphens stand: a regular expression with groups costs several times as much. No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_uuid(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN p_text OPERATOR(pg_catalog.~~) '________-____-____-____-____________'
    AND p_text OPERATOR(pg_catalog.!~~) '%-%-%-%-%-%'
    AND p_text OPERATOR(pg_catalog.~) '^[0-9A-Fa-f-]+$';
END;
$$;
