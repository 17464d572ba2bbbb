-- os_core.parse_rfc3339: the instant that an RFC 3339 text with an offset names, or NULL where it names none that every client can
-- read (SPEC.md section 3). The pattern comes first: a bare cast would accept 'now', 'infinity' and local times.
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
  IF p_text ~ '^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-](0\d|1[0-5]):[0-5]\d)$' THEN
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
