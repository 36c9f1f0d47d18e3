"""The gateway as a system under test: a home of its own, one model, keys with every limit set, one worker; and its variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import KEEPER, SERVING
from bench.systems import OWN_MODULES, Place, Recipe, SystemFailed, clean_env, python_module

CONFIG = """\
models:
  - id: bench
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, baseURL: "http://{upstream}/v1", model: bench}}
"""
LIMITS = ("--rpm", "100000000", "--tpm", "100000000000", "--concurrency", "100000", "--budget", "1000000")
USED_KEYS = 10
MANY_KEYS = 100_000
COMMAND_LIMIT_S = 60.0
SOFT_DESCRIPTORS = 1024  # what a login shell gives: the gateway raises it by itself, or 5,000 streams do not fit
ROLES = (("gateway.cli.server", SERVING), ("gateway.keeper", KEEPER))


def gateway_recipe(place: Place) -> Recipe:
    """`gateway serve` with ten limited keys, used in turn.

    Raises SystemFailed if one of its commands fails.
    """
    return _serving(place, USED_KEYS, USED_KEYS)


def many_keys_recipe(place: Place) -> Recipe:
    """The same with 100,000 keys, of which ten are used."""
    return _serving(place, MANY_KEYS, USED_KEYS)


def all_keys_recipe(place: Place) -> Recipe:
    """The same with 100,000 keys, each used in its turn."""
    return _serving(place, MANY_KEYS, MANY_KEYS)


def null_recipe(place: Place) -> Recipe:
    """The gateway's server with null forms behind its seams (`bench.nulls`): one process, no keeper, no books."""
    cli, config = _prepare(place)
    cli.run("apply", "-f", str(config))
    command = (*python_module("bench.nulls"), "--port", str(place.port))
    env = cli.env | OWN_MODULES
    return Recipe(place.name, command, place.port, key="none", env=env, soft_descriptors=SOFT_DESCRIPTORS)


def _serving(place: Place, keys: int, used: int) -> Recipe:
    cli, config = _prepare(place)
    file = place.folder / "keys.txt"
    file.write_text("\n".join(cli.issue(keys)[:used]))
    file.chmod(0o600)
    return serving(cli, place.name, config, place.port, booked=cli.booked, keys=file)


def serving(cli: Cli, name: str, config: Path, port: int, *, env: dict[str, str] | None = None, **more: Any) -> Recipe:
    """`gateway serve` with one server process; measured once its reader is there too."""
    command = (cli.binary, "serve", "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    own = (cli.env if env is None else env) | {"GATEWAY_READER_AFTER_S": "0"}
    there = Path(own["GATEWAY_HOME"]) / "run" / "reader.sock"
    return Recipe(name, command, port, env=own, roles=ROLES, soft_descriptors=SOFT_DESCRIPTORS, ready_file=there, **more)


def _prepare(place: Place) -> tuple[Cli, Path]:
    """A home with its first admin, and the configuration file."""
    env = {"GATEWAY_HOME": str(place.folder / "home"), "GATEWAY_ADMIN_PASSWORD": "bench-admin-password-0"}
    config = place.folder / "gateway.yaml"
    config.write_text(CONFIG.format(upstream=place.upstream))
    cli = Cli(command_of(place.name), place.folder, env)
    cli.run("init")
    return cli, config


def command_of(name: str) -> str:
    """The command of `gateway` (of this Python) or of `gateway-before`, another checkout's, to compare two states in one run.

    Raises SystemFailed if the second is asked for and BENCH_GATEWAY_BEFORE does not name it.
    """
    if name != "gateway-before":
        return str(Path(sys.executable).parent / "gateway")
    other = os.environ.get("BENCH_GATEWAY_BEFORE")
    if not other:
        raise SystemFailed("set BENCH_GATEWAY_BEFORE to the gateway command of the other checkout's environment")
    return other


class Cli:
    """A `gateway` command in one home."""

    def __init__(self, binary: str, folder: Path, env: dict[str, str]) -> None:
        self.binary = binary
        self.env = env
        self._folder = folder

    def run(self, *arguments: str) -> str:
        """Run a sub-command; returns its stdout."""
        return self._command(self.env, self.binary, *arguments)

    def issue(self, count: int, *limits: str) -> list[str]:
        """Make `count` keys with every limit set (or with `limits`); returns their texts. Many are made the fast way."""
        limits = limits or LIMITS
        if count > USED_KEYS:
            return self._command(self.env | OWN_MODULES, *python_module("bench.keys"), "--count", str(count), *limits).split()
        return [self.run("keys", "create", "--name", "bench", *limits).strip() for _ in range(count)]

    def _command(self, env: dict[str, str], *command: str) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=clean_env(env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_LIMIT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise SystemFailed(f"no command {command[0]}: install the project first") from error
        except subprocess.TimeoutExpired as error:
            raise SystemFailed(f"{' '.join(command[:3])} hung") from error
        if done.returncode:
            raise SystemFailed(f"{' '.join(command[:3])} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def booked(self) -> int:
        """How many requests have reached SQL."""
        return sum(int(row["requests"]) for row in json.loads(self.run("usage", "--by", "model", "--json")))
