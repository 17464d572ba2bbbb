"""What stands around the schema: logins, the settings of a session, what selene_owner owns elsewhere.

None of it is in the golden catalogue: it belongs to the server and the database, at whatever revision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from selene_core.schema.logins import EDGES
from selene_core.schema.remedies import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection


def login_faults(conn: Connection) -> Iterator[Fault]:
    """Name members of the reading roles who see every tenant or own the schema, or can come to that."""
    for name, attribute in conn.exec_driver_sql(_POWERFUL_LOGINS):
        harm = (
            "it can grant itself selene_owner before PostgreSQL 16"
            if attribute == "CREATEROLE"
            else "it sees every tenant"
        )
        yield _too_powerful(name, f"has {attribute}: {harm}", f"ALTER ROLE {name} NO{attribute};", attribute)
    for name, granted, grantor, is_usable, powers in conn.exec_driver_sql(_RISING_LOGINS):
        by = f" GRANTED BY {grantor}" if grantor else ""
        can = "can become" if is_usable else f"has ADMIN OPTION on {granted}, so can become"
        yield _too_powerful(name, f"{can} {powers}", f"REVOKE {granted} FROM {name}{by} CASCADE;", powers)
    for name, owner, database in conn.exec_driver_sql(_OWNING_LOGINS):
        owns = "owns" if owner == name else f"can become {owner}, which owns"
        yield Fault(
            f"role {name}, a member of selene_app or selene_readonly, {owns} this database: it can set"
            " a tenant for every session, and drop it",
            # Whose it is to be is not known here.
            command=f"ALTER DATABASE {database} OWNER TO the migrator, or another who serves nothing",
        )


def _too_powerful(name: str, what: str, sql: str, powers: str) -> Fault:
    """Print no statement that takes what an upgrade needs: who migrates may be in selene_app too."""
    told = f"role {name}, a member of selene_app or selene_readonly, {what}"
    if not any(power in powers for power in ("selene_owner", "SUPERUSER", "CREATEROLE")):
        return Fault(told, sql=sql)
    careful = sql.replace(" CASCADE;", ";")  # it may have granted the role to who migrates
    return Fault(
        told,
        command=f"if it serves: {careful} If it migrates: take it out of selene_app and selene_readonly",
    )


def owned_elsewhere(conn: Connection, mends: Iterable[Fault]) -> Iterator[Fault]:
    """Name what selene_owner owns outside our schemas: what reads or runs with its rights sees too much.

    What is put back into them anyway is left out.
    """
    moves = tuple(fault.sql for fault in mends if fault.sql)
    for kind, schema, name, power, owner in conn.exec_driver_sql(_OWNED_ELSEWHERE):
        moved = (
            f"ALTER TABLE {name} SET SCHEMA ",
            f"ALTER SCHEMA {name if kind == 'schema' else schema} RENAME ",
        )
        if any(sql.startswith(moved) for sql in moves):
            continue
        what = f"selene_owner owns {kind} {name}, outside our schemas"
        called = (
            "ROUTINE" if kind in {"function", "procedure", "aggregate"} else kind.replace("-", " ").upper()
        )
        given = f"ALTER {called} {name} OWNER TO {owner};"
        match power:
            case "none":
                yield Fault(what, sql=given)
            case "view":
                # First: the new owner may be a superuser. A REVOKE would have to find everybody.
                safe = f"ALTER VIEW {name} SET (security_invoker = true);"
                yield Fault(f"{what}: it reads with its owner's rights", sql=f"{safe}\n{given}")
            case "definer":
                safe = f"ALTER ROUTINE {name} SECURITY INVOKER;"
                yield Fault(f"{what}: it runs with its owner's rights", sql=f"{safe}\n{given}")
            case _:
                yield Fault(
                    f"{what}: {power}",
                    command=f"look at what it does and who may use it, then ALTER {called} {name} OWNER TO"
                    " whose it is to be",
                )


def server_setting_faults(conn: Connection) -> tuple[list[Fault], list[str]]:
    """Name what the server sets for every session; return faults, and the settings that were not seen.

    Where its files may not be read it goes by what holds for this session.
    """
    options = conn.connection.driver_connection.info.options.lower()  # type: ignore[union-attr]
    with conn.begin_nested() as savepoint:
        # What the session has set itself, or one before it behind a pooler. Undone with the savepoint.
        conn.exec_driver_sql("RESET selene.tenant_id")
        conn.exec_driver_sql("RESET row_security")
        here = [(name, bad, source) for name, bad, source in conn.exec_driver_sql(_SETTINGS_HERE)]
        savepoint.rollback()
    may_read = conn.exec_driver_sql(_MAY_READ_FILES).scalar_one()
    rows = conn.exec_driver_sql(_SETTINGS_IN_FILES) if may_read else ()
    files = {name: (file, line) for name, file, line in rows}
    found: list[Fault] = []
    unseen: list[str] = []
    for name, is_harmful, source in here:
        is_nearer = source in _NEARER or (source is None and name in options)
        what = f"the server sets {name} for every session: {_SETTING_HARMS[name]}"
        if name in files:
            found.append(_in_file(what, name, *files[name]))
        elif is_nearer and not may_read:
            unseen.append(f"what the server sets {name} to: a nearer setting holds for this session")
        elif is_harmful and not is_nearer:
            found.append(_in_force(what, name, source, is_in_no_file=may_read))
    return found, unseen


def _in_file(what: str, name: str, file: str, line: int) -> Fault:
    if file.endswith("/postgresql.auto.conf"):
        return Fault(what, sql=f"ALTER SYSTEM RESET {name};\n{_RELOAD}")
    return Fault(what, command=f"take it out of {file}, line {line}, then {_RELOAD}")


def _in_force(what: str, name: str, source: str | None, *, is_in_no_file: bool) -> Fault:
    """Say how to mend what holds, and stands in no file or in one that was not seen."""
    if source == "command line":
        return Fault(what, command="take it off the server's command line, then restart the server")
    if not is_in_no_file:
        elsewhere = (
            "where doctor says so again, it stands in postgresql.conf or on the command line,"
            " or a pooler keeps sessions of before"
        )
        return Fault(f"{what} ({elsewhere})", sql=f"ALTER SYSTEM RESET {name};\n{_RELOAD}")
    if source is None:
        return Fault(what, command=f"{_RELOAD} or take it off the server's command line, then restart it")
    return Fault(what, sql=_RELOAD)


def setting_faults(conn: Connection) -> Iterator[Fault]:
    """Name what a role or the database sets for every session."""
    for database, role, name in conn.exec_driver_sql(_SETTINGS):
        within = f" IN DATABASE {database}" if database else ""
        whose = f"ROLE {role}{within}" if role else f"DATABASE {database}" if database else "ROLE ALL"
        yield Fault(
            f"{whose} sets {name} for every session: {_SETTING_HARMS[name]}",
            sql=f"ALTER {whose} RESET {name};",
        )


def parameter_faults(conn: Connection) -> Iterator[Fault]:
    """Name who of ours may set what switches triggers off, or brings other code into a session."""
    for name, privilege, grantee, grantor in conn.exec_driver_sql(_PARAMETERS):
        revoke = f"REVOKE {privilege} ON PARAMETER {name} FROM {grantee} CASCADE;"
        yield Fault(
            f"{grantee} must not have {privilege} on parameter {name}",
            sql=f"SET ROLE {grantor};\n{revoke}\nRESET ROLE;" if grantor else revoke,
        )


_SETTING_HARMS: Final = {
    "selene.tenant_id": "whoever sets no tenant is in that one",
    "session_replication_role": "foreign keys are not kept where it is replica",
    "row_security": "reading fails where it is off",
}
_RELOAD: Final = "SELECT pg_reload_conf();"
# What takes precedence over the server's files and command line, as pg_settings calls it.
_NEARER: Final = {"global", "database", "user", "database user", "client"}
# Names of settings have no case, nor have their values; a boolean may be cut short.
_IS_HARMFUL: Final = """
    parts.value <> ''
      AND (parts.name = 'selene.tenant_id'
        OR parts.name = 'session_replication_role' AND parts.value = 'replica'
        OR parts.name = 'row_security' AND (parts.value IN ('0', 'of', 'off')
          OR pg_catalog.starts_with('false', parts.value) OR pg_catalog.starts_with('no', parts.value)))
