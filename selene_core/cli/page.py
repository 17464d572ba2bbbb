"""The page that a reader sees: its columns and its characters. Lines are broken between words."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final
from unicodedata import category, east_asian_width

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH: Final = 80
ESCAPE: Final = "selene-escape"
"""The name of the error handler that writes what an encoding lacks."""

_WIDE: Final = 64  # columns from which on details stand in a column of their own
_MOST_CHARACTERS: Final = 8 * WIDTH  # in a line, whose marks take no column
_JOINERS: Final = "\u200c\u200d"  # of Persian and Indic letters, and of emoji
_WORD: Final = re.compile(r" *(?:(?:→|->) )?[^ ]+")
_SIGNS: Final = {"→": "->", "…": "...", "�": "?"}  # our own


def _escape(exc: UnicodeError) -> tuple[str, int]:
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    lacking = exc.object[exc.start : exc.end]
    # As JSON does it: a value that is shown as JSON stays JSON.
    return "".join(_SIGNS.get(each) or json.dumps(each)[1:-1] for each in lacking), exc.end


codecs.register_error(ESCAPE, _escape)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of so many columns, which can show the characters of an encoding."""

    width: int = WIDTH
    encoding: str = "utf-8"

    @property
    def fact_indent(self) -> int:
        """The column in which facts begin, and in which their next lines begin."""
        return 14 if self.width >= _WIDE else 4

    @property
    def event_indent(self) -> int:
        """The column in which the details of an event begin."""
        return 17 if self.width >= _WIDE else 7

    def narrowed(self, by: int) -> Page:
        """Return the page that is left beside a margin."""
        return Page(self.width - by, self.encoding)

    def shown(self, text: str) -> str:
        """Return a text as the page shows it."""
        # What a payload holds goes to a terminal: no control characters, however they came in.
        clean = "".join(each if each.isprintable() or each in _JOINERS else "�" for each in text)
        return clean.encode(self.encoding, ESCAPE).decode(self.encoding)

    def holds(self, text: str) -> bool:
        """Tell if a text fits in one line."""
        return self._fits(self.shown(text))

    def fold(self, text: str, indent: int = 0) -> Iterator[str]:
        """Break a text between words if it is too long for a line; a word, such as an id, stays whole."""
        yield from (line for line, _ in self._broken(self.shown(text), indent, whole=True))

    def cut(self, text: str, indent: int, most: int = 1) -> Iterator[str]:
        """Break a text into at most so many lines, more on a narrow page; … marks a cut."""
        most = max(most, round(most * WIDTH / self.width))
        lines: list[tuple[str, bool]] = []
        for line in self._broken(self.shown(text), indent, whole=False):
            if len(lines) == most:
                lines[-1] = (self._ended(*lines[-1]), False)
                break
            lines.append(line)
        yield from (line for line, _ in lines)

    def _broken(self, text: str, indent: int, *, whole: bool) -> Iterator[tuple[str, bool]]:
        """Yield the lines of a text, and of each whether it ends inside a word."""
        margin = " " * indent
        line = ""
        for word in _WORD.findall(text):
            moved = margin + word.lstrip()
            if whole and not self._fits(moved):
                # An id may begin left of the margin, rather than be on two lines.
                moved = " " * max(0, self.width - _columns(word.lstrip())) + word.lstrip()
            if line.strip() and not self._fits(line + word) and (whole or self._fits(moved)):
                yield line, False
                line = moved
            elif whole and not line and not self._fits(word):
                line = moved
            else:
                line += word
            while not whole and not self._fits(line):
                length = self._length(line, self.width)
                yield line[:length], True
                line = margin + line[length:]
        yield line, False

    def _ended(self, line: str, in_word: bool) -> str:
        end = self.shown("…") if in_word else f" {self.shown('…')}"
        if in_word or not self._fits(line + end):
            kept = line[: self._length(line, self.width - len(end))]
            # Between words, if that leaves most of the line.
            before = kept.rpartition(" ")[0].rstrip()
            if in_word or _columns(before) < self.width // 2:
                return kept + end.strip()
            line = before
        return line + end

    def _fits(self, text: str) -> bool:
        return len(text) <= _MOST_CHARACTERS and _columns(text) <= self.width

    def _length(self, text: str, width: int) -> int:
        reached = accumulate(map(_columns_of, text[:_MOST_CHARACTERS]))
        return max(1, sum(columns <= width for columns in reached))


def _columns(text: str) -> int:
    """Count the columns of a terminal: an ideograph takes two, what joins or marks the one before it none."""
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
