"""A run: rounds of clients and a nemesis on one server, each checked when it ends."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psycopg

from selene_core.migrations import contradiction
from soak.checker.check import check, check_verify
from soak.checker.feed import check_feed
from soak.checker.finding import Finding
from soak.checker.tables import read_tables
from soak.clients import Post, main
from soak.clients.roles import ROLES, Stage
from soak.drain import drain
from soak.history import load
from soak.nemesis import Nemesis
from soak.place import DATABASE, LOGIN, SECONDS, Place, open_place
from soak.report import Figures, explain

# A run begins here and goes up while it works.
FIRST_REVISION = "0011"
LEAST_SECONDS = 5
DISK_BYTES, DISK_BYTES_AN_HOUR = 512 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    seconds: float
    round_seconds: float
    kills: int
    seed: int
    clients: int
    tenants: int
    version: int | None
    pooler: bool
    nemesis: bool
    folder: Path
    keep: bool
    again: str


class Crew:
    """The clients of a round: who is killed is followed by another one."""

    def __init__(self, posts: list[Post]) -> None:
        # Forked from a process that has imported all: a client costs milliseconds, not half a second.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["soak.clients"])
        self._posts, self._incarnations = posts, [0] * len(posts)
        self._processes = [self._begin(number) for number in range(len(posts))]

    def _begin(self, number: int) -> BaseProcess:
        process = self._context.Process(target=main, args=(self._posts[number], self._incarnations[number]))
        process.start()
        return process

    def kill_one(self, luck: random.Random) -> bool:
        """Kill one of them, and send the next."""
        number = luck.randrange(len(self._posts))
        killed = self._processes[number].is_alive()
        self._processes[number].kill()
        self._replace(number)
        return killed

    def check_alive(self) -> None:
        """Stop the run if a client has ended by itself: that is a mistake of the soak test."""
        for number, process in enumerate(self._processes):
            if not process.is_alive():
                raise RuntimeError(f"client {self._posts[number].path.stem} has ended: {process.exitcode}")

    def _replace(self, number: int) -> None:
        self._processes[number].join()
        self._incarnations[number] += 1
        self._processes[number] = self._begin(number)

    def end(self) -> None:
        """Let everybody finish what he does; who takes too long is killed."""
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 3
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def run(options: Options, say: Callable[[str], None]) -> Figures:
    """Run, check, and report; the figures have what was found."""
    figures, began = Figures(), time.monotonic()
    luck = random.Random(f"soak {options.seed}")
    disk_bytes = DISK_BYTES + int(DISK_BYTES_AN_HOUR * options.seconds / 3600)
    revision = FIRST_REVISION if options.nemesis else "head"
    with open_place(
        options.version, pooler=options.pooler, revision=revision, disk_bytes=disk_bytes
    ) as place:
        with place.admin() as conn:
            release = conn.info.parameter_status("server_version")
        say(f"soak: PostgreSQL {release}, seed {options.seed}, {options.clients} clients")
        for note in (*place.notes, f"to run it again: {options.again}"):
            say(f"soak: {note}")
        while figures.rounds == 0 or figures.seconds < options.seconds or figures.kills < options.kills:
            left = max(options.seconds - figures.seconds, LEAST_SECONDS)
            found = _round(options, place, luck, figures, min(options.round_seconds, left), say)
            figures.seconds = time.monotonic() - began
            if found:
                return figures
        say("once more: all rounds together")
        if (what := contradiction(place.admin_url)) is not None:
            figures.found["error"] += 1
            say(f"FOUND error: the migrations have left another schema: {what}")
        with place.admin() as conn:
            for number in range(figures.rounds):
                tables = read_tables(conn, _prefix(number))
                found = [*check(tables, None), *check_feed(conn, _tenants(options, number))]
                figures.found.update(finding.kind for finding in found)
                for finding in found:
                    say(f"FOUND {finding}")
    return figures


def _round(
    options: Options,
    place: Place,
    luck: random.Random,
    figures: Figures,
    seconds: float,
    say: Callable[[str], None],
) -> list[Finding]:
    number = figures.rounds
    folder = options.folder / f"round-{number:04}"
    folder.mkdir(parents=True)
    tenants = _tenants(options, number)
    stage = Stage(_prefix(number), tenants, time.monotonic(), 1.5)
    roles = [*ROLES, "consumer", "writer", "worker"]
    posts = [
        Post(
            each,
            roles[each % len(roles)],
            place.pooled_dsn if place.pooled_dsn and each % 2 else place.direct_dsn,
            folder,
            f"{options.seed}/{number}",
            stage,
        )
        for each in range(options.clients)
    ]
    crew = Crew(posts)
    nemesis = Nemesis(place, luck, crew.kill_one)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(luck.expovariate(1.6), 3, max(0, deadline - time.monotonic())))
            crew.check_alive()
            if options.nemesis:
                nemesis.strike()
    finally:
        crew.end()
    if place.server.pid is None:
        place.start()
    _silence(place)
    transactions = load(folder)
    with place.admin() as conn:
        drain(conn, tenants)
        tables = read_tables(conn, stage.prefix)
        found = [*check(tables, transactions), *check_feed(conn, tenants), *check_verify(conn, tenants)]
    if not tables.orders:
        raise RuntimeError("nothing was written: the clients do not reach the server")
    figures.add(tables, transactions, found)
    figures.deeds.update(nemesis.done)
    figures.kills += nemesis.kills
    events = sum(len(order.ledger) for order in tables.orders.values())
    say(
        f"round {number}: {len(transactions):,} transactions, {events:,} events, {nemesis.kills} kills,"
        f" {len(found)} findings"
    )
    if found:
        for line in explain(found, tables, transactions, folder, options.again):
            say(line)
    elif not options.keep:
        shutil.rmtree(folder)
    return found


def _prefix(number: int) -> str:
    return f"r{number}."


def _tenants(options: Options, number: int) -> tuple[str, ...]:
    """Name the tenants of a round: a claim of a later one would take an order that was checked already."""
    return tuple(f"r{number}-tenant-{each}" for each in range(options.tenants))


def _silence(place: Place) -> None:
    """Wait until nobody works for a client any more: the call of one that was killed may be on its way."""
    query = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND usename = %s"
    )
    deadline = time.monotonic() + SECONDS
    while True:
        with suppress(psycopg.Error), place.admin() as conn:
            if conn.execute(query.encode(), [DATABASE, LOGIN]).fetchone() == (0,):
                return
        if time.monotonic() > deadline:
            raise RuntimeError("the clients' sessions do not end")
        time.sleep(0.05)  # until the next look
