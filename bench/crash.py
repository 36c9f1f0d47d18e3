"""The crash bench: processes die under load, and the books must know every request that a client has had a byte of, once.

    python -m bench.crash                                  # `make bench-crash`: 50 trials of kill -9
    python -m bench.crash --trials 5 --faults keeper,term  # these faults, in turn
    python -m bench.crash --database postgres --faults stopped,shipment

200 requests a second, mixed (chats, slow chats, streams with and without usage, long ones, clients that hang up in mid-stream), go
through a real `gateway serve --workers 2`; at a moment nobody knows a fault happens; the traffic goes on, and after it the books are
compared with what each client has seen:

    worker, keeper, all   kill -9 of one server process, of the keeper, of everything (which is started again); "random" is one of them
    term                  SIGTERM to the supervisor: running requests end, what cannot is told so
    disk                  the home's file system is full for some seconds (a tmpfs; needs root)
    stopped               the database is stopped for `--away-s` seconds (PostgreSQL)
    shipment              kill -9 of the PostgreSQL server process that a shipment is running in

A trial fails if a request of which its client saw at least one byte has no row or two, if a row says fewer tokens than its client
received, or if one whose END was written says other tokens than the backend reported. `interrupted` rows may say more than was received
by what one read holds; the most that was seen is printed. The clients' `x-request-id` names each request. At the end `gateway ledger
verify` must agree.

Everything listens on 127.0.0.1. stdout has the table, stderr the progress. Exit code 1 on failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from bench.payload import STREAMED, UNSTREAMED, Ask, request_body
from bench.systems import SystemFailed, clean_env, python_module
from tests.gateway_process import Gateway, free_port
from tests.stoppable_postgres import StoppablePostgres, stoppable_postgres

FAULTS = ("worker", "keeper", "all", "term", "disk", "stopped", "shipment")
KILLS = ("worker", "keeper", "all")
RATE, BEFORE_S, AFTER_S = 200.0, 2.0, 2.0
AWAY_S = 30.0
FULL_S = 3.0
DISK_BYTES = 192_000_000
ONE_READ = 16  # tokens that `interrupted` may say beyond what was received: what one read of the backend's bytes holds, on a busy machine
BOOKS_S = 60.0
REPORTED = 17  # completion tokens of an unstreamed answer of the mock
CONFIG = """\
models:
  - id: bench
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, id: up, baseURL: "http://127.0.0.1:{port}/v1", model: bench}}
"""
LIMITS = ("--rpm", "100000000", "--tpm", "100000000000", "--concurrency", "100000", "--budget", "1000000")


@dataclass(slots=True)
class Seen:
    """What the client of one request has seen. `whole`: the answer came to its end; `left`: the client hung up."""

    rid: int
    ask: Ask
    leaves: bool
    status: int = 0
    bytes: int = 0
    chunks: int = 0
    whole: bool = False
    left: bool = False
    failed: str = ""


@dataclass(slots=True)
class Trial:
    """One fault and what came of it. Without `faults` it has passed."""

    number: int
    fault: str
    sent: int = 0
    answered: int = 0
    cut: int = 0
    unanswered: int = 0
    rows: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    most_beyond: int = 0
    faults: list[str] = field(default_factory=list)


class Traffic:
    """Paced clients, one connection each."""

    def __init__(self, port: int, key: str, first: int) -> None:
        self._port = port
        self._key = key
        self._tasks: set[asyncio.Task[None]] = set()
        self._pacer: asyncio.Task[None] | None = None
        self.first = self._next = first
        self.seen: dict[int, Seen] = {}

    def start(self, rate: float) -> None:
        self._pacer = asyncio.create_task(self._pace(rate))

    async def stop(self) -> None:
        """No new requests; those under way come to their end."""
        if self._pacer is not None:
            self._pacer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pace(self, rate: float) -> None:
        due_s = time.monotonic()
        while True:
            task = asyncio.create_task(self._one(_asked(self._next)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._next += 1
            due_s += 1 / rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _one(self, seen: Seen) -> None:
        self.seen[seen.rid] = seen
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await self._exchange(seen, reader, writer)
                finally:
                    if seen.left and seen.rid % 2:
                        writer.transport.abort()
                    writer.close()
        except (OSError, TimeoutError) as error:
            seen.failed = type(error).__name__

    async def _exchange(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = request_body(seen.ask, "bench")
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"authorization: Bearer {self._key}\r\nx-request-id: {_name(seen.rid)}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        data = b""
        while part := await reader.read(65536):
            data += part
            _take(seen, data)
            if seen.leaves and seen.chunks >= 3:
                seen.left = True
                return
        _take(seen, data)
        seen.whole = seen.status == 200 and (data.endswith(b"[DONE]\n\n\r\n0\r\n\r\n") if seen.ask.chunks else data.endswith(b"}"))


def _take(seen: Seen, data: bytes) -> None:
    seen.bytes = len(data)
    seen.status = int(data[9:12]) if len(data) > 12 else 0
    seen.chunks = data.count(b'"content":"n')  # events of a stream that carry text


def _name(rid: int) -> str:
    return f"crash-{rid:08d}"


def _asked(rid: int) -> Seen:
    """Shares of the mix, by the request's number."""
    share = rid % 20
    if share < 6:
        return Seen(rid, Ask(rid), False)
    if share < 9:
        return Seen(rid, Ask(rid, UNSTREAMED, 0, 40_000), False)
    if share < 14:
        return Seen(rid, Ask(rid, STREAMED, 8, 5000, include_usage=share > 11), False)
    return Seen(rid, Ask(rid, STREAMED, 60, 10_000, include_usage=share > 16), share == 19)


