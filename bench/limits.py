"""Limits under demand that never ends: many clients at five times what is allowed, over all processes of one host, or of two with Redis.

    python -m bench.limits                     # `make bench-limits`: 20 runs of 30 s, 4 workers, no Redis
    python -m bench.limits --hosts 2           # two homes with 2 workers each, one PostgreSQL and one Redis
    python -m bench.limits --runs 2 --seconds 5

In each run four new keys are asked for at once, each by `--clients` clients at five times its limit: requests per minute, tokens per
minute, concurrent requests, and a budget. Never over: in the time between the first request and the last answer no more is admitted than
the limit and its refill; never more requests run at the backend than the limit says; the spending stays within the budget. At least 98 %
(two hosts: 95 %) of what is allowed is admitted, at least 98 % of the slots' time is used, and what is left of the budget is less than one
reservation.

Everything listens on 127.0.0.1. stdout has the table, stderr the progress. Exit code 1 on failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.payload import UNSTREAMED, Ask, request_body
from bench.systems import clean_env, python_module
from tests.databases import system_postgres
from tests.gateway_process import Gateway, free_port
from tests.redis_server import RedisServer, redis_binary

RPM, TPM, CONCURRENCY, BUDGET_USD = 1200, 57_600, 20, Decimal("0.02")
TIMES = 5
HELD_S = 0.5  # how long a request of the limited slots runs
TOKENS = 48  # what the mock reports
COST_USD = (31 * Decimal("0.15") + 17 * Decimal("0.60")) / 10**6
RESERVED_USD = Decimal("0.00015")  # more than any of these requests reserves
RATES = {"rpm": RPM / 60 * TIMES, "tpm": TPM / 60 / TOKENS * TIMES, "concurrency": CONCURRENCY / HELD_S * TIMES, "budget": 100.0}
OPTIONS = {
    "rpm": ("--rpm", str(RPM)),
    "tpm": ("--tpm", str(TPM)),
    "concurrency": ("--concurrency", str(CONCURRENCY)),
    "budget": ("--budget", str(BUDGET_USD)),
}
CONFIG = """\
models:
  - id: bench
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, id: up, baseURL: "http://127.0.0.1:{port}/v1", model: bench}}
"""


@dataclass(slots=True)
class Figure:
    """One kind in one run. `share`: of what is allowed that was admitted. `over`: by how much too much; 0 = never."""

    run: int
    kind: str
    asked: int
    admitted: int
    share: float
    over: float


class Demand:
    """The clients of one key: paced together, connections kept."""

    def __init__(self, kind: str, key: str, ports: list[int], clients: int, seconds: float) -> None:
        self.kind = kind
        self._key = key
        self._ports = ports
        self._clients = clients
        self._seconds = seconds
        self.asked = self.admitted = 0
        self.held_s = 0.0  # time of slots, as far as it lies within the run
        self.wrong: list[str] = []
        self.first_sent_s = self.last_answer_s = 0.0

    async def run(self) -> None:
        self.first_sent_s = time.monotonic()
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        period_s = self._clients / RATES[self.kind]
        due_s = self.first_sent_s + period_s * number / self._clients
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[number % len(self._ports)])
        try:
            while due_s < self.first_sent_s + self._seconds:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s = max(due_s + period_s, time.monotonic())
                await self._ask(reader, writer)
        finally:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        interval_us = int(HELD_S * 1e6) if self.kind == "concurrency" else 0
        body = request_body(Ask(self.asked % 10**8, UNSTREAMED, 0, interval_us), "bench")
        self.asked += 1
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._key}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        at = answer.index(b"content-length:") + 15
        await reader.readexactly(int(answer[at : answer.index(b"\r\n", at)]))
        status = int(answer[9:12])
        if status == 200:
            self.admitted += 1
            self.last_answer_s = time.monotonic()
            self.held_s += HELD_S - min(HELD_S, max(0.0, self.last_answer_s - self.first_sent_s - self._seconds))
        elif status != 429:
            self.wrong.append(f"{self.kind}: status {status}")

    def figure(self, run: int, most_running: int) -> Figure:
        """What is allowed, and what was admitted of it."""
        span_s = self.last_answer_s - self.first_sent_s
        if self.kind == "concurrency":
            share = self.held_s / (CONCURRENCY * self._seconds)
            return Figure(run, self.kind, self.asked, self.admitted, share, max(0, most_running - CONCURRENCY))
        if self.kind == "budget":
            spent = self.admitted * COST_USD
            share = float(spent / (BUDGET_USD - RESERVED_USD))
            return Figure(run, self.kind, self.asked, self.admitted, share, float(max(Decimal(0), spent - BUDGET_USD)))
        limit, each = (RPM, 1) if self.kind == "rpm" else (TPM, TOKENS)
        share = self.admitted * each / (limit + limit * self._seconds / 60)
        return Figure(run, self.kind, self.asked, self.admitted, share, max(0.0, self.admitted * each - limit - limit * span_s / 60))


async def one_run(run: int, gateways: list[Gateway], upstream: int, clients: int, seconds: float) -> list[Figure]:
    """All kinds at once, each with a key of its own."""
    names = {kind: f"{kind} {run} {secrets.token_hex(3)}" for kind in OPTIONS}
    keys = {kind: await asyncio.to_thread(gateways[0].key, names[kind], *OPTIONS[kind]) for kind in OPTIONS}
    await asyncio.sleep(1.5)  # on other hosts a key is known within a second
    ports = [made.port for made in gateways]
    demands = [Demand(kind, key, ports, clients, seconds) for kind, key in keys.items()]
    await asyncio.gather(*(demand.run() for demand in demands))
    wrong = [fault for demand in demands for fault in demand.wrong]
    if wrong:
        raise RuntimeError(f"{len(wrong)} answers were neither 200 nor 429: {wrong[0]}")
    most = await asyncio.to_thread(_most_running, upstream)
    return [demand.figure(run, most) for demand in demands]


def _most_running(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
        return int(json.load(answer)["most_running"])


@contextlib.contextmanager
def stage(folder: Path, hosts: int, workers: int) -> Iterator[tuple[list[Gateway], int]]:
    """(running gateways, the upstream's port)."""
    with contextlib.ExitStack() as stack:
        port = free_port()
        command = [*python_module("bench.upstream"), "--port", str(port)]
        upstream = subprocess.Popen(command, env=clean_env({"PYTHONPATH": str(Path.cwd())}), stdout=subprocess.DEVNULL)
        stack.callback(upstream.wait)
        stack.callback(upstream.kill)
        environment: dict[str, str] = {}
        if hosts > 1:
            database = stack.enter_context(system_postgres())
            name = asyncio.run(database.create())
            redis = RedisServer(redis_binary(), folder / "redis").start()
            stack.callback(redis.stop)
            environment = {"GATEWAY_DATABASE_URL": database.url(name), "GATEWAY_REDIS_URL": redis.url}
            environment["GATEWAY_SECRET_KEY"] = secrets.token_hex(32)
        made = []
        for number in range(hosts):
            home = folder / f"host{number}" / "home"
            home.parent.mkdir()
            one = Gateway(home, None if number else CONFIG.format(port=port), environment, ("--workers", str(workers)))
            stack.callback(one.kill)
            made.append(one.start())
        yield made, port


async def run(options: argparse.Namespace, gateways: list[Gateway], upstream: int, say: Callable[[str], None]) -> list[Figure]:
    figures: list[Figure] = []
    for number in range(1, options.runs + 1):
        found = await one_run(number, gateways, upstream, options.clients, options.seconds)
        figures += found
        say(
            f"run {number} of {options.runs}: "
            + ", ".join(f"{f.kind} {f.share:.3f}" + (f" OVER {f.over:g}" if f.over else "") for f in found)
        )
    return figures


def table_of(figures: list[Figure], least: float) -> Table:
    table = Table("limit", "runs", "asked", "admitted", "least share", "most over", "verdict", title="limits under demand")
    for kind in OPTIONS:
        own = [figure for figure in figures if figure.kind == kind]
        share, over = min(f.share for f in own), max(f.over for f in own)
        verdict = "met" if share >= least and not over else "NOT MET"
        asked, admitted = sum(f.asked for f in own), sum(f.admitted for f in own)
        table.add_row(kind, str(len(own)), str(asked), str(admitted), f"{share:.4f}", f"{over:g}", verdict)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.limits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64, help="for each limit")
    parser.add_argument("--hosts", type=int, default=1, choices=[1, 2])
    parser.add_argument("--workers", type=int, default=0, help="of each host; 0 = 4 in all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    least = 0.98 if options.hosts == 1 else 0.95
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    workers = options.workers or 4 // options.hosts
    with tempfile.TemporaryDirectory(prefix="limits-") as folder, stage(Path(folder), options.hosts, workers) as (gateways, upstream):
        figures = asyncio.run(run(options, gateways, upstream, console.print))
    Console(width=120).print(table_of(figures, least))
    failed = any(figure.share < least or figure.over for figure in figures)
    print("FAILED" if failed else "passed")
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
