"""A whole gateway as its users run it: `gateway` as a process with a home of its own, on SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PASSWORD = "correct horse battery 9"
_BIN = Path(sys.executable).parent
START_S = 60
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""`verify` of HTTP clients that speak no TLS: it trusts nobody. (httpx else reads all authorities for each client: 20 ms of CPU.)"""


@dataclass
class Gateway:
    """One installation. `start` and `stop` may be called again and again; the home stays."""

    home: Path
    config: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.home.parent / f"{self.home.name}.log"

    def env(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "CI") if name in os.environ}
        own = {"HOME": str(self.home.parent), "GATEWAY_HOME": str(self.home), "GATEWAY_ADMIN_PASSWORD": PASSWORD}
        return inherited | own | self.environment

    def cli(self, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
        """Run `gateway ARGUMENTS` and return its stdout; its exit code must be `code`."""
        done = subprocess.run(
            [str(_BIN / "gateway"), *arguments],
            env=self.env(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.home.parent,
        )
        assert done.returncode == code, f"gateway {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def cli_json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json"))

    def key(self, name: str = "test", *arguments: str) -> str:
        return str(self.cli("keys", "create", "--name", name, *arguments).strip())

    def write_config(self, text: str) -> Path:
        path = self.home.parent / f"{self.home.name}.yaml"
        path.write_text(text)
        return path

    def start(self, ready: bool = True) -> Gateway:
        self.port = self.port or free_port()
        command = [str(_BIN / "gateway"), "serve", "--port", str(self.port), *self.arguments]
        if self.config is not None:
            command += ["--config", str(self.write_config(self.config))]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env(), stdout=log, stderr=log, cwd=self.home.parent, start_new_session=True)
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, within_s: float = START_S) -> None:
        """Until each of its server processes has said so: what the kernel gives to one that is still loading waits at its door."""
        workers = int(self.arguments[self.arguments.index("--workers") + 1]) if "--workers" in self.arguments else 1
        ready: set[str] = set()
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the gateway ended:\n{self.log()}"
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False, verify=PLAIN)
                if answer.status_code == 200:
                    ready.add(answer.headers["x-request-id"][4:20])
                    if len(ready) >= workers:
                        return
                    continue
            time.sleep(0.05)
        raise AssertionError(f"not ready within {within_s} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-20_000:] if self.log_path.exists() else ""

    def stop(self, number: int = signal.SIGTERM, within_s: float = 40) -> int:
        """Signal the supervisor and wait for it; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9 of everything at once."""
        if self.process is not None:
            # stopped first: whoever is left for a moment after the supervisor is told to end, and would say goodbye
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in self.children(""):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            self.process.wait()
            deadline_s = time.monotonic() + 10
            while self.children("gateway.") and time.monotonic() < deadline_s:  # until then they hold the port and the ledger
                time.sleep(0.01)

    def children(self, pattern: str) -> list[int]:
        """Pids in this gateway's session whose command line holds `pattern`."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError):
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                if session == self.process.pid and pattern in (entry / "cmdline").read_text().replace("\0", " "):
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def gateway(
    folder: Path, config: str | None = None, *, arguments: Sequence[str] = (), start: bool = True, **environment: str
) -> Iterator[Gateway]:
    """A gateway with its home in `folder`; started, and ended whatever happens."""
    made = Gateway(folder / "home", config, environment, arguments)
    try:
        yield made.start() if start else made
    finally:
        if made.process is not None and made.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.stop()
        made.kill()


_SLICE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_given: set[int] = set()


def free_port() -> int:
    """For a server that is told its port before it binds. It is none that the kernel gives to connections or to port 0: those may take it
    in between, and again while a server is stopped and started. Nor one that another of the processes that run tests is given."""
    while True:
        port = random.randrange(12_000 + 2_500 * _SLICE, 14_500 + 2_500 * _SLICE)
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port
