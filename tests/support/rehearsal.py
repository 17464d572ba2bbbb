"""The soak test's clients as threads on a test's database, and its checker: for faults planted there."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from soak.checker.check import check
from soak.checker.feed import MAKE_CONSUMED, check_feed
from soak.checker.finding import Finding
from soak.checker.tables import Tables, read_tables
from soak.clients.events import Events
from soak.clients.roles import ROLES, Client, Stage
from soak.clients.session import Lost, Session
from soak.drain import drain
from soak.history import Recorder, Transaction, load

SLICE_SECONDS = 1.0
DEADLINE_SECONDS = 120


@dataclass(slots=True)
class Rehearsal:
    """What clients did on one database, and what is then to be seen."""

    app_dsn: str
    admin_dsn: str
    folder: Path
    seed: str
    played: int = 0
    of_the_feed: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the table of the consumers."""
        with closing(psycopg.connect(self.admin_dsn, autocommit=True)) as conn:
            conn.execute(MAKE_CONSUMED.encode())

    def play(self, seconds: float = SLICE_SECONDS) -> tuple[Tables, list[Transaction]]:
        """Let a client of each role work for a while; return the tables and the history."""
        folder = self.folder / f"{self.played}"
        folder.mkdir()
        tenants = tuple(f"r{self.played}-tenant-{each}" for each in range(2))
        stage = Stage(f"r{self.played}.", tenants, time.monotonic(), seconds)
        self.played += 1
        roles = [*ROLES, "writer"]
        with ThreadPoolExecutor(len(roles)) as pool:
            running = [
                pool.submit(self._client, number, role, stage, folder, time.monotonic() + seconds)
                for number, role in enumerate(roles)
            ]
        for each in running:
            each.result()
        with closing(psycopg.connect(self.admin_dsn, autocommit=True)) as conn:
            drain(conn, stage.tenants)
            self.of_the_feed = [*check_feed(conn, stage.tenants)]
            return read_tables(conn, stage.prefix), load(folder)

    def _client(self, number: int, role: str, stage: Stage, folder: Path, until: float) -> None:
        name = f"{role}-{number}"
        luck = random.Random(f"{self.seed}/{self.played}/{name}")
        recorder = Recorder(folder / f"{name}.jsonl", name)
        session = Session(self.app_dsn, recorder, luck, lambda: time.monotonic() > until)
        client = Client(stage, session, Events(luck, 1 + number), luck, name)
        while time.monotonic() < until:
            with suppress(Lost):
                client.act(role)
        session.close()
        recorder.close()

    def find(
        self, kind: str, alter: Callable[[Tables, list[Transaction], random.Random], None] | None = None
    ) -> tuple[Finding, Tables, Sequence[Transaction]]:
        """Play until the checker finds a fault of this kind; fail after two minutes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        luck = random.Random(self.seed)
        others: set[Any] = set()
        while time.monotonic() < deadline:
            tables, history = self.play()
            if alter is not None:
                alter(tables, history, luck)
            found = [*check(tables, history), *self.of_the_feed]
            for finding in found:
                if finding.kind == kind:
                    return finding, tables, history
            others |= {str(finding) for finding in found}
        raise AssertionError(f"no {kind} was found within {DEADLINE_SECONDS} s, but {sorted(others)[:5]}")


def dsn(url: Any) -> str:
    """Write a URL as libpq reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
