from __future__ import annotations

import dataclasses
import random
import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from gateway.limits.budget import window_start
from gateway.metering.record import UsageRecord
from gateway.store import booking, days, requests, segments, usage
from gateway.store.engine import Database
from gateway.store.usage import Wanted

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def row(number: int, **values: Any) -> dict[str, Any]:
    return {
        "request_id": f"req-{number}", "started_at": NOON, "key_id": "k1", "user_id": "u1", "model": "chat", "backend": "echo-1",
        "revision": 1,
        "operation": "chat", "attempts": 1, "status": 200, "ending": "success", "prompt_tokens": 10, "completion_tokens": 5,
        "token_source": "backend", "cost_pusd": 7, "duration_ms": 1.5, "ttft_ms": None, "queue_ms": 0.1, "connect_ms": None,
        "experiment": None, "arm": None, "client_request_id": None, "team_id": None, "cached_tokens": 0, "reasoning_tokens": 0,
        "price": None, "tried": None,
    } | values  # fmt: skip


async def ship(db: Database, rows: list[dict[str, Any]], offset: int, segment: str = "a.seg") -> int:
    async with db.write() as conn:
        return await booking.insert_usage(conn, rows, segment, offset)


async def lines(db: Database, by: Any, **filters: Any) -> dict[str, tuple[int, int, int, int]]:
    async with db.read() as conn:
        found = await usage.whole_report(conn, by, Wanted(**filters))
    return {line.group: (line.requests, line.prompt_tokens, line.completion_tokens, line.cost_pusd) for line in found}


def test_the_columns_are_the_fields_of_the_record() -> None:
    assert tuple(field.name for field in dataclasses.fields(UsageRecord)) == days.COLUMNS


async def test_a_row_comes_back_as_it_was(db: Database) -> None:
    assert await ship(db, [row(1, client_request_id="theirs")], 100) == 1
    async with db.read() as conn:
        assert await requests.usage_row(conn, "req-1") == row(1, client_request_id="theirs")
        assert await requests.usage_row(conn, "req-2") is None
        assert await segments.open_offsets(conn) == {"a.seg": 100}


async def test_a_batch_sent_again_changes_nothing(db: Database) -> None:
    batch = [row(n) for n in range(50)]
    assert await ship(db, batch, 100) == 50
    before = await lines(db, "key")
    assert await ship(db, batch, 100) == 0
    assert await ship(db, [*batch, row(50), row(50)], 200) == 1
    assert await ship(db, batch, 150) == 0
    assert before == {"k1": (50, 500, 250, 350)}
    assert await lines(db, "key") == {"k1": (51, 510, 255, 357)}
    async with db.read() as conn:
        assert await segments.open_offsets(conn) == {"a.seg": 200}, "an older batch must not turn the offset back"
    assert await ship(db, [*(row(n) for n in range(60, 80)), *batch], 300) == 20, "new rows stand before one that is known"
    assert await lines(db, "key") == {"k1": (71, 710, 355, 497)}


async def test_a_shipment_that_fails_leaves_rows_rollups_and_offset_as_they_were(db: Database) -> None:
    try:
        await ship(db, [row(1), row(2, model=None)], 100)
    except Exception as error:
        assert "NOT NULL" in str(error) or "null value" in str(error)
    else:
        raise AssertionError("a row without a model was taken")
    assert await lines(db, "key") == {}
    async with db.read() as conn:
        assert await segments.open_offsets(conn) == {}
        assert await requests.usage_row(conn, "req-1") is None


