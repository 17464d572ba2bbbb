-- os_core.is_session_row: the CHECK of os_core.sessions (contract section 2).
-- Tenant, user and device are not checked here: the foreign key leads to a device, whose row was checked.
CREATE OR REPLACE FUNCTION os_core.is_session_row(
  p_session_id text, p_session_state text, p_opened_at timestamptz, p_last_activity_at timestamptz, p_closed_at timestamptz
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_identifier(p_session_id, 128)
    AND p_session_state IN ('OPEN', 'ACTIVE', 'SOFT_CLOSED', 'SUSPENDED', 'CLOSED')
    AND os_core.is_portable_time(p_opened_at)
    AND os_core.is_portable_time(p_last_activity_at)
    AND p_last_activity_at >= p_opened_at
    AND (p_session_state = 'CLOSED') = (p_closed_at IS NOT NULL)
    AND (p_closed_at IS NULL OR (os_core.is_portable_time(p_closed_at) AND p_closed_at >= p_last_activity_at));
END;
$$;
