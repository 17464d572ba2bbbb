-- os_core.is_device_row: what a row of os_core.devices must be, whoever writes it (contract section 2). Its tenant and user are those of
-- the identity that its foreign key names.
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
