"""Misbehaviour, ready made: scripts for `tests.upstream.Upstream`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from tests.upstream import Script, Seen, Wire, chat_chunk

ROLE = chat_chunk({"role": "assistant", "content": ""})
WORD = chat_chunk({"content": "word "})
STOP = chat_chunk({}, "stop")


def frame(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return b"data: " + data + b"\n\n"


def answers(value: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Script:
    """One whole answer."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer(value, status, content_type, **headers)

    return script


def raw(data: bytes, close: bool = True) -> Script:
    """These bytes, then the end of the connection."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.send(data)
        if close:
            wire.close()

    return script


def silence() -> Script:
    """Takes the request and says nothing until the gateway closes."""

    async def script(wire: Wire, seen: Seen) -> None:
        await closed(wire, seen)

    return script


def resets() -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        wire.reset()

    return script


def stream(*blocks: bytes, after: Callable[[Wire, Seen], Awaitable[None]] | None = None) -> Script:
    """An event stream of these chunks, then its proper end, or `after`."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for block in blocks:
            await wire.chunk(block)
        if after is None:
            await wire.end()
        else:
            await after(wire, seen)

    return script


async def closed(wire: Wire, seen: Seen) -> None:
    """Wait until the gateway closes, and note it."""
    try:
        await wire.until_closed()
    except ConnectionError:
        pass
    seen.note_closed()
    wire.close()


async def cut(wire: Wire, seen: Seen) -> None:
    wire.close()


async def reset(wire: Wire, seen: Seen) -> None:
    wire.reset()


def in_turn(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one serves all that follow."""
    left = list(scripts)

    async def script(wire: Wire, seen: Seen) -> None:
        current = left.pop(0) if len(left) > 1 else left[0]
        await current(wire, seen)

    return script
