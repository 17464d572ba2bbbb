-- os_core.personal_violation: returns 'payload: rule' if a personal value or a reference in a payload is malformed, or NULL (contract
-- section 18). Python has the same sentences. The payload must keep its limit of size with the references in the place of the values.
CREATE OR REPLACE FUNCTION os_core.personal_violation(p_payload jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _node jsonb;
  _nodes constant jsonb[] := os_core.reserved_nodes(p_payload);
  _stored text := p_payload::text;
BEGIN
  FOREACH _node IN ARRAY _nodes LOOP
    IF os_core.is_reserved_node(_node) IS NOT TRUE THEN
      RETURN 'payload: an object whose only keys are $personal, $subject, $ref or $erased must be '
        '{"$personal":{"subject":an id,"value":JSON without such objects}} or {"$subject":an id,"$ref":64 hexadecimal digits}';
    END IF;
  END LOOP;
  -- A reference has at most 220 bytes, and a personal value at least 42.
  IF pg_catalog.octet_length(_stored) * 6 <= 16384 THEN
    RETURN NULL;
  END IF;
  FOREACH _node IN ARRAY _nodes LOOP
    IF _node ? '$personal' THEN
      _stored := pg_catalog.replace(
        _stored, _node::text, os_core.reference(_node -> '$personal' ->> 'subject', pg_catalog.repeat('0', 64))::text
      );
    END IF;
  END LOOP;
  RETURN os_core.payload_size_violation(_stored::jsonb);
END;
$$;
