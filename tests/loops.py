"""The event loop of tests: it ends as a process does, whose sockets are closed for it.

A connection that is accepted, or whose other end is closed, in the last turns of a loop is left open by it: nobody's fault, and found by a
collection in whichever test is running then. What must be closed at once the tests look at while the loop runs.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any


class Loop(asyncio.SelectorEventLoop):
    _transports: Any  # of asyncio's own: file descriptor to transport

    def close(self) -> None:
        if not self.is_closed():
            for transport in list(self._transports.values()):
                if transport._loop is not None:  # as of one whose last bytes went out after it had been closed: it can be aborted no more
                    transport.abort()
            self.call_soon(self.stop)
            self.run_forever()
        super().close()

    def _make_socket_transport(self, sock: socket.socket, *more: Any, **named: Any) -> Any:
        _refuse_for_the_closed(sock, **named)
        return super()._make_socket_transport(sock, *more, **named)  # type: ignore[misc]

    def _make_ssl_transport(self, sock: socket.socket, *more: Any, **named: Any) -> Any:
        _refuse_for_the_closed(sock, **named)
        return super()._make_ssl_transport(sock, *more, **named)  # type: ignore[misc]


def _refuse_for_the_closed(sock: socket.socket, server: Any = None, **_: Any) -> None:
    """asyncio lets go of a connection half made whose server was closed between taking it and serving it."""
    if server is not None and not server.sockets:
        sock.close()
        raise ConnectionAbortedError


class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> Loop:
        return Loop()
