-- os_core.continuity_refusal: decides whether an event would ask twice (contract section 6) or ignore an approval (section 7).
-- This is step 6 of section 4. It returns the SQLSTATE of the refusal, or NULL. Expiries are compared with the event's created_at,
-- as in the fold.
CREATE OR REPLACE FUNCTION os_core.continuity_refusal(p_state os_core.work_orders_current, p_event os_core.work_order_ledger)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _key text;
  _expired boolean;
BEGIN
  IF p_state.external_approval_pending THEN
    IF p_event.event_type IN ('FIELD_PROMPTED', 'STEP_STARTED', 'EXTERNAL_APPROVAL_REQUESTED')
      OR (p_event.work_order_status IN ('EXECUTING', 'DONE') AND p_event.work_order_status <> p_state.work_order_status)
    THEN
      RETURN 'SL009';
    END IF;
  END IF;

  IF p_event.event_type = 'FIELD_PROMPTED' THEN
    -- An open conflict is asked once, whatever else changes. A known field is not asked; an asked one not before a state change.
    _key := p_event.payload ->> 'field_key';
    IF p_state.conflicts_json ? _key THEN
      IF (p_state.conflicts_json -> _key ->> 'asked')::boolean THEN
        RETURN 'SL008';
      END IF;
    ELSIF p_state.fields_json ? _key OR p_state.resolved_fields_json ? _key THEN
      RETURN 'SL008';
    ELSIF p_state.asked_fields_json ? _key THEN
      IF (p_state.asked_fields_json -> _key ->> 'seq')::bigint > p_state.last_state_change_seq THEN
        RETURN 'SL008';
      END IF;
    END IF;
    IF (p_state.prompt_dedupe_keys_json ->> (p_event.payload ->> 'prompt_dedupe_key'))::bigint > p_state.last_state_change_seq THEN
      RETURN 'SL008';
    END IF;
  ELSIF p_event.event_type IN ('EXTERNAL_APPROVAL_WAIT_NOTIFIED', 'EXTERNAL_APPROVAL_RESOLVED') THEN
    IF NOT p_state.external_approval_pending
      OR p_state.external_approval_request_id IS DISTINCT FROM p_event.payload ->> 'request_id'
    THEN
      RETURN 'SL007';
    END IF;
    _expired := COALESCE(p_state.external_approval_expires_at <= p_event.created_at, FALSE);
    IF p_event.event_type = 'EXTERNAL_APPROVAL_RESOLVED' THEN
      IF NOT _expired AND p_event.payload ->> 'outcome' = 'EXPIRED' THEN
        RETURN 'SL007';
      END IF;
    -- One notice, and one more after the expiry. The fold counts a first one after the expiry as both.
    ELSIF p_state.external_approval_notices > _expired::integer THEN
      RETURN 'SL008';
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
