-- os_core.resolve_values: returns a JSON value with the personal values in the place of their references (contract section 18).
-- A reference whose value is erased, or never was the tenant's, becomes {"$erased": true}.
CREATE OR REPLACE FUNCTION os_core.resolve_values(p_tenant_id text, p_json jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _text text := p_json::text;
  _row record;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  FOR _row IN
    SELECT reserved.node, held.value
    FROM pg_catalog.unnest(os_core.reserved_nodes(p_json)) AS reserved (node)
    LEFT JOIN LATERAL (
      SELECT of_subject.value
      FROM os_core.subject_values AS of_subject
      WHERE of_subject.tenant_id = p_tenant_id
        AND of_subject.subject_id = reserved.node ->> '$subject'
        AND of_subject.value_ref = reserved.node ->> '$ref'
    ) AS held ON TRUE
    WHERE reserved.node - '{$subject,$ref}'::text[] = '{}'
  LOOP
    -- In jsonb's text an object stands where it is and nowhere else: within a string its quotes are escaped.
    _text := pg_catalog.replace(_text, _row.node::text, COALESCE(_row.value, '{"$erased": true}')::text);
  END LOOP;
  RETURN _text::jsonb;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.resolve_values(text, jsonb) TO selene_app;
