"""What holds for every table and function of ours, those to come included: a rule asks for what breaks it.

The tables are found in pg_class: nobody has to remember to add a new one to a list. Only what is public, and
the exceptions with their reasons, are lists.
"""

from collections.abc import Mapping

import sqlalchemy as sa

PUBLIC_FUNCTIONS = (
    "conversation.append_turn(text,uuid,bigint,text,text,text,text,text,text,text,text)",
    "conversation.read_turns(text,uuid,bigint,integer)",
    "conversation.tombstone_turn(text,uuid,bigint,bigint,bigint,text)",
    "os_core.ack_feed(text,text,bigint,bigint,bigint)",
    "os_core.acquire_lease(text,text,text,text,bigint,text)",
    "os_core.advance_feed(text,integer)",
    "os_core.append_work_order_events(text,jsonb)",
    "os_core.ask_field(text,text,text[],text[],bigint,bigint,text)",
    "os_core.cancel_work_order(text,text,bigint,text,text)",
    "os_core.claim_work_order(text,text,text,bigint,text[])",
    "os_core.due_step_retries(text,integer)",
    "os_core.erase_subject(text,text,bigint)",
    "os_core.enroll_feed(text,text)",
    "os_core.feed_status(text,text)",
    "os_core.finish_step_attempt(text,bigint,text,bigint,boolean,text,text)",
    "os_core.lease_feed(text,text,text,bigint)",
    "os_core.lock_work_order(text,text)",
    "os_core.move_session(text,text,text)",
    "os_core.notify_wait(text,text,bigint,bigint)",
    "os_core.open_session(text,text,text,text)",
    "os_core.poll_feed(text,text,integer)",
    "os_core.read_feed(text,bigint,integer)",
    "os_core.rebuild_work_order(text,text)",
    "os_core.rebuild_work_orders(text,text,integer)",
    "os_core.register_device(text,text,text,text,text)",
    "os_core.register_identity(text,text,text,text,text)",
    "os_core.release_feed(text,text,bigint)",
    "os_core.release_lease(text,text,text,timestamp with time zone)",
    "os_core.renew_lease(text,text,text,bigint)",
    "os_core.require_tenant(text)",
    "os_core.resolve_values(text,jsonb)",
    "os_core.start_step_attempt(text,text,text,bigint,bigint,bigint,text,text)",
    "os_core.take_feed(text,text,integer)",
    "os_core.touch_session(text,text)",
    "os_core.verify_chain(text,text)",
    "os_core.verify_chain_part(text,text,bigint,text,integer)",
    "os_core.verify_feed(text)",
    "os_core.verify_work_orders(text,text)",
    "os_core.work_order_as_of(text,text,bigint,bigint,timestamp with time zone)",
)
"""What selene_app may execute: nothing else, and nobody else anything but what follows."""

READING_FUNCTIONS = (
    "conversation.read_turns(text,uuid,bigint,integer)",
    "os_core.feed_status(text,text)",
    "os_core.read_feed(text,bigint,integer)",
    "os_core.require_tenant(text)",
)
"""What selene_readonly may execute as well: the text of turns, which no role may select, and the feed."""

HIDDEN_COLUMNS = (
    "conversation.turn_texts.salt",
    "conversation.turn_texts.text",
    "os_core.subjects.salt",
    "os_core.subject_values.salt",
    "os_core.subject_values.value",
    # A login that is in selene_feed, too, would see them of every tenant: os_core.feed_status returns them.
    "os_core.work_order_feed_consumers.fence",
    "os_core.work_order_feed_consumers.lease_owner_id",
    "os_core.work_order_feed_consumers.lease_expires_at",
    "os_core.work_order_feed_consumers.updated_at",
)
"""What no role may read from the table itself."""

LISTED = "os_core.work_order_feed_consumers"
"""The one table that selene_feed sees of every tenant, in a transaction without a tenant."""

LISTED_COLUMNS = ("tenant_id", "consumer", "feed_position")

