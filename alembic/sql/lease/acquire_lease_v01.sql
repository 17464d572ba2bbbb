-- os_core.acquire_lease: takes the lease on a work order (contract section 8). The fence is the seq of LEASE_ACQUIRED.
-- One token stands for one lease, for ever: the same token returns its lease while it is held, and raises LeaseLost after that.
-- So a worker whose lease was taken over cannot come back with its old token. Times are the database's clock, read under the lock.
CREATE OR REPLACE FUNCTION os_core.acquire_lease(
  p_tenant_id text,
  p_work_order_id text,
  p_owner text,
  p_token text,
  p_ttl_ms bigint,
  p_idempotency_key text DEFAULT NULL
)
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
  _hash text;
  _lease os_core.work_order_leases;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  PERFORM os_core.check_lease_call('owner', p_work_order_id, p_owner, p_token, p_ttl_ms, p_idempotency_key);
  _state := os_core.lock_projection(p_tenant_id, p_work_order_id);
  _now := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
  _hash := os_core.token_hash(p_token);

  <<taken>>
  BEGIN
    -- A replay comes before every refusal. The first ttl_ms is in the payload of LEASE_ACQUIRED.
    IF p_idempotency_key IS NOT NULL THEN
      SELECT lease.* INTO _lease
      FROM os_core.work_order_leases AS lease
      WHERE lease.tenant_id = p_tenant_id
        AND lease.work_order_id = p_work_order_id
        AND lease.idempotency_key = p_idempotency_key;
      IF FOUND AND (
        _lease.lease_token_hash <> _hash
        OR _lease.lease_owner_id <> p_owner
        OR NOT EXISTS (
          SELECT FROM os_core.work_order_ledger AS ledger
          WHERE ledger.tenant_id = p_tenant_id
            AND ledger.work_order_id = p_work_order_id
            AND ledger.work_order_seq = _lease.fence
            AND ledger.payload -> 'ttl_ms' = pg_catalog.to_jsonb(p_ttl_ms)
        )
      ) THEN
        PERFORM os_core.refuse_key(p_work_order_id, p_idempotency_key);
      END IF;
    END IF;
    SELECT lease.* INTO _lease
    FROM os_core.work_order_leases AS lease
    WHERE lease.tenant_id = p_tenant_id AND lease.work_order_id = p_work_order_id AND lease.lease_token_hash = _hash;
    IF FOUND THEN
      IF _lease.lease_owner_id <> p_owner THEN
        PERFORM os_core.refuse_token(p_work_order_id);
      ELSIF _lease.lease_state <> 'ACTIVE' OR _lease.lease_expires_at <= _now THEN
        PERFORM os_core.refuse_event('SL011', NULL, os_core.event_carried(_state, 'LEASE_ACQUIRED', '{}'), _state, NULL);
      END IF;
      EXIT taken;
    END IF;

    _lease := os_core.take_lease(_state, _now, p_owner, _hash, p_ttl_ms, p_idempotency_key);
  END taken;
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

GRANT EXECUTE ON FUNCTION os_core.acquire_lease(text, text, text, text, bigint, text) TO selene_app;