"""
_SETTINGS: Final = f"""
    SELECT pg_catalog.quote_ident(d.datname), pg_catalog.quote_ident(r.rolname), parts.name
    FROM pg_catalog.pg_db_role_setting AS s
    LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
    CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS item (setting)
    CROSS JOIN LATERAL (
      VALUES (
        pg_catalog.lower(pg_catalog.split_part(item.setting, '=', 1)),
        pg_catalog.lower(pg_catalog.substr(item.setting, pg_catalog.strpos(item.setting, '=') + 1))
      )
    ) AS parts (name, value)
    WHERE (d.datname IS NULL OR d.datname = pg_catalog.current_database()) AND {_IS_HARMFUL}
    ORDER BY 1, 2, 3
"""
# One that no extension declares is not in pg_settings, and so has no source there.
_SETTINGS_HERE: Final = f"""
    SELECT parts.name, {_IS_HARMFUL}, parts.source
    FROM (
      SELECT s.name, s.reset_val, s.source
      FROM pg_catalog.pg_settings AS s WHERE s.name IN ('session_replication_role', 'row_security')
      UNION ALL
      SELECT 'selene.tenant_id', COALESCE(pg_catalog.current_setting('selene.tenant_id', TRUE), ''), (
          SELECT 'database user'
          FROM pg_catalog.pg_db_role_setting AS s
          LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
          LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
          CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS item (setting)
          WHERE COALESCE(d.datname = pg_catalog.current_database(), s.setdatabase = 0)
            AND COALESCE(r.rolname = session_user, s.setrole = 0)
            AND pg_catalog.starts_with(pg_catalog.lower(item.setting), 'selene.tenant_id=')
          LIMIT 1
        )
    ) AS parts (name, value, source)
    ORDER BY 1
