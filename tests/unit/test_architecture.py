"""The import contracts hold, and each of them notices when it is broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# One import that each contract must refuse: contract -> (file, line put into it).
VIOLATIONS = {
    "auth and backends are leaves": ("auth/keys.py", "import backends.base"),
    "auth and backends do not know the gateway": ("backends/echo.py", "import gateway.errors"),
    "inside the gateway, imports point down": ("gateway/wire/sse.py", "import gateway.relay.flow"),
    "torch and transformers live in the worker process only": ("gateway/keeper/ship.py", "import torch"),
    "sqlalchemy has one home": ("gateway/api/__init__.py", "import sqlalchemy"),
    "fastapi and starlette stay in the control plane": ("gateway/relay/answers.py", "import starlette"),
    "uvicorn has two homes": ("gateway/relay/flow.py", "import uvicorn"),
    "prometheus_client has one home": ("gateway/relay/estimate.py", "import prometheus_client"),
    "slowapi has one home": ("gateway/api/__init__.py", "import slowapi"),
    "redis has one home": ("gateway/limits/hosts.py", "import redis.asyncio"),
    "passlib has one home": ("auth/keys.py", "import passlib"),
    "jose has one home": ("auth/authenticator.py", "import jose"),
    "tokenizers has one home beside the worker": ("gateway/relay/tokenize.py", "import tokenizers"),
    "no HTTP client on the data plane": ("backends/custom.py", "import httpx"),
}


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)}
    )


def test_every_contract_is_listed_here() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == VIOLATIONS.keys()


def test_each_contract_notices_its_violation(tmp_path: Path) -> None:
    for package in ("gateway", "auth", "backends", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "swagger"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in VIOLATIONS.values():
        path = tmp_path / file
        path.write_text(path.read_text().rstrip() + f"\n\n{line}  # noqa\n")
    done = _lint(tmp_path)
    assert done.returncode == 1
    kept = [name for name in VIOLATIONS if f"{name} BROKEN" not in done.stdout]
    assert kept == [], done.stdout[-3000:]
