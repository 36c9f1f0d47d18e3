"""An upstream in a thread of its own that misbehaves in every way, and repeats what it should not: its key, and the prompt."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.upstream import Script, Seen, Upstream, Wire, chat_answer, chat_chunk

ANSWER = "ANSWERMARK"  # replaced by the mark of the answer


def _told(seen: Seen) -> str:
    """What a careless server puts into its error messages."""
    return f"Incorrect API key provided: {seen.headers.get('authorization', '')}; request was {seen.body.decode(errors='replace')}"


def _error(status: int, content_type: str = "application/json", **headers: str) -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        told = _told(seen)
        body = {"error": {"message": told, "type": "server_error", "param": None, "code": told[:60]}}
        more = {name: value.replace("KEY", seen.headers.get("authorization", "").partition(" ")[2]) for name, value in headers.items()}
        await wire.answer(told.encode() if content_type != "application/json" else body, status, content_type, **more)

    return script


async def _good(wire: Wire, seen: Seen, answer: str) -> None:
    asked = seen.json if seen.body.startswith(b"{") else {}
    if not asked.get("stream"):
        await wire.answer(chat_answer(text=answer))
        return
    await wire.sse_head()
    for delta in ({"role": "assistant", "content": ""}, {"content": answer}):
        await wire.event(chat_chunk(delta))
    await wire.event(chat_chunk({}, "stop"))
    await wire.event(b"[DONE]")
    await wire.end()


async def _breaks_off(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await wire.event(chat_chunk({"content": "one"}))
    await wire.chunk(b'data: {"choices":[{"delta":{"content":"' + _told(seen).encode())
    wire.reset()


async def _stalls(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await wire.event(chat_chunk({"content": "one"}))
    await wire.until_closed()


async def _silent(wire: Wire, seen: Seen) -> None:
    await wire.until_closed()


async def _reset(wire: Wire, seen: Seen) -> None:
    wire.reset()


async def _garbage(wire: Wire, seen: Seen) -> None:
    await wire.send(b"HTTP/1.1 200 X\r\nthis is no header " + _told(seen).encode() + b"\r\n\r\n")
    wire.close()


async def _cut_json(wire: Wire, seen: Seen) -> None:
    await wire.answer(b'{"id": "' + _told(seen).encode(), 200)


async def _error_event(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await wire.event({"error": {"message": _told(seen), "type": "server_error", "param": None, "code": None}})
    await wire.end()


BEHAVIOURS: dict[str, Script | None] = {
    "good": None,
    "400": _error(400),
    "401": _error(401),
    "403": _error(403),
    "407": _error(407),
    "500": _error(500),
    "503": _error(503),
    "302": _error(302, location="http://127.0.0.1:1/?key=KEY"),
    "html": _error(200, "text/html"),
    "text": _error(500, "text/plain"),
    "garbage": _garbage,
    "cut": _cut_json,
    "reset": _reset,
    "silent": _silent,
    "stalls": _stalls,
    "breaks-off": _breaks_off,
    "error-event": _error_event,
}


@contextlib.contextmanager
def marked_upstream(answer: str) -> Iterator[Upstream]:
    """Serves BEHAVIOURS by the model's name; `answer` is what it answers."""

    async def dispatch(wire: Wire, seen: Seen) -> None:
        name = next((name for name in BEHAVIOURS if f'"{name}"'.encode() in seen.body), "good")
        script = BEHAVIOURS[name]
        await (_good(wire, seen, answer) if script is None else script(wire, seen))

    ready, loop, upstream = threading.Event(), asyncio.new_event_loop(), Upstream(dispatch)
    over = asyncio.Event()

    async def serve() -> None:
        async with upstream:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="upstream")
    thread.start()
    assert ready.wait(10)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def routes(url: str, api_key: str) -> str:
    """One model `up/<behaviour>` for each, as lines under `models:`."""
    backend = f"type: custom, baseURL: '{url}', apiKey: '{api_key}'"
    lines = []
    for name in BEHAVIOURS:
        quiet_s = 0.3 if name in ("silent", "stalls") else 10
        clocks = f"{{connect_s: 5, first_byte_s: {quiet_s}, idle_s: {quiet_s}, total_s: 20}}"
        lines.append(f"  - id: up/{name}\n    timeouts: {clocks}\n    backends: [{{{backend}, model: '{name}'}}]\n")
    return "".join(lines)
