"""The load driver: checked chat traffic in one of three shapes, as a process of its own. One JSON document on stdout.

    python -m bench.load closed --url http://127.0.0.1:8000 --key sk-... --connections 32 --requests 8000
    python -m bench.load closed --mode s --chunks 200 --interval-us 5000 --connections 64 --requests 128
    python -m bench.load open   --rate 125 --requests 1000 --chunks 20 --interval-us 20000
    python -m bench.load idle   --connections 5000 --release http://127.0.0.1:9000

closed: each connection sends its next request when its answer is complete. open: requests start at seeded
random moments whatever the answers do (Poisson), so a slow system cannot slow its own questioner. idle: all
streams are opened and held after their first chunk; then the upstream is told to send one more to each.
With `--gated` the driver prints `ready` after set-up and warm-up and waits for a line on stdin, so that a
caller can read the clocks of the system under test in between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.client import Answer, Connection, request_head
from bench.payload import HELD, STREAMED, UNSTREAMED, Ask, request_body

CONNECT_BATCH = 200
HELD_CHUNKS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. `keys` go round ("" = none). `interval_us` is the beat of streams, or the thinking time of unstreamed answers."""

    shape: str
    url: str
    keys: tuple[str, ...]
    model: str
    mode: str
    connections: int
    requests: int
    chunks: int
    interval_us: int
    prompt_bytes: int
    include_usage: bool
    warmup: int
    rate: float
    strict: bool
    gated: bool
    timeout_s: float
    release: str


@dataclass(slots=True)
class Score:
    """What came of it. `requests` counts answers, right or wrong; warm-up is kept apart."""

    requests: int = 0
    warmup_requests: int = 0
    streamed_chunks: int = 0
    wall_s: float = 0.0
    error_count: int = 0
    errors: list[str] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    release_ms: float | None = None

    def fault(self, problem: str) -> None:
        """Count an error; the first five are kept in words."""
        self.error_count += 1
        if len(self.errors) < 5:
            self.errors.append(problem)

    def document(self, plan: Plan) -> dict[str, Any]:
        """The JSON result."""
        return {
            "shape": plan.shape,
            "mode": plan.mode,
            "connections": plan.connections,
            "requests": self.requests,
            "warmup_requests": self.warmup_requests,
            "chunks": self.streamed_chunks,
            "error_count": self.error_count,
            "errors": self.errors,
            "wall_s": round(self.wall_s, 6),
            "first_ms": quantiles(self.first_ms),
            "whole_ms": quantiles(self.whole_ms),
            "late_ms": quantiles(self.late_ms),
            "release_ms": self.release_ms,
        }


def quantiles(values: list[float]) -> dict[str, float] | None:
    """p50, p99 and maximum of `values` (nearest rank)."""
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    ranks = {"p50": round(0.50 * last), "p99": round(0.99 * last), "max": last}
    return {name: round(ordered[rank], 4) for name, rank in ranks.items()}


