"""Examine a database: what is wrong with server, revision, roles and schema, and how to mend it (section 15).

It reads system catalogues and the version table, which any member of selene_app or selene_readonly may, and
says what it could not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy.exc import DBAPIError

from selene_core.catalogue import Facts, read, read_revisions
from selene_core.displaced import find_displaced
from selene_core.drift import Difference, describe, differences, golden, shared_differences
from selene_core.logins import EDGES
from selene_core.mending import VERSION_TABLE, Fault, faults, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from sqlalchemy import Connection

    T = TypeVar("T")

# Releases that are not to be used for this: major, the first minor that is good, why.
_FLAWED: Final = (
    (15, 4, "MERGE passes over row-level security (CVE-2023-39418)"),
    (15, 9, "a plan made for one role may be used for another's row-level security (CVE-2024-10976)"),
    (16, 5, "a plan made for one role may be used for another's row-level security (CVE-2024-10976)"),
    (17, 1, "a plan made for one role may be used for another's row-level security (CVE-2024-10976)"),
    (15, 14, "planner statistics show rows that row-level security hides (CVE-2025-8713)"),
    (16, 10, "planner statistics show rows that row-level security hides (CVE-2025-8713)"),
    (17, 6, "planner statistics show rows that row-level security hides (CVE-2025-8713)"),
)
# One release each: ALTER ROLE ... SET role has no effect, by which a migrator may act as selene_owner.
_WITHOUT_SET_ROLE: Final = {150009, 160005, 170001}
_OLDEST: Final = 15
_NEWEST: Final = 18


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found: faults to mend in their order, notes on what may be as it is, and what was not seen."""

    server_version: str
    login: str
    revision: str | None
    head: str
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether all is well, as far as everything was seen."""
        return not self.faults and not self.unseen


def examine(conn: Connection) -> Diagnosis:
    """Examine the database in the connection's transaction; changes nothing."""
    version: str = conn.exec_driver_sql("SHOW server_version").scalar_one()
    number = int(conn.exec_driver_sql("SHOW server_version_num").scalar_one())
    login: str = conn.exec_driver_sql("SELECT current_user").scalar_one()
    unseen: list[str] = []

    def seen(what: str, look: Callable[[Connection], T]) -> T | None:
        try:
            with conn.begin_nested():
                return look(conn)
        except DBAPIError as exc:
            match exc.orig:
                case psycopg.errors.InsufficientPrivilege():
                    unseen.append(f"{what}: {exc.orig.diag.message_primary}")
                case psycopg.errors.LockNotAvailable():
                    unseen.append(f"{what}: a table is locked, as by a migration that is under way")
                case _:
                    raise
            return None

    facts = seen("the schema", read)
    stamps = seen("the revision", read_revisions)
    is_stamped_unseen = any(line.startswith("the revision") for line in unseen)
    mends, notes, uncompared = _schema_faults(
        conn, facts, stamps, number // 10000, is_stamp_seen=not is_stamped_unseen
    )
    unseen += uncompared
    logins = seen("the logins", lambda conn: [*_login_faults(conn)]) or []
    settings = seen("the settings of roles and databases", lambda conn: [*_setting_faults(conn)]) or []
    if number // 10000 >= _OLDEST:
        settings += seen("the privileges on parameters", lambda conn: [*_parameter_faults(conn)]) or []
    behind = seen("the sequences", lambda conn: [*_sequence_faults(conn, facts)]) if facts else None
    return Diagnosis(
        server_version=version,
        login=login,
        revision=", ".join(stamps) if stamps else None,
        head=golden().head,
        faults=tuple(
            printable(fault)
            for fault in (
                *server_faults(number),
                *_encoding_faults(conn),
                *mends,
                *logins,
                *settings,
                *(behind or []),
            )
        ),
        notes=(
            *_server_notes(number),
            *notes,
        ),
        unseen=tuple(unseen),
    )


def server_faults(number: int) -> Iterator[Fault]:
    """Name what is known to be wrong with a release, by its server_version_num."""
    major, minor = divmod(number, 10000)
    if major < _OLDEST:
        yield Fault(
            f"PostgreSQL {major} is not supported", command=f"upgrade the server to {_OLDEST} or newer"
        )
    known = [(good, why) for flawed, good, why in _FLAWED if flawed == major and minor < good]
    if number in _WITHOUT_SET_ROLE:
        known.append((minor + 1, "ALTER ROLE ... SET role has no effect in this release"))
    if known:
        newest = max(good for good, _ in known)
        whys = "; ".join(why for _, why in known)
        yield Fault(
            f"PostgreSQL {major}.{minor}: {whys}", command=f"update the server to {major}.{newest} or newer"
        )


def _server_notes(number: int) -> Iterator[str]:
    if number // 10000 > _NEWEST:
        yield f"PostgreSQL {number // 10000} is newer than what this version was tested with ({_NEWEST})"


