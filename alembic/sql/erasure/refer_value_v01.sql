-- os_core.refer_value: returns the call of one event with a reference in the place of its personal value, and keeps the value (contract
-- section 18). It does what most calls with a personal value ask for: one value, of a subject that was never erased. All other calls go
-- to os_core.refer_personal, which also knows what to refuse. No SET clause: its one caller has it. Few expressions: each is initialised
-- anew in every transaction.
CREATE OR REPLACE FUNCTION os_core.refer_value(p_tenant_id text, p_events jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
AS $$
DECLARE
  _text constant text := (p_events #> '{0,payload}')::text;
  _personal jsonb;
  _subject_id text;
  _value jsonb;
  _shown text;
  _salt bytea;
  _ref text;
  _is_clean boolean := FALSE;  -- not erased when the call began, and somebody may have been waited for since
BEGIN
  -- A text has "$ for each reserved key. Where there is one, there is no second object, and none within the value.
  IF _text NOT LIKE '%"$%"$%' AND pg_catalog.octet_length(_text) <= 16384 THEN
    _personal := p_events #> '{0,payload,value,$personal}';
    IF _personal IS NULL THEN
      _personal := pg_catalog.jsonb_path_query_first(p_events, 'lax $[0].payload.**."$personal"');
    END IF;
    _subject_id := _personal ->> 'subject';
    _value := _personal -> 'value';
    -- In jsonb's text an object stands where it is and nowhere else: within a string its quotes are escaped. It has no other key.
    _shown := pg_catalog.format('{"$personal": {"value": %s, "subject": "%s"}}', _value, _subject_id);
    IF pg_catalog.strpos(_text, _shown) > 0 THEN
      IF _value::text NOT LIKE '"%' THEN
        IF NOT os_core.is_payload(p_events #> '{0,payload}') THEN
          RETURN os_core.refer_personal(p_tenant_id, p_events);
        END IF;
        _value := os_core.canonical_json(_value);
      END IF;
      -- Who waits for an erasure was sent before it, which this lock could not tell: so it does not wait.
      SELECT subject.salt INTO _salt
      FROM os_core.subjects AS subject
      WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = _subject_id AND NOT subject.was_erased
      FOR KEY SHARE SKIP LOCKED;
      IF _salt IS NULL THEN
        -- Most likely the first value of its subject. Who is not known has no event with a reference, unless after an erasure. An older
        -- snapshot would not see the erasure that it has waited for.
        IF os_core.is_identifier(_subject_id, 128) AND pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
          _is_clean := NOT EXISTS (
            SELECT FROM os_core.subject_erasures AS erasure
            WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _subject_id
          );
        END IF;
        IF _is_clean THEN
          BEGIN
            _salt := os_core.random_salt();
            INSERT INTO os_core.subjects (tenant_id, subject_id, salt, was_erased)
            VALUES (p_tenant_id, _subject_id, _salt, FALSE)
            ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
              _salt := NULL;
            ELSIF EXISTS (
              SELECT FROM os_core.subject_erasures AS erasure
              WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _subject_id
            ) THEN
              RAISE SQLSTATE 'SLXXX';
            END IF;
          EXCEPTION
            -- It waited for an erasure: no row of the subject is left.
            WHEN SQLSTATE 'SLXXX' THEN
              _salt := NULL;
          END;
        END IF;
      END IF;
      IF _salt IS NOT NULL THEN
        _ref := os_core.salted_hash(_salt, _value::text);
        INSERT INTO os_core.subject_values (tenant_id, subject_id, value_ref, salt, value)
        VALUES (p_tenant_id, _subject_id, _ref, _salt, _value)
        ON CONFLICT DO NOTHING;
        RETURN pg_catalog.jsonb_set(p_events, '{0,payload}', pg_catalog.replace(
          _text, _shown, pg_catalog.format('{"$subject": "%s", "$ref": "%s"}', _subject_id, _ref)
        )::jsonb);
      END IF;
    END IF;
  END IF;
  RETURN os_core.refer_personal(p_tenant_id, p_events, _is_clean);
END;
$$;
