"""The content log's way to the disk: nothing in the clear, bounded, and never a burden to who hands it something."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.metering.spool import (
    ANSWER,
    DISK,
    DONE,
    FAULT,
    FULL,
    OPEN,
    REQUEST,
    ContentLog,
    Entry,
    finished,
    packed,
    read_lines,
    unpacked,
    waiting_bytes,
)
from gateway.store.secret_key import CONTENTS
from gateway.store.secrets import SecretBox

BOX = SecretBox("k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz", purpose=CONTENTS)


def entry(number: int = 1, request: bytes | None = b'{"messages": "seven quiet herons"}', answer: bytes | None = b"they answered") -> Entry:
    made = Entry(f"req-{number}", 1_700_000_000.5, "k1", "u1", None, "m", "chat", 200, "success")
    made.request_type, made.answer_type = "application/json", "text/event-stream"
    made.request, made.answer = (None if side is None else [side] for side in (request, answer))
    made.request_bytes, made.answer_bytes = len(request or b""), len(answer or b"")
    made.size_bytes = made.request_bytes + made.answer_bytes
    return made


def log(folder: Path, seal: Callable[[bytes], bytes] = BOX.seal_bytes, **fields: Any) -> ContentLog:
    return ContentLog(folder, seal, BOX.fingerprint, **({"max_bytes": 1000, "spool_bytes": 10**9} | fields))


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in finished(folder) for row in read_lines(path.read_bytes())[0]]


def test_from_an_entry_to_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "content"
    made = log(folder)
    made.keep(entry())
    made.close()
    (path,) = finished(folder)
    assert path.name.endswith(DONE)
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    data = path.read_bytes()
    for words in (b"heron", b"answered"):
        assert words not in data
    ((row,), _) = read_lines(data)
    assert (row["request_id"], row["at"], row["key_id"], row["sealed_with"]) == ("req-1", 1_700_000_000.5, "k1", BOX.fingerprint)
    assert (row["request_bytes"], row["request_truncated"], row["not_kept"]) == (34, False, None)
    assert unpacked("req-1", REQUEST, BOX.open_bytes("", row["request"])) == b'{"messages": "seven quiet herons"}'
    assert unpacked("req-1", ANSWER, BOX.open_bytes("", row["answer"])) == b"they answered"
    assert made.take_dropped() == 0


def test_a_sealed_side_is_of_its_request_alone() -> None:
    """Whoever can write to the database can move a ciphertext, and no more."""
    made = packed("req-1", REQUEST, b"words")
    assert unpacked("req-1", REQUEST, made) == b"words"
    for request_id, side in (("req-2", REQUEST), ("req-1", ANSWER), ("req", REQUEST)):
        with pytest.raises(ValueError, match="another request"):
            unpacked(request_id, side, made)
    assert zlib.decompress(made.split(b"\n", 2)[2]) == b"words"


def test_truncated_is_what_is_less_than_there_was(tmp_path: Path) -> None:
    made, one = log(tmp_path), entry()
    one.answer_bytes += 1
    made.keep(one)
    made.keep(entry(2, request=None))  # binary: not truncated, not kept
    made.close()
    first, second = rows_in(tmp_path)
    assert (first["request_truncated"], first["answer_truncated"]) == (False, True)
    assert (second["request"], second["request_truncated"]) == (None, False)


def test_a_full_queue_lets_go_of_what_was_said(tmp_path: Path) -> None:
    going = threading.Event()

    def slow(value: bytes) -> bytes:
        going.wait(10)
        return BOX.seal_bytes(value)

    made = log(tmp_path, slow, queue_bytes=100)
    began_s = time.perf_counter()
    for number in range(5):
        made.keep(entry(number))
    assert time.perf_counter() - began_s < 1  # nobody waited for the thread
    going.set()
    made.close()
    assert [row["not_kept"] for row in rows_in(tmp_path)] == [None, None, FULL, FULL, FULL]
    assert all(row["request"] is None and row["request_bytes"] for row in rows_in(tmp_path)[2:])
    assert (made.take_dropped(), made.take_dropped()) == (3, 0)


def test_what_comes_without_its_content_is_counted(tmp_path: Path) -> None:
    made, one = log(tmp_path), entry()
    one.drop(FULL)
    made.keep(one)
    made.close()
    assert [row["not_kept"] for row in rows_in(tmp_path)] == [FULL]
    assert made.take_dropped() == 1


def test_a_full_spool_keeps_the_row_alone(tmp_path: Path) -> None:
    (tmp_path / f"1-old{DONE}").write_bytes(b"x" * 100_000)
    made = log(tmp_path, spool_bytes=100_000)
    made.keep(entry())
    made.close()
    (row,) = rows_in(tmp_path)
    assert (row["not_kept"], row["answer"]) == (DISK, None)
    assert made.take_dropped() == 1


def test_beyond_its_bound_and_a_little_not_even_rows_are_written(tmp_path: Path) -> None:
    """Many requests without content are a full disk too."""
    (tmp_path / f"1-old{DONE}").write_bytes(b"x" * 100_000)
    made = log(tmp_path, spool_bytes=100_000)
    for number in range(1000):
        made.keep(entry(number))
    made.close()
    assert 100_000 < waiting_bytes(tmp_path) < 106_000
    assert 0 < len(rows_in(tmp_path)) < 20
    assert made.take_dropped() == 1000


def test_a_disk_that_the_ledger_needs(tmp_path: Path) -> None:
    made = log(tmp_path, free_bytes=lambda folder: 299_999_999)
    made.keep(entry())
    made.close()
    assert waiting_bytes(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
    assert made.take_dropped() == 1


def test_within_a_moment_no_more_is_written_than_there_is_room_for(tmp_path: Path) -> None:
    """The disk is looked at once in a while; what is written until then is known."""
    made = log(tmp_path, free_bytes=lambda folder: 300_005_000)
    for number in range(100):
        made.keep(entry(number))
    made.close()
    assert waiting_bytes(tmp_path) < 6000
    assert made.take_dropped() > 90


_FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.unit.gateway.metering.test_spool import entry, log
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a write fails as it does on a full disk: begun, and cut off
made = log(Path(sys.argv[1]))
for number in range(500):
    made.keep(entry(number))
made.close()
print(made.take_dropped(), made.failures)
"""


