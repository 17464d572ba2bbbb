-- os_core.transition_refusal: the SQLSTATE with which steps 3 and 4 of contract section 4 refuse an event on a state, or NULL.
-- p_last_seq and p_status: the state before, NULL for none. p_canceled_by: the event type that canceled the order earlier in the same
-- batch; its counterpart is still recorded.
CREATE OR REPLACE FUNCTION os_core.transition_refusal(
  p_last_seq bigint,
  p_status text,
  p_event_type text,
  p_event_status text,
  p_previous_status text,
  p_expected_seq bigint,
  p_canceled_by text
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN CASE
    WHEN p_expected_seq <> COALESCE(p_last_seq, 0) THEN 'SL006'
    WHEN p_last_seq IS NULL THEN CASE WHEN p_event_type <> 'WORK_ORDER_CREATED' THEN 'SL016' END
    WHEN p_event_type = 'WORK_ORDER_CREATED' THEN 'SL007'
    -- The one event that may follow the end: whoever holds a lease can give it back.
    WHEN p_event_type = 'LEASE_RELEASED' AND p_event_status = p_status THEN NULL
    WHEN p_event_status = 'CANCELED' AND p_event_type NOT IN ('WORK_ORDER_CANCELED', 'STATUS_CHANGED') THEN 'SL004'
    WHEN p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') AND p_event_status <> 'CANCELED' THEN 'SL007'
    WHEN p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') AND COALESCE(p_canceled_by = p_event_type, TRUE) THEN 'SL004'
    WHEN p_event_type = 'STATUS_CHANGED' AND p_previous_status <> p_status THEN 'SL007'
  END;
END;
$$;
