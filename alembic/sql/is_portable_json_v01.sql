-- os_core.is_portable_json: can every client read it back? At most 32 levels of nesting; every number finite as a double and,
-- where integer-valued, within 64 bits (SPEC.md section 2, payload). jsonb prints numbers without an exponent, so a number out of
-- range shows nineteen digits in a row, and thirty-three levels take 66 brackets: most values are cleared without walking them.
CREATE OR REPLACE FUNCTION os_core.is_portable_json(p_json jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _text constant text := p_json::text;
BEGIN
  IF pg_catalog.octet_length(_text) >= 66
    AND pg_catalog.jsonb_path_exists(p_json, 'strict $.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
  THEN
    RETURN FALSE;
  END IF;
  RETURN _text !~ '[0-9]{19}' OR NOT pg_catalog.jsonb_path_exists(
    p_json,
    'strict $.** ? (@.type() == "number" && (
      (@.floor() == @ && (@ > 9223372036854775807 || @ < -9223372036854775808))
      || @ > 1.7976931348623157e308 || @ < -1.7976931348623157e308
    ))'
  );
END;
$$;
