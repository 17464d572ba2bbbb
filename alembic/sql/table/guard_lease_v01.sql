-- os_core.guard_lease: the trigger function of os_core.work_order_leases (contract sections 2 and 8).
-- It also holds for the owner and in replica mode. An EXPIRED or RELEASED row never changes; an ACTIVE one never changes its holder,
-- token or fence. Only the removal of a tenant deletes rows (contract section 18).
CREATE OR REPLACE FUNCTION os_core.guard_lease()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _table constant text := COALESCE(TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME);
  _rest os_core.work_order_leases;
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.lease_state = 'ACTIVE' THEN
    _rest := NEW;
    _rest.lease_state := OLD.lease_state;
    _rest.renewed_at := OLD.renewed_at;
    _rest.lease_expires_at := OLD.lease_expires_at;
    _rest.released_at := OLD.released_at;
    IF _rest IS NOT DISTINCT FROM OLD THEN
      RETURN NEW;
    END IF;
  END IF;
  IF TG_OP = 'DELETE' THEN
    IF os_core.removal_is_open(OLD.tenant_id) THEN
      RETURN OLD;
    END IF;
  END IF;
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s keeps every lease as it ended: %s is refused', _table, TG_OP),
    pg_catalog.jsonb_build_object('table', _table, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
