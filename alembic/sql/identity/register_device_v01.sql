-- os_core.register_device: makes a user's device known or updates it, and records that it was seen now (contract section 2).
-- last_seen_at never goes back. NULL leaves a value as it is, '' removes the audio profile. A device never moves to another user.
CREATE OR REPLACE FUNCTION os_core.register_device(
  p_tenant_id text,
  p_user_id text,
  p_device_id text,
  p_device_type text DEFAULT NULL,
  p_audio_profile_ref text DEFAULT NULL
)
RETURNS TABLE (
  tenant_id text,
  device_id text,
  user_id text,
  device_type text,
  last_seen_at timestamptz,
  audio_profile_ref text
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
  _user_id text;
  _now timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('user_id', p_user_id, 128),
    os_core.identifier_violation('device_id', p_device_id, 128),
    os_core.label_violation('device_type', p_device_type, 64, FALSE),
    os_core.label_violation('audio_profile_ref', NULLIF(p_audio_profile_ref, ''), 256, FALSE)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  LOOP
    SELECT device.user_id INTO _user_id
    FROM os_core.devices AS device
    WHERE device.tenant_id = p_tenant_id AND device.device_id = p_device_id
    FOR NO KEY UPDATE;
    EXIT WHEN FOUND;
    PERFORM os_core.require_owned(p_tenant_id, p_user_id, NULL, NULL);
    IF p_device_type IS NULL THEN
      PERFORM os_core.refuse_contract(NULL, 'device_type: is required for a new device');
    END IF;
    RETURN QUERY
    INSERT INTO os_core.devices AS device (tenant_id, device_id, user_id, device_type, audio_profile_ref)
    VALUES (p_tenant_id, p_device_id, p_user_id, p_device_type, NULLIF(p_audio_profile_ref, ''))
    ON CONFLICT DO NOTHING
    RETURNING
      device.tenant_id,
      device.device_id,
      device.user_id,
      device.device_type,
      device.last_seen_at,
      device.audio_profile_ref;
    IF FOUND THEN
      RETURN;
    END IF;
  END LOOP;

  IF _user_id <> p_user_id THEN
    PERFORM os_core.refuse(
      'SL024',
      pg_catalog.format('device_id %s is not available to user %s', p_device_id, p_user_id),
      pg_catalog.jsonb_build_object('user_id', p_user_id, 'device_id', p_device_id)
    );
  END IF;
  _now := pg_catalog.clock_timestamp();
  RETURN QUERY
  UPDATE os_core.devices AS device
  SET
    device_type = COALESCE(p_device_type, device.device_type),
    last_seen_at = GREATEST(_now, device.last_seen_at),
    audio_profile_ref = NULLIF(COALESCE(p_audio_profile_ref, device.audio_profile_ref), '')
  WHERE device.tenant_id = p_tenant_id AND device.device_id = p_device_id
  RETURNING
    device.tenant_id,
    device.device_id,
    device.user_id,
    device.device_type,
    device.last_seen_at,
    device.audio_profile_ref;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.register_device(text, text, text, text, text) TO selene_app;
