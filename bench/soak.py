"""The soak: a million mixed requests through a real `gateway serve`, and nothing may be left of them but their rows.

    python -m bench.soak                        # `make bench-soak`
    python -m bench.soak --requests 20000 --json bench/results/soak.json

Chat, streams, embeddings, upstream errors, broken streams, clients that hang up before and after the first byte, and refusals
(`bench.mix`), by one key with every limit set. Every answer is checked. After the first 50,000, at three quarters on the way
and at the end all clients leave, the keeper ships what is left, and the tree is read (`bench.census`). The soak fails if memory (heaps and
stacks) has grown by more than 5 % and more than 10 MB, if a descriptor, task, thread or connection is left over (but for one connection
to the database that was opened late), if live Python objects pile up in the server, if an answer was wrong, if the books hold another
number of rows than were admitted, or if the server does not stop in peace.

Everything listens on 127.0.0.1. stdout has the tables, stderr the progress. Exit code 1 on failure. A million takes about 1.5 GB in
the temporary folder (database, request log).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import report, systems
from bench.census import PROBE, Process, census
from bench.gateway import LIMITS, ROLES, Cli, serving
from bench.lanes import Lanes, SoakStopped
from bench.measure import KEEPER, REST, SERVING
from bench.mix import KINDS, KNOWN, POOR, UNKNOWN, sequence
from bench.scenarios import MEGABYTE
from bench.systems import OWN_MODULES, Recipe, System, SystemFailed, python_module
from bench.trial import last_words
from tests.gateway_process import free_port

REQUESTS, FIRST, LANES = 1_000_000, 50_000, 64
GROWTH, GROWTH_BYTES = 0.05, 10 * MEGABYTE
MAX_OBJECTS = 2000
UPSTREAM_IDLE_S = 3.0
SETTLE_S = 2 * UPSTREAM_IDLE_S + 2.0  # the upstream has closed what idled, and the pools have seen it
BOOKS_LIMIT_S = 300.0
READINGS, READING_PAUSE_S = 5, 2.0
PROGRESS_S = 2.0
SPENT = ("--rpm", "100000000", "--budget", "0")
CONFIG = """\
models:
  - id: bench
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, id: good, baseURL: "http://{good}/v1"}}
  - id: faulty
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, id: first, baseURL: "http://{good}/v1"}}
      - {{type: custom, id: second, baseURL: "http://{other}/v1"}}
