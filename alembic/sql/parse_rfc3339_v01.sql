-- os_core.parse_rfc3339: the instant that an RFC 3339 text with an offset names, or NULL where it names none that every client can
-- read (SPEC.md section 3). The pattern comes first: a bare cast would accept 'now', 'infinity' and local times.
-- No backslash: what one means in a body depends on the session's standard_conforming_strings.
CREATE OR REPLACE FUNCTION os_core.parse_rfc3339(p_text text)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _at timestamptz;
BEGIN
  IF p_text ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-](0[0-9]|1[0-5]):[0-5][0-9])$' THEN
    _at := p_text::timestamptz;
    IF os_core.is_portable_time(_at) THEN
      RETURN _at;
    END IF;
  END IF;
  RETURN NULL;
EXCEPTION
  WHEN datetime_field_overflow OR invalid_datetime_format THEN
    RETURN NULL;
END;
$$;