def _encoding_faults(conn: Connection) -> Iterator[Fault]:
    encoding = conn.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        yield Fault(
            f"the database is encoded in {encoding}, not in UTF8",
            command="dump it and restore it into a database made with ENCODING 'UTF8'",
        )


def _schema_faults(
    conn: Connection,
    facts: Facts | None,
    stamps: tuple[str, ...] | None,
    version: int,
    *,
    is_stamp_seen: bool,
) -> tuple[list[Fault], list[str], list[str]]:
    """Compare the schema as far as the revision lets it be; return faults, notes, and what was not seen."""
    if facts is None:
        return [], [], []
    back, displaced = find_displaced(conn, facts, version)
    found = [*differences(golden().facts, back)]
    serious = [difference for difference in found if not difference.is_harmless]
    notes = [describe(each).replace("must not be there", "is not ours") for each in found if each.is_harmless]
    if is_stamp_seen:
        return _judge(facts, back, displaced, serious, stamps, version), notes, []
    if _is_heads(serious, back, is_exact=False):
        return [*displaced, *faults(serious, version)], notes, []
    # What is missing may be what a newer revision makes.
    shared = shared_differences(facts, is_guarded=_has_guards(facts))
    unseen = "what else the schema has to have: that is the revision's to say"
    return faults(shared, version), notes, [unseen]


def _judge(
    facts: Facts,
    back: Facts,
    displaced: list[Fault],
    serious: list[Difference],
    stamps: tuple[str, ...] | None,
    version: int,
) -> list[Fault]:
    """Say what is wrong with a schema next to the revision that it says it stands at."""
    head = golden().head
    unknown = [stamp for stamp in stamps or () if stamp not in golden().revisions]
    says = f"stands at revision {' and '.join(stamps)}" if stamps else "has no revision"
    tables = [thing for thing in back if thing in golden().facts and _is_table(thing)]
    if stamps and not tables and (unknown or stamps[-1] >= _GUARDED_SINCE):
        return [
            Fault(
                f"the database {says}, but none of our tables is there: this os_core is not ours, or empty",
                command="give selene-core a database of its own, or restore this one from a backup",
            )
        ]
    if stamps == (head,):
        return [*displaced, *faults(serious, version)]
    shared = [*shared_differences(facts, is_guarded=_is_guarded(stamps))]
    if _is_heads(serious, facts if unknown else back, is_exact=bool(unknown)) and not (unknown and displaced):
        stamp = Fault(
            f"the database {says}, but its schema is that of {head}: the version table was changed by hand",
            sql="DELETE FROM os_core.alembic_version;\n"
            f"INSERT INTO os_core.alembic_version (version_num) VALUES ('{head}');",
        )
        return [*displaced, *faults(serious, version), stamp]
    if not stamps and tables:
        return [
            *faults(shared, version),
            Fault(
                f"the database {says}, but tables of ours are there: they were not compared",
                command="put the revision that it stood at into os_core.alembic_version, then ask again",
            ),
        ]
    return [*faults(shared if stamps else [], version), *_stamp_faults(stamps or (), unknown, says)]


_GUARDED_SINCE: Final = "0006"  # from this revision on a table comes with its policies and triggers


def _is_guarded(stamps: tuple[str, ...] | None) -> bool:
    known = golden().revisions
    return bool(stamps) and all(stamp not in known or stamp >= _GUARDED_SINCE for stamp in stamps or ())


def _has_guards(facts: Facts) -> bool:
    return any(
        aspect.startswith("trigger ")
        for thing, aspects in facts.items()
        if thing in golden().facts and _is_table(thing)
        for aspect in aspects
    )


def _is_table(thing: str) -> bool:
    return thing.startswith("relation ") and thing != VERSION_TABLE


def _is_heads(serious: list[Difference], facts: Facts, *, is_exact: bool) -> bool:
    """Tell whether a schema is that of the newest revision, whatever the version table says.

    It has its tables and functions; next to a revision that is not known nothing else may differ but what is
    wrong at every revision: that is how a newer schema differs.
    """
    if is_exact:
        shared = {*shared_differences(facts, is_guarded=True)}
        return bool(facts) and all(each in shared or each.thing == VERSION_TABLE for each in serious)
    missing = {each.thing for each in serious if not each.aspect and each.found is None} - {VERSION_TABLE}
    return not any(thing.startswith(("relation ", "function ", "sequence ")) for thing in missing)


