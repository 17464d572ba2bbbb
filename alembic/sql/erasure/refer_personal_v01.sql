-- os_core.refer_personal: returns the events of a call with a reference in the place of each personal value, and keeps the values
-- (contract section 18). os_core.append_work_order_events calls it before anything else, if a text of the call begins with a $. For one
-- event it reads the event and calls os_core.refer_value first.
-- What is kept here stays only if the events are written: a refusal rolls it back, and for a replay nothing is kept. The lock on the
-- subject's row is held to the end of the transaction; an erasure waits for it. A call that has waited for an erasure was sent before it:
-- its events are written, and its values are erased with the others. p_is_clean says that the caller has seen the call's one subject
-- without an erasure, and may have waited since.
CREATE OR REPLACE FUNCTION os_core.refer_personal(p_tenant_id text, p_events jsonb, p_is_clean boolean DEFAULT FALSE)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _row record;
  _places integer[];  -- of the events that have a node, from 0
  _payloads text[];  -- of these events
  _is_replay boolean[];  -- whether their key is used
  _nodes jsonb[];
  _events integer[];  -- the node's event, as a place in the arrays above
  _subjects text[];
  _erasure_id bigint;
  _erasures bigint[];  -- the subject's last one when the call began
  _is_late boolean[];  -- erased while the call waited
  _salts bytea[];
  _salt bytea;
  _payload jsonb;
  _value jsonb;
  _ref text;
  _is_valid boolean;
  _is_missing boolean;
  _made text;
  _has_made boolean := p_is_clean;
  _e integer := 0;
