"""Those who guess passwords, and the owner who logs in meanwhile, as a process of its own. One JSON document on stdout.

    python -m bench.attackers --port 8000 --seconds 60 --rate 100 --addresses 1000 --owner admin@localhost < password

Every guess is a connection of its own from one of many loopback addresses (all of 127.0.0.0/8 is this machine on Linux), at a fixed beat
whatever the answers. `--aim`: at the owner's account, at accounts that do not exist (each its own), or at both in turn. The owner logs in
every few seconds from one address, retries a 429 when it says to, and counts as in when a token is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any

import uvloop

from bench.load import quantiles

OWNER_EVERY_S = 3.0
OWNER_FROM = "127.99.0.1"
GIVE_UP_S = 20.0
ANSWER_LIMIT_S = 30.0
_RETRY_AFTER = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)


@dataclass(slots=True)
class Told:
    """What came of it. `owner_ms`: from the first try until the owner was in; `tries`: how many it took, each time."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    answer_ms: list[float] = field(default_factory=list)
    owner_ms: list[float] = field(default_factory=list)
    owner_tries: list[int] = field(default_factory=list)
    owner_out: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "statuses": dict(sorted(self.statuses.items())),
            "answer_ms": quantiles(self.answer_ms),
            "owner_ms": quantiles(self.owner_ms),
            "owner_logins": len(self.owner_ms),
            "owner_tries": max(self.owner_tries, default=0),
            "owner_never_in": self.owner_out,
        }


async def post_login(port: int, source: str, email: str, password: str) -> tuple[int, float]:
    """(status, seconds of Retry-After or 0) of one login from `source`. Raises OSError, TimeoutError."""
    body = json.dumps({"email": email, "password": password}).encode()
    head = f"POST /auth/login HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    async with asyncio.timeout(ANSWER_LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        try:
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
    if not answer.startswith(b"HTTP/1.1 "):
        return 0, 0.0
    found = _RETRY_AFTER.search(answer)
    return int(answer[9:12]), float(found[1]) if found else 0.0


def addresses(many: int) -> list[str]:
    """So many loopback addresses, none of them the owner's."""
    return [f"127.77.{number // 250}.{number % 250 + 1}" for number in range(many)]


def targets(aim: str, owner: str) -> Iterator[str]:
    """Whose password is guessed, one after the other."""
    for number in count():
        at_owner = aim == "owner" or (aim == "both" and number % 2 == 0)
        yield owner if at_owner else f"user{number}@example.com"


async def guess(port: int, source: str, email: str, number: int, told: Told) -> None:
    started_s = perf_counter()
    try:
        status, _ = await post_login(port, source, email, f"guess number {number}")
        told.statuses[str(status)] += 1
        told.answer_ms.append((perf_counter() - started_s) * 1e3)
    except (OSError, TimeoutError) as error:
        told.statuses[type(error).__name__] += 1


async def attack(arguments: argparse.Namespace, told: Told) -> None:
    """Guesses at the beat, until the time is over; waits for the last answers."""
    sources, started_s, running = addresses(arguments.addresses), perf_counter(), set[asyncio.Task[None]]()
    for email in targets(arguments.aim, arguments.owner):
        due_s = started_s + told.sent / arguments.rate
        if due_s > started_s + arguments.seconds:
            break
        await asyncio.sleep(max(0.0, due_s - perf_counter()))
        task = asyncio.create_task(guess(arguments.port, sources[told.sent % len(sources)], email, told.sent, told))
        running.add(task)
        task.add_done_callback(running.discard)
        told.sent += 1
    await asyncio.gather(*running)


async def log_in(port: int, email: str, password: str, told: Told) -> None:
    """The owner, until in."""
    started_s, tries = perf_counter(), 0
    while (spent_s := perf_counter() - started_s) < GIVE_UP_S:
        tries += 1
        status, wait_s = await post_login(port, OWNER_FROM, email, password)
        if status == 200:
            told.owner_ms.append((perf_counter() - started_s) * 1e3)
            told.owner_tries.append(tries)
            return
        if status != 429:
            break
        await asyncio.sleep(max(0.1, min(wait_s, GIVE_UP_S - spent_s)))
    told.owner_out += 1


async def live(arguments: argparse.Namespace, password: str) -> dict[str, Any]:
    told, ends_s = Told(), perf_counter() + arguments.seconds
    attacking = asyncio.create_task(attack(arguments, told)) if arguments.rate else None
    while perf_counter() < ends_s:
        await log_in(arguments.port, arguments.owner, password, told)
        await asyncio.sleep(min(OWNER_EVERY_S, max(0.0, ends_s - perf_counter())))
    if attacking is not None:
        await attacking
    return told.document()


def main() -> None:
    parser = argparse.ArgumentParser(description="Wrong passwords from many addresses, and the owner's right one.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="guesses a second; 0: the owner alone")
    parser.add_argument("--addresses", type=int, default=1000)
    parser.add_argument("--aim", choices=("owner", "others", "both"), default="both")
    parser.add_argument("--owner", required=True)
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(live(arguments, sys.stdin.readline().rstrip("\n")))))


if __name__ == "__main__":
    main()
