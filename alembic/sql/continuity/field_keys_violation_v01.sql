-- os_core.field_keys_violation: returns 'field: rule' if a value is not an array of p_least..p_most field keys, or NULL.
-- Python has the same sentences; a test compares the two.
CREATE OR REPLACE FUNCTION os_core.field_keys_violation(p_field text, p_keys text[], p_least integer, p_most integer)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _index integer := 0;
  _key text;
BEGIN
  IF (pg_catalog.cardinality(p_keys) BETWEEN p_least AND p_most) IS NOT TRUE OR pg_catalog.array_ndims(p_keys) > 1 THEN
    RETURN pg_catalog.format('%s: must be %s..%s field keys', p_field, p_least, p_most);
  END IF;
  FOREACH _key IN ARRAY p_keys LOOP
    IF os_core.is_field_key(_key) IS NOT TRUE THEN
      RETURN pg_catalog.format('%s[%s]: must be 1..64 ASCII letters, digits or _.:-', p_field, _index);
    END IF;
    _index := _index + 1;
  END LOOP;
  RETURN NULL;
END;
$$;
