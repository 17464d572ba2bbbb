-- os_core.refuse_session_state: raises SessionStateInvalid: p_session cannot move to p_requested_state from its state.
CREATE OR REPLACE FUNCTION os_core.refuse_session_state(p_session os_core.sessions, p_requested_state text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM os_core.refuse(
    'SL023',
    pg_catalog.format('session %s is %s and cannot become %s', p_session.session_id, p_session.session_state, p_requested_state),
    pg_catalog.jsonb_build_object(
      'session_id', p_session.session_id, 'session_state', p_session.session_state, 'requested_state', p_requested_state
    )
  );
END;
$$;
