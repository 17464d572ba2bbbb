-- os_core.integer_violation: returns 'field: rule' if a value is not an integer from p_least to p_most, or NULL.
-- With p_required => FALSE the value may be NULL. Python has the same sentence; a test compares the two.
-- No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.integer_violation(
  p_field text, p_value numeric, p_least bigint, p_most bigint, p_required boolean DEFAULT TRUE
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  IF p_value IS NULL AND NOT p_required OR (p_value OPERATOR(pg_catalog.>=) p_least AND p_value OPERATOR(pg_catalog.<=) p_most) THEN
    RETURN NULL;
  END IF;
  RETURN pg_catalog.format('%s: must be an integer from %s to %s', p_field, p_least, p_most);
END;
$$;
