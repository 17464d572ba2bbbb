-- os_core.json_time: an instant as text inside JSON: UTC, six digits, Z, whatever the session's TimeZone (contract section 5).
-- to_char() is catalogued STABLE for the sake of localised names; this format has none. UTC by an interval of zero: the name 'UTC' can
-- be redefined by the session's TimeZone.
CREATE OR REPLACE FUNCTION os_core.json_time(p_at timestamptz)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN pg_catalog.to_char(p_at AT TIME ZONE INTERVAL '0', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
END;
$$;
