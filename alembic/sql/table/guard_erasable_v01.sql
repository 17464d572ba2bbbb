-- os_core.guard_erasable: the trigger function of the tables from which the erasure of a person deletes (contract section 18).
-- It also holds for the owner and in replica mode. No row changes. A row goes only if a record in os_core.subject_erasures says that its
-- subject was erased after the row was written, or with its whole tenant. A DELETE that meets no row needs a record of its transaction.
CREATE OR REPLACE FUNCTION os_core.guard_erasable()
RETURNS trigger
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _table constant text := COALESCE(TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME);
  _tenant_id constant text := NULLIF(pg_catalog.current_setting('selene.tenant_id', TRUE), '');
  _subject_id text;
  _written_at timestamptz;
BEGIN
  IF TG_OP = 'DELETE' THEN
    IF TG_LEVEL = 'STATEMENT' THEN
      IF EXISTS (
        SELECT FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = _tenant_id
          AND erasure.erased_at >= pg_catalog.transaction_timestamp()
      ) THEN
        RETURN NULL;
      END IF;
    ELSE
      IF _table = 'conversation.turn_texts' THEN
        SELECT turn.user_id, turn.created_at INTO _subject_id, _written_at
        FROM conversation.conversation_ledger AS turn
        WHERE turn.tenant_id = OLD.tenant_id AND turn.conversation_turn_id = OLD.conversation_turn_id;
      ELSE
        _subject_id := OLD.subject_id;
        _written_at := OLD.created_at;
      END IF;
      IF EXISTS (
        SELECT FROM os_core.subject_erasures AS erasure
        WHERE erasure.tenant_id = OLD.tenant_id AND erasure.subject_id = _subject_id AND erasure.erased_at >= _written_at
      ) THEN
        RETURN OLD;
      END IF;
    END IF;
    IF os_core.removal_is_open(OLD.tenant_id) THEN
      RETURN OLD;
    END IF;
  END IF;
  PERFORM os_core.refuse(
    'SL003',
    pg_catalog.format('%s is changed by an erasure only: %s is refused', _table, TG_OP),
    pg_catalog.jsonb_build_object('table', _table, 'operation', TG_OP)
  );
  RETURN NULL;
END;
$$;