def _said(made: Gateway) -> str:
    """The last of what the gateway logged but requests."""
    return "\n".join([line for line in made.log_path.read_text(errors="replace").splitlines() if '"event":"request"' not in line][-40:])


class Rig:
    """The mock upstream, the gateway, and what is done to them."""

    def __init__(self, folder: Path, made: Gateway, database: StoppablePostgres | None, away_s: float, rng: random.Random) -> None:
        self.folder = folder
        self.gateway = made
        self.database = database
        self._away_s = away_s
        self._rng = rng

    async def happen(self, fault: str) -> None:
        """The fault, and what must be done for the traffic to go on."""
        if fault in ("worker", "keeper"):
            pids = self.gateway.children("gateway.cli.server" if fault == "worker" else "gateway.keeper")
            if pids:
                os.kill(self._rng.choice(pids), signal.SIGKILL)
        elif fault == "all":
            self.gateway.kill()
            await asyncio.to_thread(self.gateway.start)
        elif fault == "term":
            code = await asyncio.to_thread(self.gateway.stop)
            if code != 0:
                raise SystemFailed(f"the gateway ended with code {code} on SIGTERM:\n{_said(self.gateway)}")
            await asyncio.to_thread(self.gateway.start)
        elif fault == "disk":
            with _filled(self.gateway.home):
                await asyncio.sleep(FULL_S)
        elif fault == "stopped":
            assert self.database is not None
            await asyncio.to_thread(self.database.stop)
            await asyncio.sleep(self._away_s)
            await asyncio.to_thread(self.database.start)
        else:
            assert self.database is not None
            await self._kill_shipment()

    async def _kill_shipment(self) -> None:
        """kill -9 of a server process of PostgreSQL that is in a transaction that writes usage rows."""
        assert self.database is not None
        watching = await asyncpg.connect(self.database.url)
        query = "SELECT pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND query ILIKE '%usage_%' AND pid <> pg_backend_pid()"
        deadline_s = time.monotonic() + 20
        while not (pids := [row["pid"] for row in await watching.fetch(query)]):
            if time.monotonic() > deadline_s:
                raise SystemFailed("no shipment was seen within 20 s")
        os.kill(pids[0], signal.SIGKILL)
        with contextlib.suppress(Exception):
            await watching.close(timeout=1)


