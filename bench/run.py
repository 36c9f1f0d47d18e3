"""The benchmark: systems side by side in one run, ABBA order, medians and ratios.

    python -m bench.run --quick
    python -m bench.run --rounds 7 --json bench/results/today.json
    python -m bench.run --systems anchor,anchor-again,nginx --only chat32,stream64

stdout carries the tables, stderr the progress. Exit code 1 if a system did not start or a trial stayed void.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import nginx, peers, report, scenarios, systems
from bench.gateway import all_keys_recipe, gateway_recipe, many_keys_recipe, null_recipe
from bench.scenarios import Scenario
from bench.systems import Place, Recipe, System, SystemFailed
from bench.trial import Trial, take
from tests.gateway_process import free_port

RECIPES: dict[str, Callable[[Place], Recipe]] = {
    "gateway": gateway_recipe,
    "gateway-before": gateway_recipe,
    "gateway-null": null_recipe,
    "gateway-100k-keys": many_keys_recipe,
    "gateway-100k-used": all_keys_recipe,
    "anchor": systems.anchor_recipe,
    "anchor-again": systems.anchor_recipe,
    "nginx": systems.nginx_recipe,
    **dict.fromkeys(peers.PEERS, peers.peer_recipe),
}
ATTEMPTS = 2


class Bench:
    """One run: the upstream, the systems, the trials so far."""

    def __init__(self, folder: Path, system_cores: set[int], load_cores: set[int]) -> None:
        self._folder = folder
        self._system_cores = system_cores
        self._progress = Console(stderr=True, highlight=False)
        self.trials: list[Trial] = []
        self.systems: dict[str, System] = {}
        self.failed: dict[str, str] = {}
        self.upstream = systems.launch(systems.upstream_recipe(self._place("upstream", "")), folder, load_cores)

    def start(self, names: list[str]) -> None:
        """Start the systems; one that does not start is reported and left out."""
        for name in names:
            self._say(f"starting {name}")
            try:
                self.systems[name] = self._launch(name)
            except SystemFailed as error:
                self.failed[name] = str(error)
                self._say(f"{name} is left out: {error}")

    def run_rounds(self, chosen: tuple[Scenario, ...], rounds: int) -> None:
        """Every scenario on every system, in turned order every other round (A B, B A, A B ...)."""
        for number in range(rounds):
            for scenario in chosen:
                if scenario.rounds and number >= scenario.rounds:
                    continue
                order = list(self.systems.values()) + ([self.upstream] if scenario.with_upstream else [])
                if scenario.fresh:
                    order = [system for system in order if system.recipe.load_share == 1.0]
                for system in order if number % 2 == 0 else reversed(order):
                    self._say(f"round {number + 1}/{rounds}  {scenario.name:<11} {system.name:<13} {self._trial(system, scenario, number)}")

    def close(self) -> None:
        """Stop everything that was started."""
        for system in (*self.systems.values(), self.upstream):
            system.stop()

    def _trial(self, system: System, scenario: Scenario, number: int) -> str:
        """Take a trial, once more if it was void; returns what to tell the user."""
        for _ in range(ATTEMPTS):
            try:
                trial = self._take_fresh(system, scenario, number) if scenario.fresh else take(system, scenario, self.upstream, number)
            except (SystemFailed, OSError) as error:  # one system's fault must not end the others' run
                trial = Trial(system.name, scenario.name, number, faults=[str(error)])
            if not trial.faults:
                break
            self._say(f"    void: {trial.faults[0]}")
        self.trials.append(trial)
        return "  ".join(f"{name} {value:.3g}" for name, value in trial.values.items())

    def _take_fresh(self, system: System, scenario: Scenario, number: int) -> Trial:
        """The trial on an instance of its own that has served a little."""
        fresh = self._launch(system.name)
        try:
            take(fresh, scenarios.WARM, self.upstream, number)
            return take(fresh, scenario, self.upstream, number)
        finally:
            fresh.stop()

    def _launch(self, name: str) -> System:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        place = self._place(name, f"127.0.0.1:{self.upstream.recipe.port}", folder)
        return systems.launch(RECIPES[name](place), folder, self._system_cores)

    def _place(self, name: str, upstream: str, folder: Path | None = None) -> Place:
        return Place(name, folder or self._folder, free_port(), upstream)

    def _say(self, text: str) -> None:
        self._progress.print(text, markup=False, soft_wrap=True)


def default_systems() -> list[str]:
    """The gateway between two runs of the anchor, and nginx where it is installed."""
    return ["anchor", "gateway", "anchor-again", *(["nginx"] if nginx.binary() else [])]


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.run", description="Systems side by side: CPU, latency and memory per request.")
    add = parser.add_argument
    add("--systems", type=_names(RECIPES), default=default_systems(), help=f"comma-separated, of: {', '.join(RECIPES)}")
    add("--only", type=_names([scenario.name for scenario in (*scenarios.full(), scenarios.quick()[-1])]), help="comma-separated scenarios")
    add("--rounds", type=int, help="default 5, with --quick 2")
    add("--quick", action="store_true", help="small loads, a look in one or two minutes")
    add("--json", type=Path, metavar="FILE", help="also write every figure and every trial")
    add("--system-core", type=int, help="core of the systems under test; default the first")
    add("--load-core", type=int, help="core of the upstream and the driver; default the second")
    return parser.parse_args(arguments)


def _names(known: Any) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return split


def choose_cores(options: argparse.Namespace) -> tuple[set[int], set[int]]:
    """The core of the systems and the core of the load."""
    there = sorted(os.sched_getaffinity(0))
    system_core = there[0] if options.system_core is None else options.system_core
    load_core = there[-1 if len(there) == 1 else 1] if options.load_core is None else options.load_core
    if system_core == load_core:
        print("one core for everything: latencies and CPU will be worse than on two", file=sys.stderr)
    return {system_core}, {load_core}


def choose_scenarios(quick: bool, only: list[str] | None) -> tuple[Scenario, ...]:
    """The loads of this run; `only` may name one that the chosen size does not have."""
    full, small = scenarios.full(), scenarios.quick()
    chosen, other = (small, full) if quick else (full, small)
    if only is None:
        return chosen
    names = {scenario.name for scenario in chosen}
    return tuple(s for s in (*chosen, *(s for s in other if s.name not in names)) if s.name in only)


def document(bench: Bench, options: argparse.Namespace, rounds: int, started: datetime, where: dict[str, Any]) -> dict[str, Any]:
    """Everything about a run, for --json."""
    return {
        "started_at": started.isoformat(timespec="seconds"),
        "machine": where,
        "rounds": rounds,
        "quick": options.quick,
        "base": report.BASE,
        "figures": report.figures(bench.trials, list(bench.systems)),
        "comparisons": report.comparisons(bench.trials, list(bench.systems)),
        "trials": [asdict(trial) for trial in bench.trials],
        "not_started": bench.failed,
    }


def main() -> None:
    options = read_options()
    rounds = options.rounds or (2 if options.quick else 5)
    chosen = choose_scenarios(options.quick, options.only)
    started, where = datetime.now(UTC), report.machine()
    system_cores, load_cores = choose_cores(options)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, load_cores)  # the driver and every helper command inherit this
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        bench = Bench(Path(folder), system_cores, load_cores)
        try:
            bench.start(options.systems)
            bench.run_rounds(chosen, rounds)
        finally:
            bench.close()
    report.show(bench.trials, list(bench.systems), bench.failed, Console(width=None if sys.stdout.isatty() else 200))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document(bench, options, rounds, started, where), indent=1) + "\n")
    raise SystemExit(1 if bench.failed or any(trial.faults for trial in bench.trials) else 0)


if __name__ == "__main__":
    main()