class Driver:
    """What the shapes share: connections, numbered requests, the score, and the end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.score = Score()
        self.loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        self._open: set[Connection] = set()
        self._all_closed = asyncio.Event()
        address = urlsplit(plan.url)
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        self._heads = [request_head(self.host, self.port, key) for key in plan.keys]
        self._next_rid = 0

    async def connect(self, count: int) -> list[Connection]:
        """Open `count` connections, not too many at once."""
        opened: list[Connection] = []
        while len(opened) < count:
            batch = min(CONNECT_BATCH, count - len(opened))
            pairs = await asyncio.gather(*(self._connect_one() for _ in range(batch)))
            opened.extend(pairs)
        return opened

    async def _connect_one(self) -> Connection:
        _, connection = await self.loop.create_connection(lambda: Connection(self), self.host, self.port)
        self._open.add(connection)
        return connection

    def ask(self, connection: Connection) -> None:
        """Send the next request on a free connection."""
        plan = self.plan
        self._next_rid += 1
        ask = Ask(self._next_rid, plan.mode, plan.chunks, plan.interval_us, plan.include_usage)
        body = request_body(ask, plan.model, plan.prompt_bytes)
        connection.send(Answer(ask, plan.strict), self._heads[ask.rid % len(self._heads)] % len(body) + body)

    def tally(self, answer: Answer, problem: str) -> None:
        """Enter a finished answer in the score."""
        score = self.score
        score.requests += 1
        if problem:
            score.fault(f"request {answer.ask.rid}: {problem}")
            return
        score.whole_ms.append((perf_counter() - answer.sent_s) * 1e3)
        score.first_ms.append((answer.first_s - answer.sent_s) * 1e3)
        if answer.ask.mode != UNSTREAMED:
            score.streamed_chunks += answer.ask.chunks

    def on_event(self, connection: Connection, answer: Answer) -> None:
        return

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        self.tally(answer, problem)

    def on_lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def close(self) -> None:
        """Close every connection and see it closed."""
        if self._open:
            self._all_closed.clear()
            for connection in self._open:
                connection.close()
            await self._all_closed.wait()


class Closed(Driver):
    """N connections, each with one request under way, until a fixed number of answers has come."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._unsent = 0
        self._unanswered = 0

    async def prepare(self) -> None:
        self._free = await self.connect(self.plan.connections)
        if self.plan.warmup:
            await self._send(self.plan.warmup * self.plan.connections)
            warm = self.score
            self.score = Score(warmup_requests=warm.requests, error_count=warm.error_count, errors=warm.errors)

    async def run(self) -> None:
        await self._send(self.plan.requests)

    async def _send(self, requests: int) -> None:
        self._unsent = self._unanswered = requests
        self.over.clear()
        free, self._free = self._free, []
        for connection in free:
            self._go_on(connection)
        await self.over.wait()

    def _go_on(self, connection: Connection) -> None:
        if self._unsent and not connection.closed:
            self._unsent -= 1
            self.ask(connection)
        else:
            self._free.append(connection)

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        self.tally(answer, problem)
        self._unanswered -= 1
        if connection.closed:  # its share of the work is lost: say so rather than wait for ever
            self._unanswered -= self._unsent
            self._unsent = 0
        if self._unanswered <= 0:
            self._free.append(connection)
            self.over.set()
        else:
            self._go_on(connection)


