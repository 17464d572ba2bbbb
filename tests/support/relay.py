"""A relay between a client and the server, which can fall silent: the network of a bad day."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from sqlalchemy.engine import URL


class Relay:
    """Pass on what both sides say. While it is silent nothing comes through; no connection is closed."""

    def __init__(self, url: URL) -> None:
        host, port = url.host or url.query["host"], url.port or url.query.get("port", 5432)
        self._host, self._port = str(host), int(str(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = url.difference_update_query(["host", "port"]).set(
            host="127.0.0.1", port=self._listening.getsockname()[1]
        )
        self._talking = Event()
        self._talking.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[Thread] = []
        self._start(self._serve)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let nothing through during the block."""
        self._talking.clear()
        try:
            yield
        finally:
            self._talking.set()

    def close(self) -> None:
        """End every connection."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._talking.set()
        for end in (self._listening, *self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._sockets):
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = self._connect()
                self._sockets += [client, server]
                self._start(self._pass_on, client, server)
                self._start(self._pass_on, server, client)

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        return server

    def _pass_on(self, sender: socket.socket, receiver: socket.socket) -> None:
        with suppress(OSError):
            while said := sender.recv(65_536):
                self._talking.wait()
                receiver.sendall(said)
            receiver.shutdown(socket.SHUT_WR)

    def _start(self, run: object, *args: object) -> None:
        thread = Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
