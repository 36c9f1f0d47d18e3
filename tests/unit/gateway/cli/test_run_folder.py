"""doctor looks at what processes share, and at whether the audit log can go on."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.cli.run_folder import look

from .conftest import Gateway


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run" / "ledger").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "run", tmp_path / "run" / "ledger"):
        folder.chmod(0o700)
    for name in ("levels-c", "generation", "ledger/id"):
        (tmp_path / "run" / name).touch()
        (tmp_path / "run" / name).chmod(0o600)
    return tmp_path / "run"


def said(run_dir: Path) -> list[str]:
    return [finding.message for finding in look(run_dir.parent, run_dir) if not finding.ok]


def test_what_is_private_is_fine(run_dir: Path) -> None:
    (run_dir / "ledger" / "id").chmod(0o644)  # the folder lets nobody in
    assert said(run_dir) == []
    assert [finding.ok for finding in look(run_dir.parent, run_dir / "none")] == [True]


@pytest.mark.parametrize("name", ["levels-c", "generation", "ledger/id"])
def test_shared_memory_that_others_may_write(run_dir: Path, name: str) -> None:
    (run_dir / name).chmod(0o620)
    assert said(run_dir) == [f"other users of this machine may write {run_dir / name}"]


def test_a_socket_that_others_may_connect_to(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_dir)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        (run_dir / "s").chmod(0o777)
        assert said(run_dir) == [f"other users of this machine may write {run_dir / 's'}"]


@pytest.mark.parametrize("name", [".", "ledger"])
def test_a_folder_that_others_may_enter(run_dir: Path, name: str) -> None:
    (run_dir / name).chmod(0o755)
    assert said(run_dir) == [f"other users of this machine may enter {run_dir / name}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_a_command_of_another_user_left_there(run_dir: Path) -> None:
    os.chown(run_dir / "generation", 12345, -1)
    assert said(run_dir) == [f"{run_dir / 'generation'} belongs to another user than the home (user id 12345, not 0)"]


def test_a_link(run_dir: Path) -> None:
    (run_dir / "levels-plain").symlink_to("/etc/hostname")
    assert said(run_dir) == [f"{run_dir / 'levels-plain'} is a link"]


def test_doctor_misses_the_end_of_the_audit_log(ready: Gateway, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "home" / "gateway.sqlite3")) as database, database:
        database.execute("DELETE FROM meta WHERE name = 'audit_head'")
    (finding,) = [finding for finding in ready("doctor", "--json").json if finding["check"] == "audit"]
    assert not finding["ok"]
    assert "where the audit log ends is missing" in finding["message"]
    assert finding["fix"]
