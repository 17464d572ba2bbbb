-- os_core.canonical_json: returns an equal value whose text is the same for all equal values: jsonb keeps 1.0 and 1 apart in its text only.
CREATE OR REPLACE FUNCTION os_core.canonical_json(p_json jsonb)
RETURNS jsonb
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  -- Only numbers with a fraction can have zeros too many.
  IF p_json::text !~ '[0-9][.][0-9]*0' THEN
    RETURN p_json;
  END IF;
  CASE pg_catalog.jsonb_typeof(p_json)
    WHEN 'number' THEN
      RETURN pg_catalog.to_jsonb(pg_catalog.trim_scale(p_json::numeric));
    WHEN 'array' THEN
      RETURN (
        SELECT pg_catalog.jsonb_agg(os_core.canonical_json(item.value) ORDER BY item.place)
        FROM pg_catalog.jsonb_array_elements(p_json) WITH ORDINALITY AS item (value, place)
      );
    WHEN 'object' THEN
      RETURN (
        SELECT pg_catalog.jsonb_object_agg(item.key, os_core.canonical_json(item.value))
        FROM pg_catalog.jsonb_each(p_json) AS item
      );
    ELSE
      RETURN p_json;
  END CASE;
END;
$$;
