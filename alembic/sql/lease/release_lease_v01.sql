-- os_core.release_lease: gives a lease back; TRUE if this call did it, FALSE if it was given back before (contract section 8).
-- An expired lease can be given back until somebody takes over, also on an order that has ended. Other tokens are LeaseLost.
-- p_not_before: claim_work_order leaves the order alone until then.
CREATE OR REPLACE FUNCTION os_core.release_lease(
  p_tenant_id text, p_work_order_id text, p_token text, p_not_before timestamptz DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _state os_core.work_orders_current;
  _lease os_core.work_order_leases;
  _event os_core.work_order_ledger;
  _now timestamptz;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  PERFORM os_core.check_lease_call(NULL, p_work_order_id, NULL, p_token, NULL, NULL);
  IF p_not_before IS NOT NULL AND NOT os_core.is_portable_time(p_not_before) THEN
    PERFORM os_core.refuse_contract(NULL, os_core.time_violation('not_before', ''));
  END IF;
  _state := os_core.lock_projection(p_tenant_id, p_work_order_id);

  SELECT lease.* INTO _lease
  FROM os_core.work_order_leases AS lease
  WHERE lease.tenant_id = p_tenant_id
    AND lease.work_order_id = p_work_order_id
    AND lease.lease_token_hash = os_core.token_hash(p_token);
  IF _lease.lease_state = 'RELEASED' THEN
    RETURN FALSE;
  ELSIF _lease.lease_state IS DISTINCT FROM 'ACTIVE' THEN
    PERFORM os_core.refuse_event('SL011', NULL, os_core.event_carried(_state, 'LEASE_RELEASED', '{}'), _state, NULL);
  END IF;

  _event := os_core.event_carried(
    _state, 'LEASE_RELEASED',
    pg_catalog.jsonb_strip_nulls(
      pg_catalog.jsonb_build_object(
        'lease_id', _lease.lease_id, 'fence', _lease.fence, 'not_before', os_core.json_time(p_not_before)
      )
    )
  );
  _event.lease_owner_id := _lease.lease_owner_id;
  _event.lease_token_hash := _lease.lease_token_hash;
  PERFORM os_core.append_work_order_event(_event, NULL, NULL);
  _now := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
  UPDATE os_core.work_order_leases AS lease
  SET
    lease_state = 'RELEASED',
    released_at = _now
  WHERE lease.tenant_id = p_tenant_id AND lease.work_order_id = p_work_order_id AND lease.lease_id = _lease.lease_id;
  RETURN TRUE;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.release_lease(text, text, text, timestamptz) TO selene_app;
