-- os_core.refer_personal: returns the events of a call with a reference in the place of each personal value, and keeps the values
-- (contract section 18). os_core.append_work_order_events calls it before anything else, if a text of the call begins with a $.
-- What is kept here stays only if the events are written: a refusal rolls it back, and for a replay nothing is kept. The lock on the
-- subject's row is held to the end of the transaction; an erasure waits for it. A call that has waited for an erasure was sent before it:
-- its events are written, and its values are erased with the others.
CREATE OR REPLACE FUNCTION os_core.refer_personal(p_tenant_id text, p_events jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _nodes jsonb[];
  _places integer[];  -- of the node's event, from 0
  _subjects text[];
  _erasures bigint[];  -- the last one of the subject when the call began
  _salts bytea[];
  _salt bytea;
  _payloads jsonb := '{}';  -- of the events that a node is in, by place
  _replays jsonb := '{}';  -- the places of events whose key is used
  _late boolean[];  -- erased while the call waited
  _payload jsonb;
  _missing boolean;
  _made boolean := FALSE;
  _value jsonb;
  _ref text;
  _key text;
BEGIN
  -- Sorted by subject, so that two calls never wait for each other.
  SELECT pg_catalog.array_agg(found.node ORDER BY found.subject_id, found.node),
    pg_catalog.array_agg(found.place ORDER BY found.subject_id, found.node),
    pg_catalog.array_agg(found.subject_id ORDER BY found.subject_id, found.node),
    pg_catalog.array_agg((
      SELECT pg_catalog.max(erasure.erasure_id)
      FROM os_core.subject_erasures AS erasure
      WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = found.subject_id
    ) ORDER BY found.subject_id, found.node)
  INTO _nodes, _places, _subjects, _erasures
  FROM (
    SELECT reserved.node, event.place::integer - 1 AS place,
      COALESCE(reserved.node -> '$personal' ->> 'subject', reserved.node ->> '$subject') AS subject_id
    FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS event (value, place)
    CROSS JOIN LATERAL os_core.reserved_nodes(event.value -> 'payload') AS reserved
  ) AS found;
  IF _nodes IS NULL THEN
    RETURN p_events;
  END IF;
  FOREACH _key IN ARRAY _places LOOP
    IF NOT _payloads ? _key THEN
      _payload := p_events -> _key::integer -> 'payload';
      _payloads := _payloads || pg_catalog.jsonb_build_object(_key, _payload);
      IF NOT os_core.is_payload(_payload) OR os_core.personal_violation(_payload) IS NOT NULL THEN
        PERFORM os_core.refuse_contract(event.place, event.violation)
        FROM (
          SELECT item.place::integer - 1 AS place, os_core.event_violation(item.value) AS violation
          FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS item (value, place)
        ) AS event
        WHERE event.violation IS NOT NULL
        ORDER BY event.place
        LIMIT 1;
      END IF;
    END IF;
  END LOOP;

  LOOP
    _missing := FALSE;
    FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
      IF _n > 1 AND _subjects[_n] = _subjects[_n - 1] THEN
        _salts[_n] := _salts[_n - 1];
        _late[_n] := _late[_n - 1];
        CONTINUE;
      END IF;
      CONTINUE WHEN _salts[_n] IS NOT NULL;
      SELECT subject.salt INTO _salt
      FROM os_core.subjects AS subject
      WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = _subjects[_n]
      FOR KEY SHARE;
      _salts[_n] := _salt;
      IF _made AND EXISTS (
        SELECT FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = p_tenant_id
          AND erasure.subject_id = _subjects[_n]
          AND erasure.erasure_id > COALESCE(_erasures[_n], 0)
      ) THEN
        _late[_n] := TRUE;
        _salts[_n] := os_core.random_salt();
      END IF;
    END LOOP;

    -- Under the locks, so that no erasure comes between this look and what is kept.
    FOR _key IN SELECT place.key FROM pg_catalog.jsonb_object_keys(_payloads) AS place (key) LOOP
      CONTINUE WHEN _replays ? _key OR p_events -> _key::integer ->> 'idempotency_key' IS NULL;
      SELECT os_core.payload_as_recorded(p_tenant_id, _payloads -> _key, ledger.payload) INTO _payload
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id
        AND ledger.work_order_id = p_events -> _key::integer ->> 'work_order_id'
        AND ledger.idempotency_key = p_events -> _key::integer ->> 'idempotency_key';
      IF FOUND THEN
        _replays := _replays || pg_catalog.jsonb_build_object(_key, TRUE);
        _payloads := _payloads || pg_catalog.jsonb_build_object(_key, _payload);
      END IF;
    END LOOP;

    FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
      IF _salts[_n] IS NULL AND _nodes[_n] ? '$personal' AND NOT _replays ? _places[_n]::text THEN
        _missing := TRUE;
        INSERT INTO os_core.subjects (tenant_id, subject_id, salt)
        VALUES (p_tenant_id, _subjects[_n], os_core.random_salt())
        ON CONFLICT DO NOTHING;
      END IF;
    END LOOP;
    EXIT WHEN NOT _missing;
    _made := TRUE;
  END LOOP;

  FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
    _key := _places[_n];
    IF _nodes[_n] ? '$personal' THEN
      _value := os_core.canonical_json(_nodes[_n] -> '$personal' -> 'value');
      -- What is not the recorded value is refused as IdempotencyConflict: any other reference will do.
      _ref := os_core.salted_hash(COALESCE(_salts[_n], os_core.random_salt()), _value::text);
      IF NOT _replays ? _key AND _late[_n] IS NULL THEN
        INSERT INTO os_core.subject_values (tenant_id, subject_id, value_ref, salt, value)
        VALUES (p_tenant_id, _subjects[_n], _ref, _salts[_n], _value)
        ON CONFLICT DO NOTHING;
      END IF;
      _payloads := pg_catalog.jsonb_set(_payloads, ARRAY[_key], pg_catalog.replace(
        (_payloads -> _key)::text, _nodes[_n]::text, os_core.reference(_subjects[_n], _ref)::text
      )::jsonb);
    ELSIF NOT _replays ? _key AND NOT EXISTS (
      SELECT FROM os_core.subject_values AS held
      WHERE held.tenant_id = p_tenant_id AND held.subject_id = _subjects[_n] AND held.value_ref = _nodes[_n] ->> '$ref'
    ) THEN
      -- The same words for a reference that never was, is erased, or is another tenant's.
      PERFORM os_core.refuse_contract(_key::integer, 'payload: has a reference to a value that is not there');
    END IF;
  END LOOP;
  FOR _key IN SELECT place.key FROM pg_catalog.jsonb_object_keys(_payloads) AS place (key) LOOP
    p_events := pg_catalog.jsonb_set(p_events, ARRAY[_key, 'payload'], _payloads -> _key);
  END LOOP;
  RETURN p_events;
END;
$$;
