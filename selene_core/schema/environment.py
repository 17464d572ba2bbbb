"""Checks outside our schemas: logins, settings, and what selene_owner owns elsewhere.

They belong to the server and the database, not to a revision. The queries want plain_settings().
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from selene_core.schema.logins import EDGES
from selene_core.schema.remedies import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


def login_faults(conn: Connection) -> Iterator[Fault]:
    """Report service logins that see every tenant or own the schema, or could come to that."""
    who = "a member of selene_app, selene_readonly or selene_feed,"
    for name, granted, grantor, is_usable, powers in conn.exec_driver_sql(_POWERFUL_MEMBERS):
        if granted is None:
            what = f"has {powers}: it sees every tenant, or can come to that"
            sql = f"ALTER ROLE {name} NO{powers}"
        else:
            what = f"{'can' if is_usable else f'has ADMIN OPTION on {granted}, so can'} become {powers}"
            sql = f"REVOKE {granted} FROM {name}{f' GRANTED BY {grantor}' if grantor else ''}"
        # No statement: it may be a migration login that is in selene_app, too, or the grantor of one.
        if any(power in powers for power in ("selene_owner", "SUPERUSER", "CREATEROLE")):
            command = f"if it serves: {sql}; If it migrates: take it out of our service roles"
            yield Fault(f"role {name}, {who} {what}", command=command)
        else:
            yield Fault(f"role {name}, {who} {what}", sql=f"{sql}{' CASCADE' if granted else ''};")
    for name, owner, database in conn.exec_driver_sql(_OWNING_MEMBERS):
        owns = "owns" if owner == name else f"can become {owner}, which owns"
        yield Fault(
            f"role {name}, {who} {owns} this database: it can set a tenant for every session, and drop it",
            command=f"ALTER DATABASE {database} OWNER TO the migrator, or another who serves nothing",
        )


def parameter_faults(conn: Connection) -> Iterator[Fault]:
    """Report our logins that may change settings that switch off triggers or load code into a session."""
    for name, privilege, grantee, grantor in conn.exec_driver_sql(_PARAMETERS):
        revoke = f"REVOKE {privilege} ON PARAMETER {name} FROM {grantee} CASCADE;"
        yield Fault(
            f"{grantee} must not have {privilege} on parameter {name}",
            sql=f"SET ROLE {grantor};\n{revoke}\nRESET ROLE;" if grantor else revoke,
        )


def owned_elsewhere(conn: Connection) -> Iterator[Fault]:
    """Report what selene_owner owns outside our schemas: it may run with its rights, or hold our rows."""
    for kind, name in conn.exec_driver_sql(_OWNED_ELSEWHERE):
        yield Fault(
            f"selene_owner owns {kind} {name}, outside our schemas: it may show or change our rows",
            command="if it is ours, move it back; else give it to an owner who is no superuser",
        )


def setting_faults(conn: Connection, unseen: list[str]) -> Iterator[Fault]:
    """Report harmful settings of roles, database and server for every session, and what could not be seen."""
    options = conn.connection.driver_connection.info.options.lower()  # type: ignore[union-attr]
    nearer = {name for name in _HARMFUL if name in options}
    for database, role, setting, is_ours in conn.exec_driver_sql(_SETTINGS):
        name, _, value = setting.lower().partition("=")
        if name not in _HARMFUL:
            continue
        nearer |= {name} if is_ours else set()
        harmful, harm = _HARMFUL[name]
        if re.fullmatch(harmful, value):
            within = f" IN DATABASE {database}" if database else ""
            whose = f"ROLE {role}{within}" if role else f"DATABASE {database}" if database else "ROLE ALL"
            told = f"{whose} sets {name} for every session: {harm}"
            yield Fault(told, sql=f"ALTER {whose} RESET {name};")
    for name, (harmful, harm) in _HARMFUL.items():
        value = conn.exec_driver_sql(_SETTING_HERE, (name, name)).scalar_one()
        if name in nearer:
            unseen.append(f"what the server sets {name} to: a nearer setting holds for this session")
        elif re.fullmatch(harmful, value):
            yield Fault(
                f"the server sets {name} for every session: {harm}",
                command=f"ALTER SYSTEM RESET {name}, or take it out of postgresql.conf or off the command"
                " line; then reload or restart the server, and let a pooler reconnect",
            )


# The harmful values, in lower case, and why. A boolean may be abbreviated.
_HARMFUL: Final = {
    "row_security": ("0|off?|no?|f|fa|fal|fals|false", "reading fails where it is off"),
    "selene.tenant_id": ("(?s:.+)", "whoever sets no tenant is in that one"),
    "session_replication_role": ("replica", "foreign keys are not kept where it is replica"),
}
_SETTINGS: Final = """
    SELECT quote_ident(d.datname), quote_ident(r.rolname), setting,
      COALESCE(r.rolname = session_user, s.setrole = 0)
    FROM pg_db_role_setting AS s
    LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
    LEFT JOIN pg_roles AS r ON r.oid = s.setrole
    CROSS JOIN LATERAL unnest(s.setconfig) AS setting
    WHERE d.datname IS NULL OR d.datname = current_database()
    ORDER BY 1, 2, 3
