-- os_core.lease_refusal: decides whether an event is refused because of a lease (contract section 4, step 5).
-- It returns the SQLSTATE, or NULL. It reads the lease from the projection: that row is locked and holds the fold of all LEASE_*
-- events. The expiry is compared with the event's created_at, which is the database's clock under the lock.
CREATE OR REPLACE FUNCTION os_core.lease_refusal(
  p_state os_core.work_orders_current, p_event os_core.work_order_ledger, p_lease_token text
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _held constant boolean := COALESCE(p_state.lease_expires_at > p_event.created_at, FALSE);
BEGIN
  RETURN CASE
    WHEN p_lease_token IS NULL THEN CASE WHEN _held AND p_event.event_type LIKE 'STEP%' THEN 'SL010' END
    WHEN NOT _held OR p_state.lease_token_hash IS DISTINCT FROM os_core.token_hash(p_lease_token) THEN 'SL011'
  END;
END;
$$;
