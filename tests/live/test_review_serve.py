"""One installation, started and stopped in odd ways."""

from __future__ import annotations

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.gateway_process import Gateway, free_port, gateway

CONFIG = "models:\n  - id: echo\n    backends: [{type: echo}]\n"
_BIN = str(Path(sys.executable).parent / "gateway")


def serve(made: Gateway, *arguments: str) -> tuple[int, str]:
    """A second `gateway serve` for the same home, until it gives up; (exit code, stderr)."""
    done = subprocess.run(
        [_BIN, "serve", "--port", str(free_port()), *arguments],
        env=made.env(), capture_output=True, text=True, timeout=60, cwd=made.home.parent,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_home_is_served_once(tmp_path: Path) -> None:
    """Two would each let a key's whole limit through."""
    with gateway(tmp_path, CONFIG) as made:
        other = tmp_path / "other.yaml"
        other.write_text("models:\n  - id: other\n    backends: [{type: echo}]\n")
        before = made.cli("export")
        code, said = serve(made, "--config", str(other))
        assert code == 1, said
        assert len(said.strip().splitlines()) == 1
        assert str(made.home) in said
        assert f"process {made.process.pid}" in said  # type: ignore[union-attr]  # it runs
        assert made.cli("export") == before  # refused before anything was changed
        assert made.stop() == 0
        made.start()  # the home is free again
        made.kill()
        made.start()  # also after kill -9


def test_a_stop_while_starting_exits_0(tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG, start=False) as made:
        made.start(ready=False)
        assert made.process is not None
        deadline_s = time.monotonic() + 30
        while not (made.home / "run" / "serve.lock").exists():  # it has begun to prepare the home
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        assert made.stop(signal.SIGTERM) == 0
        assert "Traceback" not in made.log()
        made.start()


def test_a_log_that_takes_no_more_stops_nothing(tmp_path: Path) -> None:
    """What ends is started again though that cannot be said, and a stop is no failure."""
    with gateway(tmp_path, CONFIG, start=False) as made, Path("/dev/full").open("wb") as full:
        made.port = free_port()
        command = [_BIN, "serve", "--port", str(made.port), "--config", str(made.write_config(CONFIG))]
        made.process = subprocess.Popen(command, env=made.env(), stdout=full, stderr=full, cwd=tmp_path, start_new_session=True)
        made.wait_ready()
        (server,) = made.children("gateway.cli.server")
        (keeper,) = made.children("gateway.keeper")
        for pid in (keeper, server):
            os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 30
        while keeper in made.children("gateway.keeper") or not made.children("gateway.keeper"):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        made.wait_ready()
        assert made.stop() == 0


def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    """The database is gone when a killed server is started again; it comes back, and so does the server."""
    with gateway(tmp_path, CONFIG) as made:
        key = made.key()
        database = made.home / "gateway.sqlite3"
        database.rename(tmp_path / "aside")
        (server,) = made.children("gateway.cli.server")
        subprocess.run(["kill", "-9", str(server)], check=True)
        deadline_s = time.monotonic() + 30
        while "could not start" not in made.log():
            assert time.monotonic() < deadline_s, made.log()
            time.sleep(0.05)
        (tmp_path / "aside").rename(database)
        made.wait_ready()
        assert "Traceback" not in made.log()
        assert httpx.get(f"{made.url}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code == 200


def test_the_snippet_can_be_pasted_whatever_the_home_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "it's a home, 집"
    folder.mkdir()
    with gateway(folder, CONFIG, arguments=("--snippet",)) as made:
        deadline_s = time.monotonic() + 20
        while "Paste into Python" not in made.log():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        start = made.log().index("  curl ")
        line = made.log()[start:].split("\n\n")[0]
        answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        assert '"chat.completion"' in answer.stdout, answer.stderr
        opened = made.log().split("api_key=open(", 1)[1].split(").read()", 1)[0]
        assert Path(ast.literal_eval(opened)).read_text().startswith("sk-gw-")
        assert shlex.quote(str(made.home / "demo.key")) in line
