"""The history of a client: what it asked for, before it asked, and what it was told, after that.

A file of JSON lines for each client, only ever appended to. A client may be killed between any two of them.
So what has no answer has an unknown outcome, unless its transaction was never told to commit.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

Fate = Literal["acknowledged", "refused", "unknown"]
Record = dict[str, Any]


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case UUID():
            return str(value)
        case Decimal():
            return int(value) if value == int(value) else float(value)
    raise TypeError(type(value).__name__)


class Recorder:
    """Append to the file of one client."""

    def __init__(self, path: Path, client: str) -> None:
        self.client = client
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
        if (size := os.fstat(self._file).st_size) and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # whoever wrote before was killed in the middle of a line
        self._transaction = 0

    def begin(self, **facts: Any) -> None:
        """Record the beginning of a transaction."""
        self._transaction += 1
        self.add("begin", **facts)

    def add(self, what: str, **facts: Any) -> None:
        """Record what happens in the transaction."""
        # The clock is the machine's, so that the lines of several clients can be compared.
        line = {"c": self.client, "n": self._transaction, "t": time.monotonic_ns(), "e": what, **facts}
        os.write(self._file, json.dumps(line, default=_plain, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(slots=True)
class Call:
    """One statement, and what became of it."""

    transaction: "Transaction"
    step: int
    op: str
    args: Record
    sent: int
    answered: int | None = None
    rows: list[Record] | None = None
    sqlstate: str | None = None
    undone: bool = False

    @property
    def fate(self) -> Fate:
        """Whether its effect is there for good."""
        if self.undone or self.sqlstate is not None:
            return "refused"
        if self.transaction.fate == "acknowledged" and self.rows is None:
            return "unknown"
        return self.transaction.fate

    @property
    def name(self) -> str:
        """Where it stands in the history."""
        return f"{self.transaction.client}/{self.transaction.number}/{self.step}"

    @property
    def settled(self) -> int | None:
        """The moment from which its effect was known to be there: its answer, or that of the commit."""
        return self.transaction.ended if self.fate == "acknowledged" else None


@dataclass(slots=True)
class Transaction:
    """The statements of one transaction of one client."""

    client: str
    number: int
    tenant: str
    isolation: str
    began: int
    calls: list[Call] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    fate: Fate = "refused"
    ended: int | None = None
    sqlstate: str | None = None

    def take(self, record: Record) -> None:
        """Take the next line of the file."""
        self.records.append(record)
        at, autocommit = record["t"], self.isolation == "autocommit"
        match record["e"]:
            case "call":
                self.calls.append(Call(self, record["s"], record["op"], record["args"], at))
                if autocommit:
                    self.fate = "unknown"
            case "answer":
                self.calls[-1].answered, self.calls[-1].rows = at, record["rows"]
                if autocommit:
                    self.fate, self.ended = "acknowledged", at
            case "refused" if "s" in record:
                self.calls[-1].answered, self.calls[-1].sqlstate = at, record["sqlstate"]
                if autocommit:
                    self.fate, self.ended = "refused", at
            case "undone":
                for call in self.calls:
                    call.undone |= call.step >= record["from"]
            case "commit":
                self.fate = "unknown"
            case "committed":
                self.fate, self.ended = "acknowledged", at
            case "refused":
                self.fate, self.ended, self.sqlstate = "refused", at, record["sqlstate"]


def read(lines: Iterable[str]) -> Iterator[Record]:
    """Parse the lines of a file; one that a kill cut off is none."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield record


def transactions(records: Iterable[Record]) -> list[Transaction]:
    """Put the records of one or more clients together."""
    found: dict[tuple[str, int], Transaction] = {}
    for record in records:
        key = record["c"], record["n"]
        if record["e"] == "begin":
            found[key] = Transaction(*key, record["tenant"], record["isolation"], record["t"])
        found[key].take(record)
    return [*found.values()]


def load(folder: Path) -> list[Transaction]:
    """Read the histories of all clients in a folder."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            found += transactions(read(lines))
    return found
