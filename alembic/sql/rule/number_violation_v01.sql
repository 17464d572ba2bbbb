-- os_core.number_violation: returns 'field: rule' for the first number in a JSON value that some client cannot read back, or NULL.
-- Numbers are finite as doubles, integers within 64 bits (contract section 2). p_field names the value, and grows on the way inwards:
-- payload.a[0].
CREATE OR REPLACE FUNCTION os_core.number_violation(p_field text, p_value jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _inner record;
  _violation text;
BEGIN
  CASE pg_catalog.jsonb_typeof(p_value)
    WHEN 'number' THEN
      IF NOT os_core.is_payload(pg_catalog.jsonb_build_object('', p_value)) THEN
        RETURN p_field || ': must be a finite number, within 64 bits where it is an integer';
      END IF;
    WHEN 'object' THEN
      FOR _inner IN SELECT key, value FROM pg_catalog.jsonb_each(p_value) LOOP
        _violation := os_core.number_violation(pg_catalog.concat(p_field, '.', os_core.key_shown(_inner.key)), _inner.value);
        EXIT WHEN _violation IS NOT NULL;
      END LOOP;
    WHEN 'array' THEN
      FOR _inner IN
        SELECT item.index - 1 AS key, item.value
        FROM pg_catalog.jsonb_array_elements(p_value) WITH ORDINALITY AS item (value, index)
      LOOP
        _violation := os_core.number_violation(pg_catalog.concat(p_field, '[', _inner.key, ']'), _inner.value);
        EXIT WHEN _violation IS NOT NULL;
      END LOOP;
    ELSE
      NULL;
  END CASE;
  RETURN _violation;
END;
$$;
