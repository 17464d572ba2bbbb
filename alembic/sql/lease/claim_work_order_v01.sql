-- os_core.claim_work_order: takes the lease on the next work order that may be worked on, and returns both; no row if there is none.
-- First whose lease ended longest ago, else who was created first (contract section 9). The index gives candidates only: each is
-- locked, if nobody else has it, and judged once more, in new statements. Who does not pass is let go by a subtransaction's end.
-- The token of an active lease gets its claim again, so a lost reply strands nothing. Two calls with one token come one after the
-- other, by an advisory lock; calls with different tokens never wait for each other.
-- The four ranges are written out, so that they are merged as they are read. Sorts are off, because a plan made for an empty table
-- would last; JIT is off with them.
CREATE OR REPLACE FUNCTION os_core.claim_work_order(
  p_tenant_id text, p_owner text, p_token text, p_ttl_ms bigint, p_statuses text[] DEFAULT '{EXECUTING}'
)
RETURNS TABLE (
  lease_id uuid,
  lease_state text,
  fence bigint,
  acquired_at timestamptz,
  renewed_at timestamptz,
  released_at timestamptz,
  idempotency_key text,
  work_order_id text,
  tenant_id text,
  correlation_id uuid,
  turn_id bigint,
  work_order_status text,
  last_event_id bigint,
  last_seq bigint,
  last_reason_code bigint,
  last_updated_at timestamptz,
  created_at timestamptz,
  requester_user_id text,
  step_id text,
  step_input_hash text,
  lease_owner_id text,
  lease_token_hash text,
  lease_expires_at timestamptz,
  fields_json jsonb,
  asked_fields_json jsonb,
  resolved_fields_json jsonb,
  conflicts_json jsonb,
  prompt_dedupe_keys_json jsonb,
  external_approval_pending boolean,
  external_approval_request_id text,
  external_approval_target_user_id text,
  external_approval_expires_at timestamptz,
  external_approval_notices smallint,
  last_state_change_seq bigint,
  updated_bucket timestamptz,
  queued_at timestamptz,
  steps_due_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
ROWS 1
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  _hash text;
  _key bigint;
  _now timestamptz;
  _at timestamptz;
  _candidate text;
  _state os_core.work_orders_current;
  _lease os_core.work_order_leases;
BEGIN
  p_tenant_id := os_core.enter_tenant(p_tenant_id);
  PERFORM os_core.check_lease_call('claim', NULL, p_owner, p_token, p_ttl_ms, NULL);
  IF (pg_catalog.cardinality(p_statuses) > 0 AND p_statuses <@ '{DRAFT,CLARIFY,CONFIRM,EXECUTING}') IS NOT TRUE THEN
    PERFORM os_core.refuse_contract(NULL, 'statuses: must be one or more of DRAFT, CLARIFY, CONFIRM, EXECUTING');
  END IF;
  _hash := os_core.token_hash(p_token);
  _key := pg_catalog.hashtextextended(p_tenant_id || ' ' || _hash, 0);
  IF NOT pg_catalog.pg_try_advisory_xact_lock(_key) THEN
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
      -- The snapshot may not show what the other call takes.
      RAISE EXCEPTION USING
        ERRCODE = 'serialization_failure',
        MESSAGE = 'could not serialize access: the lease token is being used';
    END IF;
    PERFORM pg_catalog.pg_advisory_xact_lock(_key);
  END IF;

  -- A token is found on any order: acquire_lease may have used it, too.
  _now := pg_catalog.clock_timestamp();
  SELECT lease.* INTO _lease
  FROM os_core.work_order_leases AS lease
  WHERE lease.tenant_id = p_tenant_id AND lease.lease_token_hash = _hash
  ORDER BY lease.lease_state = 'ACTIVE' AND lease.lease_expires_at > _now DESC
  LIMIT 1;
  IF FOUND THEN
    SELECT current.* INTO _state
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_tenant_id AND current.work_order_id = _lease.work_order_id;
    IF _lease.lease_owner_id <> p_owner THEN
      PERFORM os_core.refuse_token(_lease.work_order_id);
    ELSIF _lease.lease_state <> 'ACTIVE' OR _lease.lease_expires_at <= _now THEN
      PERFORM os_core.refuse_event('SL011', NULL, os_core.event_carried(_state, 'LEASE_ACQUIRED', '{}'), _state, NULL);
    END IF;
  ELSE
    FOR _candidate IN
      SELECT candidate.work_order_id
      FROM (
        (
          SELECT
            current.work_order_id,
            GREATEST(current.queued_at, current.steps_due_at) AS due_at
          FROM os_core.work_orders_current AS current
          WHERE 'DRAFT' = ANY(p_statuses)
            AND current.tenant_id = p_tenant_id
            AND current.work_order_status = 'DRAFT'
            AND NOT current.external_approval_pending
            AND current.steps_due_at IS NOT NULL
            AND GREATEST(current.queued_at, current.steps_due_at) <= _now
          ORDER BY 2
        )
        UNION ALL
        (
          SELECT
            current.work_order_id,
            GREATEST(current.queued_at, current.steps_due_at) AS due_at
          FROM os_core.work_orders_current AS current
          WHERE 'CLARIFY' = ANY(p_statuses)
            AND current.tenant_id = p_tenant_id
            AND current.work_order_status = 'CLARIFY'
            AND NOT current.external_approval_pending
            AND current.steps_due_at IS NOT NULL
            AND GREATEST(current.queued_at, current.steps_due_at) <= _now
          ORDER BY 2
        )
        UNION ALL
        (
          SELECT
            current.work_order_id,
            GREATEST(current.queued_at, current.steps_due_at) AS due_at
          FROM os_core.work_orders_current AS current
          WHERE 'CONFIRM' = ANY(p_statuses)
            AND current.tenant_id = p_tenant_id
            AND current.work_order_status = 'CONFIRM'
            AND NOT current.external_approval_pending
            AND current.steps_due_at IS NOT NULL
            AND GREATEST(current.queued_at, current.steps_due_at) <= _now
          ORDER BY 2
        )
        UNION ALL
        (
          SELECT
            current.work_order_id,
            GREATEST(current.queued_at, current.steps_due_at) AS due_at
          FROM os_core.work_orders_current AS current
          WHERE 'EXECUTING' = ANY(p_statuses)
            AND current.tenant_id = p_tenant_id
            AND current.work_order_status = 'EXECUTING'
            AND NOT current.external_approval_pending
            AND current.steps_due_at IS NOT NULL
            AND GREATEST(current.queued_at, current.steps_due_at) <= _now
          ORDER BY 2
        )
      ) AS candidate
      ORDER BY candidate.due_at
    LOOP
      BEGIN
        SELECT current.* INTO _state
        FROM os_core.work_orders_current AS current
        WHERE current.tenant_id = p_tenant_id
          AND current.work_order_id = _candidate
          -- Not `= ANY`, which another index could serve: the order is found by its id alone.
          AND p_statuses @> ARRAY[current.work_order_status]
          AND NOT current.external_approval_pending
          AND current.steps_due_at IS NOT NULL
          AND GREATEST(current.queued_at, current.steps_due_at, current.lease_expires_at) <= pg_catalog.clock_timestamp()
        FOR NO KEY UPDATE SKIP LOCKED;
        _at := GREATEST(pg_catalog.clock_timestamp(), _state.last_updated_at);
        IF _state.last_seq IS NULL OR (os_core.steps_due_at(p_tenant_id, _candidate) <= _at) IS NOT TRUE THEN
          RAISE SQLSTATE 'SLXXX';
        END IF;
        _lease := os_core.take_lease(_state, _at, p_owner, _hash, p_ttl_ms, NULL);
        EXIT;
      EXCEPTION
        WHEN SQLSTATE 'SLXXX' OR SQLSTATE 'SL010' OR SQLSTATE 'SL017' THEN
          -- Also a row that is not the fold of its ledger: it must not stop the queue. verify names it.
          _lease := NULL;
      END;
    END LOOP;
    IF _lease.lease_id IS NULL THEN
      RETURN;
    END IF;
    SELECT current.* INTO _state
    FROM os_core.work_orders_current AS current
    WHERE current.tenant_id = p_tenant_id AND current.work_order_id = _lease.work_order_id;
  END IF;
  RETURN QUERY
  SELECT
    _lease.lease_id,
    _lease.lease_state,
    _lease.fence,
    _lease.acquired_at,
    _lease.renewed_at,
    _lease.released_at,
    _lease.idempotency_key,
    _state.work_order_id,
    _state.tenant_id,
    _state.correlation_id,
    _state.turn_id,
    _state.work_order_status,
    _state.last_event_id,
    _state.last_seq,
    _state.last_reason_code,
    _state.last_updated_at,
    _state.created_at,
    _state.requester_user_id,
    _state.step_id,
    _state.step_input_hash,
    _state.lease_owner_id,
    _state.lease_token_hash,
    _state.lease_expires_at,
    _state.fields_json,
    _state.asked_fields_json,
    _state.resolved_fields_json,
    _state.conflicts_json,
    _state.prompt_dedupe_keys_json,
    _state.external_approval_pending,
    _state.external_approval_request_id,
    _state.external_approval_target_user_id,
    _state.external_approval_expires_at,
    _state.external_approval_notices,
    _state.last_state_change_seq,
    _state.updated_bucket,
    _state.queued_at,
    _state.steps_due_at;
END;
$$;

GRANT EXECUTE ON FUNCTION os_core.claim_work_order(text, text, text, bigint, text[]) TO selene_app;
