-- os_core.time_violation: returns 'field: rule' if a text is not a time as contract section 3 wants it, or NULL.
CREATE OR REPLACE FUNCTION os_core.time_violation(p_field text, p_text text)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF os_core.parse_rfc3339(p_text) IS NOT NULL THEN
    RETURN NULL;
  END IF;
  RETURN p_field || ': must be a time with an offset as in RFC 3339, in the years 1 to 9999 of UTC';
END;
$$;
