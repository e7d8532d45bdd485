"""A TCP proxy in front of a service, which can be away in two ways: it hangs, or it refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    def __init__(self, host: str, port: int, at: str = "127.0.0.1") -> None:
        """
        Args:
            host: where the service is.
            at: the address on which the proxy listens.
        """
        self._to, self._at = (host, port), at
        self._flows = threading.Event()
        self._flows.set()
        self._ends: set[socket.socket] = set()
        self.port = 0
        self._listen()

    def hang(self) -> None:
        """Forward nothing more; new connections are accepted, and get no answer."""
        self._flows.clear()

    def refuse(self) -> None:
        """Nobody listens there, and what was open breaks."""
        self._listener.shutdown(socket.SHUT_RDWR)  # who waits in accept would keep a closed one alive
        self._listener.close()
        for end in tuple(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def flow(self) -> None:
        self._flows.set()
        if self._listener.fileno() < 0:
            self._listen()

    def close(self) -> None:
        self._flows.set()
        self._listener.close()

    def _listen(self) -> None:
        self._listener = socket.create_server((self._at, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self._to)
            except OSError:
                client.close()
                continue
            self._ends |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()
                self._ends.discard(end)


@contextmanager
def proxied(host: str, port: int, at: str = "127.0.0.1") -> Iterator[Proxy]:
    proxy = Proxy(host, port, at)
    yield proxy
    proxy.close()
