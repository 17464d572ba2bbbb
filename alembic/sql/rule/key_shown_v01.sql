-- os_core.key_shown: shortens a caller's key for an error message: one line, at most 40 characters.
-- Control characters, and those of zero width or writing direction, become question marks. E'' because backslashes in a plain
-- literal depend on the session.
CREATE OR REPLACE FUNCTION os_core.key_shown(p_key text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _shown constant text := pg_catalog.regexp_replace(
    p_key, E'[\u0001-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]', '?', 'g'
  );
BEGIN
  RETURN CASE WHEN pg_catalog.char_length(_shown) <= 40 THEN _shown ELSE pg_catalog.left(_shown, 39) || E'\u2026' END;
END;
$$;