async def test_rollups_equal_a_recount_of_the_rows(db: Database) -> None:
    rng = random.Random(7)
    rows = [
        row(
            n,
            started_at=NOON + rng.uniform(-3, 3) * 86_400,
            key_id=rng.choice(["k1", "k2", None]),
            user_id=rng.choice(["u1", "u2"]),
            model=rng.choice(["chat", "embed"]),
            backend=rng.choice(["echo-1", None]),
            ending=rng.choice(["success", "timeout"]),
            prompt_tokens=rng.randrange(100),
            completion_tokens=rng.randrange(100),
            cost_pusd=rng.randrange(10**9),
        )
        for n in range(3000)
    ]
    position = 0
    while position < len(rows):  # batches that overlap
        await ship(db, rows[max(0, position - 100) : position + 700], position)
        position += 700

    def recount(group: Any, chosen: list[dict[str, Any]]) -> dict[str, tuple[int, int, int, int]]:
        names = ("prompt_tokens", "completion_tokens", "cost_pusd")
        groups = {group(r) for r in chosen}
        mine = {g: [r for r in chosen if group(r) == g] for g in groups}
        return {g: (len(m), *(sum(r[n] for r in m) for n in names)) for g, m in mine.items()}

    def day(r: dict[str, Any]) -> str:
        return datetime.fromtimestamp(r["started_at"], UTC).strftime("%Y-%m-%d")

    assert await lines(db, "key") == recount(lambda r: r["key_id"] or "", rows)
    assert await lines(db, "model") == recount(lambda r: r["model"], rows)
    assert await lines(db, "day") == recount(day, rows)
    since = [r for r in rows if r["started_at"] >= NOON]
    assert await lines(db, "model", since_s=NOON + 1800) == recount(lambda r: r["model"], since), "since counts from the start of its hour"
    assert await lines(db, "day", user_id="u2") == recount(day, [r for r in rows if r["user_id"] == "u2"])
    assert await lines(db, "model", key_id="k1") == recount(lambda r: r["model"], [r for r in rows if r["key_id"] == "k1"])


async def test_what_keys_have_spent_in_their_windows(db: Database) -> None:
    yesterday = NOON - 86_400
    await ship(db, [row(1), row(2, started_at=yesterday), row(3, key_id="k2", cost_pusd=3), row(4, key_id=None)], 1)
    async with db.read() as conn:
        today = window_start("day", NOON)
        used = await usage.used_since(conn, "key", {"k1": today, "k2": 0, "k3": 0})
        assert {key_id: one.cost_pusd for key_id, one in used.items()} == {"k1": 7, "k2": 3}
        assert (await usage.used_since(conn, "key", {"k1": 0}))["k1"].cost_pusd == 14
        assert await usage.used_since(conn, "key", {}) == {}


async def test_money_beyond_64_bits_adds_up(db: Database) -> None:
    much = 2**62 + 12345
    await ship(db, [row(n, cost_pusd=much, model=f"m{n}") for n in range(5)], 1)
    assert (await lines(db, "key"))["k1"][3] == 5 * much


async def test_rows_page_by_start_and_id(db: Database) -> None:
    rows = [row(n, started_at=NOON + n // 3) for n in range(20)]
    await ship(db, rows, 1)
    seen: list[str] = []
    after = (0.0, "")
    async with db.read() as conn:
        while batch := await requests.rows_since(conn, NOON + 1, after=after, limit=4):
            seen += [r["request_id"] for r in batch]
            after = (batch[-1]["started_at"], batch[-1]["request_id"])
    assert sorted(seen) == sorted(r["request_id"] for r in rows[3:])
    assert len(seen) == len(set(seen))


async def test_ten_thousand_rows_a_second(db: Database) -> None:
    batches = [[row(b * 1000 + n, key_id=f"k{n % 20}") for n in range(1000)] for b in range(10)]
    started = time.process_time()
    for number, batch in enumerate(batches):
        assert await ship(db, batch, number) == 1000
    took_s = time.process_time() - started  # of this process: the machine may be busy with others
    async with db.read() as conn:
        assert (await conn.execute(text(f"SELECT count(*) FROM {days.name_of(days.day_of(NOON))}"))).scalar_one() == 10_000
    assert took_s < 1, took_s


async def test_rows_of_the_longest_names_are_booked(db: Database) -> None:
    """An entry of an index has at most 2,700 bytes on PostgreSQL, and shipping would stand still. Names: as long as each may be, in letters
    of four bytes that nothing compresses.
    """
    rng = random.Random(5)

    def name(letters: int) -> str:
        return "".join(chr(rng.randrange(0x20000, 0x2A000)) for _ in range(letters))

    model = name(200)
    of_canary = {"experiment": model, "arm": "canary"}
    of_experiment = {"experiment": name(80), "arm": name(80)}
    ids = {"user_id": f"usr_{2**127:032x}", "key_id": f"{2**47:012x}", "team_id": f"team_{2**63:016x}"}
    rows = [
        row(number, model=model, backend=name(80), ending="upstream_error", revision=2**62, cost_pusd=2**62, **ids, **arm)
        for number, arm in enumerate((of_canary, of_experiment))
    ]
    assert await ship(db, rows, 100) == 2
    assert (await lines(db, "model", user_id=ids["user_id"]))[model][0] == 2
