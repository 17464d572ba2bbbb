"""The commands about the schema: upgrade, current, history, sql, doctor (SPEC.md sections 13 and 15)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from selene_core import migrations
from selene_core.cli_options import engine_on, json_option, optional_url_option, url_option
from selene_core.doctor import examine
from selene_core.rendering import to_json
from selene_core.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selene_core.doctor import Diagnosis


@click.command()
@url_option
@json_option
def upgrade(url: str, as_json: bool) -> None:
    """Upgrade the database to the newest revision."""
    before = migrations.current(url)
    migrations.upgrade(url)
    after = migrations.current(url)
    if as_json:
        click.echo(to_json({"from": before, "to": after}))
    elif before == after:
        click.echo(f"Nothing to do: the database stands at revision {after}.")
    else:
        click.echo(f"Upgraded from {before or 'an empty database'} to revision {after}.")


@click.command()
@url_option
@json_option
def current(url: str, as_json: bool) -> None:
    """Say at which revision the database stands; exit status 0 only if it is the newest."""
    stands, newest = migrations.current(url), migrations.history()[-1].revision
    if as_json:
        click.echo(to_json({"revision": stands, "newest": newest}))
    elif stands == newest:
        click.echo(f"{stands}: the newest.")
    else:
        click.echo(f"{stands or 'No revision'}: the newest is {newest}.")
    sys.exit(stands != newest)


@click.command()
@optional_url_option
@json_option
def history(url: str | None, as_json: bool) -> None:
    """List the revisions, the oldest first; with a database, mark where it stands."""
    stands = migrations.current(url) if url else None
    revisions = migrations.history()
    if as_json:
        listed = [
            {"revision": each.revision, "purpose": each.purpose, "current": each.revision == stands}
            for each in revisions
        ]
        click.echo(to_json(listed))
        return
    for each in revisions:
        mark = "→" if each.revision == stands else " "
        say(f"{mark} {each.revision}  {each.purpose}")
    if stands is not None and stands not in {each.revision for each in revisions}:
        say(f"→ {stands}  (not known to this version)")


@click.command()
@click.argument("revisions", default="head")
@json_option
def sql(revisions: str, as_json: bool) -> None:
    """Print an upgrade as a script, without a database: selene-core sql | psql -v ON_ERROR_STOP=1.

    REVISIONS is where it ends, head unless told, or from:to for a database that stands at `from` already.
    """
    script = migrations.script(revisions)
    click.echo(to_json({"revisions": revisions, "sql": script}) if as_json else script, nl=as_json)


@click.command()
@url_option
@json_option
def doctor(url: str, as_json: bool) -> None:
    """Examine server, revision, roles and schema: what is wrong, and the SQL that mends it.

    It changes nothing, and needs no more than what members of selene_app may do.
    """
    with engine_on(url) as engine, engine.connect() as conn:
        diagnosis = examine(conn)
    if as_json:
        click.echo(to_json({"healthy": diagnosis.healthy, "diagnosis": diagnosis}))
    else:
        for line in _told(diagnosis):
            say(line)
    sys.exit(not diagnosis.healthy)


def _told(diagnosis: Diagnosis) -> Iterator[str]:
    """Write a diagnosis as a script of SQL: what is to be said stands in its comments."""
    for number, fault in enumerate(diagnosis.faults, 1):
        yield _comment(f"{number}. {fault.what}")
        if fault.sql is not None:
            # As it is: a function's body is compared to the letter.
            yield f"{fault.sql.rstrip()}\n"
        else:
            yield _comment(f"   To mend it: {fault.command or _NO_STATEMENT}") + "\n"
    yield from (_comment(f"Not seen: {line}") for line in diagnosis.unseen)
    where = f"PostgreSQL {diagnosis.server_version}, revision {diagnosis.revision or 'none'}"
    if diagnosis.healthy:
        yield _comment(f"Healthy: {where}.")
    yield from (_comment(f"Note: {line}") for line in diagnosis.notes)
    if diagnosis.faults:
        yield _comment(
            f"{len(diagnosis.faults)} to mend ({where}): run what stands here as a superuser, in this order."
        )
    elif not diagnosis.healthy:
        yield _comment(f"Nothing is wrong in what was seen ({where}).")


_NO_STATEMENT: Final = "no statement does; compare with a freshly migrated database"


def _comment(text: str) -> str:
    # Names are whatever somebody chose: none may end the comment, or steer the terminal.
    return "-- " + "".join(character if character.isprintable() else " " for character in text).rstrip()


DATABASE_COMMANDS: Final = (upgrade, current, history, sql, doctor)