UNPINNED_FUNCTIONS = (
    # On the way of an append a SET clause would cost more than the rest of such a function. They are only
    # called from functions under a pinned path, or name every schema: no stranger's path leads them astray.
    "append_work_order_batch",
    "append_work_order_event",
    "event_carried",
    "event_completed",
    "event_hash",
    "event_from_json",
    "lease_refusal",
    "payload_value_violation",
    "payload_violation",
    "are_field_keys",
    "same_content",
    "refer_value",
    "salted_hash",
    "transition_refusal",
    "write_projection",
    "continuity_refusal",
    "apply_work_order_event",
    "fold_work_order",
    "token_hash",
    "exceeded_bound",
    "identifier_violation",
    "integer_violation",
    "is_event_row",
    "is_event_seq",
    "is_event_type",
    "is_field_key",
    "is_identifier",
    "is_label",
    "is_lease_token",
    "is_payload",
    "is_portable_time",
    "is_projection_row",
    "is_uuid",
    "is_work_order_status",
    "json_time",
    "label_violation",
    "lease_token_violation",
    "parse_rfc3339",
    "enter_tenant",
)

QUALIFIED_FUNCTIONS = (
    "is_event_row",
    "is_identifier",
    "is_portable_time",
    "is_projection_row",
    "salted_hash",
)
"""Of these, those that a CHECK may call in anybody's session.

They, and what they call in turn, name the schema of every operator and type.
"""

CHANGED_TABLES = {
    "os_core.work_orders_current": "the projection: no trigger guards it, by contract; privileges do",
    "os_core.identities": "state",
    "os_core.devices": "state",
    "os_core.sessions": "state",
    "os_core.work_order_feed_heads": "state",
    "os_core.work_order_feed_consumers": "state",
}
"""What may be changed in place. Every other table is append-only, or has a guard of its own."""

GUARDS = {
    # Rows that go through states: none is deleted, and the guard decides what may change.
    "os_core.work_order_leases": "os_core.guard_lease",
    "os_core.work_order_step_attempts": "os_core.guard_step_attempt",
    # Rows that never change; the erasure of a person deletes them.
    "conversation.turn_texts": "os_core.guard_erasable",
    "os_core.subjects": "os_core.guard_erasable",
    "os_core.subject_values": "os_core.guard_erasable",
}
APPEND_ONLY = "os_core.reject_mutation"
"""The guard of every table that is in neither of the two lists, one to come included."""

_ROLES = ("selene_owner", "selene_app", "selene_readonly", "selene_feed")
_TENANT = "current_setting('selene.tenant_id'::text, true)"
_USING = f"(tenant_id = {_TENANT})"
_LISTER = "pg_has_role('selene_feed'::name, 'USAGE'::text)"
_LISTING = f"({_USING} OR ((NULLIF({_TENANT}, ''::text) IS NULL) AND {_LISTER}))"
_WITH_CHECK = f"({_USING} OR os_core.no_tenant(tenant_id))"


