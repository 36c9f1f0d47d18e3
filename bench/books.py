"""Many rows in the books: what every report and every page of single requests takes among 10,000,000 of them, and what the relay notices.

    python -m bench.books                                       # `make bench-books`: SQLite, then PostgreSQL
    python -m bench.books --database sqlite --rows 200000 --seconds 5

A database is filled with rows of the last 90 days (10,000 users, 20,000 keys, 20 models, 50 teams; a few keys do most of it), once with
100,000 and once with `--rows`, by statements of its own (`bench.ledger_rows`). PostgreSQL is then vacuumed, as it is by itself in time, and
writes out what the fill has changed, which is not to be measured. A real `gateway serve` with one worker then relays 200 requests a second
while each kind of report and page is asked for, 50 times each, twenty a second. Then, by turns, it runs alone, beside two reports a second
(people who look at pages) and beside twenty calls of /healthz a second, which need no report: what the client that asks takes from the
cores that it shares.

Exit code 1 where a kind's p95 is above 100 ms, or above both 1.3 x and 10 ms over its p95 among 100,000 rows (a page of 500 requests has
only the first bound: a key has not so many in a day there); where an answer is not what it should be; or where the relay's p99 beside two
reports a second is above 1.1 x what it is alone (medians of the windows) and above what two windows alone differ by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from itertools import count, repeat
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from rich.console import Console
from rich.table import Table

from bench.directory import PASSWORD, database_url
from bench.gateway import CONFIG, LIMITS, Cli, command_of, serving
from bench.ledger_rows import DAYS, Books, fill
from bench.systems import OWN_MODULES, Recipe, System, clean_env, launch, python_module
from tests.gateway_process import free_port

ROWS, FEW_ROWS, CALLS = 10_000_000, 100_000, 50
RATE = 200.0
BOUND_MS, SLOWER, MORE_MS = 100.0, 1.3, 10.0
RELAY_SLOWER = 1.1
WARM_UP_CALLS = 3
MEMORY = "shared_buffers=1GB"  # a database of 10,000,000 rows is given some; tests run with 32 MB
ROUNDS = 4
PACE_S, READING_PACE_S = 0.05, 0.5
PAGE_OF_500 = "requests of a key, page of 500"
Ask = Callable[[int], tuple[str, dict[str, Any]]]


@dataclass(slots=True)
class Measured:
    """One database with so many rows. Milliseconds. The relay's p99, window by window: alone, beside calls of /healthz, beside two reports
    a second, beside twenty."""

    database: str
    rows: int
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    quiet_p99: list[float] = field(default_factory=list)
    asked_p99: list[float] = field(default_factory=list)
    read_p99: list[float] = field(default_factory=list)
    busy_p99: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def kinds(books: Books) -> dict[str, Ask]:
    """What is asked. The n-th call of each differs from those before it where it names something."""
    rng = random.Random(7)

    def report(path: str = "/admin/usage", **params: Any) -> Ask:
        return lambda n: (path, {name: value(n) if callable(value) else value for name, value in params.items()})

    def day_of_rows(_: int) -> dict[str, str]:
        start_s = books.first_s + rng.randrange(1, DAYS - 2) * 86_400 + 40_000
        return {name: datetime.fromtimestamp(at_s, UTC).isoformat() for name, at_s in (("since", start_s), ("until", start_s + 86_400))}

    def key(_: int) -> str:
        return books.key(rng.random())

    def user(_: int) -> str:
        return books.user(rng.random())

    def model(_: int) -> str:
        return books.model(rng.randrange(books.models))

    def team(_: int) -> str:
        return books.team(rng.randrange(1, books.teams))

    groups = ("key", "user", "team", "model", "backend", "ending", "arm", "version", "day")
    found = {f"by {by}, 90 days": report(by=by, since="90d") for by in groups}
    found |= {f"by {by}, 17 hours": report(by=by, since="41h", until="24h") for by in ("key", "user", "model")}
    found |= {"by hour, 7 days": report(by="hour", since="7d"), "by hour, 30 days": report(by="hour", since="30d")}
    found |= {
        f"by {by}, from the middle": report(by=by, since="90d", after=lambda n, of=of: f"t{of(n)}")
        for by, of in (("key", key), ("user", user))
    }
    for name, one in (("model", model), ("team", team), ("user", user), ("key", key)):
        chosen: dict[str, Any] = {name: one}
        found |= {f"by {by} of a {name}": report(by=by, since="60d", **chosen) for by in groups if by != name}
    found |= {f"by {by} of a team and model": report(by=by, since="90d", team=team, model=model) for by in ("key", "day", "ending")}
    found |= {f"own, by {by}": report("/v1/usage", by=by, since="90d") for by in ("model", "key", "day")}
    found["requests of a key, 24 hours"] = lambda n: ("/admin/usage/requests", {"key": key(n), **day_of_rows(n)})
    found[PAGE_OF_500] = lambda n: ("/admin/usage/requests", {"key": books.key(0.0), "limit": 500, **day_of_rows(n)})
    found["request by id"] = lambda n: (f"/admin/usage/requests/{books.request_id(rng.randrange(books.rows))}", {})
    found["request by id, none such"] = lambda n: (f"/admin/usage/requests/none-{n}", {})
    return found


class Relayed:
    """Relay traffic in windows, each a load driver of its own that checks every answer."""

    def __init__(self, system: System, key: str, seconds: float, measured: Measured, folder: Path) -> None:
        target = ("--url", system.url, "--key", key, "--mode", "u", "--interval-us", "0", "--connections", "32")
        amount = ("--rate", str(RATE), "--requests", str(int(RATE * seconds)), "--timeout-s", str(seconds + 60))
        self._command = (*python_module("bench.load"), "open", *target, *amount)
        self._measured, self._folder = measured, folder

    def window(self) -> float:
        """p99 of one window, ms."""
        done = subprocess.run(
            self._command, cwd=self._folder, env=clean_env(OWN_MODULES), capture_output=True, text=True, check=False, timeout=600
        )
        told = json.loads(done.stdout or '{"errors": ["the load driver broke off"]}')
        self._measured.faults += [f"relay: {error}" for error in told["errors"]]
        return float(told["whole_ms"]["p99"]) if told.get("whole_ms") else float("inf")


def trial(database: str, url: str, rows: int, folder: Path, given: argparse.Namespace) -> Measured:
    """Make a home on this database ("": SQLite in the home), fill it, serve it, and measure."""
    measured = Measured(database, rows)
    env = {"GATEWAY_HOME": str(folder / "home"), "GATEWAY_ADMIN_PASSWORD": PASSWORD} | ({"GATEWAY_DATABASE_URL": url} if url else {})
    cli = Cli(command_of("gateway"), folder, env)
    cli.run("init")
    (key,) = cli.issue(1, *LIMITS)
    admin_id = next(user["id"] for user in json.loads(cli.run("users", "list", "--json")) if user["email"] == "admin@localhost")
    books = Books(rows, admin_id)
    begun = time.monotonic()
    asyncio.run(fill(url or f"sqlite+aiosqlite:///{folder}/home/gateway.sqlite3", books))
    sys.stderr.write(f"{database}: {rows} rows in {time.monotonic() - begun:.0f} s\n")
    ports = free_port(), free_port()
    upstream = launch(
        Recipe("upstream", (*python_module("bench.upstream"), "--port", str(ports[0])), ports[0], ready_path="/health", env=OWN_MODULES),
        folder, set(range(given.cores)),
    )  # fmt: skip
    try:
        config = folder / "gateway.yaml"
        config.write_text(CONFIG.format(upstream=f"127.0.0.1:{ports[0]}"))
        system = launch(serving(cli, "gateway", config, ports[1]), folder, set(range(given.cores)))
        try:
            relay = Relayed(system, key, given.seconds, measured, folder)
            relay.window()  # warm-up
            client = Client(system.url)
            with beside(lambda: measured.busy_p99.append(relay.window())):
                _ask_all(client, books, measured, given.calls)
            for _ in range(ROUNDS if rows > FEW_ROWS else 1):
                measured.quiet_p99.append(relay.window())
                with asking(_all_in_turn(client, books, measured), READING_PACE_S):
                    measured.read_p99.append(relay.window())
                with asking(repeat(partial(client.get, "/healthz", {})), PACE_S):
                    measured.asked_p99.append(relay.window())
            measured.quiet_p99.append(relay.window())
        finally:
            system.stop()
    finally:
        upstream.stop()
    return measured


class Client:
    """The admin, over one connection that costs as little as Python allows: it shares the cores with what is measured."""

    def __init__(self, url: str) -> None:
        answer = httpx.post(f"{url}/auth/login", json={"email": "admin@localhost", "password": PASSWORD}, trust_env=False, timeout=60)
        self._headers = {"authorization": f"Bearer {answer.json()['access_token']}"}
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)

    def get(self, path: str, params: dict[str, Any]) -> tuple[int, bytes]:
        self._connection.request("GET", f"{path}?{urlencode(params)}" if params else path, headers=self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def paced(pace_s: float) -> Iterator[None]:
    """The block takes so long at least."""
    begun = time.perf_counter()
    yield
    time.sleep(max(0.0, begun + pace_s - time.perf_counter()))


@contextmanager
def beside(step: Callable[[], object]) -> Iterator[None]:
    """The step again and again while the block runs; the last one is cut short by nothing. What it raises is raised here."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            step()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            over.set()
        running.result()


