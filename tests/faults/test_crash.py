"""Processes that die under load: seven trials of the crash bench, every fault it knows. `make bench-crash` runs fifty."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from bench import crash
from bench.systems import SystemFailed


async def trials(faults: str, count: int, database: str = "sqlite", away_s: float = 3.0) -> list[crash.Trial]:
    said: list[str] = []
    options = argparse.Namespace(trials=count, faults=faults, database=database, away_s=away_s, seed=7)
    done = await crash.run(options, said.append)
    assert [fault for trial in done for fault in trial.faults] == [], "\n".join(said)
    assert all(trial.rows > 100 for trial in done)
    return done


async def test_kill_nine_and_sigterm() -> None:
    """One after the other on the same home, as in a life."""
    done = await trials("worker,keeper,all,term", 4)
    assert sum(trial.endings.get("interrupted", 0) for trial in done) > 0, "nothing ran when something was killed"


async def test_postgresql_away() -> None:
    await trials("shipment,stopped", 2, "postgres")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
async def test_a_full_disk(tmp_path: Path) -> None:
    try:
        with crash.small_disk(tmp_path / "disk"):
            pass
    except SystemFailed as error:
        pytest.skip(str(error))
    await trials("disk", 1)


def test_the_judge_sees_what_is_wrong() -> None:
    """Each kind of damage, so that a passed trial means something."""
    cut = crash.Seen(14, crash._asked(14).ask, False, status=200, bytes=900, chunks=5)
    row = {"ending": "interrupted", "completion_tokens": 6}

    def faults(*rows: dict[str, object]) -> list[str]:
        trial = crash.Trial(1, "worker")
        crash.judge(trial, {14: cut}, {14: list(rows)} if rows else {})
        return trial.faults

    assert faults(row) == []
    assert "no row" in faults()[0]
    assert "2 rows" in faults(row, row)[0]
    assert "received 5" in faults(row | {"completion_tokens": 4})[0]
    assert "received 5" in faults(row | {"completion_tokens": 5 + crash.ONE_READ + 1})[0]
    assert "instead of 60" in faults(row | {"ending": "success"})[0]
