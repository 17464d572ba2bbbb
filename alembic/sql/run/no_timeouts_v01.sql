-- Before every run: switches off the timeouts on a migration's work. Waiting for locks has a limit of its own.
DO $$
BEGIN
  PERFORM pg_catalog.set_config(s.name, '0', {{is_local}})
  FROM pg_catalog.pg_settings AS s
  WHERE s.name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');
END;
$$;
