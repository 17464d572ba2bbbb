-- os_core.key_shown: a caller's key as an error shows it: in one line, of at most 40 characters. Control characters, and those that
-- steer how a line is written (zero width, direction), become question marks. E'' because a plain literal's backslashes
-- depend on the session.
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