def test_a_disk_that_fails_leaves_no_files(tmp_path: Path) -> None:
    """Neither one for each request, nor a try for each."""
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd(), check=True)
    dropped, failures = map(int, done.stdout.splitlines()[-1].split())
    assert list(tmp_path.iterdir()) == []
    assert dropped == 500
    assert 1 <= failures < 5


def test_a_thread_that_cannot_start(tmp_path: Path) -> None:
    made = log(tmp_path)
    before = threading.stack_size(1 << 46)
    try:
        made.keep(entry())
    finally:
        threading.stack_size(before)
    made.keep(entry(2))  # tried again
    made.close()
    assert [row["request_id"] for row in rows_in(tmp_path)] == ["req-1", "req-2"]


def test_a_thread_that_never_started_is_no_trouble_at_the_end(tmp_path: Path) -> None:
    made = log(tmp_path)
    before = threading.stack_size(1 << 46)
    try:
        made.keep(entry())
        made.close()
    finally:
        threading.stack_size(before)


def test_what_was_said_is_not_held_while_the_thread_waits(tmp_path: Path) -> None:
    made, one = log(tmp_path), entry()
    made.keep(one)
    end_s = time.monotonic() + 10
    while sys.getrefcount(one) > 2 and time.monotonic() < end_s:
        time.sleep(0.02)
    assert sys.getrefcount(one) == 2
    made.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "content").write_text("a file stands where the folder is to be")
    made = log(tmp_path / "content")
    made.keep(entry())
    made.keep(entry(2))
    made.close()
    assert made.take_dropped() == 2


def test_what_cannot_be_sealed(tmp_path: Path) -> None:
    def fails(value: bytes) -> bytes:
        raise ValueError

    made = log(tmp_path, fails)
    made.keep(entry())
    made.close()
    (row,) = rows_in(tmp_path)
    assert (row["not_kept"], row["request"]) == (FAULT, None)
    assert made.take_dropped() == 1


def test_a_file_is_given_up_after_a_moment(tmp_path: Path) -> None:
    made = log(tmp_path)
    made.keep(entry())
    end_s = time.monotonic() + 10
    while not list(tmp_path.glob(f"*{DONE}")) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert len(rows_in(tmp_path)) == 1
    assert waiting_bytes(tmp_path) > 0
    made.close()


def test_a_torn_line_costs_no_other() -> None:
    line = entry().line(BOX.seal_bytes, BOX.fingerprint)
    other = entry(2).line(BOX.seal_bytes, BOX.fingerprint)
    for data, left in ((line + other[:50], "req-1"), (line[:50] + b"\n" + other, "req-2")):
        rows, unfit = read_lines(data)
        assert ([row["request_id"] for row in rows], unfit) == ([left], 1)
    assert read_lines(b"[]\n{}\n\nnull\n") == ([], 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"request": "\u00e4"}, {"answer": 5}, {"at": "now"}, {"at": None}, {"status": 1 << 40}, {"status": True}, {"user_id": None},
        {"model": "a\0b"}, {"request_bytes": -1}, {"request_truncated": 1}, {"request_id": ""}, {"ending": []}, {"key_id": 5},
        {"at": 1e300},
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_costs_no_other(fields: dict[str, Any]) -> None:
    line = entry().line(BOX.seal_bytes, BOX.fingerprint)
    unfit = orjson.dumps(orjson.loads(line) | fields)
    rows, count = read_lines(unfit + b"\n" + line)
    assert ([row["request_id"] for row in rows], count) == (["req-1"], 1)


def test_a_line_of_another_version() -> None:
    """What this one does not know is left out; what it needs and is not there makes it none."""
    fields = orjson.loads(entry().line(BOX.seal_bytes, BOX.fingerprint))
    ((row,), unfit) = read_lines(orjson.dumps(fields | {"later": 1}))
    assert ("later" in row, unfit) == (False, 0)
    for name in fields:
        rows, unfit = read_lines(orjson.dumps({other: value for other, value in fields.items() if other != name}))
        assert (len(rows), unfit) == ((1, 0) if name in {"key_id", "team_id", "not_kept", "request", "answer"} else (0, 1)), name


_WRITER = """
import sys, time
from pathlib import Path
from tests.unit.gateway.metering.test_spool import entry, log
made = log(Path(sys.argv[1]))
made.keep(entry())
while not made._done:
    time.sleep(0.01)
made.keep(entry(2))
while made._done < 2:
    time.sleep(0.01)
print("written", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_has_written(tmp_path: Path) -> None:
    """Its file is left alone while it lives, and taken once it is dead."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd()) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writing = list(tmp_path.glob(f"*{OPEN}"))
        assert not set(writing) & set(finished(tmp_path))
        writer.kill()
        writer.wait()
    assert [row["request_id"] for row in rows_in(tmp_path)] == ["req-1", "req-2"]
