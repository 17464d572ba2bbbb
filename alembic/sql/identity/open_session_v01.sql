-- os_core.open_session: opens a session of a user on one of the user's devices (contract section 2).
-- The session_id is the idempotency key: for the same user and device, the session is returned as it is now.
CREATE OR REPLACE FUNCTION os_core.open_session(p_tenant_id text, p_session_id text, p_user_id text, p_device_id text)
RETURNS TABLE (
  tenant_id text,
  session_id text,
  user_id text,
  device_id text,
  session_state text,
  opened_at timestamptz,
  last_activity_at timestamptz,
  closed_at timestamptz
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
  _session os_core.sessions;
  _now timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('session_id', p_session_id, 128),
    os_core.identifier_violation('user_id', p_user_id, 128),
    os_core.identifier_violation('device_id', p_device_id, 128)
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  LOOP
    SELECT session.* INTO _session
    FROM os_core.sessions AS session
    WHERE session.tenant_id = p_tenant_id AND session.session_id = p_session_id
    FOR NO KEY UPDATE;
    EXIT WHEN FOUND;
    PERFORM os_core.require_owned(p_tenant_id, p_user_id, p_device_id, NULL);
    _now := pg_catalog.clock_timestamp();
    RETURN QUERY
    INSERT INTO os_core.sessions AS session (
      tenant_id, session_id, user_id, device_id, session_state, opened_at, last_activity_at
    )
    VALUES (p_tenant_id, p_session_id, p_user_id, p_device_id, 'OPEN', _now, _now)
    ON CONFLICT DO NOTHING
    RETURNING
      session.tenant_id,
      session.session_id,
      session.user_id,
      session.device_id,
      session.session_state,
      session.opened_at,
      session.last_activity_at,
      session.closed_at;
    IF FOUND THEN
      RETURN;
    END IF;
  END LOOP;

  IF (_session.user_id, _session.device_id) <> (p_user_id, p_device_id) THEN
    PERFORM os_core.refuse(
      'SL005',
      pg_catalog.format('session_id %s stands for a session of another user or device', p_session_id),
      pg_catalog.jsonb_build_object('session_id', p_session_id)
    );
  END IF;
  RETURN QUERY
  SELECT
    _session.tenant_id,
    _session.session_id,
    _session.user_id,
    _session.device_id,
    _session.session_state,
    _session.opened_at,
    _session.last_activity_at,
    _session.closed_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.open_session(text, text, text, text) TO selene_app;
