"""Files of JSON lines, plain or compressed by gzip, read line by line in bounded memory."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from selene_core.contract.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_LINE: Final = 1 << 20
"""The bytes of the longest line that is imported; an event has a payload of 16 KiB."""

_GZIP: Final = b"\x1f\x8b"
_COMPRESSED: Final = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
}


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedReader]:
    """Open a file, or standard input for -, for read_lines(); raises ContractViolation without an input."""
    if str(file) != "-":
        with file.open("rb") as raw:
            yield raw
        return
    standard = getattr(sys.stdin, "buffer", None)
    if not isinstance(standard, io.BufferedReader):
        raise ContractViolation(field="file", rule="is standard input, which is closed")
    yield standard


def read_lines(raw: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is longer than LONGEST_LINE only the beginning, and a byte more.

    A gzip file is known by its content, not by its name. Raises ContractViolation if the file cannot be read,
    or not to its end.
    """
    start = raw.peek(8)
    for magic, what in _COMPRESSED.items():
        if start.startswith(magic):
            raise ContractViolation(field="file", rule=f"is {what}: of those only gzip is read")
    file = gzip.GzipFile(fileobj=raw) if start.startswith(_GZIP) else raw
    try:
        while line := file.readline(LONGEST_LINE + 1):
            yield line
            # What follows in an over-long line is passed over, never held.
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise ContractViolation(field="file", rule=f"is damaged or cut off from here on ({exc})") from exc
