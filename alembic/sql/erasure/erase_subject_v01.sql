-- os_core.erase_subject: deletes what is kept about a person of a tenant, and writes the record of it (contract section 18).
-- That is: the personal values, the subject's salt, and the texts of the turns whose user_id is the subject, of both roles. It waits for
-- every call that is writing one of them. The feed gives it a position, as it does to events. Again, with nothing to delete, it returns the
-- last record.
CREATE OR REPLACE FUNCTION os_core.erase_subject(p_tenant_id text, p_subject_id text, p_reason_code bigint)
RETURNS TABLE (erasure_id bigint, erased_at timestamptz, values_erased bigint, texts_erased bigint, replayed boolean)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _violation text;
  _had_salt boolean;
  _had_identity boolean;
  _made_at timestamptz;
  _record os_core.subject_erasures;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  _violation := COALESCE(
    os_core.identifier_violation('subject_id', p_subject_id, 128),
    os_core.integer_violation('reason_code', p_reason_code, 1, 4294967295),
    os_core.isolation_violation()
  );
  IF _violation IS NOT NULL THEN
    PERFORM os_core.refuse_contract(NULL, _violation);
  END IF;

  BEGIN
    -- A row that is not there yet is made and deleted: whoever makes it at the same time waits, or is waited for.
    LOOP
      SELECT TRUE INTO _had_salt
      FROM os_core.subjects AS subject
      WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = p_subject_id
      FOR UPDATE;
      EXIT WHEN FOUND;
      INSERT INTO os_core.subjects AS subject (tenant_id, subject_id, salt, was_erased)
      VALUES (p_tenant_id, p_subject_id, os_core.random_salt(), FALSE)
      ON CONFLICT DO NOTHING
      RETURNING FALSE INTO _had_salt;
      EXIT WHEN NOT _had_salt;
    END LOOP;
    LOOP
      SELECT TRUE INTO _had_identity
      FROM os_core.identities AS identity
      WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_subject_id
      FOR UPDATE;
      EXIT WHEN FOUND;
      INSERT INTO os_core.identities AS identity (tenant_id, user_id, status)
      VALUES (p_tenant_id, p_subject_id, 'ACTIVE')
      ON CONFLICT DO NOTHING
      RETURNING FALSE INTO _had_identity;
      EXIT WHEN NOT _had_identity;
    END LOOP;
    IF NOT _had_identity THEN
      DELETE FROM os_core.identities AS identity
      WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_subject_id;
    ELSE
      -- Nothing changes, but whoever has an older snapshot cannot write a turn any more.
      UPDATE os_core.identities AS identity
      SET status = identity.status
      WHERE identity.tenant_id = p_tenant_id AND identity.user_id = p_subject_id;
    END IF;

    SELECT pg_catalog.count(*), pg_catalog.max(held.created_at) INTO _record.values_erased, _record.erased_at
    FROM os_core.subject_values AS held
    WHERE held.tenant_id = p_tenant_id AND held.subject_id = p_subject_id;
    SELECT pg_catalog.count(*), GREATEST(_record.erased_at, pg_catalog.max(turn.created_at), pg_catalog.clock_timestamp())
    INTO _record.texts_erased, _record.erased_at
    FROM conversation.conversation_ledger AS turn
    JOIN conversation.turn_texts AS said USING (tenant_id, conversation_turn_id)
    WHERE turn.tenant_id = p_tenant_id AND turn.user_id = p_subject_id;
    SELECT erasure.erasure_id INTO _record.erasure_id
    FROM os_core.subject_erasures AS erasure
    WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = p_subject_id
    ORDER BY erasure.erasure_id DESC
    LIMIT 1;
    IF FOUND AND NOT _had_salt AND _record.texts_erased = 0 THEN
      RAISE SQLSTATE 'SLXXX';
    END IF;

    SELECT subject.created_at INTO _made_at
    FROM os_core.subjects AS subject
    WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = p_subject_id;
    -- The lock above has given the transaction its xid, before the feed's id is drawn.
    INSERT INTO os_core.subject_erasures AS erasure (
      tenant_id, subject_id, reason_code, values_erased, texts_erased, erased_at
    )
    VALUES (
      p_tenant_id, p_subject_id, p_reason_code, _record.values_erased, _record.texts_erased,
      -- The guards compare: no row that goes is later, though the clock may have been set back.
      GREATEST(_record.erased_at, _made_at)
    )
    RETURNING erasure.* INTO _record;
    DELETE FROM os_core.subject_values AS held
    WHERE held.tenant_id = p_tenant_id AND held.subject_id = p_subject_id;
    DELETE FROM os_core.subjects AS subject
    WHERE subject.tenant_id = p_tenant_id AND subject.subject_id = p_subject_id;
    DELETE FROM conversation.turn_texts AS said
    USING conversation.conversation_ledger AS turn
    WHERE turn.tenant_id = p_tenant_id
      AND turn.user_id = p_subject_id
      AND said.tenant_id = p_tenant_id
      AND said.conversation_turn_id = turn.conversation_turn_id;
  EXCEPTION
    -- Nothing to delete: the rows that were made for their locks go, too.
    WHEN SQLSTATE 'SLXXX' THEN
      RETURN QUERY
      SELECT erasure.erasure_id, erasure.erased_at, erasure.values_erased, erasure.texts_erased, TRUE
      FROM os_core.subject_erasures AS erasure
      WHERE erasure.tenant_id = p_tenant_id AND erasure.subject_id = p_subject_id
      ORDER BY erasure.erasure_id DESC
      LIMIT 1;
      RETURN;
  END;
  RETURN QUERY
  SELECT _record.erasure_id, _record.erased_at, _record.values_erased, _record.texts_erased, FALSE;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.erase_subject(text, text, bigint) TO selene_app;
