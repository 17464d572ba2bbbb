-- os_core.are_field_keys: all keys of an object are field keys (contract section 2). NULL if there is no object.
-- The keys as one value, because a query for them has an executor of its own.
CREATE OR REPLACE FUNCTION os_core.are_field_keys(p_object jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
AS $$
DECLARE
  _keys constant jsonb := pg_catalog.jsonb_path_query_array(p_object, 'strict $.keyvalue().key');
BEGIN
  IF p_object IS NULL THEN
    RETURN NULL;
  END IF;
  FOR _place IN 0 .. pg_catalog.jsonb_array_length(_keys) - 1 LOOP
    IF NOT os_core.is_field_key(_keys ->> _place) THEN
      RETURN FALSE;
    END IF;
  END LOOP;
  RETURN TRUE;
END;
$$;
