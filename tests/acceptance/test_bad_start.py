"""A start that cannot work says why in one plain sentence and exits 1; a stop exits 0 and cuts nobody off."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from tests.acceptance.admin import admin
from tests.gateway_process import Gateway, free_port, gateway

CONFIG = "models:\n  - id: echo\n    backends: [{type: echo}]\n  - id: slow\n    backends: [{type: echo, chunk_delay_ms: 100}]\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A home with everything in it, not served."""
    with gateway(tmp_path_factory.mktemp("start"), CONFIG, start=False) as made:
        made.cli("init")
        yield made


def serve(made: Gateway, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run `gateway serve` until it gives up; (exit code, stderr)."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "gateway"), "serve", "--port", str(free_port()), *arguments],
        env=made.env() | environment, capture_output=True, text=True, timeout=60, cwd=made.home.parent,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


def one_sentence(outcome: tuple[int, str], *words: str) -> None:
    code, said = outcome
    assert code == 1, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    for word in words:
        assert word in said, said


def test_port_taken(filled: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for workers in ("1", "2"):
            code, said = serve(filled, "--port", str(port), "--workers", workers)
            told = [line for line in said.splitlines() if not line.startswith("Revision ")]  # the first start says what it serves
            one_sentence((code, "\n".join(told)), str(port), "--port")


def test_address_unknown(filled: Gateway) -> None:
    one_sentence(serve(filled, "--host", "no-such-host.invalid"), "no-such-host.invalid", "--host")


def test_database_newer_than_the_code(filled: Gateway) -> None:
    database = filled.home / "gateway.sqlite3"
    with sqlite3.connect(database) as conn:
        (known,) = conn.execute("SELECT version_num FROM alembic_version").fetchone()
        conn.execute("UPDATE alembic_version SET version_num = 'r9999_future'")
    conn.close()
    before = database.read_bytes()
    try:
        one_sentence(serve(filled), "newer version", "r9999_future")
        assert database.read_bytes() == before
        filled.cli("keys", "list", code=1)
    finally:
        with sqlite3.connect(database) as conn:
            conn.execute("UPDATE alembic_version SET version_num = ?", (known,))
        conn.close()
    filled.cli("keys", "list")


def test_unwritable_home(filled: Gateway, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    home = str(tmp_path / "file" / "home")
    one_sentence(serve(filled, GATEWAY_HOME=home), "GATEWAY_HOME", home, "cannot be written")


def test_unknown_database(filled: Gateway) -> None:
    url = f"postgresql://gateway:hidden-password@127.0.0.1:{free_port()}/gateway"
    code, said = serve(filled, GATEWAY_DATABASE_URL=url)
    one_sentence((code, said), "database")
    assert "hidden-password" not in said


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("models:\n  - id: a\n    backends: [{type: echo}]\n    colour: red\n", 4, "colour"),
        ("models:\n  - id: a\n    backends:\n      - {type: echo, wieght: 3}\n", 4, "weight"),
        ("models:\n  - id: a\n    backends:\n      - {type: echo, weight: -1}\n", 4, "weight"),
        (
            "models:\n  - id: a\n    backends:\n      - {type: custom, baseURL: 'http://x/v1', apiKey: '${NOT_SET_HERE}'}\n",
            4,
            "NOT_SET_HERE",
        ),
        ("models:\n  - id: a\n    backends: [{type: echo}\n", 4, ""),
    ],
    ids=["unknown key", "misspelt key", "weight below zero", "unset variable", "no YAML"],
)
def test_faults_of_the_config_have_a_line(filled: Gateway, tmp_path: Path, text: str, line: int, words: str) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    said = filled.cli("check", "-f", str(config), code=1)
    assert said.count("\n") == 1
    assert f"bad.yaml:{line}" in said
    assert words in said


def test_serve_refuses_a_faulty_config(filled: Gateway, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("models:\n  - id: a\n    backends: [{type: echo}]\n    colour: red\n")
    one_sentence(serve(filled, "--config", str(config)), "bad.yaml:4", "colour")


def test_config_that_is_not_there(filled: Gateway, tmp_path: Path) -> None:
    one_sentence(serve(filled, "--config", str(tmp_path / "none.yaml")), "none.yaml")


@pytest.mark.parametrize(("name", "value"), [("GATEWAY_MAX_BODY_MB", "many"), ("PORT", "-1"), ("GATEWAY_SECRET_KEY", "short")])
def test_a_setting_that_cannot_be(filled: Gateway, name: str, value: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "gateway"), "serve"],
        env=filled.env() | {name: value}, capture_output=True, text=True, timeout=60, cwd=filled.home.parent,
    )  # fmt: skip
    one_sentence((done.returncode, done.stderr), name)


# what works


def test_init_is_idempotent(filled: Gateway) -> None:
    before = contents(filled.home)
    other = {"GATEWAY_ADMIN_PASSWORD": "another password 7", "GATEWAY_ADMIN_EMAIL": "other@localhost"}
    second = Gateway(filled.home, environment=other).cli_json("init")
    assert (second["created"], second["migrated"], second["admin"]) == (False, False, "admin@localhost")
    assert contents(filled.home) == before
    assert (filled.home.stat().st_mode & 0o777) == 0o700


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file() and "sqlite" not in path.name}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_running_answers_finish(filled: Gateway, number: int) -> None:
    filled.start()
    login = {"email": "admin@localhost", "password": "another password 7"}
    assert httpx.post(f"{filled.url}/auth/login", json=login, trust_env=False).status_code == 401
    with admin(filled) as root:
        key = root.key("stop")
    async with AsyncOpenAI(base_url=f"{filled.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        words = "w " * 12
        stream = await client.chat.completions.create(model="slow", messages=[{"role": "user", "content": words}], stream=True)
        await anext(stream)
        stopping = asyncio.create_task(asyncio.to_thread(filled.stop, number))
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
        assert text.split() == words.split()
        assert await stopping == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", filled.port), timeout=1)
    assert "Traceback" not in filled.log()


def test_the_second_start_keeps_what_was_changed_meanwhile(filled: Gateway) -> None:
    """A config file whose content was the last to be applied is not applied again: a rollback behind it survives the restart."""
    other = filled.home.parent / "other.yaml"
    other.write_text("models:\n  - id: other\n    backends: [{type: echo}]\n")
    filled.cli("apply", "-f", str(other))
    filled.cli("apply", "-f", str(filled.write_config(CONFIG)))
    filled.cli("rollback")
    filled.start()
    try:
        assert "the live revision stays" in filled.log()
        with admin(filled) as root:
            headers = {"authorization": f"Bearer {root.key('models')}"}
        listed = httpx.get(f"{filled.url}/v1/models", headers=headers, trust_env=False).json()
        assert [model["id"] for model in listed["data"]] == ["other"]
    finally:
        assert filled.stop() == 0


def test_nothing_outlives_a_killed_supervisor(filled: Gateway) -> None:
    """kill -9 of the parent alone: keeper and servers end by themselves, and the next start finds everything free."""
    filled.start()
    assert filled.process is not None
    filled.process.kill()
    filled.process.wait()
    deadline_s = time.monotonic() + 15
    while left := filled.children("gateway."):
        assert time.monotonic() < deadline_s, f"still running: {left}"
        time.sleep(0.05)
    filled.start()
    assert filled.stop() == 0
