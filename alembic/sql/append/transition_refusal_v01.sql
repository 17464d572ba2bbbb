-- os_core.transition_refusal: decides whether an event may follow the order's state (contract section 4, steps 3 and 4).
-- It returns the SQLSTATE of the refusal, or NULL. p_last_seq and p_status are NULL for a new order, p_event_status for an event that
-- leaves the status out. p_canceled_by is the event type that canceled the order earlier in the same batch: the other cancel type
-- may still follow it.
CREATE OR REPLACE FUNCTION os_core.transition_refusal(
  p_last_seq bigint,
  p_status text,
  p_event_type text,
  p_event_status text,
  p_payload jsonb,
  p_expected_seq bigint,
  p_canceled_by text
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  IF p_expected_seq IS NOT NULL THEN
    IF p_expected_seq <> COALESCE(p_last_seq, 0) THEN
      RETURN 'SL006';
    END IF;
  END IF;
  IF p_last_seq IS NULL THEN
    RETURN CASE WHEN p_event_type <> 'WORK_ORDER_CREATED' THEN 'SL016' END;
  END IF;
  IF p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') OR p_event_status = 'CANCELED' THEN
    RETURN CASE
      WHEN p_event_type = 'WORK_ORDER_CREATED' THEN 'SL007'
      -- The only event that may follow the end: a lease can still be given back.
      WHEN p_event_type = 'LEASE_RELEASED' THEN NULL
      WHEN p_event_status = 'CANCELED' AND p_event_type NOT IN ('WORK_ORDER_CANCELED', 'STATUS_CHANGED') THEN 'SL004'
      WHEN os_core.is_terminal(p_status) AND p_event_status IS DISTINCT FROM 'CANCELED' THEN 'SL007'
      WHEN os_core.is_terminal(p_status) AND COALESCE(p_canceled_by = p_event_type, TRUE) THEN 'SL004'
      WHEN p_event_type = 'STATUS_CHANGED' AND p_payload ->> 'previous_status' <> p_status THEN 'SL007'
    END;
  END IF;
  IF p_event_type IN ('STATUS_CHANGED', 'WORK_ORDER_CREATED') THEN
    IF p_event_type = 'WORK_ORDER_CREATED' OR p_payload ->> 'previous_status' <> p_status THEN
      RETURN 'SL007';
    END IF;
  END IF;
  RETURN NULL;
END;
$$;
