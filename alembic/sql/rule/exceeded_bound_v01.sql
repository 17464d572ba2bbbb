-- os_core.exceeded_bound: returns the first bound that a projection row exceeds, as 'column unit limit', or NULL (contract section 2).
-- A short text needs no count: a key takes at least eight characters of it, with its entry thirty for a conflict, and more than 64 for
-- a field that was asked or resolved.
CREATE OR REPLACE FUNCTION os_core.exceeded_bound(
  p_fields jsonb, p_asked jsonb, p_resolved jsonb, p_conflicts jsonb, p_dedupe_keys jsonb
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _bytes integer := pg_catalog.octet_length(pg_catalog.concat(p_fields, p_asked, p_resolved, p_conflicts, p_dedupe_keys));
BEGIN
  IF _bytes <= 8 * 64 THEN
    RETURN NULL;
  END IF;
  _bytes := pg_catalog.octet_length(p_fields::text);
  IF _bytes > 8 * 64 THEN
    IF _bytes > 65536 THEN
      RETURN 'fields_json bytes 65536';
    ELSIF pg_catalog.jsonb_array_length(pg_catalog.jsonb_path_query_array(p_fields, 'strict $.*')) > 64 THEN
      RETURN 'fields_json keys 64';
    END IF;
  END IF;
  _bytes := pg_catalog.octet_length(pg_catalog.concat(p_asked, p_resolved, p_conflicts, p_dedupe_keys));
  IF _bytes > 30 * 64 THEN
    IF pg_catalog.jsonb_array_length(pg_catalog.jsonb_path_query_array(p_conflicts, 'strict $.*')) > 64 THEN
      RETURN 'conflicts_json keys 64';
    END IF;
  END IF;
  IF _bytes > 8 * 512 THEN
    RETURN CASE
      WHEN pg_catalog.octet_length(p_resolved::text) > 65536 THEN 'resolved_fields_json bytes 65536'
      WHEN pg_catalog.jsonb_array_length(pg_catalog.jsonb_path_query_array(p_asked, 'strict $.*')) > 64
        THEN 'asked_fields_json keys 64'
      WHEN pg_catalog.jsonb_array_length(pg_catalog.jsonb_path_query_array(p_resolved, 'strict $.*')) > 64
        THEN 'resolved_fields_json keys 64'
      WHEN pg_catalog.jsonb_array_length(pg_catalog.jsonb_path_query_array(p_dedupe_keys, 'strict $.*')) > 512
        THEN 'prompt_dedupe_keys_json keys 512'
    END;
  END IF;
  RETURN NULL;
END;
$$;
