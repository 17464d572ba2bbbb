-- os_core.is_portable_time: not infinity, and in the years 1 to 9999 of UTC, so that every client can hold it.
-- CHECKs call it in the session of whoever writes, and it has no SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_portable_time(p_at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN p_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
    AND p_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz;
END;
$$;
