-- os_core.require_owned: raises IdentityNotFound, DeviceNotFound or SessionNotFound unless the user, device and session exist.
-- The device and session must be that user's; NULL means that none is named. Another user's or tenant's counts as missing.
CREATE OR REPLACE FUNCTION os_core.require_owned(p_tenant_id text, p_user_id text, p_device_id text, p_session_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM os_core.identities AS identity WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_user_id
  ) THEN
    PERFORM os_core.refuse(
      'SL020', pg_catalog.format('user %s does not exist', p_user_id), pg_catalog.jsonb_build_object('user_id', p_user_id)
    );
  END IF;
  IF p_device_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM os_core.devices AS device
    WHERE device.tenant_id = p_tenant_id AND device.user_id = p_user_id AND device.device_id = p_device_id
  ) THEN
    PERFORM os_core.refuse(
      'SL021',
      pg_catalog.format('user %s has no device %s', p_user_id, p_device_id),
      pg_catalog.jsonb_build_object('user_id', p_user_id, 'device_id', p_device_id)
    );
  END IF;
  IF p_session_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM os_core.sessions AS session
    WHERE session.tenant_id = p_tenant_id AND session.user_id = p_user_id AND session.session_id = p_session_id
  ) THEN
    PERFORM os_core.refuse(
      'SL022',
      pg_catalog.format('user %s has no session %s', p_user_id, p_session_id),
      pg_catalog.jsonb_build_object('user_id', p_user_id, 'session_id', p_session_id)
    );
  END IF;
END;
$$;
