-- os_core.renew_lease: extends an unexpired lease to p_ttl_ms from now; LeaseLost for any other token (contract section 8).
CREATE OR REPLACE FUNCTION os_core.renew_lease(p_tenant_id text, p_work_order_id text, p_token text, p_ttl_ms bigint)
RETURNS TABLE (
  lease_id uuid,
  tenant_id text,
  work_order_id text,
  lease_owner_id text,
  lease_token_hash text,
  lease_state text,
  fence bigint,
  acquired_at timestamptz,
  renewed_at timestamptz,
  lease_expires_at timestamptz,
  released_at timestamptz,
  idempotency_key text
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
  _state os_core.work_orders_current;
  _now timestamptz;
  _lease os_core.work_order_leases;
  _event os_core.work_order_ledger;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  PERFORM os_core.check_lease_call('ttl_ms', p_work_order_id, NULL, p_token, p_ttl_ms, NULL);
  _state := os_core.lock_projection(p_tenant_id, p_work_order_id);
  _now := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);

  SELECT lease.* INTO _lease
  FROM os_core.work_order_leases AS lease
  WHERE lease.tenant_id = p_tenant_id
    AND lease.work_order_id = p_work_order_id
    AND lease.lease_token_hash = os_core.token_hash(p_token);
  IF (_lease.lease_state = 'ACTIVE' AND _lease.lease_expires_at > _now) IS NOT TRUE THEN
    PERFORM os_core.refuse_event('SL011', NULL, os_core.event_carried(_state, 'LEASE_RENEWED', '{}'), _state, NULL);
  END IF;
  PERFORM os_core.refuse_terminal(_state, 'LEASE_RENEWED');

  _lease.renewed_at := _now;
  _lease.lease_expires_at := _now + p_ttl_ms * INTERVAL '1 millisecond';
  _event := os_core.event_carried(
    _state, 'LEASE_RENEWED',
    pg_catalog.jsonb_build_object('lease_id', _lease.lease_id, 'fence', _lease.fence, 'ttl_ms', p_ttl_ms)
  );
  _event.lease_owner_id := _lease.lease_owner_id;
  _event.lease_token_hash := _lease.lease_token_hash;
  _event.lease_expires_at := _lease.lease_expires_at;
  -- With the token, append checks the lease again at the event's created_at, so the ledger agrees with this table.
  PERFORM os_core.append_work_order_event(_event, NULL, p_token);
  UPDATE os_core.work_order_leases AS lease
  SET
    renewed_at = _lease.renewed_at,
    lease_expires_at = _lease.lease_expires_at
  WHERE lease.tenant_id = p_tenant_id AND lease.work_order_id = p_work_order_id AND lease.lease_id = _lease.lease_id;
  RETURN QUERY
  SELECT
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
    _lease.idempotency_key;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.renew_lease(text, text, text, bigint) TO selene_app;