"""
COUNTED = ("segments", "descriptors", "threads", "tasks", "upstream_connections", "client_connections")
LATE = {"descriptors": 2, "threads": 1}
"""Of one connection to the database, per process: the pool of readers has two, and opens the second when two reads first meet."""


@dataclass(slots=True)
class Reading:
    """The tree after `requests` requests, at rest."""

    requests: int
    processes: list[Process]
    in_flight: float
    books_s: float

    def total(self, name: str) -> int:
        """Over all processes; None counts as nothing."""
        return sum(getattr(process, name) or 0 for process in self.processes)

    def of(self, role: str) -> list[Process]:
        return [process for process in self.processes if process.role == role]


@dataclass(slots=True)
class Outcome:
    """All that the soak has found. Without `faults` it has passed."""

    requests: int
    readings: list[Reading] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    upstream: dict[str, int] = field(default_factory=dict)


class Soak:
    """One run: the upstream, the gateway, the clients, the readings."""

    def __init__(self, folder: Path, requests: int, first: int, lanes: int, seed: int) -> None:
        self._folder = folder
        self._stops = stops(requests, first)
        self._lane_count = lanes
        self._seed = seed
        self._say = Console(stderr=True, highlight=False, soft_wrap=True).print
        self.outcome = Outcome(requests)

    def start(self) -> None:
        """Start both systems. Raises SystemFailed."""
        cores = set(range(1024))
        ports = [free_port(), free_port()]
        self._upstream_ports = set(ports)
        command = (*python_module("bench.upstream"), "--port", str(ports[0]), "--port", str(ports[1]))
        idle = ("--idle-close-s", str(UPSTREAM_IDLE_S))
        self.upstream = systems.launch(
            Recipe("upstream", (*command, *idle), ports[0], ready_path="/health", env=OWN_MODULES), self._folder, cores
        )
        self._probes = self._folder / "probes"
        self._probes.mkdir()
        env = {"GATEWAY_HOME": str(self._folder / "home"), "GATEWAY_ADMIN_PASSWORD": "bench-admin-password-0"}
        self._cli = Cli(str(Path(sys.executable).parent / "gateway"), self._folder, env)
        self._cli.run("init")
        (known,), (poor,) = self._cli.issue(1, *LIMITS), self._cli.issue(1, *SPENT)
        self._keys = {KNOWN: known, POOR: poor, UNKNOWN: f"sk-gw-{'0' * 12}-{'A' * 43}"}
        config = self._folder / "gateway.yaml"
        config.write_text(CONFIG.format(good=f"127.0.0.1:{ports[0]}", other=f"127.0.0.1:{ports[1]}"))
        port = free_port()
        probed = env | {"PYTHONPATH": str(PROBE), "BENCH_PROBE": str(self._probes)}
        self.gateway = systems.launch(serving(self._cli, "gateway", config, port, env=probed), self._folder, cores)

    async def run(self) -> None:
        """All requests, with a reading at each stop."""
        self._lanes = lanes = Lanes(self.gateway.recipe.port, self._keys, self._lane_count, sequence(self._seed))
        self._started_s = time.monotonic()
        self._resting_s = 0.0
        telling = asyncio.create_task(self._tell())
        try:
            for stop in self._stops:
                await lanes.run(stop - lanes.rid)
                rested_s = time.monotonic()
                await self._read(stop)
                self._resting_s += time.monotonic() - rested_s
        except SoakStopped as error:
            self.outcome.faults.append(f"stopped after {lanes.ended} answers: {error}")
            self.outcome.faults.append(last_words(self.gateway.log))
        finally:
            telling.cancel()
            out = self.outcome
            out.wall_s = time.monotonic() - self._started_s - self._resting_s
            out.sent, out.left, out.wrong, out.examples = dict(lanes.sent), dict(lanes.left), dict(lanes.wrong), lanes.examples

    async def _tell(self) -> None:
        """A line every two seconds: how far, how fast, how long still."""
        lanes, all_of_it = self._lanes, self.outcome.requests
        ended, at_s, speed, resting = 0, time.monotonic(), 0.0, False
        while True:
            await asyncio.sleep(PROGRESS_S)
            now_s = time.monotonic()
            fresh = (lanes.ended - ended) / (now_s - at_s)
            speed = fresh if not speed else 0.8 * speed + 0.2 * fresh if fresh else speed
            ended, at_s = lanes.ended, now_s
            if resting and not fresh:
                continue
            resting = not fresh
            eta = f"about {(all_of_it - ended) / speed / 60:.1f} min left" if speed else "starting"
            doing = f"{speed:,.0f}/s, {eta}" if fresh else f"at rest, {eta}"
            self._say(f"{ended:,} of {all_of_it:,} ({100 * ended / all_of_it:.0f} %), {lanes.wrong.total()} wrong, {doing}")

    async def _read(self, requests: int) -> None:
        """Clients leave, the books close, the tree comes to rest, and is read until nothing is above the first reading any more."""
        out, lanes = self.outcome, self._lanes
        await lanes.close()
        started_s = time.monotonic()
        booked = await asyncio.to_thread(self._await_books, lanes.admitted)
        books_s = time.monotonic() - started_s
        if booked != lanes.admitted:
            out.faults.append(f"after {requests:,} requests: {lanes.admitted} admitted, {booked} rows in the books")
        await asyncio.sleep(SETTLE_S)
        reading = await asyncio.to_thread(self._reading, requests, books_s)
        for _ in range(READINGS - 1):
            if not left_over(out.readings[0] if out.readings else reading, reading):
                break
            await asyncio.sleep(READING_PAUSE_S)
            reading = await asyncio.to_thread(self._reading, requests, books_s)
        out.readings.append(reading)
        self._say(f"after {requests:,}: {reading.total('anonymous_bytes') / MEGABYTE:.1f} MB, {reading.total('descriptors')} descriptors")

    def _await_books(self, expected: int) -> int:
        deadline_s = time.monotonic() + BOOKS_LIMIT_S
        while (booked := self._cli.booked()) < expected and time.monotonic() < deadline_s:
            time.sleep(0.5)
        return booked

    def _reading(self, requests: int, books_s: float) -> Reading:
        gateway = self.gateway
        processes = census(gateway.pid, ROLES, gateway.recipe.port, self._upstream_ports, self._probes)
        return Reading(requests, processes, in_flight(gateway), books_s)

    def stop(self) -> None:
        """Stop both; a gateway that does not end with 0 is a fault."""
        for system in (getattr(self, "gateway", None), getattr(self, "upstream", None)):
            if system is not None:
                if system.name == "upstream":
                    self.outcome.upstream = stats(system)
                system.stop()
                if system.name == "gateway" and system.process.returncode != 0:
                    self.outcome.faults.append(f"gateway serve ended with code {system.process.returncode}:\n{last_words(system.log)}")


def stops(requests: int, first: int) -> list[int]:
    """After how many requests the tree is read: `first`, three quarters on the way, the end."""
    first = min(first, max(1, requests // 2))
    return sorted({first, *(first + (requests - first) * quarter // 4 for quarter in (1, 2, 3)), requests})


def in_flight(gateway: System) -> float:
    """Requests that the gateway's own gauge says are running."""
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return sum(float(value) for value in re.findall(r"^gateway_requests_in_flight(?:\{[^}]*\})? (\S+)$", text, flags=re.M))


