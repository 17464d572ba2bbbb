"""Run an embedded PostgreSQL that is deleted on exit: for demos and tests, not for real data.

It listens only on a Unix socket in a private folder (mode 0700), and trusts everyone who can enter it: the
user who started it, and root. PostgreSQL refuses to run as root. Started by root, it runs as the OS user
`postgres`, or `nobody` if there is none; then that user can enter, too.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from selene_core.libpq import environment, socket_parameters
from selene_core.local.binaries import (
    Binaries,
    LocalServerUnavailable,
    copy_binaries,
    find_binaries,
    reachable,
)
from selene_core.migrations import upgrade

__all__ = ["LocalDatabase", "LocalServer", "LocalServerUnavailable", "local_database", "local_server"]

_THROWAWAY = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_SUPERUSER = "postgres"
_APPLICATION = "selene_local"
_DATABASE = "selene"
_PORT = "5432"  # no port is opened: it is a part of the socket's name
_SECONDS = 60
_SHARED_MEMORY = 128 << 20
_SOCKET_BYTES = 107 - len(f"/selene-12345678/.s.PGSQL.{_PORT}")

# Survives whatever kills this process. It reads the id of the process to guard, the last line counting, until
# the pipe's other end closes; then it stops that process, which leads a process group, and removes the
# folder. It watches postmaster.pid too, which a server removes last: an unburied zombie looks alive.
_WATCHDOG = """
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
  kill -s QUIT -- "-$pid"
  tries=0
  while kill -0 "$pid" && [ -e "$1/data/postmaster.pid" ] && [ "$tries" -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  kill -s KILL -- "-$pid"
fi
rm -rf -- "$1"
"""


class LocalServer:
    """An embedded server, without any migration."""

    def __init__(self, binaries: Binaries, settings: Mapping[str, str]) -> None:
        self.version = binaries.version
        self._user = server_user()
        self.socket_directory = private_folder(self._user)
        self.data_directory = self.socket_directory / "data"
        self._log = self.socket_directory / "log"
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "selene-watchdog", self.socket_directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.binaries = binaries.folder
        self._settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            **settings,
        }

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def admin_url(self) -> str:
        """The superuser's SQLAlchemy URL of the database `postgres`."""
        return self.url_for(_SUPERUSER, "postgres")

    def url_for(self, user: str, database: str) -> str:
        """Compose an SQLAlchemy URL; no password is needed.

        It also sets what libpq would otherwise take from the environment: PGHOSTADDR, PGOPTIONS and others.
        """
        return URL.create(
            "postgresql+psycopg", user, database=database, query=self._place()
        ).render_as_string()

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Connect as the superuser, in autocommit."""
        place = make_conninfo(**self._place(), user=_SUPERUSER, dbname=database)
        return psycopg.connect(place, autocommit=True)

    def _place(self) -> dict[str, str]:
        owner = self._user or pwd.getpwuid(os.geteuid())
        return socket_parameters(str(self.socket_directory), _PORT, owner.pw_name)

    def start(self) -> None:
        """Start the server on its data, unless it runs, and wait until it answers.

        Raises LocalServerUnavailable, with the end of its log or with libpq's own words.
        """
        if self.pid is not None:
            return
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        process = self._run("postgres", "-D", str(self.data_directory), *settings)
        deadline = time.monotonic() + _SECONDS
        while not self._is_ready(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise self._failure("the server did not start")
            time.sleep(0.02)
        try:
            self.connect().close()
        except psycopg.Error as exc:
            said = str(exc).partition("\nMultiple connection attempts failed")[0]
            variables = ", ".join(environment()) or "nothing"
            raise LocalServerUnavailable(
                f"the server runs, but takes no connection: {said} (libpq's in the environment: {variables})"
            ) from exc

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server, if it runs, and keep its data; `immediate` leaves them as a crash would."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._guard("")

    def restart(self, *, immediate: bool = False) -> None:
        """Stop the server and start it again on the same data."""
        self.stop(immediate=immediate)
        self.start()

    def _is_ready(self, pid: int) -> bool:
        # Look at the file instead of connecting: then every error of a connection is a real one.
        with suppress(FileNotFoundError):
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
            return lines[:1] == [str(pid)] and [line.strip() for line in lines[7:8]] == ["ready"]
        return False

    def _initialise(self) -> None:
        if not reachable(self.binaries / "postgres", self._user):
            self.binaries = copy_binaries(self.binaries, self.socket_directory, self._user)
        options = ["-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        if _is_short_of_shared_memory():
            options += ["-L", str(self._without_shared_memory())]
        for locale in ("C.UTF-8", "C"):  # not every system has the first
            if (
                self._run("initdb", "-D", str(self.data_directory), f"--locale={locale}", *options).wait()
                == 0
            ):
                return
        raise self._failure("initdb failed")

    def _without_shared_memory(self) -> Path:
        """Copy what initdb reads, with a setting for itself and the server: before 16 it takes none."""
        self._run("initdb", "--show", "-D", str(self.data_directory)).wait()
        found = re.search(r"^share_path=(.+)$", self._log.read_text(errors="replace"), re.MULTILINE)
        if found is None:
            raise self._failure("initdb does not tell where its files are")
        copy = self.socket_directory / "share"
        shutil.copytree(
            found[1], copy, ignore=shutil.ignore_patterns("extension", "timezone*", "locale", "doc")
        )
        with (copy / "postgresql.conf.sample").open("a") as sample:
            sample.write("\ndynamic_shared_memory_type = mmap\n")
        return copy

    def _dispose(self) -> None:
        if os.getpid() == self._owner:  # a forked child leaves the with block too
            self.stop(immediate=True)
            self._watchdog.communicate()  # closes its pipe, and waits until it has removed the folder

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        # PG* variables would become settings of the server; TZ spares initdb a search through all time zones.
        inherited = {name: value for name, value in os.environ.items() if name not in environment()}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.socket_directory,
                env={**inherited, "TZ": "UTC", "LC_ALL": "C"},
                start_new_session=True,
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=[] if self._user else None,
            )
        self._guard(str(self._process.pid))
        return self._process

    def _guard(self, pid: str) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{pid}\n".encode())
            self._watchdog.stdin.flush()

    def _failure(self, what: str) -> LocalServerUnavailable:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
        return LocalServerUnavailable(f"{what}; the end of its log:\n{tail}")


def server_user() -> pwd.struct_passwd | None:
    """Choose whom PostgreSQL runs as: None for ourselves, as long as that is not root."""
    if (uid := os.geteuid()) != 0:
        try:
            pwd.getpwuid(uid)
        except KeyError:
            raise LocalServerUnavailable(
                f"the user id {uid} has no name, which PostgreSQL's initdb asks for:"
                " give it a line in /etc/passwd, or run as a user who has one"
            ) from None
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise LocalServerUnavailable("PostgreSQL refuses to run as root, and no user postgres or nobody is there")


def private_folder(user: pwd.struct_passwd | None) -> Path:
    """Make a folder that the server's user can enter, its path short enough for a socket's (107 bytes)."""
    usual = []
    with suppress(FileNotFoundError):  # none can be written
        usual.append(tempfile.gettempdir())
    for parent in (*usual, "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp's folder is private
        # A comma or quotation mark would end a path among the server's, or a connection's, sockets.
        if (
            len(os.fsencode(parent)) <= _SOCKET_BYTES
            and not set(',"') & set(parent)
            and reachable(Path(parent), user)
        ):
            with suppress(OSError):
                folder = tempfile.mkdtemp(prefix="selene-", dir=parent)
                if user is not None:
                    os.chown(folder, user.pw_uid, user.pw_gid)
                return Path(folder)
    raise LocalServerUnavailable(
        "no temporary folder can be written, has a short path and lets the server in: name one by TMPDIR"
    )


def _is_short_of_shared_memory() -> bool:
    # A container has 64 MiB there, or less; a sort or join in parallel workers may want more.
    with suppress(OSError):
        there = os.statvfs("/dev/shm")  # noqa: S108 - only looked at
        return there.f_bavail * there.f_frsize < _SHARED_MEMORY
    return False  # initdb finds another setting by itself


@contextmanager
def local_server(
    *, version: int | None = None, settings: Mapping[str, str] | None = None, durable: bool = False
) -> Iterator[LocalServer]:
    """Run a server without any migration; unless `durable`, a crash of the machine may damage its data.

    Raises LocalServerUnavailable where none can be found or started.
    """
    server = LocalServer(find_binaries(version), {**({} if durable else _THROWAWAY), **(settings or {})})
    try:
        server._initialise()
        server.start()
        yield server
    finally:
        server._dispose()


@dataclass(frozen=True, slots=True)
class LocalDatabase:
    """A database on an embedded server, migrated to head."""

    server: LocalServer

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of an application user (see LocalServer.url_for)."""
        return self.server.url_for(_APPLICATION, _DATABASE)

    @property
    def admin_url(self) -> str:
        """The superuser's SQLAlchemy URL."""
        return self.server.url_for(_SUPERUSER, _DATABASE)

    @property
    def server_version(self) -> int:
        """The server's major version."""
        return self.server.version


@contextmanager
def local_database(
    *, version: int | None = None, settings: Mapping[str, str] | None = None, durable: bool = False
) -> Iterator[LocalDatabase]:
    """Run a server with one database that is migrated to head (contract §14).

    Raises LocalServerUnavailable where none can be found or started.
    """
    with local_server(version=version, settings=settings, durable=durable) as server:
        database = LocalDatabase(server)
        with server.connect() as conn:
            conn.execute(f"CREATE DATABASE {_DATABASE}".encode())
            upgrade(database.admin_url)
            conn.execute(f"CREATE ROLE {_APPLICATION} LOGIN IN ROLE selene_app".encode())
        yield database
