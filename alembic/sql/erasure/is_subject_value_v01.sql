-- os_core.is_subject_value: the CHECK of os_core.subject_values: a reference commits to its value (contract section 18).
-- One function, because every statement parses each node of a CHECK again. No SET clause, which costs more than the hash: so every name
-- in it is qualified, also the operator and the type.
CREATE OR REPLACE FUNCTION os_core.is_subject_value(p_value_ref text, p_salt bytea, p_value jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN pg_catalog.texteq(p_value_ref, os_core.salted_hash(p_salt, p_value::pg_catalog.text));
END;
$$;
