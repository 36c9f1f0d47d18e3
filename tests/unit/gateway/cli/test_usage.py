"""usage and ledger export, also of what no keeper has shipped yet."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.settings import load_settings
from gateway.store.engine import Database

from .conftest import Gateway

HOUR_S = 1_700_000_000.0 // 3600 * 3600


def record(number: int, **fields: object) -> UsageRecord:
    values: dict[str, object] = {
        "request_id": f"req-{number}", "started_at": HOUR_S + number, "operation": "chat", "key_id": "k1", "user_id": "u", "model": "m",
        "revision": 3, "backend": "echo-1", "attempts": 1, "status": 200, "ending": "success", "prompt_tokens": 10, "completion_tokens": 5,
        "token_source": "backend", "cost_pusd": 1_500_000, "duration_ms": 12.5, "queue_ms": 0.1, "connect_ms": 0.2,
    }  # fmt: skip
    return UsageRecord(**(values | fields))  # type: ignore[arg-type]  # one value for each field, of its type


@pytest.fixture
def writer(ready: Gateway, tmp_path: Path) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(tmp_path / "home" / "run" / "ledger")
    yield writer
    writer.close()


def write(writer: SegmentWriter, *records: UsageRecord) -> None:
    for one in records:
        writer.begin(one, 100, 100)
        writer.end(one)


def test_every_ended_request_is_exported_with_its_fields(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, record(2, key_id=None, client_request_id="theirs", ttft_ms=3.5, experiment="summer", arm="control"), record(1))
    writer.begin(record(3), 100, 100)  # still runs
    lines = [json.loads(line) for line in ready("ledger", "export").out.splitlines()]
    assert [line["request_id"] for line in lines] == ["req-1", "req-2"]
    assert lines[0] == {
        "request_id": "req-1", "key_id": "k1", "user_id": "u", "model": "m", "backend": "echo-1", "revision": 3, "operation": "chat",
        "attempts": 1, "status": 200, "ending": "success", "prompt_tokens": 10, "completion_tokens": 5, "token_source": "backend",
        "cost": "0.0000015", "started_at": "2023-11-14T22:00:01Z", "duration_ms": 12.5, "ttft_ms": None, "queue_ms": 0.1,
        "connect_ms": 0.2, "client_request_id": None, "experiment": None, "arm": None, "team_id": None, "cached_tokens": 0,
        "reasoning_tokens": 0, "price": None, "tried": None,
    }  # fmt: skip
    assert (lines[1]["key_id"], lines[1]["client_request_id"], lines[1]["ttft_ms"]) == (None, "theirs", 3.5)
    assert (lines[1]["experiment"], lines[1]["arm"]) == ("summer", "control")
    assert [json.loads(line)["request_id"] for line in ready("ledger", "export", "--since", "2023-11-14T22:00:02Z").out.splitlines()] == [
        "req-2"
    ]


def test_an_export_of_many_pages_is_complete_and_in_order(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, *(record(n, started_at=HOUR_S + n // 7) for n in range(2500)))  # seven requests at each moment
    ids = [json.loads(line)["request_id"] for line in ready("ledger", "export").out.splitlines()]
    assert len(ids) == len(set(ids)) == 2500


def test_usage_adds_up(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, record(1), record(2), record(3, key_id="k2", model="n"), record(4, key_id=None, started_at=HOUR_S + 90_000))
    by_key = ready("usage", "--by", "key", "--json").json
    assert by_key[1:] == [
        {"key_id": "k1", "requests": 2, "prompt_tokens": 20, "completion_tokens": 10, "cost": "0.000003"},
        {"key_id": "k2", "requests": 1, "prompt_tokens": 10, "completion_tokens": 5, "cost": "0.0000015"},
    ]
    assert (by_key[0]["key_id"], by_key[0]["requests"]) == (None, 1)
    assert [(line["model"], line["requests"]) for line in ready("usage", "--by", "model", "--json").json] == [("m", 3), ("n", 1)]
    assert [(line["day"], line["requests"]) for line in ready("usage", "--by", "day", "--json").json] == [
        ("2023-11-14", 3),
        ("2023-11-15", 1),
    ]
    assert [line["day"] for line in ready("usage", "--by", "day", "--since", "2023-11-15T00:00:00Z", "--json").json] == ["2023-11-15"]
    assert ready("usage", "--since", "7d", "--json").json == []
    assert ready("usage").out.splitlines()[2].split() == ["k1", "2", "20", "10", "0.000003"]
    assert ready("usage", "--by", "moon").code == 2


def test_usage_by_arm_counts_those_that_were_in_an_experiment(ready: Gateway, writer: SegmentWriter) -> None:
    arms = [("summer", "control"), ("summer", "candidate"), ("summer", "control"), ("chat", "stable"), (None, None)]
    write(writer, *(record(number, experiment=experiment, arm=arm) for number, (experiment, arm) in enumerate(arms)))
    assert ready("usage", "--by", "arm", "--json").json == [
        {"experiment": experiment, "arm": arm, "requests": n, "prompt_tokens": 10 * n, "completion_tokens": 5 * n, "cost": cost}
        for experiment, arm, n, cost in (
            ("chat", "stable", 1, "0.0000015"), ("summer", "candidate", 1, "0.0000015"), ("summer", "control", 2, "0.000003"),
        )
    ]  # fmt: skip
    assert ready("usage", "--by", "arm", "--since", "2023-11-15T00:00:00Z", "--json").json == []
    assert ready("usage", "--by", "arm").out.splitlines()[0].split()[:3] == ["EXPERIMENT", "ARM", "REQUESTS"]


def test_a_running_keeper_is_waited_for(ready: Gateway, writer: SegmentWriter) -> None:
    settings = load_settings()
    begun, go = threading.Event(), threading.Event()

    async def keep() -> None:
        db = Database(settings.database)
        shipper = Shipper(db, settings.run_dir / "ledger")
        assert shipper.acquire()
        begun.set()
        await asyncio.to_thread(go.wait)
        await shipper.ship()
        shipper.close()
        await db.close()

    keeper = threading.Thread(target=asyncio.run, args=(keep(),))
    keeper.start()
    assert begun.wait(5)
    write(writer, record(1))
    threading.Timer(0.3, go.set).start()
    typed = ready("ledger", "export")
    keeper.join()
    assert json.loads(typed.out)["request_id"] == "req-1"
    assert typed.err == ""


def test_a_keeper_that_is_stuck_is_said(ready: Gateway, writer: SegmentWriter) -> None:
    settings = load_settings()
    db = Database(settings.database)
    shipper = Shipper(db, settings.run_dir / "ledger")
    assert shipper.acquire()
    write(writer, record(1))
    typed = ready("usage", "--json")
    shipper.close()
    asyncio.run(db.close())
    assert typed.json == []
    assert "may be missing" in typed.err


def test_usage_in_other_forms_and_with_filters(ready: Gateway, writer: SegmentWriter) -> None:
    write(writer, record(1, team_id="t1", cached_tokens=3), record(2, key_id="k2", model="n"), record(3, user_id="v", backend=None))
    assert ready("usage", "--by", "key", "--csv").out.splitlines() == [
        "key_id,requests,prompt_tokens,completion_tokens,cached_tokens,reasoning_tokens,cost",
        "k1,2,20,10,3,0,0.000003",
        "k2,1,10,5,0,0,0.0000015",
    ]
    lines = [json.loads(line) for line in ready("usage", "--by", "team", "--format", "jsonl").out.splitlines()]
    assert [(line["team_id"], line["requests"], line["cached_tokens"]) for line in lines] == [(None, 2, 0), ("t1", 1, 3)]
    assert [line["backend"] for line in ready("usage", "--by", "backend", "--user", "v", "--json").json] == [None]
    assert [line["model"] for line in ready("usage", "--by", "model", "--key", "k2", "--json").json] == ["n"]
    assert [line["revision"] for line in ready("usage", "--by", "version", "--team", "t1", "--model", "m", "--json").json] == [3]
    assert [line["hour"] for line in ready("usage", "--by", "hour", "--until", "2023-11-15", "--json").json] == ["2023-11-14T22:00:00Z"]
    assert ready("usage", "--format", "xml").code == 2
    assert ready("usage", "--since", "1h", "--until", "2h").code == 2


def test_verify_says_that_the_books_agree_or_what_does_not(ready: Gateway, writer: SegmentWriter, tmp_path: Path) -> None:
    write(writer, record(1), record(2))
    ready("usage")
    whole = ready("ledger", "verify")
    assert (whole.code, whole.out.strip()) == (0, "The books agree: 2 rows of 1 days, 1 segments.")
    with closing(sqlite3.connect(tmp_path / "home" / "gateway.sqlite3")) as conn:
        conn.execute("UPDATE usage_20231114 SET completion_tokens = 6 WHERE request_id = 'req-2'")
        conn.commit()
    broken = ready("ledger", "verify")
    assert broken.code == 1
    assert "req-2 (2023-11-14) is not what was booked" in broken.out
    told = ready("ledger", "verify", "--json")
    assert told.code == 1
    assert (told.json["valid"], told.json["rows"], told.json["days"]) == (False, 2, 1)
    assert {fault["kind"] for fault in told.json["faults"]} == {"row", "rollup"}
    assert {"kind", "where", "message"} == told.json["faults"][0].keys()
