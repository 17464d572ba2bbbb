-- os_core.is_label: 1..p_most characters without control characters, and without white space at either end (keys, hashes).
-- The first pattern accepts printable ASCII, which nearly all labels are. The other patterns list their characters: classes such as
-- [:space:] depend on the database's locale, and backslashes outside of E'' on the session.
-- No SET clause: see os_core.is_identifier.
CREATE OR REPLACE FUNCTION os_core.is_label(p_text text, p_most integer)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
BEGIN
  IF pg_catalog.char_length(p_text) OPERATOR(pg_catalog.<=) p_most THEN
    IF p_text OPERATOR(pg_catalog.~) '^[!-~]+$' THEN
      RETURN TRUE;
    END IF;
    RETURN p_text OPERATOR(pg_catalog.<>) ''
      AND p_text OPERATOR(pg_catalog.!~) E'[\u0001-\u001f\u007f-\u009f]'
      AND p_text OPERATOR(pg_catalog.!~) E'^[ \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]'
      AND p_text OPERATOR(pg_catalog.!~) E'[ \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]$';
  END IF;
  RETURN FALSE;
END;
$$;
