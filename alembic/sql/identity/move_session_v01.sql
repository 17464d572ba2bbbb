-- os_core.move_session: moves a session to a state that contract section 2 allows, else raises SessionStateInvalid.
-- A session that has the state already stays as it is, so the call can be repeated. Only a move to ACTIVE counts as activity.
CREATE OR REPLACE FUNCTION os_core.move_session(p_tenant_id text, p_session_id text, p_session_state text)
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
  IF (p_session_state IN ('ACTIVE', 'SOFT_CLOSED', 'SUSPENDED', 'CLOSED')) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, 'session_state: must be one of ACTIVE, SOFT_CLOSED, SUSPENDED, CLOSED');
  END IF;
  _session := os_core.lock_session(p_tenant_id, p_session_id);
  IF _session.session_state = p_session_state THEN
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
    RETURN;
  END IF;
  IF _session.session_state NOT IN ('OPEN', 'ACTIVE', 'SOFT_CLOSED', 'SUSPENDED')
    OR (p_session_state = 'SOFT_CLOSED' AND _session.session_state = 'SUSPENDED')
  THEN
    PERFORM os_core.refuse_session_state(_session, p_session_state);
  END IF;
  _now := pg_catalog.clock_timestamp();
  RETURN QUERY
  UPDATE os_core.sessions AS session
  SET
    session_state = p_session_state,
    last_activity_at = CASE
      WHEN p_session_state = 'ACTIVE' THEN GREATEST(_now, session.last_activity_at)
      ELSE session.last_activity_at
    END,
    closed_at = CASE
      WHEN p_session_state = 'CLOSED' THEN GREATEST(_now, session.last_activity_at)
    END
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

GRANT EXECUTE ON FUNCTION os_core.move_session(text, text, text) TO selene_app;
