-- Before every run: makes the roles and the schemas. No revision can: the version table is in one of these schemas.
-- It first looks for everything that is missing, and raises one message with the statements to run (contract section 10).
-- Roles belong to the server: they are made if the migrator may, used if they exist, and never dropped.
DO $$
DECLARE
  _roles constant text[] := ARRAY['selene_owner', 'selene_app', 'selene_readonly', 'selene_feed'];
  _schemas constant text[] := ARRAY['os_core', 'conversation'];
  _is_15 constant boolean := pg_catalog.current_setting('server_version_num')::integer < 160000;
  -- SET ROLE needs MEMBER up to PostgreSQL 15, and SET from 16 on, where the creator of a role has ADMIN only.
  _become constant text := CASE WHEN _is_15 THEN 'MEMBER' ELSE 'SET' END;
  _grant constant text := pg_catalog.format(
    'GRANT selene_owner TO %I%s', current_user, CASE WHEN NOT _is_15 THEN ' WITH SET TRUE' END
  );
  _may_create constant boolean := (
    SELECT me.rolsuper OR me.rolcreaterole FROM pg_catalog.pg_roles AS me WHERE me.rolname = current_user
  );
  _owner constant oid := (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = 'selene_owner');
  -- The group role that makes this login a service login, directly or through others. ADMIN alone, which the creator of a role has
  -- from 16 on, does not.
  _serves constant text := (
    SELECT pg_catalog.min(r.rolname) FROM pg_catalog.pg_roles AS r
    WHERE r.rolname IN ('selene_app', 'selene_readonly', 'selene_feed')
      AND (pg_catalog.pg_has_role(current_user, r.oid, 'USAGE') OR pg_catalog.pg_has_role(current_user, r.oid, _become))
  );
  _migrates constant boolean := (
    SELECT me.rolsuper
      OR COALESCE(pg_catalog.pg_has_role(me.oid, _owner, _become), FALSE)
      OR COALESCE(pg_catalog.pg_has_role(me.oid, _owner, 'MEMBER WITH ADMIN OPTION'), FALSE)
    FROM pg_catalog.pg_roles AS me WHERE me.rolname = current_user
  );
  _may_become constant boolean := CASE WHEN _owner IS NULL THEN _may_create ELSE _migrates OR (_is_15 AND _may_create) END;
  _need record;
  _reasons text[] := '{}';
  _statements text[] := '{}';
  _name text;
BEGIN
  IF pg_catalog.current_setting('server_encoding') <> 'UTF8' THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = pg_catalog.format(
        'the database has the encoding %s; it must be UTF8, to hold every text that the contract allows',
        pg_catalog.current_setting('server_encoding')
      );
  END IF;
  IF _serves IS NOT NULL AND NOT _migrates THEN
    -- No statement is printed: a service login must never get this right.
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = pg_catalog.format(
        E'%I is the login of a service, a member of %I: it must not be able to act as selene_owner.\n'
        'Nothing was changed. Connect as the migrator.', session_user, _serves
      );
  END IF;
  FOR _need IN
    SELECT 1 AS step, pg_catalog.format('%I may not create roles', current_user) AS reason,
      pg_catalog.format('CREATE ROLE %I NOLOGIN;', wanted.name) AS statement
    FROM pg_catalog.unnest(_roles) AS wanted (name)
    WHERE NOT _may_create AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = wanted.name)
    UNION ALL
    SELECT 2, pg_catalog.format('role %I has SUPERUSER or BYPASSRLS: row-level security would not hold', r.rolname),
      pg_catalog.format('ALTER ROLE %I NOSUPERUSER NOBYPASSRLS;', r.rolname)
    FROM pg_catalog.pg_roles AS r
    WHERE r.rolname = ANY(_roles) AND (r.rolsuper OR r.rolbypassrls)
    UNION ALL
    -- From 16 on, only the grantor of a membership can revoke it.
    SELECT 3, pg_catalog.format('role %I could become selene_owner', r.rolname),
      pg_catalog.format('REVOKE %I FROM %I', granted.rolname, r.rolname)
      || COALESCE(pg_catalog.format(' GRANTED BY %I', grantor.rolname), '') || ';'
    FROM pg_catalog.pg_auth_members AS m
    JOIN pg_catalog.pg_roles AS r ON r.oid = m.member
    JOIN pg_catalog.pg_roles AS granted ON granted.oid = m.roleid
    LEFT JOIN pg_catalog.pg_roles AS grantor ON grantor.oid = m.grantor
    WHERE r.rolname = ANY(_roles) AND r.oid <> _owner AND pg_catalog.pg_has_role(m.roleid, _owner, 'MEMBER')
    UNION ALL
    SELECT 4, pg_catalog.format('%I may not act as selene_owner', current_user), _grant || ';'
    WHERE NOT _may_become
    UNION ALL
    SELECT 5, pg_catalog.format('schema %I belongs to %I', n.nspname, pg_catalog.pg_get_userbyid(n.nspowner)),
      pg_catalog.format('ALTER SCHEMA %I OWNER TO selene_owner;', n.nspname)
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname = ANY(_schemas) AND n.nspowner IS DISTINCT FROM _owner
    UNION ALL
    SELECT 6, pg_catalog.format('%I may not create schemas', current_user),
      pg_catalog.format('GRANT CREATE ON DATABASE %I TO %I;', pg_catalog.current_database(), current_user)
    WHERE EXISTS (SELECT FROM pg_catalog.unnest(_schemas) AS s (name) WHERE pg_catalog.to_regnamespace(s.name) IS NULL)
      AND NOT pg_catalog.has_database_privilege(current_user, pg_catalog.current_database(), 'CREATE')
    ORDER BY step, statement
  LOOP
    _statements := _statements || _need.statement;
    IF _need.reason <> ALL(_reasons) THEN
      _reasons := _reasons || _need.reason;
    END IF;
  END LOOP;
  IF pg_catalog.cardinality(_statements) > 0 THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = pg_catalog.format(
        E'%s.\nNothing was changed. Let an administrator run in this database, then start again:\n%s',
        pg_catalog.array_to_string(_reasons, '; '), pg_catalog.array_to_string(_statements, E'\n')
      );
  END IF;

  -- Another database of the server may be migrated at the same time. A CREATE ROLE that loses this race fails in one of two ways.
  FOREACH _name IN ARRAY _roles LOOP
    BEGIN
      IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = _name) THEN
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', _name);
      END IF;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
  END LOOP;
  IF NOT pg_catalog.pg_has_role(current_user, 'selene_owner', _become) THEN
    BEGIN
      EXECUTE _grant;
    EXCEPTION
      WHEN unique_violation THEN
        NULL;
    END;
  END IF;

  -- Made here: the revisions run as the owner, who may not create schemas in the database.
  FOREACH _name IN ARRAY _schemas LOOP
    IF pg_catalog.to_regnamespace(_name) IS NULL THEN
      EXECUTE pg_catalog.format('CREATE SCHEMA %I AUTHORIZATION selene_owner', _name);
    END IF;
  END LOOP;
END;
$$;
