-- os_core.register_identity: makes a user known or updates what is given, and returns the row (contract section 2).
-- NULL leaves a value as it is (a new user is ACTIVE), '' removes it. So two callers that each know one value do not overwrite
-- the other's. If nothing changes, nothing is written.
CREATE OR REPLACE FUNCTION os_core.register_identity(
  p_tenant_id text,
  p_user_id text,
  p_speaker_id text DEFAULT NULL,
  p_primary_language text DEFAULT NULL,
  p_status text DEFAULT NULL
)
RETURNS TABLE (
  tenant_id text,
  user_id text,
  speaker_id text,
  primary_language text,
  status text,
  created_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('user_id', p_user_id, 128),
    os_core.identifier_violation('speaker_id', NULLIF(p_speaker_id, ''), 128, FALSE),
    CASE
      WHEN p_primary_language <> '' AND NOT os_core.is_language_tag(p_primary_language)
        THEN 'primary_language: must be a language tag of at most 35 characters, such as de or pt-BR'
    END,
    CASE WHEN p_status NOT IN ('ACTIVE', 'DISABLED') THEN 'status: must be one of ACTIVE, DISABLED' END
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  INSERT INTO os_core.identities AS identity (tenant_id, user_id, speaker_id, primary_language, status)
  VALUES (p_tenant_id, p_user_id, NULLIF(p_speaker_id, ''), NULLIF(p_primary_language, ''), COALESCE(p_status, 'ACTIVE'))
  ON CONFLICT ON CONSTRAINT pk_identities DO UPDATE
  SET
    speaker_id = NULLIF(COALESCE(p_speaker_id, identity.speaker_id), ''),
    primary_language = NULLIF(COALESCE(p_primary_language, identity.primary_language), ''),
    status = COALESCE(p_status, identity.status)
  WHERE identity.speaker_id IS DISTINCT FROM NULLIF(COALESCE(p_speaker_id, identity.speaker_id), '')
    OR identity.primary_language IS DISTINCT FROM NULLIF(COALESCE(p_primary_language, identity.primary_language), '')
    OR identity.status <> COALESCE(p_status, identity.status);
  RETURN QUERY
  SELECT
    identity.tenant_id,
    identity.user_id,
    identity.speaker_id,
    identity.primary_language,
    identity.status,
    identity.created_at
  FROM os_core.identities AS identity
  WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_user_id;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.register_identity(text, text, text, text, text) TO selene_app;
