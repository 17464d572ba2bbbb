-- os_core.refuse: raises every refusal of our functions: an SL code, a sentence, and facts as a JSON object in DETAIL.
CREATE OR REPLACE FUNCTION os_core.refuse(p_sqlstate text, p_message text, p_facts jsonb)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION USING
    ERRCODE = p_sqlstate,
    MESSAGE = p_message,
    DETAIL = pg_catalog.jsonb_strip_nulls(p_facts)::text;
END;
$$;
