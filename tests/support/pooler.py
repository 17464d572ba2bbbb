"""PgBouncer in transaction mode, in front of the tests' server: SELENE_TEST_POOLER=pgbouncer.

The application's logins go through it: app and readonly. Three kinds of connection stay direct. The
superuser's: they look at what is there, and set what a test needs in a session. The owner's, and all that
migrate: lock and role are the session's, on every kind of deployment. Those of the tests that DIRECT names,
with their reasons.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from selene_core.local import private_folder, server_user
from tests.support.programs import find_pgbouncer

POOLED_ROLES = ("app", "readonly")
_ITS_SETTING = "a setting of its session is what the test is about"
_KEPT_SETTING = "a session that a pooler keeps has the settings of before"
_ITS_TIMEOUT = "a timeout that it sets in its session keeps the test short"
_ITS_SESSION = "what becomes of its own session is what the test is about"
_MENDED = "test_doctor.py::test_doctor__names_the_fault_and_what_mends_it"
DIRECT: Mapping[str, str] = {
    "test_binds.py::test_append_events__leaves_no_autocommit_behind": _ITS_SESSION,
    "test_binds.py::test_async_append_events__canceled_leaves_no_autocommit_behind": _ITS_SESSION,
    "test_driver.py::test_lost_connection__is_given_up_where_the_scope_begins": _ITS_SESSION,
    "test_driver.py::test_lost_connection__of_append_events_is_given_up": _ITS_SESSION,
    "test_append_rules.py::test_tenant__a_setting_of_the_session_counts": _ITS_SETTING,
    "test_tenant_scope.py::test_engine__what_a_session_was_left_with_counts_for_nothing": _ITS_SETTING,
    "test_hostile.py::test_session__standard_conforming_strings_change_nothing": _ITS_SETTING,
    "test_privileges.py::test_app__own_schema_in_the_search_path_changes_nothing": _ITS_SETTING,
    "test_crash.py::test_dropped_connection__is_noticed_by_a_server_that_looks": _ITS_SETTING,
    "test_crash.py::test_timeout__leaves_nothing": _ITS_TIMEOUT,
    "test_engine.py::test_engine__timeouts_hold_in_every_transaction": _ITS_SETTING,
    "test_engine.py::test_engine__timeouts_end_what_takes_too_long": _ITS_SETTING,
    "test_engine.py::test_engine__behind_a_pooler_nothing_is_prepared": _ITS_SETTING,
    "test_rebuild_verify.py::test_rebuild__does_not_wait_for_appends": _ITS_TIMEOUT,
    f"{_MENDED}[a tenant for every session]": _KEPT_SETTING,
    f"{_MENDED}[foreign keys off for every session]": _KEPT_SETTING,
    f"{_MENDED}[row_security off for every session]": _KEPT_SETTING,
    "test_rebuild_verify.py::test_smuggled__a_ledger_that_contradicts_itself_ends_a_rebuild": _ITS_TIMEOUT,
}

_MODE = "transaction"
_CLIENTS = 500
_SECONDS = 20
_PORT = 6432  # no port is opened: it is a part of the socket's name, and tells a pooled address from others
# Outlives whatever kills the tests: unless it is told that the pooler has ended, it ends it when their end of
# its pipe closes; it removes the folder. By KILL: from 1.23 on PgBouncer takes TERM for a request to wait.
_WATCHDOG = 'read -r pid; read -r ended || kill -s KILL "$pid"; rm -rf -- "$1"'


class NoPooler(Exception):
    """There is no PgBouncer, or it does not start."""


@dataclass(frozen=True, slots=True)
class Pooler:
    """A running PgBouncer."""

    version: str
    folder: Path
    server_connections: int

    def url_for(self, user: str, password: str, database: str) -> URL:
        """Address a database through it."""
        place = {"host": str(self.folder), "port": str(_PORT)}
        return URL.create("postgresql+psycopg", user, password, database=database, query=place)

    def describe(self) -> str:
        """Say who goes through it."""
        return (
            f"the application's connections go through PgBouncer {self.version} in {_MODE} mode"
            f" ({self.server_connections} server connections a database; {len(DIRECT)} tests are direct)"
        )


class Bypass:
    """Whether the test that runs is one of DIRECT."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def set_for(self, nodeid: str) -> None:
        """Tell which test runs next."""
        case = nodeid.rsplit("/", 1)[-1]
        self.reason = DIRECT.get(case, DIRECT.get(case.split("[", 1)[0]))


BYPASS = Bypass()


def driver_options(url: URL) -> dict[str, Any]:
    """Return what psycopg must be told: a prepared statement stays behind with the server's session."""
    return {"prepare_threshold": None} if is_pooled(url) else {}


def is_pooled(url: URL) -> bool:
    """Tell whether an address leads through a pooler of ours."""
    return url.query.get("port") == str(_PORT)


@contextmanager
def pgbouncer(
    server: URL,
    users: Mapping[str, str],
    *,
    server_connections: int = 80,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Pooler]:
    """Run a PgBouncer in front of a server, for users and their passwords. Raises NoPooler."""
    found = find_pgbouncer()
    if found is None:
        raise NoPooler("there is no pgbouncer (Debian: apt-get install pgbouncer)")
    user = server_user()  # PgBouncer refuses to run as root, as PostgreSQL does
    folder = private_folder(user)
    place = {
        "host": server.host or server.query.get("host"),
        "port": server.port or server.query.get("port"),
    }
    files = {
        "users.txt": "".join(f'"{name}" "{password}"\n' for name, password in users.items()),
        "pgbouncer.ini": "\n".join(
            [
                "[databases]",
                "* = " + " ".join(f"{name}={value}" for name, value in place.items() if value),
                "[pgbouncer]",
                f"pool_mode = {_MODE}",
                f"default_pool_size = {server_connections}",
                f"max_client_conn = {_CLIENTS}",
                "listen_addr =",
                f"listen_port = {_PORT}",
                f"unix_socket_dir = {folder}",
                "auth_type = scram-sha-256",
                f"auth_file = {folder}/users.txt",
                "server_login_retry = 1",  # a database that a test has dropped
                f"admin_users = {next(iter(users))}",
                f"logfile = {folder}/log",
                f"pidfile = {folder}/pid",
                *(f"{name} = {value}" for name, value in (settings or {}).items()),
            ]
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
        if user is not None:
            os.chown(folder / name, user.pw_uid, user.pw_gid)
    watchdog = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "selene-watchdog", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        text=True,
    )
    process = subprocess.Popen(
        [*found, "-q", folder / "pgbouncer.ini"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
    )
    try:
        assert watchdog.stdin is not None
        watchdog.stdin.write(f"{process.pid}\n")
        watchdog.stdin.flush()
        pooler = Pooler(_version(found), folder, server_connections)
        _wait_for(process, pooler.url_for(*next(iter(users.items())), "pgbouncer"), folder / "log")
        yield pooler
    finally:
        process.kill()
        process.wait(_SECONDS)
        watchdog.communicate("ended\n")


def _version(program: list[str]) -> str:
    told = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"PgBouncer (\S+)", told)
    return version[1] if version else "of an unknown version"


def _wait_for(process: subprocess.Popen[bytes], console: URL, log: Path) -> None:
    dsn = console.set(drivername="postgresql").render_as_string(hide_password=False)
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return psycopg.connect(dsn, autocommit=True).close()
        except psycopg.OperationalError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:] if log.exists() else "nothing"
                raise NoPooler(f"PgBouncer does not answer: {exc}; the end of its log: {tail}") from exc
            time.sleep(0.02)  # until the next look: nothing tells when it listens
