"""The options of every command that uses a database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from selene_core.store.engines import create_selene_engine, psycopg_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

_Command = TypeVar("_Command", bound="Callable[..., Any]")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value, for machines.")


def _readable(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    if url is not None:
        try:
            psycopg_url(url)
        except (TypeError, ValueError) as exc:
            raise click.UsageError(str(exc)) from exc
    return url


def _url_option(*, required: bool) -> Callable[[_Command], _Command]:
    return click.option(
        "--url",
        metavar="URL",
        envvar="SELENE_DATABASE_URL",
        show_envvar=True,
        required=required,
        callback=_readable,
        help="The database; it may have several hosts.",
    )


url_option = _url_option(required=True)
optional_url_option = _url_option(required=False)


@contextmanager
def engine_on(url: str) -> Iterator[Engine]:
    """Connect on demand, and close what was opened."""
    # As behind a pooler, which the URL does not tell: a command gains nothing from prepared statements.
    engine = create_selene_engine(url, pooler=True)
    try:
        yield engine
    finally:
        engine.dispose()
