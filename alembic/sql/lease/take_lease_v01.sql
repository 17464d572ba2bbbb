-- os_core.take_lease: gives out the lease on a work order: the row, the event and the projection (contract section 8).
-- For functions that hold the lock on the row of p_state. An expired lease ends; an unexpired one is LeaseHeld.
CREATE OR REPLACE FUNCTION os_core.take_lease(
  p_state os_core.work_orders_current,
  p_now timestamptz,
  p_owner text,
  p_token_hash text,
  p_ttl_ms bigint,
  p_idempotency_key text
)
RETURNS os_core.work_order_leases
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _held os_core.work_order_leases;
  _lease os_core.work_order_leases;
  _event os_core.work_order_ledger;
BEGIN
  PERFORM os_core.refuse_terminal(p_state, 'LEASE_ACQUIRED');
  SELECT lease.* INTO _held
  FROM os_core.work_order_leases AS lease
  WHERE lease.tenant_id = p_state.tenant_id AND lease.work_order_id = p_state.work_order_id AND lease.lease_state = 'ACTIVE';
  IF _held.lease_expires_at > p_now THEN
    p_state.lease_owner_id := _held.lease_owner_id;
    p_state.lease_expires_at := _held.lease_expires_at;
    PERFORM os_core.refuse_event('SL010', NULL, os_core.event_carried(p_state, 'LEASE_ACQUIRED', '{}'), p_state, NULL);
  ELSIF _held.lease_id IS NOT NULL THEN
    UPDATE os_core.work_order_leases AS lease
    SET lease_state = 'EXPIRED'
    WHERE lease.tenant_id = p_state.tenant_id AND lease.work_order_id = p_state.work_order_id AND lease.lease_state = 'ACTIVE';
  END IF;

  _lease.lease_id := pg_catalog.gen_random_uuid();
  _lease.tenant_id := p_state.tenant_id;
  _lease.work_order_id := p_state.work_order_id;
  _lease.lease_owner_id := p_owner;
  _lease.lease_token_hash := p_token_hash;
  _lease.lease_state := 'ACTIVE';
  _lease.acquired_at := p_now;
  _lease.lease_expires_at := p_now + p_ttl_ms * INTERVAL '1 millisecond';
  _lease.idempotency_key := p_idempotency_key;
  _event := os_core.event_carried(
    p_state, 'LEASE_ACQUIRED', pg_catalog.jsonb_build_object('lease_id', _lease.lease_id, 'ttl_ms', p_ttl_ms)
  );
  _event.lease_owner_id := _lease.lease_owner_id;
  _event.lease_token_hash := _lease.lease_token_hash;
  _event.lease_expires_at := _lease.lease_expires_at;
  SELECT appended.work_order_seq INTO _lease.fence
  FROM os_core.append_work_order_event(_event, NULL, NULL) AS appended;
  INSERT INTO os_core.work_order_leases (
    lease_id,
    tenant_id,
    work_order_id,
    lease_owner_id,
    lease_token_hash,
    lease_state,
    fence,
    acquired_at,
    renewed_at,
    lease_expires_at,
    released_at,
    idempotency_key
  )
  VALUES (
    _lease.lease_id,
    _lease.tenant_id,
    _lease.work_order_id,
    _lease.lease_owner_id,
    _lease.lease_token_hash,
    _lease.lease_state,
    _lease.fence,
    _lease.acquired_at,
    _lease.renewed_at,
    _lease.lease_expires_at,
    _lease.released_at,
    _lease.idempotency_key
  );
  RETURN _lease;
END;
$$;
