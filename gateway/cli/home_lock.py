"""One `gateway serve` per home: two would each let the whole limit of a key through, and start its local models twice."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from gateway.cli.output import fail


def hold_home(home: Path, run_dir: Path, to_do: str = "stop it, or give this one a GATEWAY_HOME of its own") -> IO[str]:
    """The lock, held as long as the file is open; `CommandFailed` where another process has it. Kill -9 gives it back too."""
    file = os.fdopen(os.open(run_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read(20).strip() or "unknown"
        file.close()
        fail(f"A gateway serves {home} already (process {holder}): {to_do}.")
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
