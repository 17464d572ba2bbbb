-- os_core.is_portable_time: no infinity, and a day inside the years 1 to 9999, so that every client can read it in any time zone.
CREATE OR REPLACE FUNCTION os_core.is_portable_time(p_at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN p_at >= '0001-01-02 00:00:00+00'::timestamptz AND p_at < '9999-12-31 00:00:00+00'::timestamptz;
END;
$$;
