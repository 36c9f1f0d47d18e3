from __future__ import annotations

import fcntl
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import LedgerFull
from gateway.metering import ledger
from gateway.metering.ledger import (
    END_BYTES,
    SegmentWriter,
    forget_unnamed,
    interrupted,
    read_lines,
    sort_lines,
    writer_is_dead,
    written_bytes,
)
from gateway.metering.record import FIELDS, UsageRecord
from gateway.metering.tried import NOT_TOLD, tried_text


def record(number: int, **more: object) -> UsageRecord:
    fields: dict[str, object] = {"key_id": "k", "user_id": "u", "model": "m", "revision": 1} | more
    return UsageRecord(request_id=f"req-{number}", started_at=1.5, operation="chat", **fields)  # type: ignore[arg-type]


def _line(ended: UsageRecord) -> bytes:
    return ledger._end_line(ended, None, None, None)


def lines(folder: Path) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    for path in sorted(folder.glob("*.seg")):
        data = path.read_bytes()[: written_bytes(path)]
        found += read_lines(data)
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    done = record(1, client_request_id="mine \xff", cost_pusd=2**62, status=200, ending="success", experiment="summer", arm="b")
    writer.begin(done, 10, 20)
    writer.begin(record(2), 10**15, 2**63 - 1)
    writer.end(done)
    kinds = lines(tmp_path)
    assert [kind for kind, _ in kinds] == ["B", "B", "E"]
    assert kinds[2][1] == asdict(done)
    (segment,) = tmp_path.glob("*.seg")
    found = sort_lines(segment.read_bytes()[: written_bytes(segment)])
    assert dict(zip(FIELDS, [value for (value,) in found.columns], strict=True)) == asdict(done)
    assert list(found.begun) == ["req-2"]
    lost = dict(zip(FIELDS, interrupted(found.begun["req-2"]), strict=True))
    assert lost == asdict(record(2)) | {"ending": "interrupted", "status": 499}
    assert interrupted(found.begun["req-2"][:-3]) == []
    writer.close()


@pytest.mark.parametrize("last", ["connect_ms", "arm"])
def test_a_segment_of_an_older_version_is_read(last: str) -> None:
    written = asdict(record(1, status=200, ending="success"))
    old = orjson.dumps(["E", *list(written.values())[: FIELDS.index(last) + 1]]) + b"\n"
    assert read_lines(old) == [("E", written)]
    assert sort_lines(old).columns == [[value] for value in written.values()]


def test_a_writer_is_dead_when_its_lock_is_free(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    (path,) = tmp_path.glob("*.seg")
    assert not writer_is_dead(path)
    writer.close()
    assert writer_is_dead(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=80))
def test_nothing_is_lost_over_many_small_segments(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    writer = SegmentWriter(folder, segment_bytes=5000)
    running: list[UsageRecord] = []
    ended: list[str] = []
    for number, step in enumerate(steps):
        if step < 3 or not running:
            running.append(record(number, client_request_id="x" * 100 * step))
            writer.begin(running[-1], 1, 1)
        else:
            ending = running.pop(number % len(running))
            writer.end(ending)
            ended.append(ending.request_id)
    for ending in running:
        writer.end(ending)
        ended.append(ending.request_id)
    writer.close()
    found = lines(folder)
    assert [fields["request_id"] for kind, fields in found if kind == "E"] == ended
    assert sorted(str(fields["request_id"]) for kind, fields in found if kind == "B") == sorted(ended)


def test_when_no_segment_can_be_had_running_requests_are_still_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    writer = SegmentWriter(folder, segment_bytes=8000)
    kept = folder.rename(tmp_path / "kept")
    running = []
    with pytest.raises(LedgerFull):
        for number in range(100):
            running.append(record(number))
            writer.begin(running[-1], 1, 1)
    refused = running.pop()
    assert len(running) >= 2
    for ending in running:
        writer.end(ending)
    folder.mkdir()
    for number in range(200, 300):
        writer.begin(record(number), 1, 1)
    assert lines(folder), "it goes on where it can"
    ends = [fields["request_id"] for kind, fields in lines(kept) if kind == "E"]
    assert ends == [ending.request_id for ending in running]
    assert refused.request_id not in str(lines(kept))
    writer.close()
    shutil.rmtree(kept)


def test_an_end_always_has_room(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    long = record(1, client_request_id="\x7f\u00ff" * 3000)
    writer.begin(long, 1, 1)
    writer.end(long)
    many = record(2, backend="m/" + "\U0001f511" * 280, tried=tried_text([("\U0001f511" * 80, "refused", 1.0)] * 9), client_request_id="x")
    crowded = record(3, backend="\U0001f511" * 280, model="\U0001f511" * 120, tried=many.tried)
    for each in (many, crowded):
        writer.begin(each, 1, 1)
        writer.end(each)
    ends = [fields for kind, fields in lines(tmp_path) if kind == "E"]
    assert [fields["client_request_id"] for fields in ends] == [None, "x", None]
    assert ends[1]["tried"] == many.tried
    assert ends[1]["backend"] == many.backend
    assert ends[2]["tried"] == NOT_TOLD
    (path,) = tmp_path.glob("*.seg")
    assert all(len(line) < END_BYTES for line in path.read_bytes()[: written_bytes(path)].split(b"\n") if line.startswith(b'["E"'))
    writer.close()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2000), st.binary(max_size=20))
