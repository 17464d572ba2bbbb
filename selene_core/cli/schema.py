"""The commands about the schema (contract §13 and §15)."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import click

from selene_core import migrations
from selene_core.cli.errors import StoppedMidway
from selene_core.cli.options import engine_on, json_option, optional_url_option, url_option
from selene_core.cli.rendering import counted, to_json
from selene_core.cli.terminal import say
from selene_core.migrations.downgrades import COUNTED, look
from selene_core.schema.doctor import examine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selene_core.migrations.downgrades import Loss
    from selene_core.schema.doctor import Diagnosis


@click.command()
@click.option("--dry-run", is_flag=True, help="Make the checks, say what would run, and change nothing.")
@url_option
@json_option
def upgrade(url: str, dry_run: bool, as_json: bool) -> None:
    """Upgrade the database to the newest revision."""
    if dry_run:
        sys.exit(not _dry_run(url, as_json))
    done = _upgraded(url)
    if as_json:
        click.echo(to_json(_listed(done)))
    elif done.revisions:
        click.echo(f"Upgraded from {done.before or 'an empty database'} to revision {done.after}.")
    elif done.meanwhile:
        click.echo(f"Nothing to do: another upgrade brought the database to revision {done.after} meanwhile.")
    else:
        click.echo(f"Nothing to do: the database stands at revision {done.after}.")


def _upgraded(url: str) -> migrations.Upgrade:
    """Upgrade; if it stops midway, say which revisions are there already."""
    ran: list[str] = []
    try:
        return migrations.upgrade(url, progress=lambda each: ran.append(each.revision))
    except (Exception, KeyboardInterrupt) as exc:
        if not ran:
            raise
        raise StoppedMidway(f"run before that, and kept: {', '.join(ran)}", revisions=ran) from exc


def _dry_run(url: str, as_json: bool) -> bool:
    """Say what an upgrade would do, and return whether its checks pass."""
    planned = migrations.plan(url)
    if as_json:
        click.echo(to_json({**_listed(planned), "refused": planned.refused}))
        return planned.refused is None
    if planned.revisions:
        click.echo(f"Would run, from {planned.before or 'an empty database'} to revision {planned.after}:")
        for each in planned.revisions:
            click.echo(f"  {each.revision}  {each.purpose}")
    elif planned.after:
        click.echo(f"Nothing to do: the database stands at revision {planned.after}.")
    else:
        click.echo("What would run cannot be seen: this login may not look.")
    refused = planned.refused
    click.echo(f"Would be refused: {refused}" if refused else "Every check passes. Nothing was changed.")
    return refused is None


def _listed(upgrade: migrations.Upgrade) -> dict[str, object]:
    revisions = [each.revision for each in upgrade.revisions]
    return {"from": upgrade.before, "to": upgrade.after, "revisions": revisions}


# So that a revision may be relative, -1.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--allow-data-loss", is_flag=True, help="Destroy the rows and values that would go.")
@click.option("--dry-run", is_flag=True, help="Say what it would take away, and change nothing.")
@url_option
@json_option
def downgrade(
    url: str, revision: str, yes: bool, allow_data_loss: bool, dry_run: bool, as_json: bool
) -> None:
    """Downgrade the database to REVISION, or to base; says first what is lost, and asks.

    Tables with their rows, columns with their values and functions are named first. Rows go with
    --allow-data-loss only. To find them the downgrade is run and rolled back: services wait so long.
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("with --json nothing is asked: say --yes, or --dry-run")
    loss = look(url, revision)
    kept = {} if allow_data_loss else loss.data
    refused = f"{_counted(kept)} would be lost: say --allow-data-loss to destroy that" if kept else None
    if not as_json:
        for line in _lost(loss):
            click.echo(line)
    if not dry_run and loss.revisions:
        if refused:
            raise migrations.MigrationRefused(f"downgrade refused: {refused}")
        way = f"from {loss.before} to revision {loss.after or 'base'}"
        if not (yes or _agreed(f"Downgrade {way}?")):
            raise click.ClickException("not confirmed: nothing was changed")
        migrations.downgrade(url, loss.after or "base", allow_data_loss=allow_data_loss)
        if not as_json:
            click.echo(f"Downgraded {way}.")
    if as_json:
        told = {
            "from": loss.before,
            "to": loss.after,
            "revisions": [each.revision for each in loss.revisions],
        }
        lost = {name: getattr(loss, name) for name in ("tables", "columns", "functions", "guards")}
        click.echo(to_json({**told, **lost, **({"refused": refused} if dry_run else {})}))
    elif dry_run:
        click.echo(f"Would be refused: {refused}" if refused else "Nothing was changed.")
    sys.exit(dry_run and refused is not None)


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question)
    except click.Abort:
        click.echo()
        return False


