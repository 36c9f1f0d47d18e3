"""What a killed process leaves of its running requests: slots in a mapped file, and the rows that are made of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import LedgerFull
from gateway.metering.ledger import SegmentWriter, forget_slots, interrupted, priced, read_slots, sort_lines, written_bytes
from gateway.metering.lines import begin_line
from gateway.metering.progress import Progress, estimated_tokens, reached
from gateway.metering.record import FIELDS, UsageRecord
from gateway.relay.estimate import cost_pusd
from gateway.routing.table import Prices

PRICES = Prices(150_000, 600_000, 75_000)


def record(number: int, **more: Any) -> UsageRecord:
    return UsageRecord(f"req-0123456789abcdef{number:08x}", 1.5, "chat", "k", "u", "m", 1, **more)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """What the folder says of requests without an END, by the last digit of their id."""
    found = {}
    for path in folder.glob("*.seg"):
        for request_id, begun in sort_lines(path.read_bytes()[: written_bytes(path)]).begun.items():
            found[request_id[-1]] = dict(zip(FIELDS, interrupted(begun, read_slots(folder, path.name)), strict=True))
    return found


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    made = SegmentWriter(tmp_path)
    yield made
    made.close()


def test_a_row_says_what_was_handed_on(writer: SegmentWriter, tmp_path: Path) -> None:
    slot = writer.begin(record(1, team_id="t", experiment="e", arm="b"), 500, 1, 40)
    writer.progress.attempt(slot, 1, "dead", None)
    writer.progress.attempt(slot, 2, "custom-1", PRICES.text)
    writer.progress.sent(slot)
    writer.progress.handing(slot, 7, 7 * 200)
    row = rows(tmp_path)["1"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["token_source"]) == (40, 7, "estimate")
    assert row["cost_pusd"] == 40 * 150_000 + 7 * 600_000
    assert (row["backend"], row["attempts"], row["price"]) == ("custom-1", 2, "0.15/0.6/0.075")
    assert (row["team_id"], row["experiment"], row["arm"]) == ("t", "e", "b")
    assert (row["ending"], row["status"]) == ("interrupted", 200)


def test_what_never_reached_a_backend_costs_nothing(writer: SegmentWriter, tmp_path: Path) -> None:
    slot = writer.begin(record(1), 500, 1, 40)
    writer.progress.attempt(slot, 1, "custom-1", PRICES.text)
    row = rows(tmp_path)["1"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_pusd"], row["status"]) == (0, 0, 0, 499)
    assert row["backend"] == "custom-1"


@pytest.mark.parametrize(("events", "completion"), [(5, 9), (12, 12)], ids=["at the end", "the stream went on"])
def test_the_backends_own_report_goes_first(writer: SegmentWriter, tmp_path: Path, events: int, completion: int) -> None:
    slot = writer.begin(record(1), 500, 1, 40)
    writer.progress.attempt(slot, 1, "custom-1", PRICES.text)
    writer.progress.sent(slot)
    writer.progress.reported(slot, 5, 33, 9, 30, 4)
    writer.progress.handing(slot, events, events * 200)
    row = rows(tmp_path)["1"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["token_source"]) == (33, completion, "backend")
    assert (row["cached_tokens"], row["reasoning_tokens"]) == (30, 4)
    assert row["cost_pusd"] == cost_pusd(PRICES, 33, completion, 30) == priced(PRICES.text, 33, completion, 30)


def test_events_that_are_no_words_are_no_tokens(writer: SegmentWriter, tmp_path: Path) -> None:
    slot = writer.begin(record(1), 500, 1, 40)
    writer.progress.attempt(slot, 1, "custom-1", PRICES.text)
    writer.progress.sent(slot)
    writer.progress.envelope(slot, -1)
    writer.progress.handing(slot, 7, 7 * 2000)
    row = rows(tmp_path)["1"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["status"], row["token_source"]) == (40, 0, 200, "estimate")
    assert row["cost_pusd"] == 40 * 150_000
    writer.progress.reported(slot, 7, 33, 9, 0, 0)
    row = rows(tmp_path)["1"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["token_source"]) == (33, 9, "backend"), "what it reports itself"


def test_a_slot_is_used_again_and_says_nothing_of_who_had_it(writer: SegmentWriter, tmp_path: Path) -> None:
    first = record(1)
    slot = writer.begin(first, 1, 1, 40)
    writer.progress.attempt(slot, 3, "custom-1", PRICES.text)
    writer.progress.sent(slot)
    writer.progress.handing(slot, 9, 9)
    writer.end(first, slot)
    assert writer.begin(record(2), 1, 1, 50) == slot
    row = rows(tmp_path)["2"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["backend"], row["attempts"], row["price"]) == (0, 0, None, 0, None)


def test_a_slot_that_is_used_again_names_the_target_of_its_own_request(writer: SegmentWriter, tmp_path: Path) -> None:
    for number, (backend, price) in enumerate([("custom-1", PRICES.text), ("custom-1", PRICES.text), ("b", None), ("custom-1", "1/2/")]):
        running = record(number)
        slot = writer.begin(running, 1, 1, 40)
        writer.progress.attempt(slot, 1, backend, price)
        row = rows(tmp_path)[f"{number:x}"]
        assert (slot, row["backend"], row["price"], row["attempts"]) == (0, backend, price, 1)
        writer.end(running, slot)


def test_a_slot_of_another_request_is_not_taken_for_ones_own(writer: SegmentWriter, tmp_path: Path) -> None:
    """After a power cut the two files may be of different moments."""
    slot = writer.begin(record(1), 1, 1, 40)
    (data,) = (path.read_bytes() for path in tmp_path.glob("*.slots"))
    assert reached(data, slot, record(1).request_id) is not None
    assert reached(data, slot, record(2).request_id) is None
    assert reached(data, -1, record(1).request_id) is None
    assert reached(data[:100], slot, record(1).request_id) is None
    assert reached(data, 10**6, record(1).request_id) is None


def test_there_are_as_many_slots_as_requests(writer: SegmentWriter, tmp_path: Path) -> None:
    taken = [writer.begin(record(number), 1, 1, number) for number in range(1000)]
    assert len(set(taken)) == 1000
    for number, slot in enumerate(taken):
        writer.progress.attempt(slot, 1, f"b{number}", None)
        writer.progress.sent(slot)
        writer.progress.handing(slot, number, 0)
    (data,) = (path.read_bytes() for path in tmp_path.glob("*.slots"))
    for number, slot in enumerate(taken):
        found = reached(data, slot, record(number).request_id)
        assert found is not None
        assert (found.completion, found.backend) == (number, f"b{number}")


def test_memory_of_its_own_grows_too() -> None:
    progress = Progress()
    taken = [progress.take(f"req-{number:08x}") for number in range(600)]
    assert sorted(taken) == list(range(600))
    progress.handing(599, 1, 1)
    progress.give_back(taken[5])
    assert progress.take("req-x") == taken[5]
    progress.close()


def test_names_that_are_long_are_cut(writer: SegmentWriter, tmp_path: Path) -> None:
    slot = writer.begin(record(1), 1, 1, 40)
    writer.progress.attempt(slot, 1, "\u00e9" * 400, "1/2/" + "3" * 200)
    row = rows(tmp_path)["1"]
    assert row["backend"].startswith("\u00e9" * 100)
    assert len(row["backend"].encode()) < 340
    writer.progress.attempt(slot, 1, "b", PRICES.text)
    assert (rows(tmp_path)["1"]["backend"], rows(tmp_path)["1"]["price"]) == ("b", PRICES.text)


def test_the_file_goes_when_nobody_needs_it(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    (segment,) = tmp_path.glob("*.seg")
    (segment,) = tmp_path.glob("*.seg")
    forget_slots(tmp_path)
    assert read_slots(tmp_path, segment.name)
    segment.unlink()
    forget_slots(tmp_path)
    assert read_slots(tmp_path, segment.name), "its writer lives: its next segment may not have its name yet"
    writer.close()
    forget_slots(tmp_path)
    assert read_slots(tmp_path, segment.name) == b""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("events", "size_bytes", "envelope_bytes", "tokens"),
    [
        (0, 0, 0, 0),
        (10, 2000, 0, 10),  # nothing is known of what an event looks like
        (10, 2050, 200, 10),
        (10, 2160, 200, 10),  # 16 bytes each
        (10, 2400, 200, 100),  # 40 bytes each: nobody has tokens of 40 bytes
        (10, 100, 200, 10),
    ],
)
def test_events_and_tokens(events: int, size_bytes: int, envelope_bytes: int, tokens: int) -> None:
    assert estimated_tokens(events, size_bytes, envelope_bytes) == tokens


@pytest.mark.parametrize(
    ("prices", "text"),
    [
        (Prices(0, 0), "0/0/"),
        (Prices(150_000, 600_000, 75_000), "0.15/0.6/0.075"),
        (Prices(10**12, 1, 0), "1000000/0.000001/0"),
        (Prices(30_000_000, 60_000_000), "30/60/"),
    ],
)
def test_prices_as_text(prices: Prices, text: str) -> None:
    assert prices.text == text
    rates = [Decimal(part or "NaN") * 10**6 for part in text.split("/")]
    assert rates[:2] == [prices.input_pusd, prices.output_pusd]
    assert priced(text, 1000, 77, 300) == cost_pusd(prices, 1000, 77, 300)


@pytest.mark.parametrize(("prompt", "completion", "told"), [(-1, 9, (40, 9)), (30, -1, (30, 6)), (-1, -1, (40, 6)), (0, 0, (0, 0))])
def test_a_report_of_one_side_is_none_of_the_other(prompt: int, completion: int, told: tuple[int, int]) -> None:
    progress = Progress()
    slot = progress.take("req-00000001")
    progress.attempt(slot, 1, "b", None)
    progress.sent(slot)
    progress.handing(slot, 6, 60)
    progress.reported(slot, 6, prompt, completion, 35, 0)
    begun = begin_line("req-00000001", 1.0, "chat", "k", "u", "m", 1, None, 1, 1, slot, 40, None, None, None)
    row = dict(zip(FIELDS, interrupted(begun.decode(), bytes(progress._memory)), strict=True))
    assert (row["prompt_tokens"], row["completion_tokens"]) == told
    assert row["cached_tokens"] <= row["prompt_tokens"]
    assert row["token_source"] == ("backend" if min(prompt, completion) >= 0 else "estimate")


@pytest.mark.parametrize("text", ["0/10000/", "10000/0/10000"])
def test_a_cost_that_no_row_can_hold_is_the_most_there_is(text: str) -> None:
    own = Prices(0, 10**10) if text.startswith("0") else Prices(10**10, 0, 10**10)
    assert priced(text, 10**9, 10**9, 5) == cost_pusd(own, 10**9, 10**9, 5) == 2**63 - 1


@pytest.mark.parametrize("text", [None, "", "1", "1/2", "//", "1/x/", "1/2e/", "0.1\ufffd", "1/Infinity/", "1/NaN/", "1/1e999999999/"])
def test_what_is_no_price_is_nothing(text: str | None) -> None:
    assert priced(text, 5, 5, 5) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
writer = SegmentWriter(Path(sys.argv[1]))
slot = writer.begin(UsageRecord("req-00000009", 1.5, "chat", "k", "u", "m", 1), 1, 1, 40)
writer.progress.attempt(slot, 1, "b", "1/2/")
writer.progress.sent(slot)
for events in range(1, 1000):
    writer.progress.handing(slot, events, 200 * events)
    os.write(1, b".")
    if events == 321:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_noted_is_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, cwd=Path(__file__).parents[4])
    assert done.returncode == -signal.SIGKILL
    row = rows(tmp_path)["9"]
    assert row["completion_tokens"] == len(done.stdout) == 321
    assert row["cost_pusd"] == 40 * 10**6 + 321 * 2 * 10**6


def test_no_slot_where_the_disk_is_full(tmp_path: Path) -> None:
    """The limit on file sizes stands in for the disk; it is a child's, for nobody can lift it again."""
    child = os.fork()
    if child == 0:
        import resource

        code = 1
        with contextlib.suppress(BaseException):
            writer = SegmentWriter(tmp_path, segment_bytes=400_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            running = []
            try:
                for number in range(5000):
                    ours = record(number)
                    running.append((ours, writer.begin(ours, 1, 1, 40)))
            except LedgerFull:
                for ours, slot in running:
                    writer.end(ours, slot)
                code = 0 if len(running) >= 100 else 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    data = b"".join(path.read_bytes()[: written_bytes(path)] for path in tmp_path.glob("*.seg"))
    found = sort_lines(data)
    assert not found.begun, "each that began has ended"
    assert len(found.columns[0]) >= 100
