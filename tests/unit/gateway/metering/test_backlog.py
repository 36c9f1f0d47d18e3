"""What waits on disk, how much of it there may be, and bringing it onto the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import LedgerFull
from gateway.metering.backlog import OFFSETS_FILE, Backlog, backlog, publish
from gateway.metering.commit import GroupCommit
from gateway.metering.ledger import SegmentWriter, sort_lines, used_bytes, written_bytes
from gateway.metering.record import UsageRecord


def record(number: int, started_at: float = 1.5) -> UsageRecord:
    return UsageRecord(f"req-{number:08x}", started_at, "chat", "k", "u", "m", 1)


def test_nothing_waits_where_nothing_was_written(tmp_path: Path) -> None:
    assert backlog(tmp_path / "none") == Backlog(0, 0, 0, None)
    writer = SegmentWriter(tmp_path, segment_bytes=50_000)
    assert backlog(tmp_path) == Backlog(1, 50_000, 0, None)
    writer.close()


def test_what_waits_and_since_when(tmp_path: Path) -> None:
    writers = [SegmentWriter(tmp_path, segment_bytes=50_000) for _ in range(2)]
    for number, writer in enumerate(writers):
        ours = record(number, 1000.0 - number)
        writer.end(ours, writer.begin(ours, 1, 1))
    written = {path.name: written_bytes(path) for path in tmp_path.glob("*.seg")}
    assert backlog(tmp_path) == Backlog(2, 100_000, sum(written.values()), 999.0)
    publish(tmp_path, written)
    assert backlog(tmp_path) == Backlog(2, 100_000, 0, None)
    later = record(9, 2000.0)
    slot = writers[0].begin(later, 1, 1)
    waiting = backlog(tmp_path)
    assert waiting.oldest_s == 2000.0
    assert waiting.waiting_bytes == sum(map(written_bytes, tmp_path.glob("*.seg"))) - sum(written.values())
    writers[0].end(later, slot)
    for writer in writers:
        writer.close()


def test_a_segment_that_was_left_waits_as_a_whole(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=5000)
    for number in range(40):
        ours = record(number)
        writer.end(ours, writer.begin(ours, 1, 1))
    paths = sorted(tmp_path.glob("*.seg"))
    assert len(paths) > 2
    waiting = backlog(tmp_path).waiting_bytes
    assert sum(map(written_bytes, paths)) <= waiting <= 5000 * len(paths)
    publish(tmp_path, {path.name: written_bytes(path) for path in paths})
    assert backlog(tmp_path).waiting_bytes == 0
    writer.close()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"x": "y"}'])
def test_a_damaged_word_on_what_is_shipped_says_nothing(tmp_path: Path, text: bytes) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=50_000)
    writer.begin(record(1), 1, 1)
    (tmp_path / OFFSETS_FILE).write_bytes(text)
    assert backlog(tmp_path).waiting_bytes > 0
    writer.close()


def test_segments_take_what_they_may_and_running_requests_end(tmp_path: Path) -> None:
    """The bound holds over all writers of a folder; a request that began has its END all the same."""
    other = SegmentWriter(tmp_path, segment_bytes=20_000)
    writer = SegmentWriter(tmp_path, segment_bytes=20_000, max_bytes=70_000)
    running: list[tuple[UsageRecord, int]] = []
    with pytest.raises(LedgerFull):
        for number in range(1000):
            ours = record(number)
            running.append((ours, writer.begin(ours, 1, 1)))
    assert used_bytes(tmp_path) <= 70_000
    with pytest.raises(LedgerFull):
        writer.begin(record(2000), 1, 1)
    for ours, slot in running:
        writer.end(ours, slot)
    found = sort_lines(b"".join(path.read_bytes()[: written_bytes(path)] for path in sorted(tmp_path.glob("*.seg"))))
    assert not found.begun
    assert len(found.columns[0]) == len(running)
    for path in sorted(tmp_path.glob("*.seg"))[1:]:
        path.unlink()  # shipped
    writer._full_until_s = 0.0
    writer.end(record(3000), writer.begin(record(3000), 1, 1))
    writer.close()
    other.close()


def test_the_bound_is_not_looked_at_for_every_refusal(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=20_000, max_bytes=20_000)
    refused = 0
    for number in range(1000):
        try:
            writer.begin(record(number), 1, 1)
        except LedgerFull:
            refused += 1
            for path in tmp_path.glob("*.seg"):
                path.unlink()
    assert refused > 100, "though there is room again: it looks a few times a second"
    writer.close()


def test_group_commit_brings_all_of_it_onto_the_disk(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=5000)
    commit = GroupCommit(writer, 0.001)
    commit.start()
    for number in range(100):
        ours = record(number)
        writer.end(ours, writer.begin(ours, 1, 1))
    commit.stop()
    assert not writer._behind, "segments that were left are closed once they are on the disk"
    held = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    assert len([path for path in held if path.startswith(str(tmp_path)) and path.endswith(".seg")]) == 1
    writer.close()


class Failing:
    """A ledger whose disk is broken for a while."""

    def __init__(self) -> None:
        self.asked = 0

    def keep_for_sync(self) -> None:
        pass

    def sync(self) -> None:
        self.asked += 1
        if self.asked < 5:
            raise OSError(5, "Input/output error")


def test_a_disk_that_fails_does_not_end_the_thread() -> None:
    ledger: Any = Failing()
    commit = GroupCommit(ledger, 0.001)
    commit.start()
    while ledger.asked < 6:
        pass
    commit.stop()


def test_a_segment_that_goes_while_it_is_looked_at_takes_nothing(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=50_000, max_bytes=1_000_000)
    (tmp_path / "1-00000000-000000.seg").symlink_to(tmp_path / "gone")  # in the listing, and not there
    assert used_bytes(tmp_path) == 50_000
    writer.close()
