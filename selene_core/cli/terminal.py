"""What the output can show: its characters and columns, and a progress bar that fits."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final, Protocol

import click

from selene_core.cli.page import ESCAPE, WIDTH, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NARROWEST: Final = 20
_WIDEST_BAR: Final = 36
# What click draws beside a bar: brackets and gaps, the share, and the time that is left.
_BESIDE_A_BAR: Final = len("  [") + len("]  100%")
_TIME_LEFT: Final = len("  1d 00:00:00")
# The handlers that a user has not asked for.
_BY_DEFAULT: Final = frozenset({"strict", "surrogateescape", "backslashreplace"})


def prepare_streams() -> None:
    """Let standard output and error write an escape for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _BY_DEFAULT:
            stream.reconfigure(errors=ESCAPE)


def say(text: str, *, err: bool = False) -> None:
    """Write a line; click.echo() takes ASCII for a mistake and writes UTF-8 there."""
    if (stream := sys.stderr if err else sys.stdout) is not None:
        stream.write(f"{text}\n")
        stream.flush()


@contextmanager
def pouring() -> Iterator[Callable[[str], object]]:
    """Yield what writes much to standard output, and flush it once at the end."""
    if (stream := sys.stdout) is None:
        yield lambda _text: None
    else:
        yield stream.write
        stream.flush()


def discard_output() -> None:
    """Discard further standard output: its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def columns(stream: IO[str]) -> int:
    """Return how many columns the reader of a stream sees: COLUMNS, else the terminal's, else 80."""
    with suppress(ValueError):
        if (told := int(os.environ.get("COLUMNS", ""))) > 0:
            return told
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    return WIDTH


def text_width(stream: IO[str]) -> int:
    """Return how wide text for a stream's reader may be: from 20 to 80 columns."""
    return max(_NARROWEST, min(WIDTH, columns(stream)))


def page_on(stream: IO[str]) -> Page:
    """Return the page that a stream's reader sees, never wider than 80 columns."""
    return Page(text_width(stream), getattr(stream, "encoding", None) or "utf-8")


def is_watched(as_json: bool) -> bool:
    """Return whether somebody watches: a progress bar is for a terminal."""
    return not as_json and sys.stderr is not None and sys.stderr.isatty()


class Reach(Protocol):
    """Move a bar on."""

    def __call__(self, position: int, length: int | None = None) -> None: ...


@contextmanager
def progress(label: str, length: int, *, hidden: bool) -> Iterator[Reach]:
    """Draw a bar on standard error; yield what moves it on to a position, and can set its length anew."""
    bar = click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)

    def fit() -> None:
        # One column stays free, or the line would wrap.
        room = columns(sys.stderr) - len(label) - _BESIDE_A_BAR - 1
        bar.show_eta = room > _TIME_LEFT
        bar.width = max(1, min(_WIDEST_BAR, room - (_TIME_LEFT if bar.show_eta else 0)))

    def reach(position: int, length: int | None = None) -> None:
        bar.length = bar.length if length is None else length
        if position > bar.pos:
            fit()  # anew: the width of a terminal can change
            bar.update(position - bar.pos)

    fit()
    with bar:
        yield reach
