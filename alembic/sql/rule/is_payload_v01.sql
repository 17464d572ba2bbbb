-- os_core.is_payload: an object that every client can read back (contract section 2): at most 16,384 bytes as text, at most 32 levels,
-- every number finite as a double and every integer within 64 bits.
-- 33 levels take 66 brackets, so a shorter text needs no look at the depth.
CREATE OR REPLACE FUNCTION os_core.is_payload(p_json jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _text constant text := p_json::text;
BEGIN
  RETURN _text LIKE '{%'
    AND pg_catalog.octet_length(_text) <= 16384
    AND (
      pg_catalog.octet_length(_text) < 66
      OR NOT pg_catalog.jsonb_path_exists(p_json, 'strict $.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
    )
    AND NOT pg_catalog.jsonb_path_exists(
      p_json,
      'strict $.** ? (@.type() == "number" && (
        (@.floor() == @ && (@ > 9223372036854775807 || @ < -9223372036854775808))
        || @ > 1.7976931348623157e308 || @ < -1.7976931348623157e308
      ))'
    );
END;
$$;
