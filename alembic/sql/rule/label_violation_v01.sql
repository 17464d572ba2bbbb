-- os_core.label_violation: returns 'field: rule' if a value is not a label (key, hash) of 1..p_most characters, or NULL.
-- With p_required => FALSE the value may be NULL. Python has the same sentence; a test compares the two.
-- No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.label_violation(
  p_field text, p_value text, p_most integer, p_required boolean DEFAULT TRUE
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  IF p_value IS NULL AND NOT p_required OR os_core.is_label(p_value, p_most) THEN
    RETURN NULL;
  END IF;
  RETURN pg_catalog.format(
    '%s: must be 1..%s characters, without control characters, and without white space at either end', p_field, p_most
  );
END;
$$;
