-- os_core.payload_keys_violation: returns the first rule that the keys of a payload break, as 'payload.key: rule', or NULL.
-- It checks the required keys, then the optional ones, then unknown keys.
CREATE OR REPLACE FUNCTION os_core.payload_keys_violation(
  p_event_type text, p_payload jsonb, p_required text[], p_optional text[]
)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  _key text;
  _violation text;
BEGIN
  FOREACH _key IN ARRAY p_required || p_optional LOOP
    IF p_payload ? _key THEN
      _violation := os_core.payload_value_violation(_key, p_payload -> _key);
      IF _violation IS NOT NULL THEN
        RETURN _violation;
      END IF;
    ELSIF _key = ANY(p_required) THEN
      RETURN pg_catalog.format('payload.%s: is required by %s', _key, p_event_type);
    END IF;
  END LOOP;
  IF p_payload - p_required - p_optional <> '{}' THEN
    -- The first in jsonb's order: by length, then by bytes.
    RETURN pg_catalog.format('payload.%s: is not a key of %s', os_core.key_shown(unknown.key), p_event_type)
    FROM pg_catalog.jsonb_object_keys(p_payload - p_required - p_optional) AS unknown (key)
    LIMIT 1;
  END IF;
  RETURN NULL;
END;
$$;
