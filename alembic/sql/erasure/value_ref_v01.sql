-- os_core.value_ref: makes the reference to a subject's value: the SHA-256 of salt and value, in hexadecimal digits (contract section 18).
-- The CHECK of os_core.subject_values calls it, too. No SET clause, which costs more than the hash: so every name in it is qualified, also
-- the type.
CREATE OR REPLACE FUNCTION os_core.value_ref(p_salt bytea, p_value jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN os_core.salted_hash(p_salt, p_value::pg_catalog.text);
END;
$$;
