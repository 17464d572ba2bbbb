-- os_core.parse_rfc3339: returns the time that an RFC 3339 text with an offset names, or NULL (contract section 3).
-- Outside the years 1 to 9999 of UTC it is NULL, too. A bare cast would accept 'now', 'infinity' and local times, so the text's shape
-- comes first, and then datetime(), which is unknown for a day, an hour or an offset that there is not. So the cast cannot fail: before
-- PostgreSQL 17 a block that catches errors cannot run in a parallel worker. T and Z are replaced, because the session's TimeZone can
-- redefine them. No regular expression: one of so many states costs as much as a statement.
CREATE OR REPLACE FUNCTION os_core.parse_rfc3339(p_text text)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _text constant text := pg_catalog.replace(pg_catalog.replace(p_text, 'T', ' '), 'Z', '+00:00');
  _at timestamptz;
BEGIN
  IF p_text LIKE '__________T%'
    -- A zero is no year, and datetime() takes it for the first month and day.
    AND p_text NOT LIKE ALL ('{0000%,_____00%,________00%}')
    AND '[
      "0000-00-00 00:00:00+00:00", "0000-00-00 00:00:00-00:00",
      "0000-00-00 00:00:00.0+00:00", "0000-00-00 00:00:00.0-00:00",
      "0000-00-00 00:00:00.00+00:00", "0000-00-00 00:00:00.00-00:00",
      "0000-00-00 00:00:00.000+00:00", "0000-00-00 00:00:00.000-00:00",
      "0000-00-00 00:00:00.0000+00:00", "0000-00-00 00:00:00.0000-00:00",
      "0000-00-00 00:00:00.00000+00:00", "0000-00-00 00:00:00.00000-00:00",
      "0000-00-00 00:00:00.000000+00:00", "0000-00-00 00:00:00.000000-00:00"
    ]'::jsonb ? pg_catalog.translate(_text, '123456789', '000000000')
    AND pg_catalog.jsonb_build_array(_text) @@ 'exists($[0].datetime("YYYY-MM-DD HH24:MI:SSTZH:TZM"))
      || exists($[0].datetime("YYYY-MM-DD HH24:MI:SS.USTZH:TZM"))'
  THEN
    _at := _text;
    IF os_core.is_portable_time(_at) THEN
      RETURN _at;
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
