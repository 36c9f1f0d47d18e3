"""What a limit decision costs: python -m bench.limits_decision [--json FILE].

One account with three limits (requests, tokens, money), and four accounts (key, user, team, model) with twelve, through the limiter that
a server process has, in each form of the levels. A decision is a reservation, as a relayed request makes it, with the lines for its
answer; each is settled, which is measured by itself. CPU time of this process, the best of several rounds: what else runs on the machine
must not count.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway
import gateway.limits.levels as taken
from auth.principal import Budget, Limited, Limits
from gateway.limits import shared
from gateway.limits.base import Refusal
from gateway.limits.shared import SharedLimiter

ROUNDS = 7
COUNTS = {"c": 50_000, "plain": 2_000}
BOUND_NS = {1: 8_000, 4: 15_000}
THREE = Limits(rpm=10**12, tpm=10**15, budget=Budget(2**62, "month"))
IDS = ("k3v9x0q2m7ab", "user:usr_1", "team:team_1", "model:chat")


def plain_form() -> Any:
    """The module as its source says it, whatever was compiled."""
    source = Path(gateway.__file__).parent / "limits" / "levels.py"
    spec = importlib.util.spec_from_file_location("levels_in_python", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own_levels(form: Callable[[str], Any]) -> Any:
    """In a file without a name."""
    fd = os.memfd_create("levels")
    try:
        return form(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def measured(limiter: SharedLimiter, accounts: int, count: int) -> tuple[float, float]:
    """CPU ns of (a decision, its settlement)."""
    callers = tuple(Limited(limit_id, THREE) for limit_id in IDS[:accounts])
    best = (float("inf"), float("inf"))
    gc.disable()
    for _ in range(ROUNDS):
        began = time.process_time_ns()
        permits = [limiter.reserve(callers, 100, 1000) for _ in range(count)]
        decided = time.process_time_ns()
        for permit in permits:
            assert not isinstance(permit, Refusal)
            permit.settle(90, 900)
        settled = time.process_time_ns()
        best = min(best[0], (decided - began) / count), min(best[1], (settled - decided) / count)
    gc.enable()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="where the figures go, too")
    arguments = parser.parse_args()
    forms = {"plain": plain_form().Levels} | ({"c": taken.Levels} if taken.FORM == "c" else {})
    compiled = not str(shared.__file__).endswith(".py")
    print(f"the limiter above the levels is {'compiled' if compiled else 'interpreted'}; CPU ns")
    print("form   accounts  limits  decision  settlement  bound")
    figures: list[dict[str, Any]] = []
    for form in sorted(forms):
        for accounts in (1, 4):
            limiter = SharedLimiter(own_levels(forms[form]))
            decision_ns, settle_ns = measured(limiter, accounts, COUNTS[form])
            limiter.close()
            print(f"{form:6} {accounts:8} {3 * accounts:7} {decision_ns:9.0f} {settle_ns:11.0f} {BOUND_NS[accounts]:6}", flush=True)
            figure = {"form": form, "accounts": accounts, "limits": 3 * accounts, "decision_ns": decision_ns, "settle_ns": settle_ns}
            figures.append(figure | {"compiled": compiled})
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
