"""A backend as a process of its own, so that it can be killed: streams some words, each a little after the one before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.gateway_process import free_port
from tests.upstream import USAGE, Seen, Upstream, Wire, chat_answer, chat_chunk

WORDS, PAUSE_S = 16, 0.1
ROOT = Path(__file__).parents[2]


class StreamingBackend:
    """`name` comes back in every event as its system_fingerprint."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, self.name, str(self.port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def streaming_backends(*names: str) -> Iterator[list[StreamingBackend]]:
    made = [StreamingBackend(name) for name in names]
    try:
        for backend in made:
            backend.start()
        yield made
    finally:
        for backend in made:
            backend.kill()


class _Upstream(Upstream):
    """On a port that was chosen before; forgets what it has seen, as there are thousands of requests."""

    async def listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024)


async def _main(name: str, port: int) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        up.seen.clear()
        own = {"system_fingerprint": name}
        if not seen.json.get("stream"):
            await wire.answer(chat_answer() | own)
            return
        await wire.sse_head()
        await wire.event(chat_chunk({"role": "assistant", "content": ""}) | own)
        for number in range(WORDS):
            await asyncio.sleep(PAUSE_S)
            await wire.event(chat_chunk({"content": f"w{number} "}) | own)
        await wire.event(chat_chunk({}, "stop") | own)
        if (seen.json.get("stream_options") or {}).get("include_usage"):
            await wire.event(chat_chunk({}) | own | {"choices": [], "usage": USAGE})
        await wire.event(b"[DONE]")
        await wire.end()

    up = _Upstream(script)
    async with await up.listen(port):
        os.write(1, b"ready\n")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
