"""A proxy between client and server that cuts a connection at an exact message of the protocol."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy.engine import URL

At = Literal["request", "reply"]
COMMIT = b"COMMIT\0"


@dataclass
class Cut:
    """Cut at the first message with this text: before the server gets it, or when it has answered."""

    text: bytes
    at: At
    armed: bool = True


@dataclass
class Proxy:
    """A listening proxy. `cuts` are taken in their order, one after the other; `seen` counts connections,
    of which the next `refusals` are closed at once.
    """

    url: URL
    _target: Callable[[], socket.socket]
    cuts: list[Cut] = field(default_factory=list)
    seen: int = 0
    refusals: int = 0

    def cut(self, text: bytes, at: At, times: int = 1) -> None:
        """Cut the next connections that send this text, one connection each time."""
        self.cuts += [Cut(text, at) for _ in range(times)]

    def serve(self, client: socket.socket) -> None:
        """Pass everything on between a client and the server, until a cut."""
        self.seen += 1
        if self.refusals:
            self.refusals -= 1
            client.close()
            return
        with client, self._target() as server:
            answers = _Answers(client, server)
            reader = threading.Thread(target=answers.pass_on)
            reader.start()
            with suppress(OSError):
                self._requests(client, server, answers)
            _shut(client, server)
            reader.join()

    def _requests(self, client: socket.socket, server: socket.socket, answers: "_Answers") -> None:
        startup = _exactly(client, 4)
        server.sendall(startup + _exactly(client, struct.unpack("!I", startup)[0] - 4))
        while True:
            message = _message(client)
            cut = next((cut for cut in self.cuts if cut.armed), None)
            if cut is not None and cut.text in message:
                cut.armed = False
                if cut.at == "request":
                    return
                answers.withheld = True
            server.sendall(message)


class _Answers:
    """What the server says, passed on to the client until it is withheld."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client, self._server = client, server
        self.withheld = False

    def pass_on(self) -> None:
        """Pass messages on; cut when a withheld answer is complete."""
        with suppress(OSError):
            while True:
                message = _message(self._server)
                if not self.withheld:
                    self._client.sendall(message)
                elif message[:1] == b"Z":
                    break
        _shut(self._client, self._server)


def _message(peer: socket.socket) -> bytes:
    head = _exactly(peer, 5)
    return head + _exactly(peer, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := peer.recv(count - len(data))):
            raise ConnectionError
        data += part
    return data


def _shut(*peers: socket.socket) -> None:
    for peer in peers:
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(url: URL) -> Iterator[Proxy]:
    """Listen on a port of this machine, in front of a server; all connections are closed at the end."""
    host = str(url.query.get("host") or url.host or "localhost")
    port = str(url.query.get("port") or url.port or 5432)

    def target() -> socket.socket:
        if not host.startswith("/"):
            return socket.create_connection((host, int(port)))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        address = url.difference_update_query(["host", "port", "hostaddr"]).set(
            host="127.0.0.1", port=listener.getsockname()[1]
        )
        proxy = Proxy(address.update_query_dict(plain), target)
        threads: list[threading.Thread] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=proxy.serve, args=(client,)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()
