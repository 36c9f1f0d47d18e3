"""What only reads the store is answered by a process apart, so that no report holds up what is relayed.

`Apart` stands in front of a server process's application. It hands a request on over a Unix socket in GATEWAY_HOME/run, and takes back
the answer a piece at a time, as fast as its client does. At the other end, in the reader process, `Answering` calls the same application.
Who may connect may read the database too: the folder is its owner's alone. Where nobody answers (the reader is being started, was
killed, or has not put in force what was changed before) the server process answers itself: these requests change nothing, and may be asked
twice (a reading of logged content is in the audit log twice then).

On the socket: one request per connection, frames of a letter, a length (4 bytes) and so many bytes. `S` is the scope as JSON; back come
`H` (status and headers as JSON), `B` (a piece of the body), `E` (its last). Whoever gives up closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = structlog.get_logger(__name__)

WITHIN_S: Final = 20.0  # no answer to begin with is that slow, also where the database is away
_READS: Final = ("/admin/", "/v1/usage")
_OWN: Final = "/admin/backends"  # tells of the server process itself
_FRAME: Final = struct.Struct("!cI")
_MOST_BYTES: Final = 64 * 2**20
_PIECE_BYTES: Final = 256 * 1024
_NAMED: Final = ("http_version", "method", "path", "root_path", "scheme", "server", "client")
_RAW: Final = ("raw_path", "query_string")


class Apart:
    """Pure ASGI. `socket`: where the reader process listens, if it does."""

    def __init__(self, app: ASGIApp, socket: Path, within_s: float = WITHIN_S) -> None:
        self._app = app
        self._socket = str(socket)
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_reading(scope) or not await self._handed_on(scope, receive, send):
            await self._app(scope, receive, send)

    async def _handed_on(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """False: nobody has answered, and nothing was sent."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(_frame(b"S", _packed(scope)))
            try:
                async with asyncio.timeout(self._within_s):
                    kind, head = await _read(reader)
            except (OSError, EOFError, TimeoutError):
                return False
            if kind != b"H":
                return False
            await send({"type": "http.response.start", **_unpacked_head(head)})
            await _pass_body(reader, writer, receive, send)
            return True
        finally:
            writer.close()


async def _pass_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receive: Receive, send: Send) -> None:
    """A body that breaks off ends without its end: the server closes the connection, and the client knows."""
    watching: asyncio.Task[None] | None = None
    try:
        while True:
            kind, piece = await _read(reader)
            await send({"type": "http.response.body", "body": piece, "more_body": kind != b"E"})
            if kind == b"E":
                return
            if watching is None:
                watching = asyncio.create_task(_close_with_client(receive, writer), name="client of a long answer")
    except (OSError, EOFError):
        return
    finally:
        if watching is not None:
            watching.cancel()


async def _close_with_client(receive: Receive, writer: asyncio.StreamWriter) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    writer.close()


def is_reading(scope: Scope) -> bool:
    """Does this request only read the store?"""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    path: str = scope["path"]
    return path.startswith(_READS) and not path.startswith(_OWN)


class Answering:
    """The other end. Made by `open`.

    `current`: asked before each answer whether all that was changed before is in force here. Where it is not, nothing is answered: changes
    wait for the server process, which answers then.
    """

    def __init__(self, app: ASGIApp, socket: Path, current: Callable[[], Awaitable[bool]]) -> None:
        self._app = app
        self._socket = socket
        self._current = current
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, app: ASGIApp, socket: Path, current: Callable[[], Awaitable[bool]]) -> Answering:
        """Raises `OSError` where the path cannot be listened at: more than 107 bytes, for instance."""
        made = cls(app, socket, current)
        made._server = await asyncio.start_unix_server(made._connected, str(socket))
        return made

    async def close(self, within_s: float) -> None:
        """Whoever asks from now on answers itself; what runs has so long to end."""
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            if await self._current():
                await _answer(self._app, reader, writer)
        except (OSError, EOFError):
            pass  # the server process has gone, or its client
        except Exception:
            logger.exception("a request that was handed on failed")
        finally:
            writer.close()


async def _answer(app: ASGIApp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind, packed = await _read(reader)
    if kind != b"S":
        return
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await reader.read(1)  # nothing more is sent: it ends when the client is gone
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in message["headers"]]
            writer.write(_frame(b"H", orjson.dumps([message["status"], head])))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        cut = max(0, len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES  # where the last piece begins
        for start in range(0, cut, _PIECE_BYTES):
            writer.write(_frame(b"B", body[start : start + _PIECE_BYTES]))
            await writer.drain()
        writer.write(_frame(b"B" if more else b"E", body[cut:]))
        await writer.drain()

    await app(_unpacked(packed), receive, send)


def _packed(scope: Scope) -> bytes:
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    raw = {name: scope[name].decode("latin-1") for name in _RAW}
    return orjson.dumps({name: scope[name] for name in _NAMED} | raw | {"headers": headers})


def _unpacked(packed: bytes) -> Scope:
    scope: dict[str, Any] = orjson.loads(packed)
    for name in ("server", "client"):
        scope[name] = None if scope[name] is None else tuple(scope[name])
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in scope["headers"]]
    raw = {name: scope[name].encode("latin-1") for name in _RAW}
    return scope | raw | {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "headers": headers, "state": {}}


def _unpacked_head(head: bytes) -> dict[str, Any]:
    status, headers = orjson.loads(head)
    return {"status": status, "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]}


def _frame(kind: bytes, data: bytes) -> bytes:
    return _FRAME.pack(kind, len(data)) + data


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Raises `EOFError` where the connection ends first."""
    kind, size = _FRAME.unpack(await reader.readexactly(_FRAME.size))
    if size > _MOST_BYTES:
        raise EOFError
    return kind, await reader.readexactly(size)
