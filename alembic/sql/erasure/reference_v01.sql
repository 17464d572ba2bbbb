-- os_core.reference: returns what an event holds in the place of a personal value.
CREATE OR REPLACE FUNCTION os_core.reference(p_subject_id text, p_value_ref text)
RETURNS jsonb
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN pg_catalog.jsonb_build_object('$subject', p_subject_id, '$ref', p_value_ref);
END;
$$;
