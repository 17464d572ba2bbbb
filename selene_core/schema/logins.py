"""Find powerful roles: those a login is, can become by SET ROLE, or can grant itself (contract §10)."""

from __future__ import annotations

from typing import Final

# These attributes and roles read or write all tables or the server's files, or can grant themselves a role
# that does. Before 16, CREATEROLE may grant every role except superusers.
_ALL_DATA: Final = "'pg_read_all_data', 'pg_write_all_data'"
_SERVER: Final = "'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'"

# From 16 on, the creator of a role is a member that may neither inherit from it nor become it. But it may
# grant the role, also to itself.
EDGES: Final = f"""
    memberships AS (
      SELECT m.member, m.roleid, m.grantor,
        COALESCE((pg_catalog.to_jsonb(m) ->> 'inherit_option')::boolean, TRUE)
          OR COALESCE((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, TRUE) AS is_usable,
        m.admin_option,
        -- Made by itself: by createrole_self_grant, or by who may grant the role anyway.
        m.grantor = m.member AS is_own
      FROM pg_catalog.pg_auth_members AS m
    ),
    powerful AS (
      SELECT r.oid AS role, r.rolname AS name, held.attributes
      FROM pg_catalog.pg_roles AS r
      CROSS JOIN LATERAL pg_catalog.concat_ws(' ',
        CASE WHEN r.rolsuper THEN 'SUPERUSER' END,
        CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
        CASE WHEN r.rolcreaterole AND NOT r.rolsuper
          AND pg_catalog.current_setting('server_version_num')::integer < 160000 THEN 'CREATEROLE' END
      ) AS held (attributes)
      WHERE held.attributes <> '' OR r.rolname IN ('selene_owner', {_ALL_DATA}, {_SERVER})
    )
"""

# Which powerful roles the login is, or can become, or can grant itself: SET ROLE hides nothing of it.
POWERS: Final = f"""
    WITH RECURSIVE {EDGES},
    reached AS (
      SELECT r.oid AS role FROM pg_catalog.pg_roles AS r WHERE r.rolname IN (current_user, session_user)
      UNION
      SELECT m.roleid FROM reached JOIN memberships AS m ON m.member = reached.role
      WHERE m.is_usable OR m.admin_option
    )
    SELECT powerful.name, powerful.attributes, powerful.name = session_user
    FROM reached JOIN powerful ON powerful.role = reached.role
    ORDER BY 1
"""