def _stamp_faults(stamps: tuple[str, ...], unknown: list[str], says: str) -> Iterator[Fault]:
    """Say what is wrong with the revision of another schema than the newest."""
    head, revisions = golden().head, golden().revisions
    if len(stamps) > 1:
        # The schema is not the newest: of those that are known the one before it may be right.
        known = [stamp for stamp in stamps if stamp in revisions and stamp != head]
        (stands,) = unknown if len(unknown) == 1 else known[-1:] if not unknown else [None]
        yield Fault(
            f"the database {says}: it can stand at one only",
            sql=f"DELETE FROM os_core.alembic_version WHERE version_num <> {literal(stands)};"
            if stands
            else None,
            command=None if stands else "put the revision that it stands at into os_core.alembic_version",
        )
        if not stands:
            return
        stamps, says = (stands,), f"stands at revision {stands} then"
    if not unknown:
        behind = len(revisions) - (revisions.index(stamps[0]) + 1 if stamps else 0)
        yield Fault(
            f"the database {says}, {behind} behind {head}: what is new since was not compared",
            command="selene-core upgrade",
        )
        return
    yield Fault(
        f"the database {says}, which this version of selene-core does not know (it knows {head}): a newer"
        " one has migrated it, and its tables and functions were not compared",
        command="pip install --upgrade selene-core",
    )


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def _login_faults(conn: Connection) -> Iterator[Fault]:
    """Name members of the reading roles who see every tenant or own the schema, or can come to that."""
    for name, attribute in conn.exec_driver_sql(_POWERFUL_LOGINS):
        harm = (
            "it can grant itself selene_owner before PostgreSQL 16"
            if attribute == "CREATEROLE"
            else "it sees every tenant"
        )
        yield Fault(
            f"role {name}, a member of selene_app or selene_readonly, has {attribute}: {harm}",
            sql=f"ALTER ROLE {name} NO{attribute};",
        )
    for name, granted, grantor, is_usable, powers in conn.exec_driver_sql(_RISING_LOGINS):
        by = f" GRANTED BY {grantor}" if grantor else ""
        can = "can become" if is_usable else f"has ADMIN OPTION on {granted}, so can become"
        yield Fault(
            f"role {name}, a member of selene_app or selene_readonly, {can} {powers}",
            sql=f"REVOKE {granted} FROM {name}{by} CASCADE;",
        )


def _setting_faults(conn: Connection) -> Iterator[Fault]:
    for database, role, name in conn.exec_driver_sql(_SETTINGS):
        within = f" IN DATABASE {database}" if database else ""
        whose = f"ROLE {role}{within}" if role else f"DATABASE {database}" if database else "ROLE ALL"
        yield Fault(
            f"{whose} sets {name} for every session: {_SETTING_HARMS[name]}",
            sql=f"ALTER {whose} RESET {name};",
        )


def _parameter_faults(conn: Connection) -> Iterator[Fault]:
    """Name who of ours may set what switches triggers off, or brings other code into a session."""
    for name, privilege, grantee, grantor in conn.exec_driver_sql(_PARAMETERS):
        revoke = f"REVOKE {privilege} ON PARAMETER {name} FROM {grantee} CASCADE;"
        yield Fault(
            f"{grantee} must not have {privilege} on parameter {name}",
            sql=f"SET ROLE {grantor};\n{revoke}\nRESET ROLE;" if grantor else revoke,
        )


def _sequence_faults(conn: Connection, facts: Facts) -> Iterator[Fault]:
    """Name sequences that would give out again what is taken; only whom no policy binds sees all rows."""
    if not conn.exec_driver_sql(_IS_SUPERUSER).scalar_one():
        return
    for thing, aspects in golden().facts.items():
        table, _, column = aspects.get("owned by", "").rpartition(".")
        if not table or thing not in facts or f"column {column}" not in facts.get(f"relation {table}", {}):
            continue
        name = thing.removeprefix("sequence ")
        # In this order: what is given out meanwhile makes the sequence come later, not the rows.
        newest = conn.exec_driver_sql(f"SELECT max({column}) FROM {table}").scalar_one()
        gives = conn.exec_driver_sql(f"SELECT last_value + is_called::integer FROM {name}").scalar_one()
        if newest is not None and gives <= newest:
            yield Fault(
                f"{thing} gives {gives} next, and relation {table} goes up to {newest} already",
                sql=f"SELECT setval({literal(name)}, (SELECT max({column}) FROM {table}));",
            )


_IS_SUPERUSER: Final = "SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user"
_SETTING_HARMS: Final = {
    "selene.tenant_id": "whoever sets no tenant is in that one",
    "session_replication_role": "foreign keys are not kept where it is replica",
    "row_security": "reading fails where it is off",
}
# Names of settings have no case, nor have their values; a boolean may be cut short.
_SETTINGS: Final = """
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
    WHERE (d.datname IS NULL OR d.datname = pg_catalog.current_database())
      AND parts.value <> ''
      AND (parts.name = 'selene.tenant_id'
        OR parts.name = 'session_replication_role' AND parts.value = 'replica'
        OR parts.name = 'row_security' AND (parts.value IN ('0', 'of', 'off')
          OR pg_catalog.starts_with('false', parts.value) OR pg_catalog.starts_with('no', parts.value)))
    ORDER BY 1, 2, 3
"""

_MEMBERS: Final = f"""
    {EDGES},
    readers AS (
      SELECT r.oid AS role FROM pg_catalog.pg_roles AS r WHERE r.rolname IN ('selene_app', 'selene_readonly')
      UNION
      SELECT m.member FROM readers JOIN memberships AS m ON m.roleid = readers.role WHERE m.is_usable
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
