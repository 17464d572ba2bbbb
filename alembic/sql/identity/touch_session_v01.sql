-- os_core.touch_session: records activity in an OPEN or ACTIVE session; OPEN becomes ACTIVE (contract section 2).
-- Any other state is SessionStateInvalid. last_activity_at is the database's clock and never goes back.
CREATE OR REPLACE FUNCTION os_core.touch_session(p_tenant_id text, p_session_id text)
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
  _session os_core.sessions;
  _now timestamptz;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _session := os_core.lock_session(p_tenant_id, p_session_id);
  IF _session.session_state NOT IN ('OPEN', 'ACTIVE') THEN
    PERFORM os_core.refuse_session_state(_session, 'ACTIVE');
  END IF;
  _now := pg_catalog.clock_timestamp();
  RETURN QUERY
  UPDATE os_core.sessions AS session
  SET session_state = 'ACTIVE', last_activity_at = GREATEST(_now, session.last_activity_at)
  WHERE session.tenant_id = p_tenant_id AND session.session_id = p_session_id
  RETURNING
    session.tenant_id,
    session.session_id,
    session.user_id,
    session.device_id,
    session.session_state,
    session.opened_at,
    session.last_activity_at,
    session.closed_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.touch_session(text, text) TO selene_app;
