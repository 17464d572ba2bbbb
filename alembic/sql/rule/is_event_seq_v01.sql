-- os_core.is_event_seq: whether a text is an integer from 0 to 2^63-1, as expected_seq has it.
CREATE OR REPLACE FUNCTION os_core.is_event_seq(p_text text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  RETURN p_text ~ '^(?:0|[1-9][0-9]{0,18})$' AND p_text::numeric <= 9223372036854775807;
END;
$$;
