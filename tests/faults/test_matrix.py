"""Every fault x every endpoint x streamed or not, alone and with a second backend, all at once under load: exactly what the contract says.

`make bench-faults` runs the same ten times in a row under more load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
import uvloop

from gateway.relay.operations import ROUTES
from tests.faults.calls import CALLS
from tests.faults.matrix import Report, cases, rounds

pytestmark = pytest.mark.alone  # clocks of half a second run out where the machine is busy

ROUNDS = 1
CASES = cases()


@dataclass
class Outcome:
    reports: list[Report]
    logged: list[Any]


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    """The matrix is run once; each case is a test of its own."""

    async def run() -> list[Report]:
        return [report async for report in rounds(ROUNDS, CASES)]

    with structlog.testing.capture_logs() as logged, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield Outcome(runner.run(run()), logged)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_fault(outcome: Outcome, name: str) -> None:
    for number, report in enumerate(outcome.reports, 1):
        assert report.results[name] == [], f"round {number}"


def test_the_load_beside_it_saw_nothing(outcome: Outcome) -> None:
    for report in outcome.reports:
        assert report.load.faults == []
        assert report.load.answers["stream"] > 20
        assert report.load.answers["whole"] > 20


def test_nothing_is_left_over(outcome: Outcome) -> None:
    assert [report.left_over for report in outcome.reports] == [[]] * ROUNDS


def test_no_bug_was_logged(outcome: Outcome) -> None:
    assert [line for line in outcome.logged if line["log_level"] in ("error", "critical")] == []


def test_every_relay_route_takes_part() -> None:
    tested = {call.path.removeprefix("/v1").encode() for call in CALLS.values()}
    assert {path.removeprefix(b"/v1") for path in ROUTES} <= tested
