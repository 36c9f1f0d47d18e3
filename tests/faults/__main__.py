"""`python -m tests.faults`: the fault matrix several times in a row, under load. Exit code 1 where a case fails."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time

import uvloop

from tests.faults.matrix import Report, cases, rounds


def _tell(number: int, report: Report) -> int:
    """One line per round, and one per fault. Returns how many there are."""
    faults = [f"  {name}: {'; '.join(found)}" for name, found in report.results.items() if found]
    faults += [f"  load: {found}" for found in report.load.faults[:5]] + [f"  left over: {found}" for found in report.left_over]
    answers = report.load.answers
    print(
        f"round {number}: {len(report.results)} cases in {report.seconds:.1f} s, {len(faults)} faults; "
        f"beside them {answers['stream']} streams and {answers['whole']} chats as they should be",
        flush=True,
    )
    for fault in faults:
        print(fault)
    return len(faults)


async def _run(count: int, clients: int) -> int:
    started_s, faults, number = time.monotonic(), 0, 0
    async for report in rounds(count, cases(), clients, pause_s=0.01):
        number += 1
        faults += _tell(number, report)
        gc.freeze()  # what the rounds keep would be looked through again and again, for longer than the shortest clocks
    print(f"{number} rounds, {faults} faults, {time.monotonic() - started_s:.0f} s")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description="The fault matrix, several times in a row, under load.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=12, help="well-behaved clients beside it, at most one request each 10 ms")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(1 if runner.run(_run(arguments.rounds, arguments.clients)) else 0)


if __name__ == "__main__":
    main()
