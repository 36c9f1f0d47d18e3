"""GATEWAY_HOME/run as it lies on the disk: shared memory, the ledger, sockets. Whoever may write there decides what limits let through."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gateway.cli.finding import Finding


def look(home: Path, run_dir: Path) -> Iterator[Finding]:
    """A finding for each thing that another user owns or may write, or a folder that others may enter."""
    if not run_dir.is_dir():
        yield Finding("run folder", True, "is not there yet; `gateway serve` makes it")
        return
    owner = home.stat().st_uid
    found = [fault for path in (run_dir, *sorted(run_dir.rglob("*"))) for fault in _faults(path, owner)]
    yield from found
    if not found:
        yield Finding("run folder", True, f"{run_dir} and what is in it are their owner's alone")


def _faults(path: Path, owner: int) -> Iterator[Finding]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:  # a running gateway makes and removes files
        return
    if status.st_uid != owner:
        yield Finding(
            "run folder", False, f"{path} belongs to another user than the home (user id {status.st_uid}, not {owner})",
            f"Run `chown {owner} {path}`, and run commands as the user that runs the gateway.",
        )  # fmt: skip
    if stat.S_ISLNK(status.st_mode):
        yield Finding("run folder", False, f"{path} is a link", f"Stop the gateway and run `rm {path}`: it makes its own.")
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o077:
        yield Finding("run folder", False, f"other users of this machine may enter {path}", f"Run `chmod 700 {path}`.")
    elif not stat.S_ISDIR(status.st_mode) and status.st_mode & 0o022:
        yield Finding("run folder", False, f"other users of this machine may write {path}", f"Run `chmod go-w {path}`.")
