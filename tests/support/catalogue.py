"""Write selene_core/schema/catalogue.txt and traces.json anew, after a change of the schema that is meant.

Then read the difference.

python -m tests.support.catalogue
"""

import json
from contextlib import ExitStack

import sqlalchemy as sa
from alembic.script import ScriptDirectory

from selene_core.migrations import TRACES, config, upgrade
from selene_core.schema.catalogue import read, render
from selene_core.schema.drift import CATALOGUE_FILE
from tests.support.servers import Server, open_server

__all__ = ["CATALOGUE_FILE", "catalogue", "catalogue_text", "traces_text"]


def catalogue(conn: sa.Connection) -> str:
    """Describe the roles and everything in os_core and conversation, one fact a line."""
    with conn.begin():
        return render(read(conn))


def catalogue_text(conn: sa.Connection) -> str:
    """Describe a database at the newest revision as catalogue.txt does."""
    revisions = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()]
    with conn.begin():
        return f"revisions: {' '.join(revisions[::-1])}\n\n{render(read(conn))}"


def traces_text(server: Server) -> str:
    """Name what each revision makes that is still there at head: tables, or what else where it makes none."""
    revisions = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]
    before: set[str] = set()
    made: dict[str, set[str]] = {}
    with server.new_database("traces") as database:
        for revision in revisions:
            upgrade(database.admin_url, revision)
            with database.engine("admin", poolclass=sa.NullPool).connect() as conn:
                there = _names(conn)
            made[revision], before = there - before, there
    lines = []
    for revision in revisions:
        lasting = sorted(made[revision] & before)
        tables = [thing for thing in lasting if thing.startswith("relation ")]
        lines.append(json.dumps([revision, tables or lasting]))
    return "[\n " + ",\n ".join(lines) + "\n]\n"


def _names(conn: sa.Connection) -> set[str]:
    names = set()
    for thing, aspects in read(conn).items():
        kind, _, name = thing.partition(" ")
        if kind == "function":
            names.add(f"function {name.partition('(')[0]}")
        elif kind == "relation":
            parts = [aspect.split(" ", 1) for aspect in aspects if " " in aspect]
            names |= {thing, *(f"{each} {name}.{part}" for each, part in parts if each in _PARTS)}
    return names - {thing for thing in names if "os_core.alembic_version" in thing}


_PARTS = {"column", "policy", "trigger"}


def _main() -> None:
    with ExitStack() as stack:
        server = open_server(stack)
        with server.new_database("catalogue") as database:
            upgrade(database.admin_url)
            with database.engine("admin").connect() as conn:
                CATALOGUE_FILE.write_text(catalogue_text(conn), encoding="utf-8")
        TRACES.write_text(traces_text(server), encoding="utf-8")


if __name__ == "__main__":
    _main()