def stats(upstream: System) -> dict[str, int]:
    """The mock's counters; empty if it is gone."""
    try:
        with urllib.request.urlopen(f"{upstream.url}/stats", timeout=10) as reply:
            tally: dict[str, int] = json.loads(reply.read())
    except OSError:
        return {}
    return tally


def left_over(first: Reading, last: Reading) -> list[str]:
    """What the last reading has more than the first, and connections that nobody uses."""
    found = []
    for name in COUNTED:
        before, after = (Counter({role: sum(getattr(p, name) or 0 for p in r.of(role)) for role in ROLE_NAMES}) for r in (first, last))
        allowed = before if name not in ("upstream_connections", "client_connections") else Counter()
        late = LATE.get(name, 0)
        found += [f"{name} of {role}: {allowed[role]} -> {count}" for role, count in after.items() if count > allowed[role] + late]
    if last.in_flight:
        found.append(f"{last.in_flight:.0f} requests are in flight, says the gauge")
    return found


ROLE_NAMES = (SERVING, KEEPER, REST)


def grown(first: Reading, last: Reading) -> list[str]:
    """Memory of the whole tree beyond the bound."""
    before, after = first.total("anonymous_bytes"), last.total("anonymous_bytes")
    if after <= before * (1 + GROWTH) or after <= before + GROWTH_BYTES:
        return []
    return [f"memory grew from {before / MEGABYTE:.1f} to {after / MEGABYTE:.1f} MB"]


def piled_up(first: Reading, last: Reading) -> list[str]:
    """Live objects of the server beyond the bound, by type: a leak too small for the memory's bound."""
    before, after = (Counter[str](), Counter[str]())
    for reading, types in ((first, before), (last, after)):
        for process in reading.of(SERVING):
            types.update(process.types)
    more = (after - before).most_common(5)
    grown_by = sum(p.objects or 0 for p in last.of(SERVING)) - sum(p.objects or 0 for p in first.of(SERVING))
    if grown_by <= MAX_OBJECTS:
        return []
    return [f"the server holds {grown_by} objects more, above all {', '.join(f'{count} {name}' for name, count in more)}"]


