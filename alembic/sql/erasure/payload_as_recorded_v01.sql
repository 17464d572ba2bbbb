-- os_core.payload_as_recorded: returns a payload with the recorded references where its personal values are the recorded ones (contract
-- section 18). An erased reference stands for every value of its subject in its place: so the retry of an old call is a replay.
-- p_recorded is the payload of the event that has the call's key; both are walked together. What differs stays as it was given.
CREATE OR REPLACE FUNCTION os_core.payload_as_recorded(p_tenant_id text, p_given jsonb, p_recorded jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _subject_id constant text := p_given -> '$personal' ->> 'subject';
  _value jsonb;
BEGIN
  IF p_given::text NOT LIKE '%{"$personal"%' THEN
    RETURN p_given;
  ELSIF pg_catalog.jsonb_typeof(p_given) = 'object' AND p_given - '$personal' = '{}' THEN
    IF p_recorded = os_core.reference(_subject_id, p_recorded ->> '$ref') THEN
      SELECT held.value INTO _value
      FROM os_core.subject_values AS held
      WHERE held.tenant_id = p_tenant_id AND held.subject_id = _subject_id AND held.value_ref = p_recorded ->> '$ref';
      IF NOT FOUND OR _value = p_given -> '$personal' -> 'value' THEN
        RETURN p_recorded;
      END IF;
    END IF;
    RETURN p_given;
  ELSIF pg_catalog.jsonb_typeof(p_given) = 'object' THEN
    RETURN (
      SELECT pg_catalog.jsonb_object_agg(
        item.key, os_core.payload_as_recorded(p_tenant_id, item.value, p_recorded -> item.key)
      )
      FROM pg_catalog.jsonb_each(p_given) AS item
    );
  END IF;
  RETURN (
    SELECT pg_catalog.jsonb_agg(
      os_core.payload_as_recorded(p_tenant_id, item.value, p_recorded -> (item.place::integer - 1)) ORDER BY item.place
    )
    FROM pg_catalog.jsonb_array_elements(p_given) WITH ORDINALITY AS item (value, place)
  );
END;
$$;
