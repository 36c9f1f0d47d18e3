"""`python -m tests.faults.fuzz`: damaged bytes at every parser of the relay, held against independent readings.

Cases are made from a corpus by cutting, joining, doubling and putting in words that parsers trip over; case n of a seed is the same
everywhere, so a failure is repeated with `--only TARGET --first N --cases 1`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

from tests.faults.fuzz_parsers import Backend, Forms, Frames, Json, cut
from tests.faults.fuzz_relay import Client, Upstream


class Target(Protocol):
    """`check` raises where what came of these pieces is not what it should be. `joins`: up to so many corpus entries make one case."""

    @property
    def corpus(self) -> list[bytes]: ...

    @property
    def words(self) -> list[bytes]: ...

    @property
    def joins(self) -> int: ...

    def check(self, pieces: list[bytes]) -> None: ...

    def close(self) -> None: ...


# Shares of the cases: the two that read HTTP from strangers get most.
TARGETS: dict[str, tuple[Callable[[], Target], int]] = {
    "edge": (Client, 30),
    "backend": (Backend, 20),
    "relay": (Upstream, 15),
    "frames": (Frames, 15),
    "json": (Json, 10),
    "forms": (Forms, 10),
}


class Found(Exception):
    """A case that fails; the message says how to repeat it."""


def damage(rng: random.Random, target: Target) -> bytes:
    """One case, before it is cut: now and then undamaged."""
    data = bytearray(b"".join(rng.choice(target.corpus) for _ in range(rng.randint(1, target.joins))))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at : at + rng.randint(1, 20)]
        elif how == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        elif how == 3:
            other = rng.choice(target.corpus)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 60)]
        elif how == 4:  # at the beginning of a line, where words are words
            line = data.rfind(b"\n", 0, at) + 1
            data[line:line] = rng.choice(target.words)
        else:
            data[at:at] = rng.choice(target.words)
    return bytes(data)


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    """Whole, in a few pieces, or byte by byte."""
    how = rng.random()
    if how < 0.3:
        return [data] if data else []
    if how > 0.97:
        return cut(data, list(range(0, len(data), 1 + len(data) // 200)))
    return cut(data, [rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 8))])


def run(name: str, seed: int, first: int, count: int) -> Iterator[int]:
    """Run cases of one target; yields how many are done, every thousand. Raises Found."""
    target = TARGETS[name][0]()
    try:
        with structlog.testing.capture_logs() as logged:
            for number in range(first, first + count):
                rng = random.Random(f"{seed}:{name}:{number}")
                pieces = pieces_of(rng, damage(rng, target))
                try:
                    target.check(pieces)
                    faults = [line for line in logged if line["log_level"] in ("error", "critical")]
                    assert not faults, faults
                except Exception as error:
                    raise Found(f"{name} --seed {seed} --first {number}: {type(error).__name__}: {error}\n  {pieces!r}") from error
                if number % 1000 == 999:
                    logged.clear()
                    yield number + 1 - first
    finally:
        target.close()
    yield count


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the relay's parsers.")
    parser.add_argument("--cases", type=int, default=1_000_000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, action="append")
    arguments = parser.parse_args()
    names = arguments.only or list(TARGETS)
    shares = sum(TARGETS[name][1] for name in names)
    started_s, total, failed = time.monotonic(), 0, 0
    for name in names:
        count = max(1, arguments.cases * TARGETS[name][1] // shares)
        begun_s, done = time.monotonic(), 0
        try:
            for done in run(name, arguments.seed, arguments.first, count):
                if done % 20_000 == 0 or done == count:
                    print(f"{name}: {done:,} of {count:,}, {done / (time.monotonic() - begun_s):,.0f}/s", flush=True)
        except Found as found:
            failed += 1
            print(f"FOUND {found}", flush=True)
        total += done
    print(f"{total:,} cases in {time.monotonic() - started_s:.0f} s, {failed} targets failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
