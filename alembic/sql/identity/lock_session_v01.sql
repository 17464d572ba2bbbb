-- os_core.lock_session: locks a session until the end of the transaction and returns it, or raises SessionNotFound.
-- FOR NO KEY UPDATE does not block new turns, whose foreign key locks the session.
CREATE OR REPLACE FUNCTION os_core.lock_session(p_tenant_id text, p_session_id text)
RETURNS os_core.sessions
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _session os_core.sessions;
BEGIN
  IF os_core.is_identifier(p_session_id, 128) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.identifier_violation('session_id', p_session_id, 128));
  END IF;
  SELECT session.* INTO _session
  FROM os_core.sessions AS session
  WHERE session.tenant_id = p_tenant_id AND session.session_id = p_session_id
  FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    PERFORM os_core.refuse(
      'SL022',
      pg_catalog.format('session %s does not exist', p_session_id),
      pg_catalog.jsonb_build_object('session_id', p_session_id)
    );
  END IF;
  RETURN _session;
END;
$$;
