-- os_core.parse_rfc3339: returns the time that an RFC 3339 text with an offset names, or NULL (contract section 3).
-- Outside the years 1 to 9999 of UTC it is NULL, too. A bare cast would accept 'now', 'infinity' and local times, so the pattern comes
-- first. It knows the days of each month, so the cast cannot fail: before PostgreSQL 17 a block that catches errors cannot run in a
-- parallel worker. T and Z are replaced, because the session's TimeZone can redefine them. No backslash: what it means depends on
-- standard_conforming_strings.
CREATE OR REPLACE FUNCTION os_core.parse_rfc3339(p_text text)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _year integer;
  _at timestamptz;
BEGIN
  IF p_text ~ '^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-](0[0-9]|1[0-5]):[0-5][0-9])$' THEN
    _year := pg_catalog.left(p_text, 4)::integer;
    IF _year > 0
      AND (
        pg_catalog.substr(p_text, 6, 5) <> '02-29'
        OR (_year % 4 = 0 AND (_year % 100 <> 0 OR _year % 400 = 0))
      )
    THEN
      _at := pg_catalog.replace(pg_catalog.replace(p_text, 'T', ' '), 'Z', '+00:00')::timestamptz;
      IF os_core.is_portable_time(_at) THEN
        RETURN _at;
      END IF;
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
