"""A gateway of its own for each test, and a way to type commands at it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.entry import outcome
from gateway.cli.init import initialise
from gateway.settings import Settings


@dataclass(frozen=True)
class Typed:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Gateway = Callable[..., Typed]


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gateway:
    """`gateway("keys", "list")`: runs the command in this process, with an empty home and working directory."""
    for name in ("GATEWAY_DATABASE_URL", "GATEWAY_SECRET_KEY", "GATEWAY_ADMIN_PASSWORD", "LOCAL_MODELS_DIR", "GATEWAY_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Typed:
        capsys.readouterr()
        code = outcome(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Typed(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home after `gateway init`, to be copied for each test."""
    home = tmp_path_factory.mktemp("initialised") / "home"
    asyncio.run(initialise(Settings(GATEWAY_HOME=str(home), _env_file=None)))  # type: ignore[call-arg, arg-type]  # by alias
    return home


@pytest.fixture
def ready(gateway: Gateway, initialised: Path, tmp_path: Path) -> Gateway:
    """The same, after `gateway init`."""
    shutil.copytree(initialised, tmp_path / "home")
    return gateway
