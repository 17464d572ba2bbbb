-- os_core.parse_rfc3339: returns the time that an RFC 3339 text with an offset names, or NULL (contract section 3).
-- Outside the years 1 to 9999 of UTC it is NULL, too. A bare cast would accept 'now', 'infinity' and local times. So the text must be
-- the one that datetime() writes of it: datetime() is unknown for a day, an hour or an offset that there is not, and writes a text that
-- it reads too kindly (a month of zero, a sign among the digits) in another way. So the cast cannot fail: before PostgreSQL 17 a block
-- that catches errors cannot run in a parallel worker. T and Z are replaced, because the session's TimeZone can redefine them.
CREATE OR REPLACE FUNCTION os_core.parse_rfc3339(p_text text)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  -- No valid text has more than 32 characters. Cut behind these, a longer one stays invalid, and costs no more.
  _text constant text := pg_catalog.replace(pg_catalog.left(p_text, 33), 'Z', '+00:00');
  _at timestamptz;
BEGIN
  -- A year of five digits can be one of four in UTC.
  IF _text LIKE '____-%' AND pg_catalog.jsonb_path_query_first(
    pg_catalog.to_jsonb(_text),
    CASE WHEN _text LIKE '%.%' THEN E'$.datetime("YYYY-MM-DD\\"T\\"HH24:MI:SS.USTZH:TZM")'::jsonpath
      ELSE E'$.datetime("YYYY-MM-DD\\"T\\"HH24:MI:SSTZH:TZM")' END,
    '{}', TRUE
  ) #>> '{}' = _text THEN
    _at := pg_catalog.replace(_text, 'T', ' ');
    IF os_core.is_portable_time(_at) THEN
      RETURN _at;
    END IF;
  -- datetime() writes neither zeros at the end of a fraction, which has at most six digits, nor -00:00.
  ELSIF _text LIKE '%.%0______' AND _text NOT LIKE '%.%.%' AND pg_catalog.length(_text) <= 32 THEN
    RETURN os_core.parse_rfc3339(
      pg_catalog.rtrim(pg_catalog.rtrim(pg_catalog.left(_text, -6), '0'), '.') || pg_catalog.right(_text, 6)
    );
  ELSIF _text LIKE '%-00:00' THEN
    RETURN os_core.parse_rfc3339(pg_catalog.left(_text, -6) || '+00:00');
  END IF;
  RETURN NULL;
END;
$$;
