"""How soon is a change of a key in force on every worker, and does it ever come back?

    python -m bench.propagation [--trials 200] [--workers 4] [--json FILE]

`gateway serve` with several workers, on SQLite, under a steady load of at most half of what it can do (measured first). One connection to
each worker asks every two milliseconds with the key in question while an admin, over HTTP, revokes it, takes its scope away, or changes its
limit. A worker has applied the change when the first answer that shows it has arrived: so the time it took the answer is in the figure.
Counted are the milliseconds from the admin's answer, and, for who wants to be strict, from the admin's request, the write included, until
the last worker showed it. Afterwards no answer of any worker may show what was before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.gateway import Cli, command_of
from bench.systems import clean_env

TARGET_MS = 50.0
ASK_S = 0.002
AFTER_S = 0.15  # how long after each change it is watched for what was before
START_S = 60.0
SATURATION_S = 4.0
SATURATING = 32  # connections
LOADING = 8
SHARE = 0.4  # of what saturates, all that asks included
CONFIG = "models: [{id: bench, backends: [{type: echo}]}]\n"
BODY = b'{"model":"bench","messages":[{"role":"user","content":"hi"}]}'
NEW_RPM = 2_000_000
KNOWN_S = 10.0  # a new key is known everywhere well within this


Shows = Callable[[int, bytes], bool]
Send = Callable[[], Awaitable[httpx.Response]]


class Connection:
    """One keep-alive connection: it stays with the worker that accepted it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.worker = ""

    @classmethod
    async def open(cls, port: int) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    async def ask(self, key: str) -> tuple[int, bytes]:
        """(status, the head of the answer)."""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(BODY)}\r\n\r\n"
        self._writer.write(head.encode() + BODY)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(_header(answer, b"content-length") or 0)
        await self._reader.readexactly(length)
        self.worker = _header(answer, b"x-request-id")[4:20].decode()  # made from what each process draws at its start
        return int(answer[9:12]), answer

    def close(self) -> None:
        self._writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else b""


@dataclass(slots=True)
class Trial:
    """One change. Times in ms; `back`: answers that showed the state before after one that showed the new one."""

    kind: str
    since_answer_ms: float
    since_request_ms: float
    back: int


@dataclass(slots=True)
class Bench:
    """The running gateway and who asks it."""

    port: int
    admin: httpx.AsyncClient
    per_worker: list[Connection]
    load_key: str
    asked: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def saturation(self) -> float:
        """Requests per second of as many connections as are never idle."""
        connections = [await Connection.open(self.port) for _ in range(SATURATING)]
        end_s = time.monotonic() + SATURATION_S
        counts = await asyncio.gather(*(self._closed_loop(c, end_s) for c in connections))
        for connection in connections:
            connection.close()
        return sum(counts) / SATURATION_S

    async def _closed_loop(self, connection: Connection, end_s: float) -> int:
        count = 0
        while time.monotonic() < end_s:
            await connection.ask(self.load_key)
            count += 1
        return count

    async def load(self, rate: float) -> None:
        """Until `stopping`: so many requests a second, in even steps."""
        await asyncio.gather(*(self._paced(LOADING / rate) for _ in range(LOADING)))

    async def _paced(self, every_s: float) -> None:
        connection = await Connection.open(self.port)
        due_s = time.monotonic()
        while not self.stopping.is_set():
            due_s = max(due_s + every_s, time.monotonic() - every_s)
            await asyncio.sleep(due_s - time.monotonic())
            await connection.ask(self.load_key)
            self.asked += 1
        connection.close()

    async def trial(self, kind: str, number: int) -> Trial:
        key, changed, change = await self._prepared(kind, number)
        over, applied = asyncio.Event(), [asyncio.Event() for _ in self.per_worker]
        watching = [asyncio.create_task(self._watch(c, key, changed, seen, over)) for c, seen in zip(self.per_worker, applied, strict=True)]
        await asyncio.sleep(0.03)
        requested_s = time.monotonic()
        answer = await change()
        answered_s = time.monotonic()
        assert answer.is_success, answer.text
        await asyncio.wait_for(asyncio.gather(*(seen.wait() for seen in applied)), 20)
        await asyncio.sleep(AFTER_S)
        over.set()
        found = await asyncio.gather(*watching)
        last_s = max(at_s for at_s, _ in found)
        return Trial(kind, max(0.0, last_s - answered_s) * 1e3, (last_s - requested_s) * 1e3, sum(back for _, back in found))

    async def _watch(
        self, connection: Connection, key: str, changed: Shows, applied: asyncio.Event, over: asyncio.Event
    ) -> tuple[float, int]:
        """(when the change was first seen, how often what was before was seen after that)."""
        first_s, back = 0.0, 0
        while not over.is_set():
            is_new = changed(*await connection.ask(key))
            self.asked += 1
            if is_new and not first_s:
                first_s = time.monotonic()
                applied.set()
            back += bool(first_s) and not is_new
            await asyncio.sleep(ASK_S)
        return first_s, back

    async def _prepared(self, kind: str, number: int) -> tuple[str, Shows, Send]:
        """A key of its own, known to every worker: (its text, does an answer show the change, the change)."""
        made = (await self.admin.post("/admin/keys", json={"name": f"trial {number}"})).json()
        path, key = f"/admin/keys/{made['id']}", made["key"]
        deadline_s = time.monotonic() + KNOWN_S
        for connection in self.per_worker:
            while (await connection.ask(key))[0] != 200:
                if time.monotonic() > deadline_s:
                    raise SystemExit("a new key was not known to every worker")
                await asyncio.sleep(ASK_S)

        def send(method: str, where: str, body: object) -> Send:
            return lambda: self.admin.request(method, where, json=body)

        if kind == "revoke":
            return key, lambda status, _: status == 401, send("POST", f"{path}/revoke", None)
        if kind == "scope":
            return key, lambda status, _: status == 403, send("PATCH", path, {"scopes": ["usage"]})
        return key, _limited, send("PATCH", path, {"rpm": NEW_RPM})


