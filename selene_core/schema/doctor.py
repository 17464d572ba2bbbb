"""Examine a database: what is wrong with server, revision, roles and schema, and how to mend it (section 15).

It reads system catalogues and the version table, which any member of selene_app or selene_readonly may, and
says what it could not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy.exc import DBAPIError

from selene_core.schema.catalogue import Facts, plain_settings, read, read_revisions
from selene_core.schema.displaced import find_displaced
from selene_core.schema.drift import Difference, describe, differences, golden, shared_differences
from selene_core.schema.environment import (
    login_faults,
    owned_elsewhere,
    parameter_faults,
    server_setting_faults,
    setting_faults,
)
from selene_core.schema.remedies import VERSION_TABLE, Fault, faults, printable

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
    with plain_settings(conn):
        return _examine(conn)


def _examine(conn: Connection) -> Diagnosis:
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
    mends += seen("what selene_owner has elsewhere", lambda conn: [*owned_elsewhere(conn, mends)]) or []
    logins = seen("the logins", lambda conn: [*login_faults(conn)]) or []
    of_server, hidden = seen("the settings of the server", server_setting_faults) or ([], [])
    unseen += hidden
    settings = seen("the settings of roles and databases", lambda conn: [*setting_faults(conn)]) or []
    if number // 10000 >= _OLDEST:
        settings += seen("the privileges on parameters", lambda conn: [*parameter_faults(conn)]) or []
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
                *of_server,
                *settings,
                *(behind or []),
            )
        ),
        notes=(
            *_server_notes(conn, number),
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


def _server_notes(conn: Connection, number: int) -> Iterator[str]:
    if number // 10000 > _NEWEST:
        yield f"PostgreSQL {number // 10000} is newer than what this version was tested with ({_NEWEST})"
    if conn.exec_driver_sql(_PUBLIC_CONNECTS).scalar_one():
        yield (
            "PUBLIC may connect to this database: a member of selene_app that was made for another database"
            " of the cluster can append in this one (docs/deployment.md, Roles)"
        )


_PUBLIC_CONNECTS: Final = """
    SELECT EXISTS (
      SELECT
      FROM pg_catalog.pg_database AS d
      CROSS JOIN LATERAL pg_catalog.aclexplode(
        COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))
      ) AS item
      WHERE d.datname = pg_catalog.current_database()
        AND item.grantee = 0 AND item.privilege_type = 'CONNECT'
    )
"""


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
        command="pip install --upgrade selene-os-core",
    )


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


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
