"""`gateway serve`: prepares the installation, then supervises one keeper, N server processes and a reader until SIGTERM.

The supervisor holds the listening sockets, so that what waits in a killed server's queue survives until its successor takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import native, own_client
from gateway.cli.context import Context, context
from gateway.cli.form import FORM_VARIABLE
from gateway.cli.home_lock import hold_home
from gateway.cli.init import announce, initialise, make_home
from gateway.cli.output import fail, tell
from gateway.cli.readiness import readiness
from gateway.cli.tls import ServerTls, check_upstream_ca
from gateway.limits.levels import FORM
from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 5.0
_HEALTHY_S = 10.0
_KEEPER_STOP_S = 15.0
_LOOK_S = 0.1
_LONGEST_SOCKET = 107  # bytes of a path, on Linux
# glibc gives memory back to the system after every large body and takes it again, page by page, for the next: a quarter of the CPU of a
# 300 KB prompt. Up to 32 MB at the top of the heap are kept instead. An operator's own values win; other allocators do not look.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(32 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


def serve(
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Make this file the live revision, if its content is new.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", metavar="H", help="Address to listen on (default: HOST, else 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="P", min=0, max=65535, help="Port (default: PORT, else 8000).")] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, max=64, help="Server processes.")] = 1,
    snippet: Annotated[bool, typer.Option("--snippet", help="Make a first key in GATEWAY_HOME/demo.key and print how to use it.")] = False,
) -> None:
    """Serve until SIGTERM. Creates what is missing first: home, database, first admin, a route table."""
    settings = load_settings()
    if host is not None:
        os.environ["HOST"] = host
    if port is not None:
        os.environ["PORT"] = str(port)
    settings = load_settings() if host is not None or port is not None else settings
    ServerTls.of(settings)  # whether the servers will be able to use the files
    check_upstream_ca(settings.upstream_ca_file)
    # While there is nothing to drain yet. At once, as kill -9 would: an exception may be raised anywhere, and where it is, half-made things
    # complain in tracebacks.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    make_home(settings)
    with hold_home(settings.home, settings.run_dir):
        (own_client.forget if settings.tls_client_ca_file is None else own_client.make)(settings.run_dir)
        announce(asyncio.run(initialise(settings)))
        paste = asyncio.run(_prepare(settings, config, snippet))
        sockets = _listen(settings, workers)
        raise typer.Exit(asyncio.run(Supervisor(settings, sockets, paste).run()))


async def _prepare(settings: Settings, config: str | None, with_snippet: bool) -> Callable[[str], str] | None:
    """Once, before any server runs: the configuration file and the route table.

    Returns what makes the lines to paste out of the server's URL, where they are wanted.
    """
    from gateway.cli.snippet import ensure_demo_key, snippet
    from gateway.store import changelog, revisions

    async with context(settings) as ctx:
        async with ctx.db.read() as conn:
            ctx.generation.reset_change(await changelog.latest(conn))
        await _settle_revision(ctx, config)
        if not with_snippet:
            return None
        key_file = await ensure_demo_key(ctx)
        async with ctx.db.read() as conn:
            live = await revisions.live_revision(conn)
        models = [model["id"] for model in live.document["models"]] if live is not None else []
        chat = settings.default_chat_model if settings.default_chat_model in models else next(iter(models), "demo-chat")
        return lambda url: snippet(url, key_file, chat)


async def _settle_revision(ctx: Context, config: str | None) -> None:
    from gateway.cli.revisions import apply_document, apply_if_new, read_config
    from gateway.routing.default import default_document
    from gateway.store import revisions

    settings = ctx.settings
    if config is not None:
        document = read_config(config, settings)
        made = await apply_if_new(ctx, document, f"serve --config {Path(config).name}")
        tell(
            f"Revision {made.id} is live: {config} was applied." if made else f"{config} is what was last applied: the live revision stays."
        )
        return
    async with ctx.db.read() as conn:
        live = await revisions.live_id(conn)
    if live is None:
        document = default_document(settings.default_chat_model or "demo-chat", settings.default_embedding_model or "demo-embed")
        live = (await apply_document(ctx, document, "the default models")).id
        tell(f"Revision {live} is live: it serves {' and '.join(model.id for model in document.models)}.")


def _listen(settings: Settings, workers: int) -> list[socket.socket]:
    """One socket per server process, each with a queue of its own: the kernel spreads connections over them."""
    sockets: list[socket.socket] = []
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        _refuse_taken(family, address)
        for _ in range(workers):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if workers > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address if sock is sockets[0] else sockets[0].getsockname())
            sock.listen(4096)
            sock.set_inheritable(True)
    except socket.gaierror:
        fail(f"The address {host!r} is not known on this machine: give --host another.")
    except OSError as error:
        fail(f"Port {port} on {host} cannot be used ({error.strerror}): stop what listens there, or give --port another.")
    return sockets


def _refuse_taken(family: int, address: object) -> None:
    """SO_REUSEPORT would let us share a port with another gateway of the same user: look without it first."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it


