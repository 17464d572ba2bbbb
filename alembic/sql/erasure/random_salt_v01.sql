-- os_core.random_salt: makes 32 bytes that nobody can guess, without an extension.
-- A UUID of version 4 has 122 bits from the server's strong generator; three of them have more than the hash can hold. Where there is
-- no strong randomness, gen_random_uuid() fails: no weak salt is ever made.
CREATE OR REPLACE FUNCTION os_core.random_salt()
RETURNS bytea
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RETURN pg_catalog.sha256(
    pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
    || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
    || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
  );
END;
$$;