@contextlib.contextmanager
def _filled(home: Path) -> Iterator[None]:
    """No byte more can be written where `home` is."""
    file = home / "filler"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, b"\0" * size)
        yield
    finally:
        os.close(fd)
        file.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES. SystemFailed where none can be mounted."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={DISK_BYTES},mode=700".encode()) != 0:
        raise SystemFailed(f"no small file system can be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(str(folder).encode(), 2)


async def run_trial(rig: Rig, key: str, number: int, fault: str, first: int, rng: random.Random) -> tuple[Trial, int]:
    """One trial; returns it and the number of the first request of the next."""
    trial = Trial(number, fault)
    traffic = Traffic(rig.gateway.port, key, first)
    traffic.start(RATE)
    await asyncio.sleep(BEFORE_S * (0.5 + rng.random()))
    await rig.happen(fault)
    await asyncio.sleep(AFTER_S)
    await traffic.stop()
    rows = await _rows(rig, traffic)
    judge(trial, traffic.seen, rows)
    return trial, first + len(traffic.seen)


async def _rows(rig: Rig, traffic: Traffic) -> dict[int, list[dict[str, object]]]:
    """The export's lines by request, once it holds what has been seen (or when it never will)."""
    must = {rid for rid, seen in traffic.seen.items() if _must_have_a_row(seen)}
    deadline_s = time.monotonic() + BOOKS_S
    while True:
        text = await asyncio.to_thread(rig.gateway.cli, "ledger", "export", "--since", "10m")
        rows: dict[int, list[dict[str, object]]] = {}
        for line in text.splitlines():
            row = json.loads(line)
            name = str(row.get("client_request_id") or "")
            if name.startswith("crash-") and int(name[6:]) >= traffic.first:
                rows.setdefault(int(name[6:]), []).append(row)
        if must <= rows.keys() or time.monotonic() > deadline_s:
            return rows
        await asyncio.sleep(0.5)


def _must_have_a_row(seen: Seen) -> bool:
    """Refusals (503, 429) are not admitted; every other byte of an answer comes of an admitted request."""
    return seen.bytes > 0 and seen.status in (0, 200, 502, 504)


def judge(trial: Trial, all_seen: dict[int, Seen], rows: dict[int, list[dict[str, object]]]) -> None:
    """Compare what the clients saw with the books."""
    trial.sent = len(all_seen)
    endings: Counter[str] = Counter()
    for rid, seen in all_seen.items():
        trial.answered += seen.whole
        trial.cut += bool(seen.bytes) and not seen.whole and not seen.left
        trial.unanswered += not seen.bytes
        found = rows.get(rid, [])
        trial.rows += len(found)
        if len(found) > 1:
            trial.faults.append(f"request {rid} has {len(found)} rows")
        elif not found:
            if _must_have_a_row(seen):
                trial.faults.append(f"request {rid} has no row, but its client saw {seen.bytes} bytes (status {seen.status})")
        else:
            endings[str(found[0]["ending"])] += 1
            trial.faults += _compare(trial, seen, found[0])
    trial.endings = dict(sorted(endings.items()))


def _compare(trial: Trial, seen: Seen, row: dict[str, object]) -> list[str]:
    said, ending = int(str(row["completion_tokens"])), str(row["ending"])
    exact = seen.ask.chunks or REPORTED
    if seen.whole and ending not in ("success", "interrupted"):
        return [f"request {seen.rid} was answered in full, its row says {ending}"]
    if ending == "success":
        return [] if said == exact else [f"request {seen.rid}: {said} tokens instead of {exact}"]
    if not seen.ask.chunks:
        return []
    if said < seen.chunks:
        return [f"request {seen.rid} ({ending}): {said} tokens, but its client received {seen.chunks}"]
    if ending == "interrupted":
        trial.most_beyond = max(trial.most_beyond, said - seen.chunks)
        if said - seen.chunks > ONE_READ:
            return [f"request {seen.rid} (interrupted): {said} tokens, its client received {seen.chunks}"]
    return []


@contextlib.contextmanager
def rig(folder: Path, database: str, away_s: float, rng: random.Random, small: bool) -> Iterator[tuple[Rig, str]]:
    """All of it, running, and a key."""
    with contextlib.ExitStack() as stack:
        port = free_port()
        upstream = subprocess.Popen(
            [*python_module("bench.upstream"), "--port", str(port)], env=clean_env({"PYTHONPATH": os.getcwd()}), stdout=subprocess.DEVNULL
        )
        stack.callback(upstream.wait)
        stack.callback(upstream.kill)
        environment: dict[str, str] = {}
        server: StoppablePostgres | None = None
        if database == "postgres":
            server = stack.enter_context(stoppable_postgres())
            environment["GATEWAY_DATABASE_URL"] = server.url.replace("postgresql://", "postgresql+asyncpg://", 1)
        home = stack.enter_context(small_disk(folder / "disk")) if small else folder
        made = Gateway(home / "home", CONFIG.format(port=port), environment, ("--workers", "2"))
        stack.callback(made.kill)
        made.start()
        yield Rig(folder, made, server, away_s, rng), made.key("crash", *LIMITS)
        made.stop()


async def run(options: argparse.Namespace, say: Callable[[str], None]) -> list[Trial]:
    """All trials, and what `ledger verify` says at the end."""
    rng = random.Random(options.seed)
    faults = options.faults.split(",")
    trials: list[Trial] = []
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        with rig(folder, options.database, options.away_s, rng, "disk" in faults) as (made, key):
            first = 1
            for number in range(1, options.trials + 1):
                fault = faults[(number - 1) % len(faults)]
                fault = rng.choice(KILLS) if fault == "random" else fault
                trial, first = await run_trial(made, key, number, fault, first, rng)
                trials.append(trial)
                say(
                    f"trial {number} of {options.trials}: {fault}, {trial.sent} requests, {trial.cut} cut off, {trial.rows} rows, "
                    + ("passed" if not trial.faults else f"FAILED: {trial.faults[0]}")
                )
            verdict = await asyncio.to_thread(_verify, made.gateway)
            if verdict:
                trials[-1].faults.append(verdict)
            if any(trial.faults for trial in trials):
                say(_said(made.gateway))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return trials


def _verify(made: Gateway) -> str:
    """What is wrong with the books, or nothing."""
    try:
        made.cli("ledger", "verify")
    except AssertionError as error:
        return f"ledger verify: {error}"
    return ""


def table_of(trials: list[Trial]) -> Table:
    """One line for each fault."""
    table = Table("fault", "trials", "requests", "cut off", "rows", "interrupted", "most tokens beyond", "failed", title="crash bench")
    for fault in sorted({trial.fault for trial in trials}):
        own = [trial for trial in trials if trial.fault == fault]
        interrupted = sum(trial.endings.get("interrupted", 0) for trial in own)
        figures = (len(own), sum(t.sent for t in own), sum(t.cut for t in own), sum(t.rows for t in own), interrupted)
        table.add_row(fault, *map(str, figures), str(max(t.most_beyond for t in own)), str(sum(bool(t.faults) for t in own)))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.crash", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--faults", default="random", help=f"comma separated, in turn: random, {', '.join(FAULTS)}")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--away-s", type=float, default=AWAY_S, help="how long `stopped` lasts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.faults.split(",")) - {*FAULTS, "random"}
    if unknown:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    if options.database == "sqlite" and {"stopped", "shipment"} & set(options.faults.split(",")):
        parser.error("stopped and shipment need --database postgres")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        trials = asyncio.run(run(options, console.print))
    except SystemFailed as error:
        console.print(f"failed: {error}")
        return 1
    Console(width=140).print(table_of(trials))
    faults = [fault for trial in trials for fault in trial.faults]
    for fault in faults[:20]:
        print(fault)
    print(f"{len(trials)} trials, {len(faults)} faults: {'FAILED' if faults else 'passed'}")
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
