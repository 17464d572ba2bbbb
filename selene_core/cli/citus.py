"""The commands of the scale-out profile (docs/howto/citus.md)."""

from __future__ import annotations

import sys
from typing import Final

import click

from selene_core.cli.options import json_option, url_option
from selene_core.cli.rendering import to_json
from selene_core.cli.terminal import say
from selene_core.migrations import citus as profile


@click.group()
def citus() -> None:
    """Spread one database over the nodes of a Citus cluster; not needed on one server."""


@citus.command()
@url_option
@json_option
def upgrade(url: str, as_json: bool) -> None:
    """Distribute the tables and functions of a database that stands at the newest revision."""
    ran = profile.upgrade(url)
    if as_json:
        click.echo(to_json({"steps": [each.revision for each in ran]}))
        return
    for each in ran:
        say(f"{each.revision}  {each.purpose}")
    say("Distributed." if ran else "Nothing to do: the database is distributed.")


@citus.command()
@url_option
@json_option
def check(url: str, as_json: bool) -> None:
    """Compare every node with what it must be; exit status 0 only if all is well. It changes nothing."""
    problems = profile.check(url)
    if as_json:
        click.echo(to_json({"healthy": not problems, "problems": problems}))
    else:
        for each in problems or ["Healthy: every node is as it must be."]:
            say(each)
    sys.exit(bool(problems))


CITUS_COMMANDS: Final = (citus,)
