-- os_core.is_identity_row: the CHECK of os_core.identities (contract section 2).
CREATE OR REPLACE FUNCTION os_core.is_identity_row(
  p_tenant_id text, p_user_id text, p_speaker_id text, p_primary_language text, p_status text, p_created_at timestamptz
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_identifier(p_tenant_id, 64)
    AND os_core.is_identifier(p_user_id, 128)
    AND (p_speaker_id IS NULL OR os_core.is_identifier(p_speaker_id, 128))
    AND (p_primary_language IS NULL OR os_core.is_language_tag(p_primary_language))
    AND p_status IN ('ACTIVE', 'DISABLED')
    AND os_core.is_portable_time(p_created_at);
END;
$$;