def asking(calls: Iterator[Callable[[], object]], pace_s: float) -> AbstractContextManager[None]:
    """One call after the other while the block runs."""

    def ask() -> None:
        with paced(pace_s):
            next(calls)()

    return beside(ask)


def _ask_all(client: Client, books: Books, measured: Measured, calls: int) -> None:
    for name, ask in kinds(books).items():
        times = []
        for number in range(WARM_UP_CALLS + calls):
            with paced(PACE_S):
                times.append(_ask(client, name, ask, measured, number))
        taken = sorted(times[WARM_UP_CALLS:])
        at = {share: taken[min(len(taken) - 1, int(len(taken) * share))] for share in (0.5, 0.95)}
        measured.kinds[name] = {"p50_ms": round(at[0.5], 1), "p95_ms": round(at[0.95], 1), "max_ms": round(taken[-1], 1)}


def _all_in_turn(client: Client, books: Books, measured: Measured) -> Iterator[Callable[[], object]]:
    asks = kinds(books)
    for number in count():
        for name, ask in asks.items():
            yield partial(_ask, client, name, ask, measured, number)


def _ask(client: Client, name: str, ask: Ask, measured: Measured, number: int) -> float:
    path, params = ask(number)
    begun = time.perf_counter()
    status, body = client.get(path, params)
    taken_s = time.perf_counter() - begun
    if status != (404 if "none such" in name else 200):
        measured.faults.append(f"{name}: {status} {body[:200].decode(errors='replace')}")
    return taken_s * 1000