def _limited(status: int, head: bytes) -> bool:
    """Is the new limit in force? It stands in every answer; or limited keys are refused, where several processes cannot count together."""
    return status == 503 or _header(head, b"x-ratelimit-limit-requests") == str(NEW_RPM).encode()


async def bench(port: int, admin_key: str, load_key: str, workers: int, trials: int) -> tuple[list[Trial], dict[str, float]]:
    headers = {"authorization": f"Bearer {admin_key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=20) as admin:
        made = Bench(port, admin, await _one_to_each(port, load_key, workers), load_key)
        saturated = await made.saturation()
        asking = workers / (ASK_S * 2)  # about: an answer takes its time too
        loading = asyncio.create_task(made.load(max(50.0, saturated * SHARE - asking)))
        await asyncio.sleep(1)
        made.asked, started_s = 0, time.monotonic()
        kinds = ("revoke", "scope", "limit")
        found = [await made.trial(kinds[number % 3], number) for number in range(trials)]
        rate = made.asked / (time.monotonic() - started_s)
        made.stopping.set()
        await loading
        return found, {"saturation_per_s": round(saturated), "load_per_s": round(rate)}


async def _one_to_each(port: int, key: str, workers: int) -> list[Connection]:
    """The kernel chooses the worker: as many connections as it takes."""
    found: dict[str, Connection] = {}
    for _ in range(2000):
        connection = await Connection.open(port)
        await connection.ask(key)
        if found.setdefault(connection.worker, connection) is not connection:
            connection.close()
        if len(found) == workers:
            return list(found.values())
    raise SystemExit(f"only {len(found)} of {workers} workers answered")


def report(trials: list[Trial], figures: dict[str, float], workers: int) -> dict[str, object]:
    result: dict[str, object] = {"workers": workers, "trials": len(trials), **figures}
    for kind in ("all", "revoke", "scope", "limit"):
        chosen = [t for t in trials if kind in ("all", t.kind)]
        if chosen:
            result[kind] = {
                "since_answer_ms": _spread([trial.since_answer_ms for trial in chosen]),
                "since_request_ms": _spread([trial.since_request_ms for trial in chosen]),
            }
    result["came_back"] = sum(t.back for t in trials)
    return result


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(ordered[-1], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended too
    with tempfile.TemporaryDirectory(prefix="propagation-") as text:
        folder = Path(text)
        (folder / "gateway.yaml").write_text(CONFIG)
        env = {"GATEWAY_HOME": str(folder / "home"), "GATEWAY_ADMIN_PASSWORD": "bench-admin-password-0", "GATEWAY_LOG_LEVEL": "warning"}
        cli = Cli(command_of("gateway"), folder, env)
        cli.run("init")
        admin_key = cli.run("keys", "create", "--name", "admin", "--scopes", "admin").strip()
        load_key = cli.run("keys", "create", "--name", "load").strip()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        serve = ("serve", "--config", "gateway.yaml", "--port", str(port), "--workers", str(chosen.workers))
        command = [cli.binary, *serve]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, cwd=folder, env=clean_env(env), stdout=log, stderr=log) as server,
        ):
            try:
                _wait_ready(port, server)
                found, figures = asyncio.run(bench(port, admin_key, load_key, chosen.workers, chosen.trials))
            finally:
                server.terminate()
    result = report(found, figures, chosen.workers)
    print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
    worst = percentile_of(result)
    passed = worst <= TARGET_MS and result["came_back"] == 0 and figures["load_per_s"] <= figures["saturation_per_s"] / 2
    print(f"{'met' if passed else 'MISSED'}: p99 {worst} ms (target {TARGET_MS:g}), came back {result['came_back']} times", file=sys.stderr)
    sys.exit(0 if passed else 1)


def percentile_of(result: dict[str, object]) -> float:
    """The p99 that the verdict is about."""
    figures = result["all"]
    assert isinstance(figures, dict)
    return float(figures["since_answer_ms"]["p99"])


def _wait_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise SystemExit("the gateway ended")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise SystemExit("the gateway did not become ready")


if __name__ == "__main__":
    main()
