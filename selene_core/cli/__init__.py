"""The command line (contract §15). An error is one line and an exit status (see errors.py)."""

from __future__ import annotations

import sys
from typing import Any

import click

from selene_core.cli.citus import CITUS_COMMANDS
from selene_core.cli.errors import STATUSES, Interrupted, Status, fail, failure_of
from selene_core.cli.feed import FEED_COMMANDS
from selene_core.cli.operations import OPERATIONS
from selene_core.cli.privacy import PRIVACY_COMMANDS
from selene_core.cli.schema import SCHEMA_COMMANDS
from selene_core.cli.seals import SEAL_COMMANDS
from selene_core.cli.terminal import discard_output, prepare_streams, text_width
from selene_core.cli.work_orders import WORK_ORDER_COMMANDS
from selene_core.command import raise_when_interrupted
from selene_core.store.scope import translate_errors


class _Commands(click.Group):
    """The commands, each with its whole summary in the list of them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would cut a summary that is longer than a line."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(sys.maxsize))
                    for name, command in sorted(self.commands.items())
                ]
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; report an interruption like any other error."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise Interrupted from exc
        except BrokenPipeError:
            discard_output()
            sys.exit(Status.PIPE_CLOSED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=STATUSES)
@click.version_option(package_name="selene-os-core")
def cli() -> None:
    """Keep work orders in PostgreSQL: an append-only ledger and its projection.

    A database's URL is postgresql://user@host:port/name, with commas between several host:port.
    """


for command in (
    *WORK_ORDER_COMMANDS,
    *OPERATIONS,
    *FEED_COMMANDS,
    *SEAL_COMMANDS,
    *PRIVACY_COMMANDS,
    *SCHEMA_COMMANDS,
    *CITUS_COMMANDS,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; what goes wrong is one line on standard error, and an exit status."""
    options = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        raise_when_interrupted()
        prepare_streams()
        with translate_errors():
            cli.main(standalone_mode=False, terminal_width=text_width(sys.stdout) - 2)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (Exception, KeyboardInterrupt) as exc:
        if (failure := failure_of(exc)) is None:
            raise
        fail(failure, as_json="--json" in options)
