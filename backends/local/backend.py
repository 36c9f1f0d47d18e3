"""Calls to a local model, in a serving process: HTTP to the worker's port while it is ready, `NotReady` at once while it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from backends.base import Call, Exchange, Headers, Sink
from backends.errors import BackendError, ConnectFailed, MaybeSent, NotReady, StaleConnection
from backends.http1 import Http1Pool
from backends.local.state import LocalState, ModelState

_RETRY_AFTER_S = {"starting": 2.0, "loading": 2.0, "backoff": 2.0, "failed": 30.0}


class Pool(Protocol):
    """What is used of `backends.http1.Http1Pool`."""

    def open(self) -> Exchange: ...

    async def close(self) -> None: ...


class LocalBackend:
    """Implements `backends.base.Backend` for one model path. `open_pool(base_url, authorization)` makes the pool to a worker."""

    def __init__(self, path: str, state: LocalState, open_pool: Callable[[str, str | None], Pool] = Http1Pool) -> None:
        self.asks_usage = True
        self._path = path
        self._state = state
        self._open_pool = open_pool
        self._worker: ModelState | None = None
        self._pool: Pool | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        worker = self._state.get(self._path)
        return worker is not None and worker.state == "ready"

    def open(self) -> Exchange:
        worker = self._state.get(self._path)
        if worker is None or worker.state != "ready":
            return _NotReadyExchange(worker.state if worker is not None else "starting")
        if self._pool is None or worker is not self._worker:
            self._retire()
            self._worker = worker
            authorization = f"Bearer {worker.token}" if worker.token else None
            self._pool = self._open_pool(f"http://127.0.0.1:{worker.port}/v1", authorization)
        return _LocalExchange(self._pool.open())

    async def close(self) -> None:
        self._retire()
        if self._closing:
            await asyncio.gather(*self._closing)

    def _retire(self) -> None:
        """The worker behind the pool is another one now: close what idles, let what runs end by itself."""
        if self._pool is not None:
            task = asyncio.get_running_loop().create_task(self._pool.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._pool = self._worker = None


class _NotReadyExchange:
    """Answers at once that the model cannot serve now."""

    __slots__ = ("_state",)
    connect_ms: float | None = None
    sent = False

    def __init__(self, state: str) -> None:
        self._state = state

    def start(self, call: Call, sink: Sink) -> None:
        reason = "failed" if self._state == "failed" else "loading"
        sink.on_error(NotReady(reason, retry_after_s=_RETRY_AFTER_S.get(self._state, 2.0)))

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _LocalExchange:
    """An exchange with a worker. One that is refused, or dies before any byte of an answer, means that the worker died just now: its
    work had no effect elsewhere, so the caller hears NotReady and may try another backend.
    """

    __slots__ = ("_inner", "abort", "pause", "resume")

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self.pause, self.resume, self.abort = inner.pause, inner.resume, inner.abort

    @property
    def connect_ms(self) -> float | None:
        return self._inner.connect_ms

    @property
    def sent(self) -> bool:
        return self._inner.sent

    def start(self, call: Call, sink: Sink) -> None:
        self._inner.start(call, _LocalSink(sink))


class _LocalSink:
    """Passes everything on without a call in between, but for errors."""

    __slots__ = ("_sink", "on_data", "on_end", "on_head")

    on_head: Callable[[int, Headers], None]
    on_data: Callable[[bytes], None]
    on_end: Callable[[bool], None]

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.on_head, self.on_data, self.on_end = sink.on_head, sink.on_data, sink.on_end

    def on_error(self, error: BackendError) -> None:
        died = isinstance(error, ConnectFailed | MaybeSent) and not isinstance(error, StaleConnection)
        self._sink.on_error(NotReady("loading", retry_after_s=_RETRY_AFTER_S["backoff"]) if died else error)