def judge(outcome: Outcome) -> None:
    """Add to the faults what the readings and the answers say."""
    if outcome.wrong:
        outcome.faults.append(f"{sum(outcome.wrong.values())} wrong answers, the first: {outcome.examples[0]}")
    if len(outcome.readings) > 1:
        first, last = outcome.readings[0], outcome.readings[-1]
        outcome.faults += grown(first, last) + left_over(first, last) + piled_up(first, last)
    tally = outcome.upstream
    if tally and (open_streams := tally["streams"] - tally["streams_done"] - tally["streams_aborted"] - tally["broken"]):
        outcome.faults.append(f"{open_streams} streams were never closed at the upstream")


def show(outcome: Outcome, console: Console) -> None:
    """Two tables and the verdict."""
    table = Table(title="At rest")
    columns: tuple[tuple[str, Callable[[Reading], str]], ...] = (
        ("after requests", lambda r: f"{r.requests:,}"),
        ("MB: serving + keeper + supervisor", lambda r: " + ".join(_megabytes(r, role, "anonymous_bytes") for role in ROLE_NAMES)),
        ("anonymous MB", lambda r: f"{r.total('anonymous_bytes') / MEGABYTE:.1f}"),
        ("PSS MB", lambda r: f"{r.total('pss_bytes') / MEGABYTE:.1f}"),
        ("USS MB", lambda r: f"{r.total('uss_bytes') / MEGABYTE:.1f}"),
        ("mapped segments MB", lambda r: f"{r.total('segment_bytes') / MEGABYTE:.1f}"),
        *((name.replace("_", " "), lambda r, name=name: str(r.total(name))) for name in (*COUNTED, "objects")),
    )
    for title, _ in columns:
        table.add_column(title, justify="right")
    for reading in outcome.readings:
        table.add_row(*(text(reading) for _, text in columns))
    console.print(table)
    kinds = Table(title=f"{sum(outcome.sent.values()):,} requests in {outcome.wall_s:.0f} s of load")
    for title in ("kind", "sent", "client left", "wrong"):
        kinds.add_column(title, justify="left" if title == "kind" else "right")
    for kind in KINDS:
        kinds.add_row(kind.name, *(f"{counts.get(kind.name, 0):,}" for counts in (outcome.sent, outcome.left, outcome.wrong)))
    console.print(kinds)
    for example in outcome.examples[:5]:
        console.print(example, markup=False, soft_wrap=True)
    for fault in outcome.faults:
        console.print(f"FAILED: {fault}", markup=False, soft_wrap=True)
    if not outcome.faults:
        console.print("passed: memory within the bound, nothing left over, every answer right, the books complete")


def _megabytes(reading: Reading, role: str, name: str) -> str:
    return f"{sum(getattr(process, name) for process in reading.of(role)) / MEGABYTE:.1f}"


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.soak", description="Mixed requests for a long time: does anything leak?")
    add = parser.add_argument
    add("--requests", type=int, default=REQUESTS)
    add("--first", type=int, default=FIRST, help="after how many the first reading is taken")
    add("--lanes", type=int, default=LANES, help="clients at once")
    add("--seed", type=int, default=20260101, help="of the order of kinds")
    add("--json", type=Path, metavar="FILE", help="also write everything, objects by type among it")
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    started = datetime.now(UTC)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="gateway-soak-") as folder:
        soak = Soak(Path(folder), options.requests, options.first, options.lanes, options.seed)
        try:
            soak.start()
            uvloop.run(soak.run())
        except SystemFailed as error:
            soak.outcome.faults.append(str(error))
        finally:
            soak.stop()
    judge(soak.outcome)
    show(soak.outcome, Console(width=None if sys.stdout.isatty() else 200))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        head = {"started_at": started.isoformat(timespec="seconds"), "machine": report.machine(), "passed": not soak.outcome.faults}
        options.json.write_text(json.dumps(head | asdict(soak.outcome), indent=1, default=sorted) + "\n")
    raise SystemExit(1 if soak.outcome.faults else 0)


if __name__ == "__main__":
    main()
