"""One trial: one load on one system, its clocks read before and after, everything that went wrong noted.

A trial is void if any answer was wrong, if the upstream counted another number of requests than the driver
sent, or if the books of a system that keeps books do not reach that number. The CPU of a system that keeps
books is read only when the last row is in SQL.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import measure
from bench.scenarios import MEGABYTE, Scenario
from bench.systems import REPOSITORY, System, SystemFailed, clean_env, python_module

BOOKS_LIMIT_S = 60.0
BOOKS_PAUSE_S = 0.2


@dataclass(slots=True)
class Trial:
    """What one trial gave. `values` by metric: cpu_us (of the whole tree; serving_us, keeper_us, rest_us are its parts), pss_mb,
    ttft_p50_ms, ttft_p99_ms, stream_kb, release_ms, books_s.
    """

    system: str
    scenario: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    load: dict[str, Any] = field(default_factory=dict)


class Driven:
    """The load driver as a gated process: `start` returns when it is warm, `go` when it is done."""

    def __init__(self, scenario: Scenario, system: System, upstream: System) -> None:
        recipe = system.recipe
        target = ("--url", system.url, "--key", recipe.key, "--model", recipe.model, "--timeout-s", str(scenario.timeout_s))
        keys = () if recipe.keys is None else ("--keys", str(recipe.keys))
        more = (*(() if recipe.strict else ("--loose",)), *keys, "--release", upstream.url, "--gated")
        self._command = (*python_module("bench.load"), *scenario.command(recipe.load_share), *target, *more)
        self._line = ""

    def start(self) -> None:
        """Start it and wait until it says `ready`, or is already done because it failed."""
        self._process = subprocess.Popen(
            self._command, cwd=REPOSITORY, env=clean_env({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line = self._read_line()

    def go(self) -> dict[str, Any]:
        """Let it run; returns its JSON document."""
        assert self._process.stdin is not None
        if self._line.strip() == "ready":
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            self._line = self._read_line()
        try:
            document: dict[str, Any] = json.loads(self._line)
        except ValueError as error:
            raise SystemFailed(f"the load driver broke off: {self._line[:200]!r}") from error
        return document

    def end(self) -> None:
        self._process.communicate()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def take(system: System, scenario: Scenario, upstream: System, round_number: int) -> Trial:
    """Carry out one trial."""
    trial = Trial(system.name, scenario.name, round_number)
    booked = system.recipe.booked
    booked_before = booked() if booked else 0
    seen_before = upstream_requests(upstream)
    pss_before = measure.pss_bytes(system.pid)
    driver = Driven(scenario, system, upstream)
    driver.start()
    pss_ready = measure.pss_bytes(system.pid)
    before_s = measure.cpu_by_role_s(system.pid, system.recipe.roles)
    trial.load = load = driver.go()
    sent = int(load["requests"]) + int(load["warmup_requests"])
    trial.faults.extend(load["errors"])
    if booked:
        _await_books(trial, system, booked_before + sent)
    after_s = measure.cpu_by_role_s(system.pid, system.recipe.roles)
    _read_off(trial, scenario, {role: after_s[role] - before_s.get(role, 0.0) for role in after_s})
    if scenario.fresh:
        trial.values["stream_kb"] = (pss_ready - pss_before) / 1024 / max(1, load["connections"])
    trial.values["pss_mb"] = measure.pss_bytes(system.pid) / MEGABYTE
    driver.end()
    seen = upstream_requests(upstream) - seen_before
    if seen != sent:
        trial.faults.append(f"the driver sent {sent} requests, the upstream saw {seen}")
    return trial


def _read_off(trial: Trial, scenario: Scenario, cpu_s: dict[str, float]) -> None:
    load = trial.load
    units = load["chunks"] if scenario.per == "chunk" else load["requests"]
    if scenario.per and units:
        trial.values["cpu_us"] = sum(cpu_s.values()) * 1e6 / units
        trial.values.update((f"{role}_us", seconds * 1e6 / units) for role, seconds in cpu_s.items())
        trial.values["per_s"] = units / max(load["wall_s"], 1e-9)
    if scenario.ttft and load["first_ms"]:
        trial.values["ttft_p50_ms"] = load["first_ms"]["p50"]
        trial.values["ttft_p99_ms"] = load["first_ms"]["p99"]
    if load["release_ms"] is not None:
        trial.values["release_ms"] = load["release_ms"]


def _await_books(trial: Trial, system: System, expected: int) -> None:
    """Wait until every request is a row in SQL; a shortfall or an excess is a fault."""
    booked = system.recipe.booked
    assert booked is not None
    started_s = time.monotonic()
    while (count := booked()) < expected and time.monotonic() - started_s < BOOKS_LIMIT_S:
        time.sleep(BOOKS_PAUSE_S)
    trial.values["books_s"] = time.monotonic() - started_s
    if count != expected:
        trial.faults.append(f"{expected} requests sent in all, {count} rows in the books\n{last_words(system.log)}")


def last_words(log: Path, lines: int = 8) -> str:
    """The last lines of a gateway's log that are not about single requests."""
    every = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in every if not line.startswith('{"event":"request"')][-lines:])


def upstream_requests(upstream: System) -> int:
    """Chat requests that the mock has seen since it started."""
    with urllib.request.urlopen(f"{upstream.url}/stats", timeout=10) as reply:
        tally = json.loads(reply.read())
    return int(tally["answers"]) + int(tally["streams"])