def test_torn_lines_are_skipped(cut: int, tail: bytes) -> None:
    whole = _line(record(1)) + _line(record(2))
    torn = whole[: cut % (len(whole) + 1)] + tail
    found = [fields["request_id"] for _, fields in read_lines(torn)]
    assert found == ["req-1", "req-2"][: len(found)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2000), st.binary(max_size=20) | st.sampled_from((b"5\n", b"[]\n", b'["E"]\n', b'["X",1,2,3,4,5,6,7,8,9]\n')))
def test_torn_lines_do_not_spoil_those_before_them(cut: int, tail: bytes) -> None:
    whole = b"".join(_line(record(number, attempts=number)) for number in (1, 2))
    cut = len(whole) - cut if cut < 5 else cut  # the very end is where a torn line looks most like a whole one
    torn = whole[: cut % (len(whole) + 1)] + tail
    found = sort_lines(torn)
    rows = [fields for kind, fields in read_lines(torn) if kind == "E"]
    assert found.columns == [[row[name] for row in rows] for name in FIELDS]
    assert found.begun_before == [row["request_id"] for row in rows]


def test_a_segment_that_could_not_be_synced_is_tried_again(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=8192)
    writer.keep_for_sync()
    for number in range(40):
        writer.end(record(number), writer.begin(record(number), 1, 1))
    behind = list(writer._behind)
    assert behind
    reading, writing = os.pipe()  # cannot be synced
    real = os.dup(behind[0])
    os.dup2(reading, behind[0])
    with pytest.raises(OSError, match="Invalid argument"):
        writer.sync()
    assert writer._behind == behind
    os.dup2(real, behind[0])
    writer.sync()
    assert not writer._behind
    for fd in (reading, writing, real):
        os.close(fd)
    writer.close()


def test_files_without_a_name_are_removed_once_their_writer_is_dead(tmp_path: Path) -> None:
    old = time.time() - 60
    for name in ("1-a-000000.new", "1-a.slots-new", "2-b-000000.new", "shipped.new", "3-c-000000.new"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / "3-c-000000.new")  # just made: its lock may be to come
    with (tmp_path / "2-b-000000.new").open() as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        forget_unnamed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2-b-000000.new", "3-c-000000.new", "shipped.new"]


def test_two_who_ask_at_once_do_not_take_each_other_for_the_writer(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    (path,) = tmp_path.glob("*.seg")
    assert not writer_is_dead(path)
    writer.close()
    with path.open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert writer_is_dead(path)


@pytest.mark.parametrize("mark", ["B", "E"])
@pytest.mark.parametrize("request_id", [[], {}, None, 5], ids=repr)
def test_a_line_whose_request_has_no_id_is_skipped(mark: str, request_id: object) -> None:
    spoiled = orjson.dumps([mark, request_id, *range(30)]) + b"\n"
    found = sort_lines(_line(record(1)) + spoiled + _line(record(2)))
    assert found.columns[0] == ["req-1", "req-2"]
    assert not found.begun
    assert [fields["request_id"] for _, fields in read_lines(spoiled + _line(record(3)))] == ["req-3"]


def test_the_name_of_a_segment_is_synced_once(tmp_path: Path) -> None:
    """Seen by a folder that is not there: what syncs it fails."""
    folder, away = tmp_path / "ledger", tmp_path / "away"
    writer = SegmentWriter(folder, segment_bytes=8192)
    writer.keep_for_sync()
    for _ in range(2):
        folder.rename(away)
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                writer.sync()
        away.rename(folder)
        writer.sync()
        folder.rename(away)
        writer.sync()
        away.rename(folder)
        while len(list(folder.glob("*.seg"))) < 2:
            writer.end(record(1), writer.begin(record(1), 1, 1))
    writer.close()
