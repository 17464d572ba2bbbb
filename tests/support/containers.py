"""A server in a container of the official image, which goes with whoever started it.

A watchdog removes it, a process of its own: pytest-xdist gives its workers five seconds to end, and whoever
is killed ends nothing. `python -m tests.support.containers NAME` is that watchdog.
"""

import gc
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.engine import URL

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

DOCKER_ANSWER_SECONDS = 5
IMAGE_PULL_SECONDS = 120
IMAGE_SILENCE_SECONDS = 30
CONTAINER_CREATION_SECONDS = 10
CONTAINER_START_SECONDS = 60

# What a watchdog is told, a line each; the last one counts.
_ASKED_FOR = "the container is asked for"
_ANSWERED = "Docker has answered"


class NoContainer(Exception):
    """No container can be started here."""


def start_container(stack: ExitStack, version: int, password: str, settings: Mapping[str, str]) -> URL:
    """Start a server, its image from a registry only if that is quick. Raises NoContainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries say about themselves is not ours to mend
        try:
            return _start(stack, version, password, settings)
        except Exception as exc:  # whatever is wrong with Docker here, there is one more server to try
            reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        gc.collect()  # they leave the socket of a failed connection to it, which would warn within some test
    raise NoContainer(reason)


def _start(stack: ExitStack, version: int, password: str, settings: Mapping[str, str]) -> URL:
    import docker
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Its own watchdog is a container, which stays for seconds after the tests, and has to be pulled.
    testcontainers_config.ryuk_disabled = True
    image = f"postgres:{version}"
    with closing(docker.from_env(timeout=DOCKER_ANSWER_SECONDS)) as client:
        client.ping()
        _ensure_image(client, image)
    name = f"selene-test-{secrets.token_hex(8)}"
    command = ["postgres", *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))]
    container = DockerContainer(image).with_name(name).with_command(command)
    container.with_env("POSTGRES_PASSWORD", password).with_exposed_ports(5432)
    stack.callback(container.get_docker_client().client.close)
    with ExitStack() as failed:
        tell = failed.enter_context(_watched(name))
        tell(_ASKED_FOR)
        try:
            container.start()
        finally:
            tell(_ANSWERED)
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(5432))
        address = URL.create("postgresql+psycopg", "postgres", password, host, port, "postgres")
        _wait_for(address, container)
        stack.push(failed.pop_all())
    return address


def _ensure_image(client: Any, image: str) -> None:
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        client.api.timeout = IMAGE_SILENCE_SECONDS
        deadline = time.monotonic() + IMAGE_PULL_SECONDS
        for _ in client.api.pull(*image.rsplit(":", 1), stream=True, decode=True):
            if time.monotonic() > deadline:
                raise NoContainer(f"pulling {image} took more than {IMAGE_PULL_SECONDS} seconds") from None
        client.images.get(image)


def _wait_for(address: URL, container: "DockerContainer") -> None:
    """Wait for a container's server: while it initialises itself it does not listen on TCP."""
    dsn = address.set(drivername="postgresql").render_as_string(hide_password=False)
    docker_container = container.get_wrapped_container()
    deadline = time.monotonic() + CONTAINER_START_SECONDS
    while True:
        try:
            return psycopg.connect(dsn, autocommit=True).close()
        except psycopg.OperationalError as exc:
            refused = "FATAL: " in str(exc) and "the database system is" not in str(exc)
            docker_container.reload()
            if refused or docker_container.status == "exited" or time.monotonic() > deadline:
                said = docker_container.logs(tail=1).decode(errors="replace").strip()
                raise NoContainer(f"it does not answer, its log ends with {said!r}: {exc}") from exc
            time.sleep(0.1)  # until the next look: nothing tells when it listens


@contextmanager
def _watched(name: str) -> Iterator[Any]:
    """Have a container removed at the end, and wait for it; or when this process ends before."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        start_new_session=True,  # out of the reach of what a terminal sends to all of its processes
        text=True,
        bufsize=1,
    ) as watchdog:
        assert watchdog.stdin is not None
        yield lambda line: print(line, file=watchdog.stdin)


def watch(name: str) -> None:
    """Wait until standard input ends, then remove the container of that name."""
    import docker

    told = ""
    for line in sys.stdin:
        told = line.rstrip()
    deadline = time.monotonic() + CONTAINER_CREATION_SECONDS
    with closing(docker.from_env()) as client:
        while True:
            try:
                client.containers.get(name).remove(force=True, v=True)
            except docker.errors.NotFound:
                # Whoever asked for it was killed before the answer: it may still come.
                if told != _ASKED_FOR or time.monotonic() > deadline:
                    return
                time.sleep(0.1)  # until the next look: nothing tells when it is made
            else:
                return


if __name__ == "__main__":
    watch(sys.argv[1])
