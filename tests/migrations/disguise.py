"""A pooler that is hard to notice: it hands on the startup parameters, and the true key of a backend."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from threading import Thread

import sqlalchemy as sa

from tests.support.servers import Server

_PORT = 6543  # a part of the socket's name
_PLAIN, _CANCEL = (80877103, 80877104), 80877102


@dataclass
class Disguise:
    """Gives each client sessions of its own that outlive it, and the next of them for each transaction."""

    server: Server
    sessions: int
    folder: Path
    hands_on_options: bool = True
    opened: list[socket.socket] = field(default_factory=list)

    def url_for(self, user: str, database: str) -> sa.URL:
        """Address a database through it."""
        place = {"host": str(self.folder), "port": str(_PORT)}
        return sa.URL.create("postgresql+psycopg", user, database=database, query=place)

    def ask(self, session: int, query: str) -> list[str | None]:
        """Return the first row that a session gives, after its clients are gone; counted from the newest."""
        server = self.opened[-1 - session]
        text = query.encode() + b"\0"
        server.sendall(b"Q" + struct.pack("!I", len(text) + 4) + text)
        row: list[str | None] = []
        for kind, body in _until_ready(server):
            if kind == b"D" and not row:
                place = 2
                for _ in range(*struct.unpack("!H", body[:2])):
                    (size,) = struct.unpack("!i", body[place : place + 4])
                    row.append(body[place + 4 : place + 4 + size].decode() if size >= 0 else None)
                    place += 4 + max(size, 0)
        return row

    def end(self) -> None:
        """End the sessions."""
        for server in self.opened:
            server.close()

    def serve(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError, EOFError):
            while True:
                (size,) = struct.unpack("!I", _read(client, 4))
                startup = _read(client, size - 4)
                (code,) = struct.unpack("!I", startup[:4])
                if code in _PLAIN:
                    client.sendall(b"N")
                    continue
                if code == _CANCEL:
                    with closing(self._connect()) as server:
                        server.sendall(struct.pack("!I", size) + startup)
                        server.recv(1)
                    return
                break
            servers = []
            for _ in range(self.sessions):
                servers.append(self._connect())
                servers[-1].sendall(self._startup(startup))
                reply = b"".join(
                    kind + struct.pack("!I", len(body) + 4) + body for kind, body in _until_ready(servers[-1])
                )
                if len(servers) == 1:
                    client.sendall(reply)
            self.opened += servers
            self._relay(client, servers)

    def _startup(self, startup: bytes) -> bytes:
        words = startup[4:].rstrip(b"\0").split(b"\0")
        named = dict(zip(words[::2], words[1::2], strict=True))
        if not self.hands_on_options:
            named.pop(b"options", None)
        body = startup[:4] + b"".join(name + b"\0" + value + b"\0" for name, value in named.items()) + b"\0"
        return struct.pack("!I", len(body) + 4) + body

    def _relay(self, client: socket.socket, servers: list[socket.socket]) -> None:
        while True:
            ready, _, _ = select([client, servers[0]], [], [])
            if client in ready:
                kind, body = _message(client)
                if kind == b"X":
                    return
                servers[0].sendall(kind + struct.pack("!I", len(body) + 4) + body)
            elif servers[0] in ready:
                kind, body = _message(servers[0])
                client.sendall(kind + struct.pack("!I", len(body) + 4) + body)
                if (kind, body) == (b"Z", b"I"):
                    servers.append(servers.pop(0))

    def _connect(self) -> socket.socket:
        host, port = self.server.address.query["host"], self.server.address.query.get("port", "5432")
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{self.server.address.port or port}")
        return server


@contextmanager
def disguised(server: Server, sessions: int, *, hands_on_options: bool = True) -> Iterator[Disguise]:
    """Run one in front of an embedded server, whose socket asks for no password."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="selene-")))
        listening = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        listening.bind(f"{folder}/.s.PGSQL.{_PORT}")
        listening.listen()
        disguise = Disguise(server, sessions, folder, hands_on_options)
        stack.callback(disguise.end)
        stack.callback(listening.shutdown, socket.SHUT_RDWR)
        Thread(target=disguise.serve, args=(listening,), daemon=True).start()
        yield disguise


def _until_ready(server: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    while True:
        kind, body = _message(server)
        yield kind, body
        if kind == b"Z":
            return


def _message(sender: socket.socket) -> tuple[bytes, bytes]:
    kind = _read(sender, 1)
    (size,) = struct.unpack("!I", _read(sender, 4))
    return kind, _read(sender, size - 4)


def _read(sender: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        if not (part := sender.recv(size - len(got))):
            raise EOFError
        got += part
    return got