"""
# One that no extension declares is not in pg_settings.
_SETTING_HERE: Final = """
    SELECT lower(COALESCE(
      (SELECT s.reset_val FROM pg_settings AS s WHERE s.name = %s), current_setting(%s, TRUE), ''))
"""
# Statistics and extensions lend no rights; default privileges are facts.
_OWNED_ELSEWHERE: Final = """
    SELECT o.type, o.identity
    FROM pg_shdepend AS d
    JOIN pg_database AS db ON db.oid = d.dbid AND db.datname = current_database()
    CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) AS o
    WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o'
      AND d.refobjid = (SELECT r.oid FROM pg_roles AS r WHERE r.rolname = 'selene_owner')
      AND o.type NOT IN ('default acl', 'statistics object', 'extension', 'user mapping')
      AND COALESCE(o.schema, o.identity) NOT IN ('os_core', 'conversation')
      AND NOT starts_with(COALESCE(o.schema, ''), 'pg_temp')
    ORDER BY 1, 2
"""
_MEMBERS: Final = f"""
    WITH RECURSIVE {EDGES},
    readers AS (
      SELECT r.oid AS role FROM pg_roles AS r WHERE r.rolname ~ '^selene_(app|readonly|feed)$'
      UNION
      SELECT m.member FROM readers JOIN memberships AS m ON m.roleid = readers.role
      WHERE m.is_usable AND NOT m.is_own
    ),
    risen AS (
      SELECT powerful.role, powerful.name, powerful.attributes FROM powerful
      UNION
      SELECT m.member, risen.name, risen.attributes FROM risen JOIN memberships AS m ON m.roleid = risen.role
      WHERE m.is_usable OR m.admin_option
    )
"""
# By its own attributes, a row each, or by a role that was granted to it.
_POWERFUL_MEMBERS: Final = f"""
    {_MEMBERS}
    SELECT quote_ident(r.rolname), held.*
    FROM readers JOIN pg_roles AS r ON r.oid = readers.role
    CROSS JOIN LATERAL (
      SELECT NULL AS granted, NULL AS grantor, TRUE, attribute
      FROM powerful CROSS JOIN LATERAL string_to_table(powerful.attributes, ' ') AS attribute
      WHERE powerful.role = readers.role AND attribute <> ''
      UNION ALL
      SELECT NULL, NULL, TRUE, 'REPLICATION' WHERE r.rolreplication
      UNION ALL
      SELECT m.roleid::regrole::text, m.grantor::regrole::text, m.is_usable, (
          SELECT string_agg(
            risen.name || COALESCE(' (' || NULLIF(risen.attributes, '') || ')', ''), ', ' ORDER BY risen.name
          )
          FROM risen WHERE risen.role = m.roleid
        )
      FROM memberships AS m
      WHERE m.member = readers.role AND (m.is_usable OR m.admin_option)
        AND m.roleid IN (SELECT risen.role FROM risen)
        AND m.roleid NOT IN (SELECT members.role FROM readers AS members)
    ) AS held
    WHERE r.rolname NOT IN ('selene_app', 'selene_readonly', 'selene_feed')
    ORDER BY held.granted NULLS FIRST, 1, 3, 5
"""
_OWNING_MEMBERS: Final = f"""
    {_MEMBERS}
    SELECT quote_ident(r.rolname), db.datdba::regrole::text, quote_ident(db.datname)
    FROM readers
    JOIN pg_roles AS r ON r.oid = readers.role AND NOT r.rolsuper
    JOIN pg_database AS db ON db.datname = current_database()
      AND pg_has_role(r.oid, db.datdba, 'MEMBER')
    ORDER BY 1
"""
_PARAMETERS: Final = f"""
    {_MEMBERS}
    SELECT p.parname, item.privilege_type,
      CASE item.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END,
      CASE WHEN item.grantor <> 10 THEN item.grantor::regrole::text END
    FROM pg_parameter_acl AS p
    CROSS JOIN LATERAL aclexplode(p.paracl) AS item
    LEFT JOIN pg_roles AS r ON r.oid = item.grantee
    WHERE p.parname IN ('session_replication_role', 'allow_system_table_mods', 'session_preload_libraries',
        'dynamic_library_path')
      AND r.rolsuper IS NOT TRUE
      AND (item.grantee = 0 OR item.grantee IN (SELECT readers.role FROM readers)
        OR item.grantee IN (SELECT risen.role FROM risen WHERE risen.name = 'selene_owner'))
    ORDER BY item.grantor <> 10 DESC, 1, 2, 3
"""
