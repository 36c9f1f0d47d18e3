"""What the processes of one tree hold at a moment: memory, descriptors, threads, connections, and what the probe in them sees.

Anonymous memory is where a leak shows: heaps and stacks. PSS and USS are read too, without the mapped segments of the ledger, which
fill up and are replaced by design (16 MB each, pages of a file); both move when any other program on the machine maps or unmaps a
library that ours use, so they tell what a process costs, not whether it grows. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import PROC, Roles, role_of, tree

PROBE = Path(__file__).parent / "probe"
PROBE_LIMIT_S = 20.0
LISTEN = "0A"


@dataclass(slots=True)
class Process:
    """One process. `tasks` and `objects` None where no probe answers. `client_connections`: not from the tree's own processes."""

    pid: int
    role: str
    anonymous_bytes: int = 0
    pss_bytes: int = 0
    uss_bytes: int = 0
    segment_bytes: int = 0
    segments: int = 0
    descriptors: int = 0
    sockets: int = 0
    threads: int = 0
    client_ports: set[int] = field(default_factory=set)
    client_connections: int = 0
    upstream_connections: int = 0
    tasks: int | None = None
    objects: int | None = None
    types: dict[str, int] = field(default_factory=dict)


def census(root: int, roles: Roles, port: int, upstream_ports: set[int], probes: Path) -> list[Process]:
    """Every process of the tree. `port`: where clients connect to."""
    sockets = _sockets()
    ours: set[int] = set()  # local ports of the tree's own connections to its server: the keeper reads its metrics
    found = []
    for stat in tree(root):
        process = Process(stat.pid, role_of(stat.pid, roles))
        try:
            _ask_probe(process, probes)
            _read_memory(process)
            ours |= _read_descriptors(process, sockets, port, upstream_ports)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        found.append(process)
    for process in found:
        process.client_connections = len(process.client_ports - ours)
    return found


def _ask_probe(process: Process, folder: Path) -> None:
    """Also has the process collect its garbage, so that memory is read after it."""
    if not (folder / f"{process.pid}.ready").exists():
        return
    answer = folder / f"{process.pid}.json"
    answer.unlink(missing_ok=True)
    os.kill(process.pid, signal.SIGUSR2)
    deadline_s = time.monotonic() + PROBE_LIMIT_S
    while not answer.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if answer.exists():
        seen = json.loads(answer.read_text())
        process.tasks, process.objects, process.types = seen["tasks"], seen["objects"], seen["types"]


def _read_memory(process: Process) -> None:
    segment = False
    for line in (PROC / str(process.pid) / "smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the head of a mapping
            segment = line.rstrip().endswith(".seg")
            process.segments += segment
        elif name == "Pss:":
            size = int(rest.split()[0]) * 1024
            process.segment_bytes += size if segment else 0
            process.pss_bytes += 0 if segment else size
        elif name == "Anonymous:":
            process.anonymous_bytes += int(rest.split()[0]) * 1024
        elif name in ("Private_Clean:", "Private_Dirty:") and not segment:
            process.uss_bytes += int(rest.split()[0]) * 1024


def _read_descriptors(process: Process, sockets: dict[str, tuple[int, int, str]], port: int, upstream_ports: set[int]) -> set[int]:
    """Returns the local ports of connections to `port`."""
    outgoing: set[int] = set()
    folder = PROC / str(process.pid)
    process.threads = len(list((folder / "task").iterdir()))
    for entry in list((folder / "fd").iterdir()):
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        process.descriptors += 1
        if target.startswith("socket:["):
            process.sockets += 1
            local, remote, state = sockets.get(target[8:-1], (0, 0, LISTEN))
            process.upstream_connections += remote in upstream_ports
            if remote == port:
                outgoing.add(local)
            elif local == port and state != LISTEN:
                process.client_ports.add(remote)
    return outgoing


def _sockets() -> dict[str, tuple[int, int, str]]:
    """Inode -> (local port, remote port, state) of every TCP socket."""
    found = {}
    for line in [*(PROC / "net/tcp").read_text().splitlines()[1:], *(PROC / "net/tcp6").read_text().splitlines()[1:]]:
        fields = line.split()
        found[fields[9]] = (int(fields[1].rpartition(":")[2], 16), int(fields[2].rpartition(":")[2], 16), fields[3])
    return found
