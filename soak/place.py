"""Where a run takes place: a server of its own whose data survive its kills, a pooler, a small disk."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from selene_core.local import LocalServer, LocalServerUnavailable, local_server
from selene_core.migrations import upgrade
from soak.checker.feed import MAKE_CONSUMED
from tests.support.pooler import NoPooler, pgbouncer

DATABASE, LOGIN, PASSWORD = "soak", "soak_app", "soak"
IN_NAMESPACE = "SELENE_SOAK_NAMESPACE"
SECONDS = 60
SETTINGS = {
    "max_connections": "120",
    "wal_level": "logical",
    "restart_after_crash": "on",
    "checkpoint_timeout": "30s",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "5s",
    "statement_timeout": "60s",
}


@dataclass(slots=True)
class Place:
    """A running server and the ways in."""

    server: LocalServer
    disk: Path | None
    pooled_dsn: str | None
    notes: list[str]

    @property
    def admin_url(self) -> str:
        """The superuser's SQLAlchemy URL of the database."""
        return self.server.url_for("postgres", DATABASE)

    @property
    def direct_dsn(self) -> str:
        """How clients come in past the pooler."""
        return _dsn(self.server.url_for(LOGIN, DATABASE))

    def admin(self) -> psycopg.Connection[Any]:
        """Connect as the superuser, in autocommit; waits until the server takes connections again."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self.server.connect(DATABASE)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # it recovers

    def start(self) -> None:
        """Start the server, on the data that a kill has left; its children may take a moment to go."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self.server.start()
            except LocalServerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # until the last child of the one before is gone

    def kill_postmaster(self) -> None:
        """Kill the postmaster and nothing else: its children notice by themselves."""
        if (pid := self.server.pid) is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + SECONDS
            while self.server.pid is not None and time.monotonic() < deadline:
                time.sleep(0.01)  # until it is buried


@contextmanager
def open_place(version: int | None, *, pooler: bool, revision: str, disk_bytes: int) -> Iterator[Place]:
    """Start a server on a small disk, where that is possible, migrate it, and put a pooler before it."""
    with ExitStack() as stack:
        disk, notes = stack.enter_context(_small_disk(disk_bytes))
        server = stack.enter_context(_server(version, disk))
        with server.connect() as conn:
            conn.execute(f"CREATE DATABASE {DATABASE}".encode())
            url = server.url_for("postgres", DATABASE)
            upgrade(url, revision)
            conn.execute(f"CREATE ROLE {LOGIN} LOGIN PASSWORD '{PASSWORD}' IN ROLE selene_app".encode())
        with server.connect(DATABASE) as conn:
            conn.execute(MAKE_CONSUMED.encode())
        dsn = None
        if pooler:
            try:
                settings = {"query_wait_timeout": "5", "server_connect_timeout": "5"}
                running = stack.enter_context(
                    pgbouncer(make_url(url), {LOGIN: PASSWORD}, server_connections=20, settings=settings)
                )
                dsn = _dsn(running.url_for(LOGIN, PASSWORD, DATABASE).render_as_string(hide_password=False))
                notes.append(f"half of the clients go through PgBouncer {running.version}")
            except NoPooler as exc:
                notes.append(f"no pooler: {exc}")
        yield Place(server, disk, dsn, notes)


@contextmanager
def _server(version: int | None, disk: Path | None) -> Iterator[LocalServer]:
    usual = tempfile.tempdir
    if disk is not None:
        tempfile.tempdir = str(disk)
    try:
        stack = ExitStack()
        server = stack.enter_context(local_server(version=version, settings=SETTINGS, durable=True))
    finally:
        tempfile.tempdir = usual
    with stack:
        yield server


@contextmanager
def _small_disk(size: int) -> Iterator[tuple[Path | None, list[str]]]:
    """Mount a tmpfs in the mount namespace of this process: it goes with its last process."""
    if not os.environ.get(IN_NAMESPACE):
        yield None, ["no small disk: only root may mount one, so it is never full"]
        return
    folder = Path(tempfile.mkdtemp(prefix="soak-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "soak", str(folder)]
    if (ran := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        yield None, [f"no small disk: {ran.stderr.strip()}"]
        folder.rmdir()
        return
    try:
        yield folder, [f"the data are on a tmpfs of {size >> 20} MiB, which the nemesis fills"]
    finally:
        with suppress(OSError):
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)
            folder.rmdir()


def enter_namespace() -> None:
    """Run again in a mount namespace of our own, if we are root and may."""
    if os.geteuid() == 0 and IN_NAMESPACE not in os.environ and (unshare := shutil.which("unshare")):
        probe = subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            environment = {**os.environ, IN_NAMESPACE: "1"}
            os.execve(unshare, [unshare, "--mount", sys.executable, "-m", "soak", *sys.argv[1:]], environment)


def _dsn(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
