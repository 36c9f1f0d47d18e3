"""What the keeper's probes found, in one file of this host: the keeper writes it whole, serving processes read it.

Entries are named `<model>/<backend>` and belong to one revision: under another, the same name may mean another backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gateway.routing.health import Health
from gateway.routing.table import RouteTable

FILE_NAME = "probes.json"
_VALID_INTERVALS = 3
_SLACK_S = 2.0  # for the file's own way here


@dataclass(frozen=True, slots=True)
class Probed:
    """`alive` None: not known yet. `checked_s`: Unix time of the last probe. `reason`: why that one failed, one word; "" if it did not."""

    alive: bool | None
    checked_s: float
    interval_s: float
    timeout_s: float
    reason: str = ""

    def valid_s(self, wall_s: float) -> float:
        """For how long this still holds. Past its end the keeper is dead, and nothing is known."""
        return self.checked_s + _VALID_INTERVALS * max(self.interval_s, self.timeout_s) + _SLACK_S - wall_s


class ProbeFile:
    """One serving process's view of the file. `follow` is called when the shared counter moves and about once a second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._revision = -1
        self._told: dict[Health, None] = {}

    def follow(self, table: RouteTable, now_s: float, wall_s: float) -> None:
        """Tell the targets of `table` what is new. `now_s`: monotonic; `wall_s`: Unix time."""
        seen = self._stat()
        if seen == self._seen and table.revision == self._revision:
            return
        revision, found = read_probes(self._file)
        if seen is not None and revision != table.revision:
            return  # the keeper has not come to this revision yet, or this process has not: what was said holds until then
        self._seen, self._revision = seen, table.revision
        self._tell(table, found, now_s, wall_s)

    def _tell(self, table: RouteTable, found: Mapping[str, Probed], now_s: float, wall_s: float) -> None:
        told: dict[Health, Probed] = {}
        for route in table.routes.values():
            for target in route.targets:
                entry = found.get(f"{route.id}/{target.id}")
                if entry is None or entry.alive is None or entry.valid_s(wall_s) <= 0:
                    continue
                if target.health not in told or not entry.alive:  # of two probes of one backend, the worse word counts
                    told[target.health] = entry
        for health, entry in told.items():
            health.probed(bool(entry.alive), now_s, entry.valid_s(wall_s), entry.reason)
        for health in self._told:
            if health not in told:
                health.unprobed(now_s)
        self._told = dict.fromkeys(told)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def read_probes(file: Path) -> tuple[int, dict[str, Probed]]:
    """Revision and entries; (-1, {}) where there is no such file, or one that cannot be read."""
    names = {field.name for field in fields(Probed)}
    try:
        content = json.loads(file.read_bytes())
        found = {str(name): Probed(**{key: entry[key] for key in names & entry.keys()}) for name, entry in content["probes"].items()}
        return int(content["revision"]), found
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return -1, {}


def write_probes(file: Path, revision: int, probes: Mapping[str, Probed]) -> None:
    """Readers see the old content or the new, never a part. For its owner only (0600)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        json.dump({"revision": revision, "probes": {name: asdict(entry) for name, entry in probes.items()}}, stream, ensure_ascii=False)
    fresh.replace(file)
