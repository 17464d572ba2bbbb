-- Before every run: no limit on how long a migration works; how long it waits for locks has one of its own.
DO $$
BEGIN
  PERFORM pg_catalog.set_config(s.name, '0', {{is_local}})
  FROM pg_catalog.pg_settings AS s
  WHERE s.name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');
END;
$$;
