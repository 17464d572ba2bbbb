"""Examine a database: report problems, and how to fix them (contract §15).

It reads system catalogues and the version table, which any member of selene_app or selene_readonly may, and
says what it could not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy.exc import DBAPIError

from selene_core.citus import is_distributed
from selene_core.schema.catalogue import Facts, plain_settings, read, read_revisions
from selene_core.schema.drift import (
    VERSION_TABLE,
    describe,
    differences,
    expected_schema,
    has_tables,
    shared_differences,
)
from selene_core.schema.environment import login_faults, owned_elsewhere, parameter_faults, setting_faults
from selene_core.schema.remedies import Fault, faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from sqlalchemy import Connection

    T = TypeVar("T")

# Known bugs of server releases: the sentence and, for each major version, the first minor release without it.
_FLAWS: Final = (
    ("MERGE passes over row-level security (CVE-2023-39418)", {15: 4}),
    ("a plan may use another role's row-level security (CVE-2024-10976)", {15: 9, 16: 5, 17: 1}),
    ("planner statistics show what row-level security hides (CVE-2025-8713)", {15: 14, 16: 10, 17: 6}),
)
# One release each: by ALTER ROLE ... SET role a migrator may act as selene_owner.
_WITHOUT_SET_ROLE: Final = {150009, 160005, 170001}
_OLDEST: Final = 15
_NEWEST: Final = 18


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The faults in the order to fix them, notes on what need not be fixed, and what could not be seen."""

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
        conn.exec_driver_sql("RESET selene.tenant_id")  # what a session before this one left, behind a pooler
        return _examine(conn)


def _examine(conn: Connection) -> Diagnosis:
    number = int(conn.exec_driver_sql("SHOW server_version_num").scalar_one())
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
    stamps = seen("the revision", lambda conn: read_revisions(conn) or ())
    found = [*server_faults(number, conn.exec_driver_sql("SHOW server_encoding").scalar_one())]
    notes = [*_server_notes(conn, number)]
    if facts is not None:
        found += _schema_faults(facts, stamps, notes, unseen)
    found += seen("what selene_owner has elsewhere", lambda conn: [*owned_elsewhere(conn)]) or ()
    found += seen("the logins", lambda conn: [*login_faults(conn)]) or ()
    found += seen("the settings", lambda conn: [*setting_faults(conn, unseen)]) or ()
    if number // 10000 >= _OLDEST:
        found += seen("the privileges on parameters", lambda conn: [*parameter_faults(conn)]) or ()
    found += seen("the sequences", lambda conn: [*_sequence_faults(conn, facts or {})]) or ()
    return Diagnosis(
        server_version=conn.exec_driver_sql("SHOW server_version").scalar_one(),
        login=conn.exec_driver_sql("SELECT current_user").scalar_one(),
        revision=", ".join(stamps or ()) or None,
        head=expected_schema().head,
        faults=tuple(found),
        notes=tuple(notes),
        unseen=tuple(unseen),
    )


def server_faults(number: int, encoding: str = "UTF8") -> Iterator[Fault]:
    """Return the known bugs of a release, by its server_version_num, and the faults of an encoding."""
    if encoding != "UTF8":
        remedy = "dump it and restore it into a database made with ENCODING 'UTF8'"
        yield Fault(f"the database is encoded in {encoding}, not in UTF8", command=remedy)
    major, minor = divmod(number, 10000)
    if major < _OLDEST:
        remedy = f"upgrade the server to {_OLDEST} or newer"
        yield Fault(f"PostgreSQL {major} is not supported", command=remedy)
    known = {why: good[major] for why, good in _FLAWS if minor < good.get(major, 0)}
    if number in _WITHOUT_SET_ROLE:
        known["ALTER ROLE ... SET role has no effect in this release"] = minor + 1
    if known:
        yield Fault(
            f"PostgreSQL {major}.{minor}: {'; '.join(known)}",
            command=f"update the server to {major}.{max(known.values())} or newer",
        )


def _server_notes(conn: Connection, number: int) -> Iterator[str]:
    if number // 10000 > _NEWEST:
        yield f"PostgreSQL {number // 10000} is newer than what this version was tested with ({_NEWEST})"
    connects = "SELECT pg_catalog.has_database_privilege('public', pg_catalog.current_database(), 'CONNECT')"
    if conn.exec_driver_sql(connects).scalar_one():
        yield (
            "PUBLIC may connect to this database: a member of selene_app that was made for another database"
            " of the cluster can append in this one (docs/howto/roles.md)"
        )