def judged(few: Measured, many: Measured) -> list[str]:
    """What is not as it must be."""
    faults = few.faults + many.faults
    for name, at in many.kinds.items():
        allowed = allowed_ms(name, few)
        if at["p95_ms"] > allowed:
            faults.append(f"{name}: p95 {at['p95_ms']} ms, allowed {allowed:.1f}")
    slower, spread = median(many.read_p99) / median(many.quiet_p99), max(many.quiet_p99) / min(many.quiet_p99)
    if slower > max(RELAY_SLOWER, spread):
        faults.append(f"relay: p99 {slower:.2f} x what it is alone, where it differs from itself by {spread:.2f} x")
    return [f"{many.database}: {fault}" for fault in faults]


def allowed_ms(name: str, few: Measured) -> float:
    few_p95_ms = few.kinds[name]["p95_ms"]
    return BOUND_MS if name == PAGE_OF_500 else min(BOUND_MS, max(SLOWER * few_p95_ms, few_p95_ms + MORE_MS))


def show(few: Measured, many: Measured) -> None:
    table = Table("asked for", f"{few.rows} rows p50", "p95", f"{many.rows} rows p50", "p95", "max", title=f"{many.database}, milliseconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, at in many.kinds.items():
        before = few.kinds[name]
        style = "red" if at["p95_ms"] > allowed_ms(name, few) else ""
        values = (before["p50_ms"], before["p95_ms"], at["p50_ms"], at["p95_ms"], at["max_ms"])
        table.add_row(name, *(str(value) for value in values), style=style)
    console = Console(width=120)
    console.print(table)
    for one in (few, many):
        windows = {"alone": one.quiet_p99, "beside 2 reports a second": one.read_p99, "beside 20": one.busy_p99}
        windows["beside 20 calls of /healthz"] = one.asked_p99
        told = "; ".join(f"{name} {' '.join(f'{p99:.2f}' for p99 in p99s)}" for name, p99s in windows.items())
        console.print(f"relay p99 among {one.rows} rows, ms: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.books", description="Reports and pages among many rows, beside relay traffic.")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append", help="default: both")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--calls", type=int, default=CALLS, help="of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window of relay traffic")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    faults: list[str] = []
    documents: list[dict[str, Any]] = []
    for name in given.database or ("sqlite", "postgresql"):
        found = []
        for rows in (min(FEW_ROWS, given.rows), given.rows):
            with tempfile.TemporaryDirectory(prefix="bench-books-") as folder, database_url(name, MEMORY) as url:
                found.append(trial(name, url, rows, Path(folder), given))
        show(*found)
        faults += judged(*found)
        documents += [asdict(one) for one in found]
    for fault in faults:
        print(f"FAILED: {fault}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"measured": documents, "faults": faults}, indent=2) + "\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
