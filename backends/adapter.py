"""Base for backends that are not OpenAI-shaped HTTP: write one coroutine, get an `Exchange`.

    class Shouting(Adapter):
        async def answer(self, call, reply):
            text = orjson.loads(call.body)["prompt"].upper()
            await reply.head(200, [(b"content-type", b"application/json")])
            await reply.data(orjson.dumps({"text": text}))

Returning ends the answer. Raise a `BackendError` for a failure; anything else that is raised is a bug and becomes one. When the client
leaves, the coroutine is cancelled. `reply.data` waits while the client reads slowly, so nothing piles up.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from backends.errors import BackendError, BrokeOff, MaybeSent

if TYPE_CHECKING:
    from backends.base import Call, Headers, Sink


class Reply:
    """Where an adapter's coroutine puts its answer."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._reading = asyncio.Event()
        self._reading.set()
        self.begun = False
        self.over = False

    async def head(self, status: int, headers: Headers) -> None:
        """Once, before any data. Header names in lower case."""
        if self.begun:
            raise RuntimeError("the head of an answer is sent once")
        self.begun = True
        self._sink.on_head(status, headers)
        await self._turn()

    async def data(self, data: bytes) -> None:
        """A piece of the body; waits while the client does not read."""
        if not self.begun:
            raise RuntimeError("an answer begins with its head")
        self._sink.on_data(data)
        await self._turn()

    async def _turn(self) -> None:
        """The sink may have aborted us, or asked us to pause."""
        if self.over:
            await asyncio.sleep(0)  # the cancellation that abort() sent arrives here
        await self._reading.wait()

    def pause(self) -> None:
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()


class Adapter(ABC):
    """One backend. Implements `backends.base.Backend`; subclasses write `answer`."""

    asks_usage = True
    ready = True

    @abstractmethod
    async def answer(self, call: Call, reply: Reply) -> None:
        """Answer one call."""

    def open(self) -> AdapterExchange:
        return AdapterExchange(self)

    async def close(self) -> None:  # noqa: B027  # most adapters hold nothing
        """Release what the adapter holds. Running exchanges finish."""


class AdapterExchange:
    """One run of an adapter's coroutine. Implements `backends.base.Exchange`."""

    connect_ms: float | None = None
    sent = True

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._paused = False

    def start(self, call: Call, sink: Sink) -> None:
        self._reply = Reply(sink)
        if self._paused:
            self._reply.pause()
        self._task = asyncio.get_running_loop().create_task(self._run(call, sink, self._reply))

    def pause(self) -> None:
        self._paused = True
        if self._reply is not None:
            self._reply.pause()

    def resume(self) -> None:
        self._paused = False
        if self._reply is not None:
            self._reply.resume()

    def abort(self) -> None:
        if self._reply is not None:
            self._reply.over = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self, call: Call, sink: Sink, reply: Reply) -> None:
        error: BackendError | None = None
        try:
            await self._adapter.answer(call, reply)
        except BackendError as failure:
            error = failure
        except Exception as bug:
            error = BrokeOff("adapter") if reply.begun else MaybeSent("adapter")
            error.__cause__ = bug
        if reply.over:
            return
        reply.over = True
        if error is None and not reply.begun:
            error = MaybeSent("empty")
        if error is None:
            sink.on_end(False)
        else:
            sink.on_error(error)