_GUARDED_SINCE: Final = "0006"  # from this revision on a table comes with its policies and triggers


def _schema_faults(
    facts: Facts, stamps: tuple[str, ...] | None, notes: list[str], unseen: list[str]
) -> list[Fault]:
    """Compare the schema as far as its revision allows: None was not seen, () is none."""
    wanted = expected_schema()
    found = [*differences(wanted.facts, facts)]
    notes += (describe(d).replace("must not be there", "is not ours") for d in found if d.is_harmless)
    serious = [difference for difference in found if not difference.is_harmless]
    unknown = [stamp for stamp in stamps or () if stamp not in wanted.revisions]
    is_guarded = (
        all(stamp in unknown or stamp >= _GUARDED_SINCE for stamp in stamps)
        if stamps
        else any(aspect.startswith("trigger ") for thing in wanted.facts for aspect in facts.get(thing, ()))
    )
    shared = [*shared_differences(facts, is_guarded=is_guarded)]
    ours = [difference for difference in serious if difference.thing != VERSION_TABLE]
    # An older schema lacks what came later; a newer one differs in more than what is wrong at any revision.
    is_newest = (
        {*ours} <= {*shared}
        if unknown
        else all(d.aspect or d.found or d.kind not in {"relation", "function", "sequence"} for d in ours)
    )
    if stamps is None:
        if not is_newest:
            unseen.append("what else the schema has to have: that is the revision's to say")
        return faults(serious if is_newest else shared)
    stands = f"stands at revision {' and '.join(stamps)}" if stamps else "has no revision"
    if not has_tables(facts) and stamps and (unknown or stamps[-1] >= _GUARDED_SINCE):
        what = f"the database {stands}, but none of our tables is there: this os_core is not ours, or empty"
        remedy = "give selene-core a database of its own, or restore this one from a backup"
        return [Fault(what, command=remedy)]
    if stamps == (wanted.head,):
        return faults(serious)
    remedy = "put the revision that it stands at, and no other, into os_core.alembic_version, then ask again"
    if is_newest:
        told = f"but its schema is that of {wanted.head}"
    elif len(stamps) > 1:
        told = "but it can stand at one only"
    elif not stamps and has_tables(facts):
        told = "but tables of ours are there: they were not compared"
    elif unknown:
        told = (
            f"which this version of selene-core does not know (it knows {wanted.head}): a newer one has"
            " migrated it, and its tables and functions were not compared"
        )
        remedy = "pip install --upgrade selene-os-core"
    else:
        behind = len(wanted.revisions) - (wanted.revisions.index(stamps[0]) + 1 if stamps else 0)
        told = f"{behind} behind {wanted.head}: what is new since was not compared"
        remedy = "selene-core upgrade"
    judged = serious if is_newest else shared if stamps or has_tables(facts) else []
    return [*faults(judged), Fault(f"the database {stands}, {told}", command=remedy)]


def _sequence_faults(conn: Connection, facts: Facts) -> Iterator[Fault]:
    """Return the sequences that would give ids that are taken; only a superuser sees all rows."""
    if conn.exec_driver_sql("SHOW is_superuser").scalar_one() != "on" or is_distributed(conn):
        return  # Distributed, each node gives ids of a range of its own.
    for thing, aspects in expected_schema().facts.items():
        table, _, column = aspects.get("owned by", "").rpartition(".")
        if not table or thing not in facts or f"column {column}" not in facts.get(f"relation {table}", {}):
            continue
        name = thing.removeprefix("sequence ")
        # Rows before the sequence: ids given meanwhile then raise the sequence's value, not the rows'.
        newest = conn.exec_driver_sql(f"SELECT max({column}) FROM {table}").scalar_one()
        gives = conn.exec_driver_sql(f"SELECT last_value + is_called::integer FROM {name}").scalar_one()
        if newest is not None and gives <= newest:
            yield Fault(
                f"{thing} gives {gives} next, and relation {table} goes up to {newest} already",
                sql=f"SELECT setval('{name}', (SELECT max({column}) FROM {table}));",
            )
