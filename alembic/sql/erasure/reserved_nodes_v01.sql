-- os_core.reserved_nodes: returns the objects within a payload, at any depth, whose keys all are $personal, $subject, $ref or $erased
-- (contract section 18). A lone $ref or $subject is a value like others: a JSON Schema has such objects.
CREATE OR REPLACE FUNCTION os_core.reserved_nodes(p_json jsonb)
RETURNS jsonb[]
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF p_json::text NOT LIKE '%"$%' THEN
    RETURN '{}';
  END IF;
  RETURN ARRAY(
    SELECT DISTINCT found.node
    FROM pg_catalog.jsonb_path_query(
      p_json,
      'strict $.** ? (exists (@."$personal") || exists (@."$erased") || (exists (@."$subject") && exists (@."$ref")))'
    ) AS found (node)
    WHERE found.node - '{$personal,$subject,$ref,$erased}'::text[] = '{}'
  );
END;
$$;
