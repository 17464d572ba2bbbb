-- Before every run: refuses a version table that the schema contradicts: stamped, edited, lost, or restored without the tables.
-- It looks for what each revision made that still exists, by name, which every role may read.
DO $$
DECLARE
  _traces constant jsonb := '{{traces}}'; -- [[revision, [thing, ...]], ...], oldest first. If a revision makes tables, only these
  _version_table constant text := 'os_core.alembic_version';
  _has_version_table constant boolean := EXISTS (
    SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'os_core' AND c.relname = 'alembic_version'
  );
  _stamps text[] := '{}';
  _found record;
  _fits text;
  _statements text := '';
BEGIN
  IF _has_version_table THEN
    EXECUTE 'SELECT ARRAY(SELECT v.version_num::text FROM os_core.alembic_version AS v ORDER BY 1)' INTO _stamps;
  END IF;
  IF EXISTS (
    SELECT FROM pg_catalog.unnest(_stamps) AS stamp (id)
    WHERE stamp.id NOT IN (SELECT known.value ->> 0 FROM pg_catalog.jsonb_array_elements(_traces) AS known)
  ) THEN
    RETURN; -- a revision of a newer version: Alembic reports that it does not know it
  END IF;

  WITH there AS (
    SELECT n.nspname || '.' || c.relname AS name, c.oid AS relation, 'relation' AS kind
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('os_core', 'conversation')
  ),

  things AS (
    SELECT there.kind || ' ' || there.name AS thing FROM there
    UNION ALL
    SELECT 'column ' || there.name || '.' || a.attname
    FROM there JOIN pg_catalog.pg_attribute AS a ON a.attrelid = there.relation AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'policy ' || there.name || '.' || p.polname
    FROM there JOIN pg_catalog.pg_policy AS p ON p.polrelid = there.relation
    UNION ALL
    SELECT 'trigger ' || there.name || '.' || t.tgname
    FROM there JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = there.relation
    UNION ALL
    SELECT 'function ' || n.nspname || '.' || p.proname
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname IN ('os_core', 'conversation')
  ),

  counted AS (
    SELECT revision.place, revision.value ->> 0 AS id,
      pg_catalog.bool_and(made.thing LIKE 'relation %') AS is_certain,
      ARRAY_AGG(made.thing) FILTER (WHERE made.thing IN (SELECT things.thing FROM things)) AS present,
      ARRAY_AGG(made.thing) FILTER (WHERE made.thing NOT IN (SELECT things.thing FROM things)) AS absent
    FROM pg_catalog.jsonb_array_elements(_traces) WITH ORDINALITY AS revision (value, place)
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements_text(revision.value -> 1) AS made (thing)
    GROUP BY revision.place, revision.value
  ),

  judged AS (
    -- Tables are certain: only their revision makes them, and nobody drops one unnoticed. Other things may be lost.
    SELECT counted.*, counted.absent IS NULL AS has_run, counted.present IS NULL AS has_not_run,
      counted.is_certain AND counted.absent IS NOT NULL AND counted.present IS NOT NULL AS is_torn,
      counted.place <= (
        SELECT COALESCE(pg_catalog.max(claimed.place), 0)
        FROM pg_catalog.jsonb_array_elements(_traces) WITH ORDINALITY AS claimed (value, place)
        WHERE claimed.value ->> 0 = ANY(_stamps)
      ) AS is_claimed
    FROM counted
  )

  SELECT
    COALESCE(pg_catalog.bool_or(judged.is_torn), FALSE) AS is_torn,
    pg_catalog.max(judged.place) FILTER (WHERE judged.has_run) AS newest,
    pg_catalog.min(judged.place) FILTER (WHERE judged.has_not_run) AS oldest_missing,
    pg_catalog.string_agg(pg_catalog.array_to_string(judged.absent, ', '), ', ' ORDER BY judged.place)
      FILTER (WHERE judged.is_claimed AND (judged.has_not_run OR judged.is_torn)) AS lacking,
    pg_catalog.string_agg(pg_catalog.array_to_string(judged.present, ', '), ', ' ORDER BY judged.place)
      FILTER (WHERE NOT judged.is_claimed AND (judged.has_run OR judged.is_torn)) AS early
  INTO _found
  FROM judged;
  IF _found.lacking IS NULL AND _found.early IS NULL AND pg_catalog.cardinality(_stamps) <= 1 THEN
    RETURN;
  END IF;

  -- A revision without traces of its own is run again rather than left out.
  _fits := CASE
    WHEN _found.is_torn OR _found.oldest_missing < _found.newest THEN NULL
    WHEN _found.newest IS NULL THEN ''
    ELSE _traces -> (_found.newest - 1)::integer ->> 0
  END;
  IF _fits IS NOT NULL THEN
    _statements := E'\nSET ROLE selene_owner;' || CASE WHEN _has_version_table THEN '' ELSE
      pg_catalog.format(
        E'\nCREATE TABLE %s (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);'
        '\nGRANT SELECT ON %s TO selene_app, selene_readonly;', _version_table, _version_table
      )
    END
    || pg_catalog.format(E'\nDELETE FROM %s;', _version_table)
    || CASE _fits WHEN '' THEN '' ELSE pg_catalog.format(E'\nINSERT INTO %s VALUES (%L);', _version_table, _fits) END
    || E'\nRESET ROLE;';
  END IF;
  RAISE EXCEPTION USING
    ERRCODE = 'object_not_in_prerequisite_state',
    MESSAGE = pg_catalog.concat(
      CASE
        WHEN NOT _has_version_table THEN 'there is no table os_core.alembic_version'
        WHEN _stamps = '{}' THEN 'os_core.alembic_version names no revision'
        ELSE 'os_core.alembic_version says revision ' || pg_catalog.array_to_string(_stamps, ' and ')
      END,
      CASE
        WHEN _fits = '' THEN ', but nothing of any revision is in this database'
        WHEN _fits IS NOT NULL THEN ', but the schema is that of revision ' || _fits
        ELSE pg_catalog.concat(
          ', but the schema is that of no revision',
          '; missing: ' || pg_catalog.left(_found.lacking, 300), '; there already: ' || pg_catalog.left(_found.early, 300)
        )
      END,
      E'.\nNothing was changed. ',
      CASE WHEN _found.lacking IS NOT NULL THEN 'If tables were lost, restore a backup. ' END,
      CASE
        WHEN _fits IS NULL THEN 'selene-core doctor says what else differs.'
        ELSE 'If the version table is wrong, let an administrator run in this database, then start again:'
      END,
      _statements
    );
END;
$$;
