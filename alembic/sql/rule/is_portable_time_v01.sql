-- os_core.is_portable_time: not infinity, and in the years 1 to 9999 of UTC, so that every client can hold it.
CREATE OR REPLACE FUNCTION os_core.is_portable_time(p_at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN p_at >= '0001-01-01 00:00:00+00'::timestamptz AND p_at < '10000-01-01 00:00:00+00'::timestamptz;
END;
$$;
