-- os_core.refuse_sequence: raises an operator's error: the sequence yields event ids that the ledger has already, or lower ones, as
-- after a restore without it. No SL code: no caller can act on it.
CREATE OR REPLACE FUNCTION os_core.refuse_sequence()
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION USING
    ERRCODE = 'object_not_in_prerequisite_state',
    MESSAGE = 'the sequence of event ids is behind the ledger',
    HINT = 'Let a superuser run: SELECT setval(''os_core.work_order_ledger_work_order_event_id_seq'','
      ' (SELECT max(work_order_event_id) FROM os_core.work_order_ledger));';
END;
$$;