"""
_MAY_READ_FILES: Final = """
    SELECT pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
      AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
"""
# The last one counts.
_SETTINGS_IN_FILES: Final = f"""
    SELECT parts.name, parts.file, parts.line
    FROM (
      SELECT DISTINCT ON (pg_catalog.lower(f.name)) pg_catalog.lower(f.name), pg_catalog.lower(f.setting),
        f.sourcefile, f.sourceline
      FROM pg_catalog.pg_file_settings AS f WHERE f.error IS NULL
      ORDER BY pg_catalog.lower(f.name), f.seqno DESC
    ) AS parts (name, value, file, line)
    WHERE {_IS_HARMFUL}
"""
# Of statistics nobody reads by their owner's rights, nor by an extension's; default privileges are facts.
# What is a part of something else goes with it.
_OWNED_ELSEWHERE: Final = """
    SELECT o.type, o.schema, o.identity,
      CASE
        WHEN EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = c.oid AND r.ev_type <> '1')
          THEN 'its rules run with its owner''s rights'
        WHEN c.relkind = 'v' THEN 'view'
        WHEN c.relkind = 'm' THEN 'it is filled with its owner''s rights'
        WHEN c.relkind IN ('r', 'p', 'f') THEN 'what it holds may be ours'
        WHEN p.prosecdef THEN 'definer'
        ELSE 'none'
      END,
      CASE WHEN db.datdba = d.refobjid THEN 'CURRENT_USER'
        ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(db.datdba)) END
    FROM pg_catalog.pg_shdepend AS d
    JOIN pg_catalog.pg_database AS db ON db.oid = d.dbid AND db.datname = pg_catalog.current_database()
    JOIN pg_catalog.pg_roles AS r ON r.oid = d.refobjid AND r.rolname = 'selene_owner'
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS o
    LEFT JOIN pg_catalog.pg_class AS c
      ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
    LEFT JOIN pg_catalog.pg_proc AS p
      ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = d.objid
    WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'o'
      AND o.type NOT IN ('default acl', 'statistics object', 'extension', 'user mapping')
      AND COALESCE(o.schema, o.identity) NOT IN ('os_core', 'conversation')
      AND NOT pg_catalog.starts_with(COALESCE(o.schema, ''), 'pg_temp')
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS part
        WHERE part.classid = d.classid AND part.objid = d.objid
          AND (part.deptype = 'i' OR part.deptype = 'a' AND c.relkind = 'S')
      )
    ORDER BY c.relkind IS DISTINCT FROM 'v', o.type, o.identity
