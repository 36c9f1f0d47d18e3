"""The loads that every system is put under, and what is read off each."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load. `per` is what CPU is divided by: request or chunk; empty where CPU is not the question.

    `fresh`: on an instance started for this trial alone, because memory that earlier load has left behind
    would hide what the trial takes. `rounds`: how many rounds at most (0 = all).
    """

    name: str
    arguments: tuple[str, ...]
    connections: int
    requests: int
    per: str = "request"
    ttft: bool = False
    fresh: bool = False
    with_upstream: bool = False
    rounds: int = 0
    timeout_s: float = 180.0

    def command(self, load_share: float) -> tuple[str, ...]:
        """The driver's arguments, with that share of the requests (and at least one per connection)."""
        requests = max(self.connections, round(self.requests * load_share))
        return (*self.arguments, "--connections", str(self.connections), "--requests", str(requests))


def _closed(name: str, connections: int, requests: int, *more: str, warmup: int = 4, per: str = "request") -> Scenario:
    return Scenario(name, ("closed", "--warmup", str(warmup), *more), connections, requests, per)


def _stream(requests: int) -> Scenario:
    return _closed("stream64", 64, requests, "--mode", "s", "--chunks", "200", "--interval-us", "10000", warmup=0, per="chunk")


def _ttft(requests: int) -> Scenario:
    """About 50 streams at any time: 125 arrivals per second, each 20 chunks, 20 ms apart."""
    shape = ("--rate", "125", "--chunks", "20", "--interval-us", "20000")
    return Scenario("ttft50", ("open", *shape), 100, requests, per="", ttft=True, with_upstream=True)


def _idle(streams: int, rounds: int) -> Scenario:
    return Scenario(f"idle{streams}", ("idle",), streams, streams, per="", fresh=True, rounds=rounds)


def full() -> tuple[Scenario, ...]:
    """The loads behind every figure that the project states."""
    return (
        _closed("chat1", 1, 4000, warmup=50),
        _closed("chat32", 32, 16000),
        _closed("prompt300k", 8, 400, "--prompt-bytes", "300000"),
        _stream(128),
        _ttft(1000),
        _idle(5000, rounds=1),
    )


def quick() -> tuple[Scenario, ...]:
    """The same in small, for a look during work: a tenth of the idle streams, and a p99 of few arrivals."""
    return (
        _closed("chat1", 1, 1500, warmup=50),
        _closed("chat32", 32, 6000),
        _closed("prompt300k", 8, 150, "--prompt-bytes", "300000"),
        _stream(64),
        _ttft(300),
        _idle(500, rounds=1),
    )


WARM = _closed("warm", 8, 400)
