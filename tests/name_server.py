"""An event loop that looks names up in a table and connects to nothing but this machine: a front door for tests of what is connected to."""

from __future__ import annotations

import socket
from typing import Any

from tests.loops import Loop


class Names(Loop):
    """Name -> one list of addresses per look-up, the last one for good."""

    def __init__(self, known: dict[str, list[list[str]]]) -> None:
        super().__init__()
        self.known = known
        self.asked: list[str] = []
        self.tried: list[str] = []

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:  # type: ignore[override]  # as used
        """Nothing leaves this machine."""
        self.tried.append(host)
        if not host.startswith("127."):
            raise ConnectionRefusedError
        return await super().create_connection(factory, host, port, **more)

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        self.asked.append(host)
        answers = self.known.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0) if ":" in ip else (ip, port))
            for ip in found
        ]
