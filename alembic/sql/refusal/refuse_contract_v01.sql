-- os_core.refuse_contract: raises ContractViolation for a 'field: rule' text. p_event_index counts from 0 in the batch.
CREATE OR REPLACE FUNCTION os_core.refuse_contract(p_event_index integer, p_violation text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  -- Split at the last ': ', because an unknown key may contain one; a rule does not.
  _after constant integer := pg_catalog.strpos(pg_catalog.reverse(p_violation), ' :') - 1;
BEGIN
  PERFORM os_core.refuse(
    'SL001',
    pg_catalog.concat('events[' || p_event_index || '].', p_violation),
    pg_catalog.jsonb_build_object(
      'field', pg_catalog.left(p_violation, -_after - 2),
      'rule', pg_catalog.right(p_violation, _after),
      'event_index', p_event_index
    )
  );
END;
$$;