class Open(Driver):
    """Requests at random moments of a fixed mean rate, each on the connection that has rested longest."""

    async def prepare(self) -> None:
        self._free = deque(await self.connect(self.plan.connections))
        self._unanswered = self.plan.requests
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        moments = random.Random(20260101)
        loop_s, clock_s, after_s = self.loop.time(), perf_counter(), 0.05
        for _ in range(self.plan.requests):
            after_s += moments.expovariate(self.plan.rate)
            self.loop.call_at(loop_s + after_s, self._arrive, clock_s + after_s)
        await self.over.wait()

    def _arrive(self, due_s: float) -> None:
        self.score.late_ms.append((perf_counter() - due_s) * 1e3)
        while self._free:
            connection = self._free.popleft()
            if not connection.closed:
                self.ask(connection)
                return
        task = self.loop.create_task(self._ask_anew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_anew(self) -> None:
        self.ask(await self._connect_one())

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        self.tally(answer, problem)
        self._free.append(connection)
        self._unanswered -= 1
        if self._unanswered <= 0:
            self.over.set()


class Idle(Driver):
    """Many streams that wait; then one chunk to all of them, timed until the last one has it."""

    async def prepare(self) -> None:
        self._unanswered = self.plan.connections
        opened = await self.connect(self.plan.connections)
        self._await_event(1)
        for connection in opened:
            self.ask(connection)
        await self._all_there.wait()

    async def run(self) -> None:
        self._await_event(2)
        started_s = perf_counter()
        await self._release()
        await self._all_there.wait()
        self.score.release_ms = (perf_counter() - started_s) * 1e3
        await self._release()
        await self.over.wait()

    def _await_event(self, number: int) -> None:
        self._awaited, self._missing, self._all_there = number, self.plan.connections, asyncio.Event()

    def on_event(self, connection: Connection, answer: Answer) -> None:
        if answer.events == self._awaited:
            self._missing -= 1
            if not self._missing:
                self._all_there.set()

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        self.tally(answer, problem)
        self._unanswered -= 1
        if problem or not self._unanswered:
            self._all_there.set()
            self.over.set()

    async def _release(self) -> None:
        await self.loop.run_in_executor(None, _post, f"{self.plan.release}/release")


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as reply:
        reply.read()


SHAPES: dict[str, type[Closed] | type[Open] | type[Idle]] = {"closed": Closed, "open": Open, "idle": Idle}


async def drive(plan: Plan) -> dict[str, Any]:
    """Carry out `plan`; returns the JSON result."""
    driver = SHAPES[plan.shape](plan)
    try:
        async with asyncio.timeout(plan.timeout_s):
            await driver.prepare()
            if plan.gated:
                await _gate(driver.loop)
            started_s = perf_counter()
            await driver.run()
            driver.score.wall_s = perf_counter() - started_s
    except TimeoutError:
        driver.score.fault(f"not done after {plan.timeout_s:.0f} s")
    except OSError as error:
        driver.score.fault(f"cannot reach {plan.url}: {error}")
    document = driver.score.document(plan)
    await driver.close()
    return document


async def _gate(loop: asyncio.AbstractEventLoop) -> None:
    """Say `ready` and wait until the caller says go."""
    print("ready", flush=True)
    gate = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), gate.set)
    await gate.wait()
    loop.remove_reader(sys.stdin.fileno())


def read_plan(arguments: list[str] | None = None) -> Plan:
    """The plan that a command line describes."""
    parser = argparse.ArgumentParser(prog="bench.load", description="Checked chat traffic; one JSON document on stdout.")
    add = parser.add_argument
    add("shape", choices=sorted(SHAPES))
    add("--url", required=True, help="http://HOST:PORT of the system under test")
    add("--key", default="", help="sent as Bearer token")
    add("--keys", type=Path, metavar="FILE", help="keys to use in turn, one per line")
    add("--model", default="bench")
    add("--mode", choices=[UNSTREAMED, STREAMED, HELD], help="u unstreamed, s streamed, h held; default by shape")
    add("--connections", type=int, default=32)
    add("--requests", type=int, default=1000)
    add("--chunks", type=int, default=20)
    add("--interval-us", type=int, default=0, help="between two chunks, or before an unstreamed answer")
    add("--prompt-bytes", type=int, default=0, help="prompt text beyond the usual 200-byte body")
    add("--include-usage", action="store_true")
    add("--warmup", type=int, default=0, help="requests per connection that do not count (closed only)")
    add("--rate", type=float, default=100.0, help="arrivals per second (open only)")
    add("--loose", action="store_true", help="for systems that re-dump JSON: check ids and order, not bytes")
    add("--gated", action="store_true", help="say ready, then wait for a line on stdin")
    add("--timeout-s", type=float, default=120.0)
    add("--release", default="", help="http://HOST:PORT of the mock upstream (idle only)")
    given = vars(parser.parse_args(arguments))
    given["strict"] = not given.pop("loose")
    key, file = given.pop("key"), given["keys"]
    given["keys"] = (key,) if file is None else tuple(file.read_text().split())
    given["mode"] = given["mode"] or {"closed": UNSTREAMED, "open": STREAMED, "idle": HELD}[given["shape"]]
    if given["shape"] == "idle":
        given["chunks"] = HELD_CHUNKS
    return Plan(**given)


def main() -> None:
    plan = read_plan()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    document = uvloop.run(drive(plan))
    print(json.dumps(document), flush=True)
    raise SystemExit(1 if document["error_count"] else 0)


if __name__ == "__main__":
    main()