def _listed(values: tuple[str, ...] | Mapping[str, str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def _paired(values: Mapping[str, str]) -> str:
    return ", ".join(f"('{name}', '{value}')" for name, value in values.items())


_OURS = "('os_core'::regnamespace, 'conversation'::regnamespace)"
# Partitions and partitioned tables too: row-level security is each one's own.
_TABLES = f"""
    (SELECT c.*, c.oid::regclass::text AS name FROM pg_class AS c
     WHERE c.relnamespace IN {_OURS} AND c.relkind IN ('r', 'p')
       AND c.oid IS DISTINCT FROM to_regclass('os_core.alembic_version'))
"""
_RELATIONS = f"""
    (SELECT c.*, c.oid::regclass::text AS name FROM pg_class AS c
     WHERE c.relnamespace IN {_OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))
"""
_FUNCTIONS = f"""
    (SELECT p.*, p.oid::regprocedure::text AS signature FROM pg_proc AS p WHERE p.pronamespace IN {_OURS})
"""
_MAINTAIN = "CASE WHEN current_setting('server_version_num')::integer >= 170000 THEN 'MAINTAIN' END"

RULES = {
    "tables: row-level security is enabled and forced": f"""
        SELECT name || ' has no forced row-level security' FROM {_TABLES} AS t
        WHERE NOT (t.relrowsecurity AND t.relforcerowsecurity)
    """,
    "tables: a permissive and a restrictive policy hold everyone to the tenant": f"""
        SELECT t.name || ' has no ' || wanted.kind || ' policy for all on its tenant_id'
        FROM {_TABLES} AS t
        CROSS JOIN (VALUES (TRUE, 'permissive'), (FALSE, 'restrictive')) AS wanted (permissive, kind)
        WHERE NOT EXISTS (
          SELECT FROM pg_policy AS p
          WHERE p.polrelid = t.oid AND p.polpermissive = wanted.permissive
            AND p.polcmd = '*' AND p.polroles = ARRAY[0::oid]
            AND pg_get_expr(p.polqual, p.polrelid)
              = CASE WHEN t.name = '{LISTED}' AND NOT wanted.permissive
                THEN $${_LISTING}$$ ELSE $${_USING}$$ END
            AND pg_get_expr(p.polwithcheck, p.polrelid) = $${_WITH_CHECK}$$
        )
    """,
    "tables: tenant_id is there and never null": f"""
        SELECT t.name || ' has no tenant_id NOT NULL' FROM {_TABLES} AS t
        WHERE NOT EXISTS (
          SELECT FROM pg_attribute AS a
          WHERE a.attrelid = t.oid AND a.attname = 'tenant_id' AND a.attnotnull AND NOT a.attisdropped
        )
    """,
    "tables: a unique index led by tenant_id could be the primary key": f"""
        SELECT t.name || ' has no unique index led by tenant_id over columns that are never null'
        FROM {_TABLES} AS t
        WHERE NOT EXISTS (
          SELECT FROM pg_index AS i
          WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
            AND i.indpred IS NULL AND i.indexprs IS NULL
            AND (SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = t.oid AND a.attnum = i.indkey[0])
              = 'tenant_id'
            AND NOT EXISTS (
              SELECT FROM generate_series(0, i.indnkeyatts - 1) AS k (n)
              JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = i.indkey[k.n]
              WHERE NOT a.attnotnull
            )
        )
    """,
    "tables: foreign keys stay within the tenant, and neither cascade nor defer": f"""
        SELECT conrelid::regclass || '.' || conname || ' ' || problem
        FROM pg_constraint AS f
        CROSS JOIN LATERAL (VALUES
          (confdeltype NOT IN ('a', 'r') OR confupdtype NOT IN ('a', 'r'), 'cascades'),
          (condeferrable, 'is deferrable'),
          (NOT convalidated, 'is not validated'),
          ('tenant_id' <> ANY(ARRAY[
            (SELECT attname FROM pg_attribute WHERE attrelid = conrelid AND attnum = conkey[1]),
            (SELECT attname FROM pg_attribute WHERE attrelid = confrelid AND attnum = confkey[1])
          ]), 'is not led by tenant_id')
        ) AS found (broken, problem)
        WHERE contype = 'f' AND connamespace IN {_OURS} AND broken
    """,
    "guards: every table but what may be changed in place has them, in replica mode too": f"""
        SELECT name || ' lacks the ' || wanted.kind || ' trigger of ' || of_table.guard
        FROM {_TABLES} AS t
        LEFT JOIN (VALUES {_paired(GUARDS)}) AS own (name, guard) USING (name)
        CROSS JOIN LATERAL (SELECT coalesce(own.guard, '{APPEND_ONLY}')) AS of_table (guard)
        CROSS JOIN LATERAL (VALUES
          (1, 8 | 16, 'row'),
          -- A guard of its own lets statements change rows, and looks at each.
          (0, 8 | 32 | CASE WHEN own.guard IS NULL THEN 16 ELSE 0 END, 'statement')
        ) AS wanted (level, events, kind)
        WHERE name NOT IN ({_listed(CHANGED_TABLES)}) AND NOT EXISTS (
          SELECT FROM pg_trigger AS g
          WHERE g.tgrelid = t.oid AND g.tgenabled = 'A' AND g.tgfoid = to_regproc(of_table.guard)
            AND g.tgtype & 1 = wanted.level AND g.tgtype & 2 = 2 AND g.tgtype & wanted.events = wanted.events
            AND g.tgqual IS NULL AND g.tgattr::text = ''
        )
        UNION ALL
        SELECT listed || ' is no table'
        FROM unnest(ARRAY[{_listed(CHANGED_TABLES)}, {_listed(GUARDS)}]) AS listed
        WHERE NOT EXISTS (SELECT FROM {_TABLES} AS t WHERE t.name = listed)
    """,
    "tables: text is collated C": f"""
        SELECT t.name || '.' || a.attname || ' is not collated "C"'
        FROM {_TABLES} AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND NOT a.attisdropped
        WHERE a.attnum > 0 AND a.attcollation <> 0 AND a.attcollation <> 'pg_catalog."C"'::regcollation
    """,
    "tables: none is unlogged, none is rewritten by rules, and no view stands beside them": f"""
        SELECT name || ' is unlogged' FROM {_TABLES} AS t WHERE t.relpersistence <> 'p'
        UNION ALL
        SELECT t.name || ' has rule ' || r.rulename
        FROM {_TABLES} AS t JOIN pg_rewrite AS r ON r.ev_class = t.oid
        UNION ALL
        SELECT name || ' is neither table nor index nor sequence' FROM {_RELATIONS} AS t
        WHERE t.relkind NOT IN ('r', 'p')
    """,
    "sequences: bigint, cache 1, never around": f"""
        SELECT c.oid::regclass || ' is not a bigint sequence with CACHE 1 that ends'
        FROM pg_class AS c JOIN pg_sequence AS s ON s.seqrelid = c.oid
        WHERE c.relnamespace IN {_OURS} AND (s.seqcache <> 1 OR s.seqcycle OR s.seqtypid <> 'bigint'::regtype)
    """,
    "owner: selene_owner owns everything": f"""
        SELECT kind || ' ' || name || ' belongs to ' || pg_get_userbyid(owner)
        FROM (
          SELECT 'schema', nspname::text, nspowner FROM pg_namespace WHERE oid IN {_OURS}
          UNION ALL
          SELECT 'relation', oid::regclass::text, relowner FROM pg_class WHERE relnamespace IN {_OURS}
          UNION ALL SELECT 'function', signature, proowner FROM {_FUNCTIONS} AS f
          UNION ALL
          SELECT 'type', oid::regtype::text, typowner FROM pg_type WHERE typnamespace IN {_OURS}
        ) AS thing (kind, name, owner)
        WHERE pg_get_userbyid(owner) <> 'selene_owner'
    """,
    "privileges: the roles read tables, and nothing else": f"""
        SELECT role || ' has ' || privilege || ' on ' || name
        FROM {_RELATIONS} AS t
        CROSS JOIN unnest(ARRAY['selene_app', 'selene_readonly']) AS role
        CROSS JOIN unnest(ARRAY[
          'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', {_MAINTAIN}
        ]) AS privilege
        WHERE has_table_privilege(role, t.oid, privilege)
          OR (privilege IN ('INSERT', 'UPDATE', 'REFERENCES')
            AND has_any_column_privilege(role, t.oid, privilege))
        UNION ALL
        SELECT role || ' has ' || privilege || ' on ' || c.oid::regclass
        FROM pg_class AS c
        CROSS JOIN unnest(ARRAY['selene_app', 'selene_readonly']) AS role
        CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
        WHERE c.relnamespace IN {_OURS} AND c.relkind = 'S' AND has_sequence_privilege(role, c.oid, privilege)
        UNION ALL
        SELECT role || ' may create in schema ' || nspname
        FROM pg_namespace AS n CROSS JOIN unnest(ARRAY['selene_app', 'selene_readonly']) AS role
        WHERE n.oid IN {_OURS} AND has_schema_privilege(role, n.oid, 'CREATE')
    """,
    "privileges: nobody else has any, PUBLIC least of all, and nobody can pass them on": f"""
        SELECT CASE WHEN item.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(item.grantee) END
          || ' has ' || item.privilege_type
          || CASE WHEN item.is_grantable THEN ' with grant option' ELSE '' END || ' on ' || thing.name
        FROM (
          SELECT nspname::text, nspowner, coalesce(nspacl, acldefault('n', nspowner))
          FROM pg_namespace WHERE oid IN {_OURS}
          UNION ALL
          SELECT oid::regclass::text, relowner,
            coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
          FROM pg_class WHERE relnamespace IN {_OURS} AND relkind NOT IN ('i', 'I', 'c')
          UNION ALL
          SELECT c.oid::regclass || '.' || a.attname, c.relowner, a.attacl
          FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
          WHERE c.relnamespace IN {_OURS} AND a.attacl IS NOT NULL
          UNION ALL
          SELECT signature, proowner, coalesce(proacl, acldefault('f', proowner)) FROM {_FUNCTIONS} AS f
          UNION ALL
          SELECT 'what ' || pg_get_userbyid(defaclrole) || ' will make', defaclrole, defaclacl
          FROM pg_default_acl
          WHERE pg_get_userbyid(defaclrole) = 'selene_owner' OR defaclnamespace IN {_OURS}
        ) AS thing (name, owner, acl)
        CROSS JOIN LATERAL aclexplode(thing.acl) AS item
        WHERE item.grantee <> thing.owner
          AND (item.grantee = 0 OR item.is_grantable
            OR pg_get_userbyid(item.grantee) NOT IN ('selene_app', 'selene_readonly', 'selene_feed'))
    """,
    "privileges: what the owner will make is nobody's either": """
        SELECT 'PUBLIC may execute what selene_owner will make'
        WHERE NOT EXISTS (
          SELECT FROM pg_default_acl
          WHERE pg_get_userbyid(defaclrole) = 'selene_owner' AND defaclnamespace = 0 AND defaclobjtype = 'f'
        )
    """,
    "privileges: the roles read every column but the hidden ones": f"""
        SELECT role || CASE WHEN hidden THEN ' may' ELSE ' may not' END || ' read ' || column_name
        FROM (
          SELECT c.oid, a.attnum, c.name || '.' || a.attname AS column_name,
            c.name || '.' || a.attname IN ({_listed(HIDDEN_COLUMNS)}) AS hidden
          FROM {_TABLES} AS c
          JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS of_table
        CROSS JOIN unnest(ARRAY['selene_app', 'selene_readonly']) AS role
        WHERE has_column_privilege(role, of_table.oid, of_table.attnum, 'SELECT') = hidden
        UNION ALL
        SELECT wanted || ' is no column'
        FROM unnest(ARRAY[{_listed(HIDDEN_COLUMNS)}]) AS wanted
        WHERE NOT EXISTS (
          SELECT FROM {_TABLES} AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
          WHERE c.name || '.' || a.attname = wanted
        )
    """,
    "privileges: selene_feed lists the consumers of all tenants, and nothing else": f"""
        SELECT 'selene_feed may read ' || c.name || '.' || a.attname
        FROM {_RELATIONS} AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE a.attnum > 0 AND has_column_privilege('selene_feed', c.oid, a.attnum, 'SELECT')
          AND NOT (c.name = '{LISTED}' AND a.attname IN ({_listed(LISTED_COLUMNS)}))
        UNION ALL
        SELECT 'selene_feed has ' || privilege || ' on ' || name
        FROM {_RELATIONS} AS t
        CROSS JOIN unnest(ARRAY[
          'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', {_MAINTAIN}
        ]) AS privilege
        WHERE has_table_privilege('selene_feed', t.oid, privilege)
        UNION ALL
        SELECT 'selene_feed may execute ' || signature FROM {_FUNCTIONS} AS f
        WHERE has_function_privilege('selene_feed', f.oid, 'EXECUTE')
        UNION ALL
        SELECT t.name || ' has policy ' || p.polname || ' for some roles only'
        FROM {_TABLES} AS t JOIN pg_policy AS p ON p.polrelid = t.oid
        WHERE p.polroles <> ARRAY[0::oid] AND NOT (
          t.name = '{LISTED}' AND p.polname = 'feed_list' AND p.polcmd = 'r'
          AND p.polroles = ARRAY['selene_feed'::regrole::oid]
          AND pg_get_expr(p.polqual, p.polrelid) = $$(NULLIF({_TENANT}, ''::text) IS NULL)$$
        )
    """,
    "functions: selene_app executes the public ones, selene_readonly the reading ones": f"""
        SELECT 'selene_app may execute ' || signature FROM {_FUNCTIONS} AS f
        WHERE has_function_privilege('selene_app', f.oid, 'EXECUTE')
          AND signature NOT IN ({_listed(PUBLIC_FUNCTIONS)})
        UNION ALL
        SELECT 'selene_app may not execute ' || wanted.signature
        FROM unnest(ARRAY[{_listed(PUBLIC_FUNCTIONS)}]) AS wanted (signature)
        WHERE NOT coalesce(
          has_function_privilege('selene_app', to_regprocedure(wanted.signature), 'EXECUTE'), FALSE
        )
        UNION ALL
        SELECT 'selene_readonly may execute ' || signature FROM {_FUNCTIONS} AS f
        WHERE has_function_privilege('selene_readonly', f.oid, 'EXECUTE')
          AND signature NOT IN ({_listed(READING_FUNCTIONS)})
        UNION ALL
        SELECT 'selene_readonly may not execute ' || wanted.signature
        FROM unnest(ARRAY[{_listed(READING_FUNCTIONS)}]) AS wanted (signature)
        WHERE NOT coalesce(
          has_function_privilege('selene_readonly', to_regprocedure(wanted.signature), 'EXECUTE'), FALSE
        )
    """,
    "functions: the public ones name the columns of what they return": f"""
        SELECT signature || ' returns the row type of ' || t.name
        FROM {_FUNCTIONS} AS f JOIN {_TABLES} AS t ON t.reltype = f.prorettype
        WHERE signature IN ({_listed(PUBLIC_FUNCTIONS)})
    """,
    "functions: the public ones run as the owner, the others as who calls them": f"""
        SELECT signature || CASE WHEN f.prosecdef THEN ' is' ELSE ' is not' END || ' SECURITY DEFINER'
        FROM {_FUNCTIONS} AS f
        WHERE f.prosecdef <> (signature IN ({_listed(PUBLIC_FUNCTIONS)}))
    """,
    "functions: the search path is pinned": f"""
        SELECT signature || ' has no search_path of its own' FROM {_FUNCTIONS} AS f
        WHERE f.proname NOT IN ({_listed(UNPINNED_FUNCTIONS)})
          AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY(f.proconfig), FALSE)
    """,
    "functions: what tables call runs under a pinned path, or names every operator's schema": f"""
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' calls ' || signature
        FROM {_FUNCTIONS} AS f
        JOIN pg_depend AS d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = f.oid
        -- A function that another one needs is under the caller's path.
        WHERE d.classid <> 'pg_proc'::regclass
          AND f.proname IN ({_listed(UNPINNED_FUNCTIONS)})
          AND f.proname NOT IN ({_listed(QUALIFIED_FUNCTIONS)})
    """,
    "functions: none is leakproof, and none that reads the setting is immutable": f"""
        SELECT signature || ' is leakproof' FROM {_FUNCTIONS} AS f WHERE f.proleakproof
        UNION ALL
        SELECT signature || ' reads a setting and is IMMUTABLE' FROM {_FUNCTIONS} AS f
        WHERE f.provolatile = 'i' AND f.prosrc LIKE '%current_setting%'
          AND f.proname <> 'no_tenant' -- it is FALSE or raises: there is nothing to remember
    """,
    "roles: without login or any power, and none becomes the owner": f"""
        SELECT name || ' ' || problem
        FROM unnest(ARRAY[{_listed(_ROLES)}]) AS name
        LEFT JOIN pg_roles AS r ON r.rolname = name
        CROSS JOIN LATERAL (VALUES
          (r.oid IS NULL, 'is missing'),
          (r.rolcanlogin, 'can log in'),
          (r.rolsuper, 'is a superuser'),
          (r.rolbypassrls, 'bypasses row-level security'),
          (r.rolcreaterole, 'may create roles'),
          (r.rolcreatedb, 'may create databases'),
          (r.rolreplication, 'may replicate')
        ) AS found (broken, problem)
        WHERE broken
        UNION ALL
        SELECT member.rolname || ' is a member of ' || role.rolname
        FROM pg_auth_members AS m
        JOIN pg_roles AS member ON member.oid = m.member
        JOIN pg_roles AS role ON role.oid = m.roleid
        WHERE member.rolname IN ({_listed(_ROLES)})
    """,
}


def violations(conn: sa.Connection, rule: str) -> list[str]:
    """Ask the database what breaks a rule; nothing when all is well."""
    conn.exec_driver_sql("SET LOCAL search_path = pg_catalog")
    return sorted(conn.scalars(sa.text(RULES[rule])))
