"""A system under test in one form, whatever it is: how to start it, where it listens, when it has settled, how it stops.

Every recipe turns a `Place` (a folder of its own, a port, the upstream) into a `Recipe`; `launch` starts it
in a session of its own on the cores it is given. The gateway runs with all it always does: authentication
by key, request, token, concurrency and budget limits, routing, metrics and the ledger. Anchors and peers
have none of that, and no setting here could turn it off.
"""

from __future__ import annotations

import http.client
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import measure, nginx

REPOSITORY = Path(__file__).resolve().parent.parent
START_LIMIT_S = 120.0
FILE_LIMIT_S = 15.0
STOP_LIMIT_S = 15.0
OWN_MODULES = {"PYTHONPATH": str(REPOSITORY)}


class SystemFailed(RuntimeError):
    """A system did not start, stopped by itself, or its set-up command failed; the message says which and shows its log."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a recipe is given. `upstream` is HOST:PORT of the mock."""

    name: str
    folder: Path
    port: int
    upstream: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to run one system. `booked()` is the number of requests in its SQL store, None where it keeps no books.

    `load_share` below 1 gives a system that is slower by orders of magnitude fewer requests, so that a run ends in time.
    `roles`: which of its processes do what. `keys`: a file with one key per line, used in turn instead of `key`.
    `soft_descriptors`: it is started with this soft limit, for a system that promises to raise the limit itself.
    `ready_file`: it is complete once this is there too, and measured then; a version that does not make it is not waited for long.
    """

    name: str
    command: tuple[str, ...]
    port: int
    key: str = ""
    model: str = "bench"
    ready_path: str = "/readyz"
    strict: bool = True
    load_share: float = 1.0
    env: dict[str, str] = field(default_factory=dict)
    booked: Callable[[], int] | None = None
    roles: measure.Roles = ()
    keys: Path | None = None
    soft_descriptors: int | None = None
    ready_file: Path | None = None


@dataclass(frozen=True, slots=True)
class System:
    """A running system."""

    recipe: Recipe
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.recipe.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """SIGTERM to the root, then SIGKILL to whatever of its tree is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                pass
        for stat in measure.tree(self.pid):
            try:
                os.kill(stat.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(STOP_LIMIT_S)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes started inside inherit these cores; the caller's own are put back after."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def soft_limit(descriptors: int | None) -> Iterator[None]:
    """Processes started inside inherit this soft limit of open descriptors; None leaves it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def clean_env(extra: dict[str, str]) -> dict[str, str]:
    """The environment of a child: ours without proxies, Python paths and settings of the gateway, plus `extra`."""
    dropped = ("GATEWAY_", "DEFAULT_", "OPENAI_", "MODEL_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped) and not name.lower().endswith("_proxy")}
    return kept | {"PYTHONUNBUFFERED": "1"} | extra


def launch(recipe: Recipe, folder: Path, cores: set[int]) -> System:
    """Start a system on `cores` and wait until it is ready.

    Raises SystemFailed, with the tail of its log.
    """
    log = folder / f"{recipe.name}.log"
    with log.open("wb") as output, on_cores(cores), soft_limit(recipe.soft_descriptors):
        process = subprocess.Popen(
            recipe.command,
            cwd=folder,
            env=clean_env(recipe.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    system = System(recipe, process, log)
    try:
        await_ready(system)
    except SystemFailed:
        system.stop()
        raise
    return system


def await_ready(system: System) -> None:
    """Ask the ready path until it answers 200."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        if system.process.poll() is not None:
            raise SystemFailed(f"{system.name} ended with code {system.process.returncode}:\n{tail(system.log)}")
        if get_status("127.0.0.1", system.recipe.port, system.recipe.ready_path) == 200:
            _await_file(system.recipe.ready_file)
            return
        time.sleep(0.1)
    raise SystemFailed(f"{system.name} was not ready after {START_LIMIT_S:.0f} s:\n{tail(system.log)}")


def _await_file(file: Path | None) -> None:
    deadline_s = time.monotonic() + FILE_LIMIT_S
    while file is not None and not file.exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)


def get_status(host: str, port: int, path: str) -> int:
    """The status of one GET, 0 if nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def python_module(name: str) -> tuple[str, ...]:
    """The command that runs a module of this package with this Python."""
    return (sys.executable, "-m", name)


def upstream_recipe(place: Place) -> Recipe:
    """The mock upstream itself, asked directly: what is left when nothing stands between."""
    command = (*python_module("bench.upstream"), "--port", str(place.port))
    return Recipe("upstream", command, place.port, ready_path="/health", env=OWN_MODULES)


def anchor_recipe(place: Place) -> Recipe:
    """Anchor A; under a second name it is started again, to see how far A is from itself."""
    command = (*python_module("bench.anchor"), "--port", str(place.port), "--upstream", f"http://{place.upstream}")
    return Recipe(place.name, command, place.port, env=OWN_MODULES)


def nginx_recipe(place: Place) -> Recipe:
    """nginx with one worker. Raises SystemFailed where it is not installed."""
    found = nginx.binary()
    if found is None:
        raise SystemFailed("nginx is not installed")
    config = nginx.write_config(place.folder, place.port, place.upstream, as_root=os.geteuid() == 0)
    return Recipe(place.name, (found, "-p", str(place.folder), "-c", str(config)), place.port)
