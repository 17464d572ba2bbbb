-- os_core.is_reserved_node: an object that os_core.reserved_nodes returns is a personal value or a reference as it must be.
CREATE OR REPLACE FUNCTION os_core.is_reserved_node(p_node jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _personal constant jsonb := p_node -> '$personal';
BEGIN
  IF _personal IS NULL THEN
    RETURN p_node - '{$subject,$ref}'::text[] = '{}'
      AND p_node @@ '$."$subject".type() == "string" && $."$ref".type() == "string"'
      AND os_core.is_identifier(p_node ->> '$subject', 128)
      AND p_node ->> '$ref' ~ '^[0-9a-f]{64}$';
  END IF;
  RETURN p_node - '$personal' = '{}'
    AND pg_catalog.jsonb_typeof(_personal) = 'object'
    AND _personal ?& '{subject,value}'
    AND _personal - '{subject,value}'::text[] = '{}'
    AND pg_catalog.jsonb_typeof(_personal -> 'subject') = 'string'
    AND os_core.is_identifier(_personal ->> 'subject', 128)
    AND os_core.reserved_nodes(_personal -> 'value') = '{}';
END;
$$;
