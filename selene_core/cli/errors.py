"""Report errors on the command line: one line, an exit status and, with --json, an object."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

import click
import psycopg
from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from selene_core.cli.rendering import to_json
from selene_core.cli.terminal import say
from selene_core.contract.errors import SeleneCoreError, SeleneError
from selene_core.local.binaries import LocalServerUnavailable
from selene_core.migrations import MigrationLocked
from selene_core.store.failures import is_lost

if TYPE_CHECKING:
    from collections.abc import Iterator


class Status(IntEnum):
    """The exit statuses of the command line."""

    WELL = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130
    PIPE_CLOSED = 141


STATUSES = """\b
Exit status:
  0    all is well
  1    refused, unhealthy or failed
  2    wrong usage
  3    no database: unreachable or lost
  130  interrupted
  141  output closed, as by head

With --json a failure too is JSON on standard output: {"error": {"code", "message", ...}}, with field and rule
or other facts.
"""


class Interrupted(click.ClickException):
    """Ctrl-C was pressed."""

    exit_code = Status.INTERRUPTED

    def __init__(self, then: str | None = None) -> None:
        super().__init__(f"interrupted: {then}" if then else "interrupted")


class StoppedMidway(click.ClickException):
    """The command failed, for the exception's cause, after a part of its work, which stays."""

    def __init__(self, stays: str, **facts: object) -> None:
        super().__init__(stays)
        self.facts = facts


@contextmanager
def going_on(then: str) -> Iterator[None]:
    """Tell a user who interrupts the block what to do next."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise Interrupted(then) from exc


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure: its exit status, its code, a sentence, and the facts that the error carries."""

    status: Status
    code: str
    message: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The failure in one line, with its code if that is part of the contract."""
        told = f"{self.code}: {self.message}" if self.code.startswith("OS_") else self.message
        return " ".join("".join(each if each.isprintable() else " " for each in told).split())


def failure_of(exc: BaseException) -> Failure | None:
    """Return what an exception means to the user of a command; None for an unexpected one."""
    match exc:
        case StoppedMidway():
            if exc.__cause__ is None or (why := failure_of(exc.__cause__)) is None:
                return None
            facts = {**why.facts, **exc.facts}
            return replace(why, message=f"{why.message} ({exc.format_message()})", facts=facts)
        case Interrupted():
            return Failure(Status.INTERRUPTED, "INTERRUPTED", exc.format_message())
        case click.UsageError():
            return Failure(Status.USAGE, "USAGE", exc.format_message())
        case click.Abort() | KeyboardInterrupt():
            return Failure(Status.INTERRUPTED, "INTERRUPTED", "interrupted")
        case SeleneError():
            return Failure(Status.REFUSED, exc.code, str(exc), _facts(exc))
        case DBAPIError():
            return _database_failure(exc.orig) or Failure(Status.REFUSED, "DATABASE_ERROR", str(exc.orig))
        case psycopg.Error():
            return _database_failure(exc)
        case LocalServerUnavailable():
            return Failure(Status.UNREACHABLE, "LOCAL_SERVER_UNAVAILABLE", str(exc))
        case MigrationLocked():
            return Failure(Status.REFUSED, "MIGRATION_LOCKED", str(exc))
        case CommandError():
            return Failure(Status.REFUSED, "MIGRATION_REFUSED", str(exc))
        case click.ClickException():
            return Failure(Status.REFUSED, "FAILED", exc.format_message())
        case SeleneCoreError() | SQLAlchemyError() | RuntimeError() | OSError() | ValueError():
            return Failure(Status.REFUSED, "FAILED", str(exc))
        case _:
            return None


def fail(failure: Failure, *, as_json: bool) -> NoReturn:
    """Report a failure on standard error, with --json also on standard output, and exit."""
    if as_json:
        told = {"code": failure.code, "message": " ".join(failure.message.split()), **failure.facts}
        with suppress(OSError):  # it may be the output that failed
            say(to_json({"error": told}))
    say(f"selene-core: {failure.line}", err=True)
    sys.exit(failure.status)


def warn(reason: str) -> None:
    """Warn on standard error of something that is allowed, but hardly meant."""
    say(f"selene-core: warning: {reason}", err=True)


def warned_of_none(tenant: str, count: int) -> dict[str, str]:
    """Warn of a tenant without work orders; return the warning for JSON."""
    if count:
        return {}
    warning = f"tenant {tenant} has 0 work orders: is it spelled right?"
    warn(warning)
    return {"warning": warning}


def _facts(exc: SeleneError) -> dict[str, Any]:
    told = {fact.name: getattr(exc, fact.name) for fact in fields(exc) if fact.name != "message"}
    return {name: value for name, value in told.items() if value is not None}


def _database_failure(exc: BaseException | None) -> Failure | None:
    if not isinstance(exc, psycopg.Error):
        return None
    # Without PostgreSQL's DETAIL and CONTEXT: one line.
    message, state = exc.diag.message_primary or str(exc), exc.sqlstate
    facts = {} if state is None else {"sqlstate": state}
    if isinstance(exc, psycopg.ProgrammingError) and state is None:
        return Failure(Status.USAGE, "USAGE", f"the database URL: {message}")
    if is_lost(exc):
        return Failure(Status.UNREACHABLE, "UNREACHABLE", message, facts)
    return Failure(Status.REFUSED, "DATABASE_ERROR", message, facts)
