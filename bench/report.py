"""From trials to figures: medians, ratios to the anchor, how far the rounds lie apart; as JSON and as tables."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import KEEPER, REST, SERVING
from bench.systems import REPOSITORY
from bench.trial import Trial

BASE = "anchor"
PARTS = tuple(f"{role}_us" for role in (SERVING, KEEPER, REST))
DIRECT = "upstream"


@dataclass(frozen=True, slots=True)
class Metric:
    """One column: a value of one scenario. `added`: what goes straight to the upstream is taken off first."""

    title: str
    scenario: str
    value: str
    digits: int = 1
    added: bool = False


METRICS = (
    Metric("CPU us/request\n1 conn", "chat1", "cpu_us"),
    Metric("CPU us/request\n32 conns", "chat32", "cpu_us"),
    Metric("CPU us/request\n300 KB prompt", "prompt300k", "cpu_us", 0),
    Metric("CPU us/chunk\n64 streams", "stream64", "cpu_us"),
    Metric("added TTFT ms\np50", "ttft50", "ttft_p50_ms", 3, added=True),
    Metric("added TTFT ms\np99", "ttft50", "ttft_p99_ms", 3, added=True),
    Metric("PSS MB\nafter chat32", "chat32", "pss_mb"),
    Metric("KB/stream\n5,000 idle", "idle5000", "stream_kb"),
    Metric("one chunk to\n5,000 idle, ms", "idle5000", "release_ms", 0),
    Metric("KB/stream\n500 idle", "idle500", "stream_kb"),
    Metric("one chunk to\n500 idle, ms", "idle500", "release_ms", 0),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison of two systems other than with the anchor; shown where both have run."""

    title: str
    system: str
    base: str
    value: str = "cpu_us"
    base_value: str = "cpu_us"


