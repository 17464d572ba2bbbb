-- os_core.json_time: writes a time for JSON: UTC, six digits, Z (contract section 5).
-- IMMUTABLE although to_char() is STABLE: only localised names make it so, and this format has none. INTERVAL '0' means UTC; the name
-- 'UTC' can be redefined by the session's TimeZone.
CREATE OR REPLACE FUNCTION os_core.json_time(p_at timestamptz)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.to_char(p_at AT TIME ZONE INTERVAL '0', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
END;
$$;
