-- os_core.is_lease_row: the CHECK of os_core.work_order_leases (contract section 2).
-- Tenant and work order are not checked here: the foreign key leads to a projection row, which was checked.
CREATE OR REPLACE FUNCTION os_core.is_lease_row(
  p_lease_owner_id text,
  p_lease_token_hash text,
  p_lease_state text,
  p_fence bigint,
  p_acquired_at timestamptz,
  p_renewed_at timestamptz,
  p_lease_expires_at timestamptz,
  p_released_at timestamptz,
  p_idempotency_key text
)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN os_core.is_identifier(p_lease_owner_id, 128)
    AND p_lease_token_hash ~ '^[0-9a-f]{64}$'
    AND p_lease_state IN ('ACTIVE', 'EXPIRED', 'RELEASED')
    AND p_fence >= 1
    AND os_core.is_portable_time(p_acquired_at)
    AND os_core.is_portable_time(p_lease_expires_at)
    AND p_lease_expires_at > COALESCE(p_renewed_at, p_acquired_at)
    AND (p_renewed_at IS NULL OR p_renewed_at >= p_acquired_at)
    AND (p_lease_state = 'RELEASED') = (p_released_at IS NOT NULL)
    AND (p_released_at IS NULL OR p_released_at >= p_acquired_at AND os_core.is_portable_time(p_released_at))
    AND (p_idempotency_key IS NULL OR os_core.is_label(p_idempotency_key, 128));
END;
$$;
