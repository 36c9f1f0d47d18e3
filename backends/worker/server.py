"""The running worker: HTTP at once, the model as soon as it is loaded, a prompt end. Torch is imported with the model, not before."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from backends.worker.door import Door
from backends.worker.errors import LoadFault
from backends.worker.options import Options
from backends.worker.thread import ModelThread, Run

_GRACE_S = 1
_KEEP_ALIVE_S = 75


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process by signal instead of with code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """`run` returns after `stop`, or raises WorkerError when the model cannot be loaded."""

    def __init__(self, options: Options, listener: socket.socket, token: str | None) -> None:
        self._options = options
        self._listener = listener
        self._door = Door(token)
        self._thread = ModelThread(options.max_queue)
        config = uvicorn.Config(
            self._door,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._http = _Uvicorn(config)

    def stop(self) -> None:
        """Running answers end with `shutting_down` at their next token."""
        self._thread.close()
        self._http.should_exit = True

    async def run(self, on_ready: Callable[[dict[str, Any]], None]) -> None:
        serving = asyncio.ensure_future(self._http.serve(sockets=[self._listener]))
        self._thread.start()
        loading = asyncio.ensure_future(self._load(on_ready))
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await serving
        finally:
            loading.cancel()
            self.stop()

    async def _load(self, on_ready: Callable[[dict[str, Any]], None]) -> None:
        started_s = time.monotonic()
        run: Run[Any] = self._thread.submit(_loaded(self._options))
        async for [service] in run.batches():
            from backends.worker.app import ModelApp

            service.thread = self._thread
            self._door.open(ModelApp(service))
            facts = service.facts()
            logging.getLogger("worker").info("ready", extra=facts | {"load_ms": round((time.monotonic() - started_s) * 1000)})
            on_ready(facts)


def _loaded(options: Options) -> Iterator[Any]:
    """Runs in the model's thread: imports torch there, so that the loop answers meanwhile."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not options.hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    gc.disable()  # the modules stay: looking through them again and again while they are made is a seventh of the CPU of a start
    try:
        from backends.worker.loading import load
        from backends.worker.service import Service
    except ImportError as error:
        raise LoadFault(f"{error.name} is not installed. Install what local models need: pip install 'model-gateway[local]'.") from error
    finally:
        gc.enable()

    yield Service(options, load(options))
