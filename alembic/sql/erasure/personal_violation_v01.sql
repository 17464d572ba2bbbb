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
  _subject jsonb;
  _stored text := p_payload::text;
BEGIN
  FOR _node IN SELECT reserved.node FROM os_core.reserved_nodes(p_payload) AS reserved LOOP
    _subject := COALESCE(_node -> '$personal' -> 'subject', _node -> '$subject');
    IF NOT COALESCE(
      pg_catalog.jsonb_typeof(_subject) = 'string' AND os_core.is_identifier(_subject #>> '{}', 128) AND CASE
        WHEN _node ? '$personal' THEN
          _node - '$personal' = '{}'
          AND _node -> '$personal' ? 'value'
          AND (_node -> '$personal') - '{subject,value}'::text[] = '{}'
          AND NOT EXISTS (SELECT FROM os_core.reserved_nodes(_node -> '$personal' -> 'value'))
        ELSE
          _node - '{$subject,$ref}'::text[] = '{}'
          AND pg_catalog.jsonb_typeof(_node -> '$ref') = 'string'
          AND _node ->> '$ref' ~ '^[0-9a-f]{64}$'
      END,
      FALSE
    ) THEN
      RETURN 'payload: an object whose only keys are $personal, $subject, $ref or $erased must be '
        '{"$personal":{"subject":an id,"value":JSON without such objects}} or {"$subject":an id,"$ref":64 hexadecimal digits}';
    END IF;
    IF _node ? '$personal' THEN
      _stored := pg_catalog.replace(
        _stored, _node::text, os_core.reference(_subject #>> '{}', pg_catalog.repeat('0', 64))::text
      );
    END IF;
  END LOOP;
  RETURN os_core.payload_size_violation(_stored::jsonb);
END;
$$;