def _lost(loss: Loss) -> Iterator[str]:
    """Say what goes, the rows last: that is what the question after it is about."""
    if not loss.revisions:
        yield f"Nothing to do: the database stands at revision {loss.before or 'base'}."
        return
    yield f"A downgrade from {loss.before} to {loss.after or 'base'} undoes:"
    yield from (f"  {each.revision}  {each.purpose}" for each in loss.revisions)
    yield "It takes away:"
    yield from (f"  function {name}" for name in loss.functions)
    yield from (f"  {name}" for name in loss.guards)
    yield from (f"  column {_counted({name: count})}" for name, count in loss.columns.items())
    yield from (f"  table {_counted({name: count})}" for name, count in loss.tables.items())


def _counted(things: dict[str, int]) -> str:
    # A column's name has its table's before it.
    units = {name: "value" if name.count(".") > 1 else "row" for name in things}
    return ", ".join(
        f"{name} with more than {COUNTED:,} {units[name]}s"
        if count > COUNTED
        else f"{name} with {counted(count, units[name])}"
        for name, count in things.items()
    )


@click.command()
@url_option
@json_option
def current(url: str, as_json: bool) -> None:
    """Say at which revision the database is; exit status 0 only at the newest, and if the schema agrees."""
    stands, newest = migrations.current(url), migrations.history()[-1].revision
    contradiction = migrations.contradiction(url)
    if as_json:
        told = {"contradiction": contradiction} if contradiction else {}
        click.echo(to_json({"revision": stands, "newest": newest, **told}))
    elif contradiction:
        click.echo(contradiction)
    elif stands == newest:
        click.echo(f"{stands}: the newest.")
    else:
        click.echo(f"{stands or 'No revision'}: the newest is {newest}.")
    sys.exit(stands != newest or contradiction is not None)


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
    """Report problems of server, revision, roles and schema, and print the SQL that fixes them.

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
    """Write a diagnosis as an SQL script; its sentences are comments."""
    for number, fault in enumerate(diagnosis.faults, 1):
        yield _comment(f"{number}. {fault.what}")
        if fault.sql is not None:
            yield f"{_escaped(fault.sql).rstrip()}\n"
        else:
            yield _comment(f"   To fix it: {fault.command}") + "\n"
    yield from (_comment(f"Not seen: {line}") for line in diagnosis.unseen)
    where = f"PostgreSQL {diagnosis.server_version}, revision {diagnosis.revision or 'none'}"
    if diagnosis.healthy:
        yield _comment(f"Healthy: {where}.")
    yield from (_comment(f"Note: {line}") for line in diagnosis.notes)
    if diagnosis.faults:
        yield _comment(
            f"{len(diagnosis.faults)} to fix ({where}): run what stands here as a superuser, in this order."
        )
    elif not diagnosis.healthy:
        yield _comment(f"Nothing is wrong in what was seen ({where}).")


def _comment(text: str) -> str:
    # Names are whatever somebody chose: none may end the comment, or steer the terminal.
    return "-- " + "".join(character if character.isprintable() else " " for character in text).rstrip()


def _escaped(sql: str) -> str:
    """Write a statement so that no name in it steers a terminal, or goes over the end of its line."""
    return _TOKENS.sub(_escape, sql)


# A function's body is compared to the letter, and stays as it is; quoted names and texts may need an escape.
_TOKENS: Final = re.compile(
    r"""\$\$.*?\$\$|--[^\n]*|E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*\"""", re.DOTALL
)


def _escape(token: re.Match[str]) -> str:
    text = token[0]
    if text[0] not in "\"'" or text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\")
    return "U&" + "".join(each if each.isprintable() else f"\\+{ord(each):06x}" for each in escaped)


SCHEMA_COMMANDS: Final = (upgrade, downgrade, current, history, sql, doctor)
