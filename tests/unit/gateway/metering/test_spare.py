"""Segments that are used again: empty, by one writer at a time, and whole whatever is cut off."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gateway.metering import spare
from gateway.metering.ledger import SegmentWriter, forget_unnamed, sort_lines, written_bytes
from gateway.metering.record import UsageRecord

SIZE = 20_000


def record(number: int) -> UsageRecord:
    return UsageRecord(f"req-{number}", 1_800_000_000.0, "chat", "key", "usr", "chat", 1, status=200, ending="success")


def fill(writer: SegmentWriter, numbers: range) -> None:
    for number in numbers:
        writer.end(record(number), writer.begin(record(number), 1, 1))


def ids(path: Path) -> list[str]:
    return sort_lines(path.read_bytes()[: written_bytes(path)]).columns[0]


def segment(folder: Path, numbers: range = range(5)) -> Path:
    """One that is done with."""
    others = set(folder.glob("*.seg"))
    writer = SegmentWriter(folder, segment_bytes=SIZE)
    fill(writer, numbers)
    writer.close()
    (done,) = set(folder.glob("*.seg")) - others
    return done


def test_a_segment_is_used_again_and_nothing_is_left_of_what_it_held(tmp_path: Path) -> None:
    done = segment(tmp_path, range(30))
    inode = done.stat().st_ino
    spare.put_by(done)
    (kept,) = tmp_path.glob("*.s[!l]*")
    assert (kept.suffix, kept.stat().st_size, kept.read_bytes().strip(b"\0")) == (spare.SUFFIX, SIZE, b"")
    writer = SegmentWriter(tmp_path, segment_bytes=SIZE)
    (again,) = tmp_path.glob("*.seg")
    assert again.stat().st_ino == inode
    assert not list(tmp_path.glob("*.spare"))
    fill(writer, range(100, 103))
    assert ids(again) == ["req-100", "req-101", "req-102"]
    writer.close()


def test_one_that_is_too_small_or_taken_is_left(tmp_path: Path) -> None:
    spare.put_by(segment(tmp_path))
    (kept,) = tmp_path.glob("*.spare")
    assert spare.take(tmp_path, SIZE + 1, tmp_path / "a.new") == -1
    fd = spare.take(tmp_path, SIZE, tmp_path / "a.new")
    assert fd >= 0
    (tmp_path / "a.new").rename(kept)  # another has it open
    assert spare.take(tmp_path, SIZE, tmp_path / "b.new") == -1
    os.close(fd)
    spare.clear(tmp_path)
    assert spare.take(tmp_path, SIZE, tmp_path / "b.new") == -1


def test_no_more_are_kept_than_there_is_need_of(tmp_path: Path) -> None:
    for done in [segment(tmp_path, range(n, n + 3)) for n in range(spare.MOST + 2)]:
        spare.put_by(done)
    assert len(list(tmp_path.glob("*.spare"))) == spare.MOST
    assert not [*tmp_path.glob("*.seg"), *tmp_path.glob("*.new")]
    spare.put_by(tmp_path / "gone.seg")


def test_writers_at_once_never_share_one(tmp_path: Path) -> None:
    for done in [segment(tmp_path, range(n, n + 3)) for n in range(spare.MOST)]:
        spare.put_by(done)
    writers: list[SegmentWriter] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        writers.append(SegmentWriter(tmp_path, segment_bytes=SIZE))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, writer in enumerate(writers):
        fill(writer, range(number * 10, number * 10 + 10))
    found = [ids(path) for path in tmp_path.glob("*.seg")]
    assert sorted(map(len, found)) == [10] * 8
    assert len({request_id for one in found for request_id in one}) == 80
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("emptied", [0, 1, 300, SIZE])
def test_what_a_kill_leaves_half_emptied_is_never_used(tmp_path: Path, emptied: int) -> None:
    """Between its two names it is nobody's."""
    left = segment(tmp_path, range(30)).rename(tmp_path / "1-aa-000000.new")
    with left.open("r+b") as file:
        file.write(bytes(emptied))
    assert spare.take(tmp_path, 1, tmp_path / "b.new") == -1
    os.utime(left, (1.0, 1.0))
    forget_unnamed(tmp_path)
    assert not left.exists()