"""

_MEMBERS: Final = f"""
    {EDGES},
    readers AS (
      SELECT r.oid AS role FROM pg_catalog.pg_roles AS r WHERE r.rolname IN ('selene_app', 'selene_readonly')
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
_POWERFUL_LOGINS: Final = f"""
    WITH RECURSIVE {_MEMBERS}
    SELECT pg_catalog.quote_ident(r.rolname), power.attribute
    FROM readers JOIN pg_catalog.pg_roles AS r ON r.oid = readers.role
    CROSS JOIN LATERAL (VALUES
      (r.rolsuper, 'SUPERUSER'), (r.rolbypassrls, 'BYPASSRLS'), (r.rolreplication, 'REPLICATION'),
      (r.rolcreaterole AND NOT r.rolsuper
        AND pg_catalog.current_setting('server_version_num')::integer < 160000, 'CREATEROLE')
    ) AS power (held, attribute)
    WHERE power.held AND r.rolname NOT IN ('selene_app', 'selene_readonly')
    ORDER BY 1, 2
"""
_RISING_LOGINS: Final = f"""
    WITH RECURSIVE {_MEMBERS}
    SELECT pg_catalog.quote_ident(r.rolname), pg_catalog.quote_ident(granted.rolname),
      pg_catalog.quote_ident(grantor.rolname), m.is_usable, (
        SELECT pg_catalog.string_agg(
          risen.name || CASE WHEN risen.attributes <> '' THEN ' (' || risen.attributes || ')' ELSE '' END,
          ', ' ORDER BY risen.name)
        FROM risen WHERE risen.role = m.roleid
      )
    FROM memberships AS m
    JOIN pg_catalog.pg_roles AS r ON r.oid = m.member
    JOIN pg_catalog.pg_roles AS granted ON granted.oid = m.roleid
    LEFT JOIN pg_catalog.pg_roles AS grantor ON grantor.oid = m.grantor
    WHERE m.member IN (SELECT readers.role FROM readers)
      AND m.roleid IN (SELECT risen.role FROM risen)
      AND m.roleid NOT IN (SELECT readers.role FROM readers)
      AND r.rolname NOT IN ('selene_app', 'selene_readonly')
      AND (m.is_usable OR m.admin_option)
    ORDER BY 1, 2, 3
"""
_PARAMETERS: Final = f"""
    WITH RECURSIVE {_MEMBERS}
    SELECT p.parname, item.privilege_type,
      CASE item.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END,
      CASE WHEN item.grantor <> 10 THEN pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(item.grantor)) END
    FROM pg_catalog.pg_parameter_acl AS p
    CROSS JOIN LATERAL pg_catalog.aclexplode(p.paracl) AS item
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = item.grantee
    WHERE p.parname IN ('session_replication_role', 'allow_system_table_mods', 'session_preload_libraries',
        'dynamic_library_path')
      AND r.rolsuper IS NOT TRUE
      AND (item.grantee = 0 OR item.grantee IN (SELECT readers.role FROM readers)
        OR item.grantee IN (SELECT risen.role FROM risen WHERE risen.name = 'selene_owner'))
    ORDER BY item.grantor <> 10 DESC, 1, 2, 3
"""
_OWNING_LOGINS: Final = f"""
    WITH RECURSIVE {_MEMBERS},
    owners AS (
      SELECT db.datdba AS role FROM pg_catalog.pg_database AS db
      WHERE db.datname = pg_catalog.current_database()
      UNION
      SELECT m.member FROM owners JOIN memberships AS m ON m.roleid = owners.role
      WHERE m.is_usable OR m.admin_option
    )
    SELECT pg_catalog.quote_ident(r.rolname), pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(db.datdba)),
      pg_catalog.quote_ident(db.datname)
    FROM readers
    JOIN owners ON owners.role = readers.role
    JOIN pg_catalog.pg_roles AS r ON r.oid = readers.role AND NOT r.rolsuper
    JOIN pg_catalog.pg_database AS db ON db.datname = pg_catalog.current_database()
    ORDER BY 1
"""
