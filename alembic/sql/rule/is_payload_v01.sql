-- os_core.is_payload: an object that every client can read back (contract section 2): at most 16,384 bytes as text, at most 32 levels,
-- every number finite as a double and every integer within 64 bits.
-- 33 levels take 66 brackets, so a shorter text needs no look at the depth. No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_payload(p_json jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _bytes constant integer := pg_catalog.octet_length(p_json::pg_catalog.text);
BEGIN
  IF _bytes OPERATOR(pg_catalog.>=) 66 THEN
    IF _bytes OPERATOR(pg_catalog.>) 16384
      OR pg_catalog.jsonb_path_exists(p_json, 'strict $.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
    THEN
      RETURN FALSE;
    END IF;
  END IF;
  RETURN p_json OPERATOR(pg_catalog.@@) 'strict $.type() == "object" && !exists($.** ? (@.type() == "number" && (
    (@.floor() == @ && (@ > 9223372036854775807 || @ < -9223372036854775808))
    || @ > 1.7976931348623157e308 || @ < -1.7976931348623157e308
  )))';
END;
$$;