class Supervisor:
    """Keeps the keeper, the servers and the reader running; forwards SIGTERM; ends when all have ended."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket], paste: Callable[[str], str] | None = None) -> None:
        self._settings = settings
        self._paste = paste
        self._sockets = sockets
        bound = sockets[0].getsockname()
        host = bound[0] if bound[0] not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104  # compared, not bound
        self._at = host, int(bound[1])
        scheme = "http" if settings.tls_cert_file is None else "https"
        self.url = f"{scheme}://[{host}]:{bound[1]}" if ":" in host else f"{scheme}://{host}:{bound[1]}"
        self._stopping = asyncio.Event()
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        environment = self._environment()
        keeper = asyncio.create_task(self._keep("keeper", ["-m", "gateway.keeper", "--server-url", self.url], (), environment))
        command = ["-m", "gateway.cli.server"]
        servers = [
            asyncio.create_task(self._keep(f"server-{i}", [*command, str(sock.fileno())], (sock.fileno(),), environment))
            for i, sock in enumerate(self._sockets)
        ]
        reader = asyncio.create_task(self._keep_reader(environment))
        announcing = asyncio.create_task(self._announce())
        await self._stopping.wait()
        announcing.cancel()
        for sock in self._sockets:
            sock.close()
        self._signal(lambda name: name != "keeper")
        await asyncio.gather(*servers, reader)
        self._signal(lambda name: name == "keeper")
        try:
            await asyncio.wait_for(keeper, _KEEPER_STOP_S)
        except TimeoutError:
            self._signal(lambda name: name == "keeper", signal.SIGKILL)
        return 0

    def _environment(self) -> dict[str, str]:
        environment = _ALLOCATOR | os.environ | {FORM_VARIABLE: FORM}
        if len(self._sockets) > 1:
            folder = self._settings.run_dir / "metrics"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        else:
            environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        return environment

    async def _keep(self, name: str, arguments: list[str], fds: tuple[int, ...], environment: dict[str, str]) -> None:
        """Run one process; start it again, with back-off, until we are stopping."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            # a process group of its own: Ctrl+C at the terminal is for us, who end the processes in the right order
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, *arguments, pass_fds=fds, env=environment, stdin=asyncio.subprocess.DEVNULL, process_group=0
                )
            except OSError as error:  # no memory, no more processes, or no such program while an installation is being replaced
                tell(f"The {name} process could not be started ({error.strerror}); it is tried again.")
                backoff_s = await self._pause(min(backoff_s * 2, _LAST_BACKOFF_S))
                continue
            self._running[name] = process
            if self._stopping.is_set():  # asked to stop while it was being started
                process.send_signal(signal.SIGTERM)
            code = await process.wait()
            self._running.pop(name, None)
            if self._stopping.is_set():
                return
            if metrics := environment.get("PROMETHEUS_MULTIPROC_DIR"):
                from gateway.metering.exposition import forget_process

                forget_process(metrics, process.pid)
            tell(f"The {name} process ended (exit code {code}); it is started again.")
            healthy = time.monotonic() - started_s > _HEALTHY_S
            backoff_s = await self._pause(_FIRST_BACKOFF_S if healthy else min(backoff_s * 2, _LAST_BACKOFF_S))

    async def _keep_reader(self, environment: dict[str, str]) -> None:
        """Once the servers have been up for a while: until then they answer themselves, and a short run does not pay for another process.
        What it counts is nothing of the servers' metrics.
        """
        after_s = self._settings.reader_after_s
        if after_s < 0 or len(os.fsencode(self._settings.reader_socket)) > _LONGEST_SOCKET:
            return
        await self._pause(after_s)
        of_reader = {name: value for name, value in environment.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        await self._keep("reader", ["-m", "gateway.cli.reader"], (), of_reader)

    async def _pause(self, seconds: float) -> float:
        """This long, or until we are stopping; returns how long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return seconds

    def _signal(self, which: Callable[[str], bool], number: int = signal.SIGTERM) -> None:
        for name, process in list(self._running.items()):
            if which(name) and process.returncode is None:
                process.send_signal(number)

    async def _announce(self) -> None:
        """Say when the server is ready, for whoever watches the terminal."""
        host, port = self._at
        tls = None if self._settings.tls_cert_file is None else own_client.context(self._settings.run_dir)
        said = ""
        while (seen := await readiness(host, port, tls)) is None or not seen.ready:
            doing = "starting the server" if seen is None else seen.doing
            if doing != said:
                tell(f"{self.url}: {doing} ...")
                said = doing
            await asyncio.sleep(_LOOK_S)
        tell(native.described())
        tell(f"Ready. OpenAI clients use {self.url}/v1 as their base URL. Stop with Ctrl+C.")
        if self._paste is not None:
            tell(self._paste(self.url))
