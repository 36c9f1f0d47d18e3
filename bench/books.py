"""Many rows in the books: what every report and every page of single requests takes among 10,000,000 of them, and what the relay notices.

    python -m bench.books                                       # `make bench-books`: SQLite, then PostgreSQL
    python -m bench.books --database sqlite --rows 200000 --seconds 5

A database is filled with rows of the last 90 days (10,000 users, 20,000 keys, 20 models, 50 teams; a few keys do most of it), once with
100,000 and once with `--rows`, by statements of its own (`bench.ledger_rows`). A real `gateway serve` with one worker then relays 200
requests a second while each kind of report and page is asked for, 50 times each, at a steady pace over HTTP. Before and after, the relay
runs alone; and once beside as many calls of /healthz, which need no report: what the client that asks takes from the same two cores.

Exit code 1 where a kind's p95 is above 100 ms, or above both 1.3 x and 10 ms over its p95 among 100,000 rows (a page of 500 requests has
only the first bound: a key has not so many in a day there); where an answer is not what it should be; or where the relay's p99 beside the
reports is above 1.1 x what it is alone and above the highest p99 it had alone.
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench.directory import PASSWORD, database_url
from bench.gateway import CONFIG, LIMITS, ROLES, SOFT_DESCRIPTORS, Cli, command_of
from bench.ledger_rows import DAYS, Books, fill
from bench.systems import OWN_MODULES, Recipe, System, clean_env, free_port, launch, python_module

ROWS, FEW_ROWS, CALLS = 10_000_000, 100_000, 50
RATE = 200.0
BOUND_MS, SLOWER, MORE_MS = 100.0, 1.3, 10.0
RELAY_SLOWER = 1.1
WARM_UP_CALLS = 3
PAGE_OF_500 = "requests of a key, page of 500"
Ask = Callable[[int], tuple[str, dict[str, Any]]]


@dataclass(slots=True)
class Measured:
    """One database with so many rows. Milliseconds. The relay's p99, window by window: alone, beside calls of /healthz, beside reports."""

    database: str
    rows: int
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    quiet_p99: list[float] = field(default_factory=list)
    asked_p99: list[float] = field(default_factory=list)
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
    """Relay traffic in windows, each a load driver of its own that checks every answer; until it is told to end."""

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

    @contextmanager
    def flowing(self, into: list[float]) -> Iterator[None]:
        """Window after window while the block runs; the last one is cut short by nothing."""
        over = threading.Event()

        def flow() -> None:
            while not over.is_set():
                into.append(self.window())

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


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
        serve = (cli.binary, "serve", "--config", str(config), "--host", "127.0.0.1", "--port", str(ports[1]), "--workers", "1")
        recipe = Recipe("gateway", serve, ports[1], env=env, roles=ROLES, soft_descriptors=SOFT_DESCRIPTORS)
        system = launch(recipe, folder, set(range(given.cores)))
        try:
            relay = Relayed(system, key, given.seconds, measured, folder)
            relay.window()  # warm-up
            measured.quiet_p99 += [relay.window(), relay.window()]
            with relay.flowing(measured.asked_p99):
                _ask_nothing(system.url, given)
            with relay.flowing(measured.busy_p99):
                _ask_all(system.url, books, measured, given)
            measured.quiet_p99 += [relay.window(), relay.window()]
        finally:
            system.stop()
    finally:
        upstream.stop()
    return measured


def _ask_nothing(url: str, given: argparse.Namespace) -> None:
    """The calls of one window, at the pace of reports, without one."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for _ in range(int(given.seconds / given.pace_s)):
            begun = time.perf_counter()
            client.get("/healthz")
            time.sleep(max(0.0, given.pace_s - (time.perf_counter() - begun)))


def _ask_all(url: str, books: Books, measured: Measured, given: argparse.Namespace) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        answer = client.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        for name, ask in kinds(books).items():
            times = [_ask(client, name, ask, measured, number, given.pace_s) for number in range(WARM_UP_CALLS + given.calls)]
            taken = sorted(times[WARM_UP_CALLS:])
            at = {share: taken[min(len(taken) - 1, int(len(taken) * share))] for share in (0.5, 0.95)}
            measured.kinds[name] = {"p50_ms": round(at[0.5], 1), "p95_ms": round(at[0.95], 1), "max_ms": round(taken[-1], 1)}


def _ask(client: httpx.Client, name: str, ask: Ask, measured: Measured, number: int, pace_s: float) -> float:
    path, params = ask(number)
    begun = time.perf_counter()
    answer = client.get(path, params=params)
    taken_s = time.perf_counter() - begun
    if answer.status_code != (404 if "none such" in name else 200):
        measured.faults.append(f"{name}: {answer.status_code} {answer.text[:200]}")
    time.sleep(max(0.0, pace_s - taken_s))
    return taken_s * 1000


def judged(few: Measured, many: Measured) -> list[str]:
    """What is not as it must be."""
    faults = few.faults + many.faults
    for name, at in many.kinds.items():
        allowed = allowed_ms(name, few)
        if at["p95_ms"] > allowed:
            faults.append(f"{name}: p95 {at['p95_ms']} ms, allowed {allowed:.1f}")
    for one in (few, many):
        busy, quiet = sorted(one.busy_p99)[len(one.busy_p99) // 2], sum(one.quiet_p99) / len(one.quiet_p99)
        if busy > max(RELAY_SLOWER * quiet, *one.quiet_p99):
            faults.append(f"relay beside {one.rows} rows: p99 {busy:.2f} ms, alone {', '.join(f'{p99:.2f}' for p99 in one.quiet_p99)}")
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
        quiet, asked, busy = (" ".join(f"{p99:.2f}" for p99 in part) for part in (one.quiet_p99, one.asked_p99, one.busy_p99))
        console.print(f"relay p99 among {one.rows} rows, ms: alone {quiet}; beside /healthz {asked}; beside reports {busy}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.books", description="Reports and pages among many rows, beside relay traffic.")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append", help="default: both")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--calls", type=int, default=CALLS, help="of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window of relay traffic")
    parser.add_argument("--pace-s", type=float, default=0.05, help="from one call to the next")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    faults: list[str] = []
    documents: list[dict[str, Any]] = []
    for name in given.database or ("sqlite", "postgresql"):
        found = []
        for rows in (min(FEW_ROWS, given.rows), given.rows):
            with tempfile.TemporaryDirectory(prefix="bench-books-") as folder, database_url(name) as url:
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
