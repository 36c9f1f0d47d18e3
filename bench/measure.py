"""What a system under test has used, read from /proc (Linux): CPU and memory of its whole process tree.

The tree is every descendant of the root and every process of the root's session, so a worker whose parent
has died still counts. CPU is user + system time in seconds: nanosecond clocks of the living processes plus
what they have reaped from children that ended (that part in ticks of 10 ms). The sum over a tree is the
same before and after a child is reaped, so differences hold across restarts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import clock_gettime

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
SERVING, KEEPER, REST = "serving", "keeper", "rest"
Roles = tuple[tuple[str, str], ...]
"""(what the command line of a process contains, its role); the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that count here; times in ticks."""

    pid: int
    parent: int
    session: int
    own_ticks: int
    reaped_ticks: int


def read_stat(pid: int) -> Stat | None:
    """The stat of one process, None if it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in front may hold spaces and brackets
    user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
    return Stat(pid, int(fields[1]), int(fields[3]), user + system, reaped_user + reaped_system)


def tree(root: int) -> list[Stat]:
    """The root, its descendants and whoever shares its session (the root leads one of its own)."""
    every = [stat for entry in PROC.iterdir() if entry.name.isdigit() and (stat := read_stat(int(entry.name)))]
    found = {stat.pid: stat for stat in every if stat.pid == root or stat.session == root}
    grown = True
    while grown:
        children = [stat for stat in every if stat.parent in found and stat.pid not in found]
        found.update((stat.pid, stat) for stat in children)
        grown = bool(children)
    return list(found.values())


def cpu_s(root: int) -> float:
    """CPU seconds that the tree of `root` has used since it started."""
    return sum(_own_s(stat) + stat.reaped_ticks / TICKS_PER_S for stat in tree(root))


def cpu_by_role_s(root: int, roles: Roles) -> dict[str, float]:
    """CPU seconds of the tree by role; a process that no marker fits is the REST, and without roles all are SERVING.

    What an ended child used counts for its parent, so a worker that dies between two readings moves to the rest.
    """
    sums: dict[str, float] = {}
    for stat in tree(root):
        role = role_of(stat.pid, roles)
        sums[role] = sums.get(role, 0.0) + _own_s(stat) + stat.reaped_ticks / TICKS_PER_S
    return sums


def role_of(pid: int, roles: Roles) -> str:
    """The role of a process by its command line."""
    if not roles:
        return SERVING
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        command = ""
    return next((role for marker, role in roles if marker in command), REST)


def _own_s(stat: Stat) -> float:
    """CPU seconds of one process, threads that ended included."""
    process_cpu_clock = (~stat.pid << 3) | 2  # clock_getcpuclockid(3), which Python does not have
    try:
        return clock_gettime(process_cpu_clock)
    except OSError:
        return stat.own_ticks / TICKS_PER_S


def pss_bytes(root: int) -> int:
    """Proportional set size of the tree: pages shared with other processes count by share."""
    return sum(_pss_of(stat.pid) for stat in tree(root))


def _pss_of(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
