"""Doctor says how much of the ledger waits, and when that is too much."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord

from .conftest import Gateway


@pytest.fixture
def writer(ready: Gateway, tmp_path: Path) -> Iterator[SegmentWriter]:
    made = SegmentWriter(tmp_path / "home" / "run" / "ledger")
    yield made
    made.close()


def write(writer: SegmentWriter, started_at: float) -> None:
    ours = UsageRecord("req-00000001", started_at, "chat", "k", "u", "m", 1)
    writer.end(ours, writer.begin(ours, 1, 1))


def finding(ready: Gateway) -> Any:
    return next(finding for finding in ready("doctor", "--json").json if finding["check"] == "ledger")


def test_all_is_well(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, time.time())
    told = finding(ready)
    assert told["ok"]
    assert told["message"].startswith("16 of 4,096 MB in 1 segments")


def test_what_waits_too_long(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, time.time() - 300)
    told = finding(ready)
    assert not told["ok"]
    assert re.search(r"waits for 3\d\d", told["message"])
    assert "gateway usage" in told["fix"]
    assert ready("usage").code == 0  # it ships
    assert finding(ready)["ok"]


def test_little_room(ready: Gateway, writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_LEDGER_MAX_MB", "18")
    told = finding(ready)
    assert not told["ok"]
    assert "nearly full" in told["message"]
    assert "GATEWAY_LEDGER_MAX_MB" in told["fix"]


def test_lines_that_were_set_aside(ready: Gateway, writer: SegmentWriter, tmp_path: Path) -> None:
    (tmp_path / "home" / "run" / "ledger" / "refused.jsonl").write_text('{"why": "OverflowError"}\n' * 2)
    told = finding(ready)
    assert not told["ok"]
    assert told["message"].startswith("2 lines could not be booked")
    assert "refused.jsonl" in told["fix"]
