"""The container of the tests, against a stand-in for Docker's daemon that answers what they ask.

What it cannot show, that a server really runs in there, every run of the tests with a real daemon shows.
"""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.containers import NoContainer, start_container
from tests.support.races import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Keeps containers in which nothing runs."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Answers)
        self.containers: dict[str, str] = {}
        self.removed: list[str] = []
        self.port = 1  # nobody listens there
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def handle_error(self, *_: Any) -> None:
        """Say nothing of those who were killed before their answer."""


class _Answers(BaseHTTPRequestHandler):
    server: Daemon

    def do_GET(self) -> None:
        match self._path():
            case ["_ping"]:
                self._answer(200, "OK")
            case ["version"]:
                self._answer(200, {"ApiVersion": "1.41"})
            case ["networks"]:
                self._answer(200, [])
            case ["images", image, "json"]:
                self._answer(200, {"Id": image, "RepoTags": [image]})
            case ["containers", "json"]:
                # Whoever runs in a container itself looks for the way from there.
                network = {"HostConfig": {"NetworkMode": "default"}}
                ways = {"Networks": {"bridge": {"Gateway": "127.0.0.1", "IPAddress": "127.0.0.1"}}}
                listed = self.server.containers
                self._answer(200, [{"Id": name, **network, "NetworkSettings": ways} for name in listed])
            case ["containers", name, "json"] if name in self.server.containers:
                ports = {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(self.server.port)}]}
                state = {"Status": self.server.containers[name]}
                told = {"Id": name, "State": state, "NetworkSettings": {"Ports": ports}}
                self._answer(200, {**told, "Config": {"Tty": True}})
            case ["containers", _, "logs"]:
                self._answer(200, "its last word")
            case _:
                self._answer(404, {"message": "no such thing"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self._path():
            case ["containers", "create"]:
                (name,) = parse_qs(urlsplit(self.path).query)["name"]
                self.server.asked.set()
                self.server.may_answer.wait()
                self.server.containers[name] = "created"
                self._answer(201, {"Id": name, "Warnings": []})
            case ["containers", name, "start"]:
                self.server.containers[name] = "running"
                self._answer(204, "")
            case _:
                self._answer(404, {"message": "no such thing"})

    def do_DELETE(self) -> None:
        name = self._path()[1]
        found = self.server.containers.pop(name, None)
        self.server.removed += [name] if found else []
        self._answer(204 if found else 404, {"message": "no such container"})

    def log_message(self, *_: Any) -> None:
        pass

    def _path(self) -> list[str]:
        parts = urlsplit(self.path).path.strip("/").split("/")
        return parts[1:] if parts[0].startswith("v1.") else parts

    def _answer(self, status: int, what: Any) -> None:
        body = b"" if status == 204 else (what if isinstance(what, str) else json.dumps(what)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/docker.sock")
        with Daemon(Path(folder, "docker.sock")) as daemon:
            threading.Thread(target=daemon.serve_forever, daemon=True).start()
            yield daemon
            daemon.may_answer.set()
            daemon.shutdown()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("when", ["it is asked for", "it runs"])
def test_container__goes_with_whoever_started_it(daemon: Daemon, when: str, how: str) -> None:
    script = """
        import signal
        from contextlib import ExitStack
        from tests.support.containers import start_container
        # Who runs in the background, or under nohup, ignores these.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with ExitStack() as stack:
            start_container(stack, 18, "secret", {})
    """
    if when == "it runs":
        daemon.may_answer.set()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        if when == "it runs":
            wait_until(lambda: "running" in daemon.containers.values(), "the container runs")
        else:
            wait_until(daemon.asked.is_set, "the container is asked for")
        os.killpg(parent.pid, signal.Signals[how])  # as a terminal does: all that it started get it too
        if how == "SIGINT":
            daemon.may_answer.set()  # for this one, Python waits until a call is over
        parent.wait(60)
    daemon.may_answer.set()
    wait_until(lambda: len(daemon.removed) == 1, "the container is removed")
    assert daemon.containers == {}


def test_container__that_has_ended_is_told_at_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.containers.CONTAINER_START_SECONDS", float("inf"))
    daemon.may_answer.set()

    def end() -> None:
        listener.settimeout(60)
        connection, _ = listener.accept()
        daemon.containers.update(dict.fromkeys(daemon.containers, "exited"))
        connection.close()

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as stack,
    ):
        daemon.port = listener.getsockname()[1]
        ended = pool.submit(end)
        with pytest.raises(NoContainer, match="its log ends with 'its last word'"):
            start_container(stack, 18, "secret", {})
        ended.result()
        assert (daemon.containers, len(daemon.removed)) == ({}, 1)
