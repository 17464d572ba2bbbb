-- os_core.is_device_row: the CHECK of os_core.devices (contract section 2).
-- Tenant and user are not checked here: the foreign key leads to an identity, whose row was checked.
CREATE OR REPLACE FUNCTION os_core.is_device_row(
  p_device_id text, p_device_type text, p_last_seen_at timestamptz, p_audio_profile_ref text
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_identifier(p_device_id, 128)
    AND os_core.is_label(p_device_type, 64)
    AND os_core.is_portable_time(p_last_seen_at)
    AND (p_audio_profile_ref IS NULL OR os_core.is_label(p_audio_profile_ref, 256));
END;
$$;
