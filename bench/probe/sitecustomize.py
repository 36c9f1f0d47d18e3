"""A probe inside the processes of a `gateway serve` under soak: on SIGUSR2 a process writes down what only it can know.

Python imports this module at start where PYTHONPATH names its folder; it does nothing unless BENCH_PROBE names the folder to
write to. The server itself is not changed. PID.ready says that the signal may be sent, PID.json is the answer: asyncio tasks
and live objects by type after a full collection.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType


def report(number: int, frame: FrameType | None) -> None:
    """Runs on the main thread, where the event loop runs."""
    gc.collect()
    try:
        tasks: int | None = len(asyncio.all_tasks())
    except RuntimeError:  # no loop is running here
        tasks = None
    types = Counter(type(thing).__qualname__ for thing in gc.get_objects())
    answer = Path(os.environ["BENCH_PROBE"], f"{os.getpid()}.json")
    unfinished = answer.with_suffix(".new")
    unfinished.write_text(json.dumps({"tasks": tasks, "objects": types.total(), "types": dict(types.most_common(60))}))
    unfinished.rename(answer)


if os.environ.get("BENCH_PROBE"):
    signal.signal(signal.SIGUSR2, report)
    Path(os.environ["BENCH_PROBE"], f"{os.getpid()}.ready").touch()