BEGIN
  FOR _row IN
    SELECT event.place::integer - 1 AS place, event.value -> 'payload' AS payload,
      os_core.reserved_nodes(event.value -> 'payload') AS nodes
    FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS event (value, place)
  LOOP
    CONTINUE WHEN pg_catalog.cardinality(_row.nodes) = 0;
    _is_valid := os_core.is_payload(_row.payload);
    FOREACH _value IN ARRAY _row.nodes LOOP
      _is_valid := _is_valid AND os_core.is_reserved_node(_value);
    END LOOP;
    IF _is_valid IS NOT TRUE THEN
      -- An earlier event may be invalid, too.
      PERFORM os_core.refuse_contract(event.place, event.violation)
      FROM (
        SELECT item.place::integer - 1 AS place, os_core.event_violation(item.value) AS violation
        FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS item (value, place)
      ) AS event
      WHERE event.violation IS NOT NULL
      ORDER BY event.place
      LIMIT 1;
    END IF;
    _e := _e + 1;
    _places[_e] := _row.place;
    _payloads[_e] := _row.payload;
    _is_replay[_e] := FALSE;
    _nodes := _nodes || _row.nodes;
    _events := _events || pg_catalog.array_fill(_e, ARRAY[pg_catalog.cardinality(_row.nodes)]);
  END LOOP;
  IF _e = 0 THEN
    RETURN p_events;
  END IF;
  FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
    _subjects[_n] := COALESCE(_nodes[_n] -> '$personal' ->> 'subject', _nodes[_n] ->> '$subject');
  END LOOP;
  IF pg_catalog.cardinality(_nodes) > 1 THEN
    -- Sorted by subject, so that two calls never wait for each other.
    SELECT pg_catalog.array_agg(each.node ORDER BY each.subject_id, each.node),
      pg_catalog.array_agg(each.event ORDER BY each.subject_id, each.node),
      pg_catalog.array_agg(each.subject_id ORDER BY each.subject_id, each.node)
    INTO _nodes, _events, _subjects
    FROM ROWS FROM (
      pg_catalog.unnest(_nodes), pg_catalog.unnest(_events), pg_catalog.unnest(_subjects)
    ) AS each (node, event, subject_id);
  END IF;
  FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
    IF p_is_clean THEN
      _erasures[_n] := 0;
    ELSIF _n > 1 AND _subjects[_n] = _subjects[_n - 1] THEN
      _erasures[_n] := _erasures[_n - 1];
    ELSE
      -- Through a variable: a distributed engine cannot send a query that is assigned to a place in an array.
      SELECT pg_catalog.max(erasure.erasure_id) INTO _erasure_id
      FROM os_core.subject_erasures AS erasure
      WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _subjects[_n];
      _erasures[_n] := COALESCE(_erasure_id, 0);
    END IF;
  END LOOP;

  LOOP
    _is_missing := FALSE;
    FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
      IF _n > 1 AND _subjects[_n] = _subjects[_n - 1] THEN
        _salts[_n] := _salts[_n - 1];
        _is_late[_n] := _is_late[_n - 1];
        CONTINUE;
      END IF;
      CONTINUE WHEN _salts[_n] IS NOT NULL;
      SELECT subject.salt INTO _salt
      FROM os_core.subjects AS subject
      WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = _subjects[_n]
      FOR KEY SHARE;
      _salts[_n] := _salt;
      _is_late[_n] := FALSE;
      IF _has_made AND EXISTS (
        SELECT FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _subjects[_n] AND erasure.erasure_id > _erasures[_n]
      ) THEN
        _is_late[_n] := TRUE;
        _salts[_n] := os_core.random_salt();
      END IF;
    END LOOP;

    -- Under the locks, so that no erasure comes between this look and what is kept.
    FOR _e IN 1..pg_catalog.cardinality(_places) LOOP
      CONTINUE WHEN _is_replay[_e] OR p_events -> _places[_e] ->> 'idempotency_key' IS NULL;
      SELECT ledger.payload INTO _payload
      FROM os_core.work_order_ledger AS ledger
      WHERE ledger.tenant_id = p_tenant_id
        AND ledger.work_order_id = p_events -> _places[_e] ->> 'work_order_id'
        AND ledger.idempotency_key = p_events -> _places[_e] ->> 'idempotency_key';
      IF FOUND THEN
        _is_replay[_e] := TRUE;
        _payloads[_e] := os_core.payload_as_recorded(p_tenant_id, _payloads[_e]::jsonb, _payload);
      END IF;
    END LOOP;

    _made := NULL;
    FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
      IF _salts[_n] IS NULL AND _nodes[_n] ? '$personal' AND NOT _is_replay[_events[_n]] THEN
        _is_missing := TRUE;
        CONTINUE WHEN _subjects[_n] = _made;
        _made := _subjects[_n];
        BEGIN
          INSERT INTO os_core.subjects (tenant_id, subject_id, salt, was_erased)
          VALUES (p_tenant_id, _made, os_core.random_salt(), _erasures[_n] > 0)
          ON CONFLICT DO NOTHING;
          IF EXISTS (
            SELECT FROM os_core.subject_erasures AS erasure
            WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = _made AND erasure.erasure_id > _erasures[_n]
          ) THEN
            RAISE SQLSTATE 'SLXXX';
          END IF;
        EXCEPTION
          -- It waited for an erasure: no row of the subject is left either.
          WHEN SQLSTATE 'SLXXX' THEN
            _is_late[_n] := TRUE;
            _salts[_n] := os_core.random_salt();
        END;
      END IF;
    END LOOP;
    EXIT WHEN NOT _is_missing;
    _has_made := TRUE;
  END LOOP;

  FOR _n IN 1..pg_catalog.cardinality(_nodes) LOOP
    _e := _events[_n];
    IF _nodes[_n] ? '$personal' THEN
      _value := os_core.canonical_json(_nodes[_n] -> '$personal' -> 'value');
      -- What is not the recorded value is refused as IdempotencyConflict: any other reference will do.
      _ref := os_core.salted_hash(COALESCE(_salts[_n], os_core.random_salt()), _value::text);
      IF NOT (_is_replay[_e] OR _is_late[_n]) THEN
        INSERT INTO os_core.subject_values (tenant_id, subject_id, value_ref, salt, value)
        VALUES (p_tenant_id, _subjects[_n], _ref, _salts[_n], _value)
        ON CONFLICT DO NOTHING;
      END IF;
      -- In jsonb's text an object stands where it is and nowhere else: within a string its quotes are escaped.
      _payloads[_e] := pg_catalog.replace(
        _payloads[_e], _nodes[_n]::text, os_core.reference(_subjects[_n], _ref)::text
      );
    ELSIF NOT _is_replay[_e] AND NOT EXISTS (
      SELECT FROM os_core.subject_values AS held
      WHERE held.tenant_id = p_tenant_id AND held.subject_id = _subjects[_n] AND held.value_ref = _nodes[_n] ->> '$ref'
    ) THEN
      -- The same words for a reference that never was, is erased, or is another tenant's.
      PERFORM os_core.refuse_contract(_places[_e], 'payload: has a reference to a value that is not there');
    END IF;
  END LOOP;
  RETURN (
    SELECT pg_catalog.jsonb_agg(
      CASE WHEN kept.place IS NULL THEN event.value ELSE pg_catalog.jsonb_set(event.value, '{payload}', kept.payload::jsonb) END
      ORDER BY event.place
    )
    FROM pg_catalog.jsonb_array_elements(p_events) WITH ORDINALITY AS event (value, place)
    LEFT JOIN ROWS FROM (pg_catalog.unnest(_places), pg_catalog.unnest(_payloads)) AS kept (place, payload)
      ON kept.place = event.place - 1
  );
END;
$$;
