"""The command as people run it: its own process, exit codes, pipes, start-up time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest


def start(home: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    environ = {"GATEWAY_HOME": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "gateway", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": home.parent, "env": environ}
    return subprocess.Popen(command, **(pipes | options))  # type: ignore[call-overload, no-any-return]  # the options vary


def run(home: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(home, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cli") / "home"
    code, _, err = run(home, "init")
    assert code == 0, err
    return home


def test_exit_codes(home: Path) -> None:
    assert run(home, "keys", "list")[0] == 0
    assert run(home, "keys", "revoke", "no-such-key")[0] == 1
    assert run(home, "keys", "revoke")[0] == 2


def test_to_make_a_key_costs_little_more_than_to_import_libraries(home: Path) -> None:
    """Half a second of CPU on an ordinary machine, and a ratio on any."""
    libraries = "import alembic.command, pydantic_settings, sqlalchemy.ext.asyncio, typer"
    took_s, imports_s = [], []
    for _ in range(3):
        began_s = _of_children_s()
        subprocess.run([sys.executable, "-c", libraries], check=True)
        imported_s = _of_children_s()
        code, out, err = run(home, "keys", "create", "--name", "quick")
        took_s.append(_of_children_s() - imported_s)
        imports_s.append(imported_s - began_s)
        assert (code, err) == (0, "")
        assert out.startswith("sk-gw-")
        assert out.count("\n") == 1
    assert min(took_s) < 2.2 * min(imports_s), (took_s, imports_s)


def _of_children_s() -> float:
    """Their CPU: the machine may be busy with others."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_two_inits_at_once_make_one_admin(tmp_path: Path) -> None:
    home = tmp_path / "home"
    processes = [start(home, "init", "--json") for _ in range(3)]
    outcomes = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0, 0, 0], outcomes
    assert sum('"created": true' in said[0] for said, _ in outcomes) == 1
    assert sum("password" in said[1] for said, _ in outcomes) == 1


def test_a_closed_pipe_is_no_failure(home: Path) -> None:
    run(home, "keys", "create", "--name", "to be listed")
    with start(home, "keys", "list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (said, process.returncode) == ("", 0)


def test_nothing_heavy_is_imported_for_a_command() -> None:
    code = "import sys; import gateway.cli.app; print(sorted({'torch', 'sqlalchemy', 'fastapi', 'uvicorn', 'alembic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
