-- os_core.transition_refusal: decides whether an event may follow the order's state (contract section 4, steps 3 and 4).
-- It returns the SQLSTATE of the refusal, or NULL. p_last_seq and p_status are NULL for a new order, p_event_status for an event that
-- leaves the status out. p_canceled_by is the event type that canceled the order earlier in the same batch: the other cancel type
-- may still follow it.
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
    -- The only event that may follow the end: a lease can still be given back.
    WHEN p_event_type = 'LEASE_RELEASED' THEN NULL
    WHEN p_event_status = 'CANCELED' AND p_event_type NOT IN ('WORK_ORDER_CANCELED', 'STATUS_CHANGED') THEN 'SL004'
    WHEN p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') AND p_event_status IS DISTINCT FROM 'CANCELED'
      THEN 'SL007'
    WHEN p_status IN ('DONE', 'REFUSED', 'FAILED', 'CANCELED') AND COALESCE(p_canceled_by = p_event_type, TRUE) THEN 'SL004'
    WHEN p_event_type = 'STATUS_CHANGED' AND p_previous_status <> p_status THEN 'SL007'
  END;
END;
$$;
