-- os_core.refer_value: returns an event's payload with a reference in the place of its personal value, and keeps the value (contract
-- section 18). os_core.append_work_order_events calls it if p_text, the payload's text, has "$ in it.
-- It is the short way for what most calls ask for: one value, or one reference that is given again. All other calls go to
-- os_core.refer_personal, which also knows what to refuse. No SET clause: its one caller has it. Few expressions: each is initialised
-- anew in every transaction.
CREATE OR REPLACE FUNCTION os_core.refer_value(p_tenant_id text, p_payload jsonb, p_text text, p_events jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
AS $$
DECLARE
  _subject_id text := p_payload #>> '{value,$personal,subject}';
  _value jsonb := p_payload #> '{value,$personal,value}';
  _shown text := pg_catalog.format('{"$personal": {"value": %s, "subject": "%s"}}', _value, _subject_id);
  _node jsonb;
  _salt bytea;
  _ref text;
  _is_clean boolean := FALSE;  -- not erased when the call began, and somebody may have been waited for since
BEGIN
  IF _value IS NULL THEN
    -- It stands elsewhere, at any depth, or is a reference.
    IF p_text LIKE '%"$personal"%"$personal"%' OR NOT os_core.is_payload(p_payload) THEN
      RETURN os_core.refer_personal(p_tenant_id, p_events) #> '{0,payload}';
    END IF;
    _node := pg_catalog.jsonb_path_query_first(p_payload, 'strict $.** ? (exists (@."$personal") || exists (@."$ref"))');
    _subject_id := COALESCE(_node #>> '{$personal,subject}', _node ->> '$subject');
    _value := _node #> '{$personal,value}';
    _shown := pg_catalog.format('{"$personal": {"value": %s, "subject": "%s"}}', _value, _subject_id);
    IF _node = os_core.reference(_subject_id, _node ->> '$ref') THEN
      IF pg_catalog.replace(p_text, _node::text, '') NOT LIKE '%"$%' THEN
        PERFORM FROM os_core.subjects AS subject
        WHERE subject.tenant_id = p_tenant_id
          AND subject.subject_id = _subject_id
          AND EXISTS (
            SELECT FROM os_core.subject_values AS held
            WHERE held.tenant_id = p_tenant_id AND held.subject_id = _subject_id AND held.value_ref = _node ->> '$ref'
          )
        FOR KEY SHARE SKIP LOCKED;
        IF FOUND THEN
          RETURN p_payload;
        END IF;
      END IF;
    END IF;
  END IF;
  -- In jsonb's text an object stands where it is and nowhere else: within a string its quotes are escaped. It has no other key. Each
  -- reserved key has "$, and without the object there must be none.
  IF pg_catalog.octet_length(p_text) <= 16384 AND pg_catalog.replace(p_text, _shown, '') NOT LIKE '%"$%' THEN
    IF _shown NOT LIKE '{"$personal": {"value": "%' THEN
      IF _value::text LIKE '%"$%' OR NOT os_core.is_payload(p_payload) THEN
        RETURN os_core.refer_personal(p_tenant_id, p_events) #> '{0,payload}';
      END IF;
      _value := os_core.canonical_json(_value);
    END IF;
    -- Who waits for an erasure was sent before it, which this lock could not tell: so it does not wait.
    SELECT subject.salt INTO _salt
    FROM os_core.subjects AS subject
    WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = _subject_id AND NOT subject.was_erased
    FOR KEY SHARE SKIP LOCKED;
    IF _salt IS NULL THEN
      -- An older snapshot would not see the erasure that it has waited for.
      IF os_core.is_identifier(_subject_id, 128) AND pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
        _is_clean := NOT EXISTS (
          SELECT FROM os_core.subject_erasures AS erasure
          WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _subject_id
        );
        IF NOT _is_clean THEN
          -- Erased, and known again. The retry of a call from before the erasure has an event, which it must be compared with.
          SELECT subject.salt INTO _salt
          FROM os_core.subjects AS subject
          WHERE subject.tenant_id = p_tenant_id
            AND subject.subject_id = _subject_id
            AND NOT EXISTS (
              SELECT FROM os_core.work_order_ledger AS ledger
              WHERE ledger.tenant_id = p_tenant_id
                AND ledger.work_order_id = p_events #>> '{0,work_order_id}'
                AND ledger.idempotency_key = p_events #>> '{0,idempotency_key}'
            )
          FOR KEY SHARE SKIP LOCKED;
        ELSE
          -- Most likely the first value of its subject. Who is not known has no event with a reference, unless after an erasure.
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
    END IF;
    IF _salt IS NOT NULL THEN
      _ref := os_core.salted_hash(_salt, _value::text);
      INSERT INTO os_core.subject_values (tenant_id, subject_id, value_ref, salt, value)
      VALUES (p_tenant_id, _subject_id, _ref, _salt, _value)
      ON CONFLICT DO NOTHING;
      RETURN pg_catalog.replace(
        p_text, _shown, pg_catalog.format('{"$ref": "%s", "$subject": "%s"}', _ref, _subject_id)
      )::jsonb;
    END IF;
  END IF;
  RETURN os_core.refer_personal(p_tenant_id, p_events, _is_clean) #> '{0,payload}';
END;
$$;
