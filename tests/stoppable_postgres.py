"""A PostgreSQL of its own that can really be stopped, frozen and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import databases
from tests.gateway_process import free_port


class StoppablePostgres:
    """A server of our own, of the system's binaries or of the pgserver wheel's, that can really be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        self._user = databases._unprivileged() if os.geteuid() == 0 else None
        self._port = free_port()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._call("initdb", "-U", "gateway", "-E", "UTF8", "--auth=trust", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql://gateway@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = " ".join(f"-c '{setting}'" for setting in (f"port={self._port}", *databases._SETTINGS))
        self._call("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        if (self._folder / "data" / "postmaster.pid").exists():
            self._call("pg_ctl", "-w", "-m", "fast", "stop")

    def freeze(self, number: int) -> None:
        """Every process of it."""
        first = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            os.kill(pid, number)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments],
            check=True, user=self._user, cwd=self._folder, timeout=120, env={"PATH": os.defpath, "LC_ALL": "C"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def _binaries() -> Path | None:
    found = databases._system_binaries()
    if found is not None:
        return found
    try:
        import pgserver
    except ImportError:
        return None
    folder = Path(pgserver.__file__).parent / "pginstall" / "bin"
    return folder if (folder / "pg_ctl").exists() else None


@contextmanager
def stoppable_postgres() -> Iterator[StoppablePostgres]:
    binaries = _binaries()
    if binaries is None:
        databases._absent("no postgres binaries, no pgserver wheel")
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="gateway-stopped-"))
    try:
        server = StoppablePostgres(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
