"""A client as a process: it does things until it is told to stop, or killed."""

import os
import random
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soak.clients.events import Events
from soak.clients.roles import Client, Sent, Stage, is_repeatable
from soak.clients.session import Lost, Session
from soak.history import Recorder, read, transactions

TAIL_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Post:
    """The place of a client: after a kill another one takes it, and goes on with its file."""

    number: int
    role: str
    dsn: str
    folder: Path
    seed: str
    stage: Stage

    @property
    def path(self) -> Path:
        """The history of everybody who had this post."""
        return self.folder / f"{self.number:03}-{self.role}.jsonl"


def main(post: Post, incarnation: int) -> None:
    """Work until SIGTERM comes."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    # A terminal's interrupt reaches every process; the run decides when its clients end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    parent = os.getppid()
    name = f"{post.role}-{post.number}.{incarnation}"
    luck = random.Random(f"{post.seed}/{name}")
    unfinished = _last_unanswered(post.path)
    recorder = Recorder(post.path, name)
    session = Session(post.dsn, recorder, luck, lambda: stopping or os.getppid() != parent)
    # The reason codes of two incarnations must differ: 2^12 clients of 2^20 events each.
    client = Client(post.stage, session, Events(luck, 1 + post.number * 64 + incarnation), luck, name)
    with suppress(Lost):
        if unfinished is not None:
            client.again(unfinished)
    while not stopping and os.getppid() == parent:
        with suppress(Lost):
            client.act(post.role)
    session.close()
    recorder.close()


def _last_unanswered(path: Path) -> Sent | None:
    """Return the last call of the one who had the post before, if it has no answer and may be sent again."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    records = [*read(lines)]
    first = next((n for n, record in enumerate(records) if record["e"] == "begin"), len(records))
    found = transactions(records[first:])
    if not found or found[-1].fate != "unknown" or not found[-1].calls:
        return None
    call = found[-1].calls[-1]
    return (found[-1].tenant, call.op, call.args) if is_repeatable(call.op, call.args) else None
