-- os_core.parse_rfc3339: returns the time that an RFC 3339 text with an offset names, or NULL (contract section 3).
-- Outside the years 1 to 9999 of UTC it is NULL, too. A bare cast would accept 'now', 'infinity' and local times, so the pattern comes
-- first, and then the days that a month does not have. So the cast cannot fail: before PostgreSQL 17 a block that catches errors cannot
-- run in a parallel worker. T and Z are replaced, because the session's TimeZone can redefine them. No backslash: what it means depends
-- on standard_conforming_strings.
CREATE OR REPLACE FUNCTION os_core.parse_rfc3339(p_text text)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _day text;
  _year integer;
  _at timestamptz;
BEGIN
  IF p_text ~ '^[0-9][0-9][0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-](0[0-9]|1[0-5]):[0-5][0-9])$'
    AND p_text NOT LIKE '0000%'
  THEN
    _day := pg_catalog.substr(p_text, 6, 5);
    IF _day IN ('02-29', '02-30', '02-31', '04-31', '06-31', '09-31', '11-31') THEN
      _year := pg_catalog.left(p_text, 4)::integer;
      IF _day <> '02-29' OR _year % 4 <> 0 OR (_year % 100 = 0 AND _year % 400 <> 0) THEN
        RETURN NULL;
      END IF;
    END IF;
    _at := pg_catalog.replace(pg_catalog.replace(p_text, 'T', ' '), 'Z', '+00:00')::timestamptz;
    IF os_core.is_portable_time(_at) THEN
      RETURN _at;
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
