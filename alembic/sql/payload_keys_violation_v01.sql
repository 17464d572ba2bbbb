-- os_core.payload_keys_violation: 'payload: rule' where a payload lacks a required key or has one that is neither required nor optional.
CREATE OR REPLACE FUNCTION os_core.payload_keys_violation(p_payload jsonb, p_required text[], p_optional text[])
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN CASE
    WHEN NOT p_payload ?& p_required
      THEN pg_catalog.concat('payload: must have ', pg_catalog.array_to_string(p_required, ', '))
    WHEN p_payload - p_required - p_optional <> '{}'
      THEN pg_catalog.concat('payload: may only have ', pg_catalog.array_to_string(p_required || p_optional, ', '))
  END;
END;
$$;
