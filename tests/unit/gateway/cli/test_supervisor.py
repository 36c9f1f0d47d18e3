from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from gateway.cli.serve import Supervisor
from gateway.settings import Settings


async def test_a_process_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As while an installation is being replaced: the supervisor says so, and is there when it can be started again."""
    started = tmp_path / "started"
    program = tmp_path / "python"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = Supervisor(Settings(GATEWAY_HOME=str(tmp_path)), [listening])  # type: ignore[call-arg]  # by its alias
        monkeypatch.setattr(sys, "executable", str(program))
        keeping = asyncio.create_task(supervisor._keep("server-0", [str(started)], (), dict(os.environ)))
        async with asyncio.timeout(10):
            while "could not be started (No such file or directory)" not in capfd.readouterr().err:
                await asyncio.sleep(0.01)
            program.write_text('#!/bin/sh\ntouch "$1"\n')
            program.chmod(0o755)
            while not started.exists():
                await asyncio.sleep(0.01)
        supervisor._stopping.set()
        await asyncio.wait_for(keeping, 5)
