-- os_core.verify_chain_part: makes the hashes of the next p_limit events anew and names those that are stored otherwise (contract
-- section 17). It goes on after event p_after_seq of the order p_after, up to the order p_last; ('', NULL, NULL) is a whole tenant.
-- broken is an array of order, seq and problem, or NULL. The last two columns say where to go on; they are NULL if nothing was left.
-- For callers that check a tenant in short statements. It only reads, along an index that has the events in the order of the chain.
CREATE OR REPLACE FUNCTION os_core.verify_chain_part(
  p_tenant_id text, p_after text, p_after_seq bigint, p_last text, p_limit integer
)
RETURNS TABLE (events bigint, broken jsonb, last_work_order_id text, last_seq bigint)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
  -- Variables: under row-level security an expression is not an index condition.
  _after constant text := COALESCE(p_after, '');
  _after_seq constant bigint := COALESCE(p_after_seq, -9223372036854775808);
  _event os_core.work_order_ledger;
  _before bytea;
  _problem text;
BEGIN
  PERFORM os_core.enter_tenant(p_tenant_id);
  IF (p_limit BETWEEN 1 AND 10000) IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, os_core.integer_violation('limit', p_limit, 1, 10000));
  END IF;
  _before := (
    SELECT ledger.event_hash
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id AND ledger.work_order_id = _after AND ledger.work_order_seq = p_after_seq
  );
  events := 0;
  last_work_order_id := _after;
  last_seq := COALESCE(p_after_seq, 0);
  FOR _event IN
    SELECT ledger.*
    FROM os_core.work_order_ledger AS ledger
    WHERE ledger.tenant_id = p_tenant_id
      AND (ledger.work_order_id, ledger.work_order_seq) > (_after, _after_seq)
      AND (p_last IS NULL OR ledger.work_order_id <= p_last)
    ORDER BY ledger.work_order_id, ledger.work_order_seq
    LIMIT p_limit
  LOOP
    IF _event.work_order_id <> last_work_order_id THEN
      _before := NULL;
      last_seq := 0;
    END IF;
    IF _event.work_order_seq <> last_seq + 1 THEN
      _problem := 'the event before it is missing';
    ELSIF os_core.event_hash(_before, _event) IS DISTINCT FROM _event.event_hash THEN
      _problem := 'event_hash is not that of its columns and of the event before';
    END IF;
    IF _problem IS NOT NULL THEN
      broken := COALESCE(broken, '[]') || pg_catalog.jsonb_build_object(
        'work_order_id', _event.work_order_id, 'work_order_seq', _event.work_order_seq, 'problem', _problem
      );
      _problem := NULL;
    END IF;
    events := events + 1;
    last_work_order_id := _event.work_order_id;
    last_seq := _event.work_order_seq;
    _before := _event.event_hash;
  END LOOP;
  IF events < p_limit THEN
    last_work_order_id := NULL;
    last_seq := NULL;
  END IF;
  RETURN NEXT;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.verify_chain_part(text, text, bigint, text, integer) TO selene_app;