PAIRS = (
    Pair("gateway / gateway-null, serving process alone", "gateway", "gateway-null", f"{SERVING}_us", f"{SERVING}_us"),
    Pair("gateway / gateway-null, keeper and supervisor with it", "gateway", "gateway-null"),
    Pair("100,000 keys, ten of them used / ten keys", "gateway-100k-keys", "gateway"),
    Pair("100,000 keys, all of them used / ten keys", "gateway-100k-used", "gateway"),
    Pair("100,000 keys, ten of them used / ten keys, serving alone", "gateway-100k-keys", "gateway", f"{SERVING}_us", f"{SERVING}_us"),
    Pair("gateway / gateway-before", "gateway", "gateway-before"),
    Pair("gateway / vllm-router", "gateway", "vllm-router"),
    Pair("gateway / sglang-router", "gateway", "sglang-router"),
    Pair("gateway / litellm", "gateway", "litellm"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell. `lowest` and `highest` are the ratios to the anchor (or to another system) of single rounds; None where there is none."""

    median: float
    ratio: float | None
    lowest: float | None
    highest: float | None
    rounds: int


def valid(trials: Iterable[Trial], system: str, metric: Metric) -> dict[int, float]:
    """The values of one system by round; void trials are left out."""
    return {
        trial.round: trial.values[metric.value]
        for trial in trials
        if trial.system == system and trial.scenario == metric.scenario and not trial.faults and metric.value in trial.values
    }


def figure(trials: list[Trial], system: str, metric: Metric) -> Figure | None:
    """The cell of `system` under `metric`, None if it has no valid round."""
    values = valid(trials, system, metric)
    base = valid(trials, BASE, metric)
    if metric.added:
        direct = valid(trials, DIRECT, metric)
        values = {number: value - direct[number] for number, value in values.items() if number in direct}
        base = {number: value - direct[number] for number, value in base.items() if number in direct}
    return _compare(values, base) if values else None


def compared(trials: list[Trial], pair: Pair, scenario: str) -> Figure | None:
    """The cell of `pair` under one scenario, None where one of the two has no valid round."""
    values = valid(trials, pair.system, Metric("", scenario, pair.value))
    base = valid(trials, pair.base, Metric("", scenario, pair.base_value))
    return _compare(values, base) if values and base else None


def _compare(values: dict[int, float], base: dict[int, float]) -> Figure:
    """Medians, and ratios by round. Neither of the arguments' rounds need be the other's."""
    ratios = [values[number] / base[number] for number in values.keys() & base.keys() if base[number] > 0]
    middle = median(values.values())
    ratio = middle / median(base.values()) if base and median(base.values()) > 0 else None
    return Figure(middle, ratio, min(ratios, default=None), max(ratios, default=None), len(values))


def figures(trials: list[Trial], systems: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """All cells: system -> `scenario.value` -> Figure as a document."""
    return {
        system: {
            f"{metric.scenario}.{'added_' if metric.added else ''}{metric.value}": asdict(cell)
            for metric in METRICS
            if (cell := figure(trials, system, metric)) is not None
        }
        for system in systems
    }


def comparisons(trials: list[Trial], systems: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """All ratios that are not to the anchor: title -> scenario -> Figure as a document."""
    return {
        pair.title: {
            metric.scenario: asdict(cell)
            for metric in _cpu_metrics(trials)
            if (cell := compared(trials, pair, metric.scenario)) is not None
        }
        for pair in PAIRS
        if pair.system in systems and pair.base in systems
    }


def _cpu_metrics(trials: list[Trial]) -> list[Metric]:
    measured = {trial.scenario for trial in trials if trial.values}
    return [metric for metric in METRICS if metric.value == "cpu_us" and metric.scenario in measured]


def parts_table(trials: list[Trial], systems: list[str]) -> Table:
    """CPU by role, of the systems that have more than one."""
    table = Table(title="CPU us by role: serving processes + keeper + supervisor")
    table.add_column("system", no_wrap=True)
    metrics = _cpu_metrics(trials)
    for metric in metrics:
        table.add_column(metric.title, justify="right", no_wrap=True)
    for system in systems:
        cells = [[valid(trials, system, Metric("", metric.scenario, part)) for part in PARTS] for metric in metrics]
        if any(len([part for part in cell if part]) > 1 for cell in cells):
            table.add_row(system, *(" + ".join(f"{median(part.values()):,.1f}" for part in cell if part) for cell in cells))
    return table


def comparison_table(trials: list[Trial], systems: list[str]) -> Table:
    """Ratios of CPU that are not to the anchor: of the medians, and in brackets the lowest and highest of single rounds."""
    table = Table(title="CPU of one system by that of another, and in brackets the lowest and highest in single rounds")
    table.add_column("comparison", no_wrap=True)
    metrics = _cpu_metrics(trials)
    for metric in metrics:
        table.add_column(metric.title, justify="right", no_wrap=True)
    for pair in PAIRS:
        if pair.system in systems and pair.base in systems:
            cells = [compared(trials, pair, metric.scenario) for metric in metrics]
            table.add_row(pair.title, *("-" if c is None or c.ratio is None else f"{c.ratio:.2f} ({_spread_text(c)})" for c in cells))
    return table


def tables(trials: list[Trial], systems: list[str]) -> list[Table]:
    """The table of medians and ratios, and the table of how far single rounds lie apart."""
    measured = {trial.scenario for trial in trials if trial.values}
    metrics = [metric for metric in METRICS if metric.scenario in measured]
    medians = Table(title=f"Medians, and in brackets the ratio to {BASE}")
    spread = Table(title=f"Ratio to {BASE} in single rounds, lowest to highest")
    for table in (medians, spread):
        table.add_column("system", no_wrap=True)
        for metric in metrics:
            table.add_column(metric.title, justify="right", no_wrap=True)
    for system in systems:
        cells = [(figure(trials, system, metric), metric.digits) for metric in metrics]
        medians.add_row(system, *(_median_text(cell, digits) for cell, digits in cells))
        if system != BASE:
            spread.add_row(system, *(_spread_text(cell) for cell, _ in cells))
    more = [parts_table(trials, systems), comparison_table(trials, systems)]
    return [medians, spread, *(table for table in more if table.row_count)]


def _median_text(cell: Figure | None, digits: int) -> str:
    if cell is None:
        return "-"
    number = f"{cell.median:,.{digits}f}"
    return number if cell.ratio is None else f"{number} ({cell.ratio:.2f})"


def _spread_text(cell: Figure | None) -> str:
    if cell is None or cell.lowest is None or cell.highest is None:
        return "-"
    return f"{cell.lowest:.2f} to {cell.highest:.2f}"


def show(trials: list[Trial], systems: list[str], failed: Mapping[str, str], console: Console) -> None:
    """Print the tables, every void trial and every system that did not start."""
    for table in tables(trials, systems):
        console.print(table)
    for trial in trials:
        if trial.faults:
            console.print(f"void: {trial.scenario} on {trial.system}, round {trial.round + 1}: {trial.faults[0]}", markup=False)
    for name, reason in failed.items():
        console.print(f"not measured: {name}: {reason}", markup=False)


def machine() -> dict[str, Any]:
    """Where and on what the figures were taken."""
    return {
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "load_average": Path("/proc/loadavg").read_text().split()[:3],
    }


def _cpu_model() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()
