"""A soak that overlooks a leak or a wrong answer is worse than none: each verdict is seen to fail here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench import mix
from bench.census import Process
from bench.lanes import Lanes, SoakStopped
from bench.measure import SERVING
from bench.mix import KINDS, Expected, Kind
from bench.payload import DONE, STREAMED, Ask, answer_body, chunk, stream_body
from bench.scenarios import MEGABYTE
from bench.soak import LATE, Reading, grown, left_over, piled_up, stops
from bench.upstream import Connection, Mock, Tally

BY_NAME = {kind.name: kind for kind in KINDS}
FOUR_KEYS = b'{"error":{"message":"m","type":"t","param":null,"code":"%b"}}'
CAME = b"".join(chunk(7, index, False) for index in range(3))
EVENT = b"data: " + FOUR_KEYS % b"x" + b"\n\n"


def judged(name: str, body: bytes, status: int | None = None) -> str:
    kind = BY_NAME[name]
    expected = Expected(kind, 7)
    expected.feed(body)
    return expected.finish(kind.status if status is None else status)


def test_the_shares_fill_a_block_and_every_block_has_them() -> None:
    kinds = mix.sequence(1)
    block = [next(kinds) for _ in range(mix.BLOCK)]
    assert all(block.count(kind) == kind.share for kind in KINDS)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("chat", answer_body(7)),
        ("stream", stream_body(Ask(7, STREAMED, 8, 1000))),
        ("upstream 500", FOUR_KEYS % b"upstream_error"),
        ("broken stream", CAME + EVENT),
        ("unknown model", FOUR_KEYS % b"model_not_found"),
    ],
)
def test_right_answers_pass(name: str, body: bytes) -> None:
    assert judged(name, body) == ""


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("chat", answer_body(8)),
        ("stream", stream_body(Ask(7, STREAMED, 8, 1000)).replace(DONE, b"")),
        ("upstream 500", FOUR_KEYS % b"server_error"),
        ("upstream 500", b"Bad Gateway"),
        ("broken stream", CAME + EVENT + DONE),
        ("broken stream", CAME),
        ("broken stream", CAME[:-20] + EVENT),
        ("unknown model", b'{"error":{"message":"m"}}'),
    ],
)
def test_wrong_answers_are_found(name: str, body: bytes) -> None:
    assert judged(name, body) != ""


def test_a_status_that_was_not_meant_is_wrong() -> None:
    assert "status 502 instead of 200" in judged("chat", answer_body(7), 502)


def reading(**values: int) -> Reading:
    fields = {"anonymous_bytes": 100 * MEGABYTE, "descriptors": 20, "threads": 4, "tasks": 5, "objects": 1000} | values
    return Reading(1, [Process(1, SERVING, **fields)], 0, 0.0)  # type: ignore[arg-type]  # all of them are numbers


def test_memory_may_grow_by_ten_megabytes_or_a_twentieth() -> None:
    assert not grown(reading(), reading(anonymous_bytes=110 * MEGABYTE))
    assert grown(reading(), reading(anonymous_bytes=110 * MEGABYTE + 1))
    assert not grown(reading(anonymous_bytes=400 * MEGABYTE), reading(anonymous_bytes=420 * MEGABYTE))


@pytest.mark.parametrize("name", ["descriptors", "threads", "tasks", "segments", "client_connections", "upstream_connections"])
def test_one_more_than_a_late_connection_is_a_leak(name: str) -> None:
    assert not left_over(reading(), reading())
    before = getattr(reading().processes[0], name)
    late = LATE.get(name, 0)
    assert not left_over(reading(), reading(**{name: before + late}))
    assert left_over(reading(), reading(**{name: before + late + 1})) == [f"{name} of serving: {before} -> {before + late + 1}"]


def test_connections_at_rest_are_a_leak_even_if_they_were_there_before() -> None:
    assert left_over(reading(client_connections=1), reading(client_connections=1))


def test_objects_that_pile_up_are_named() -> None:
    more = reading(objects=4000)
    more.processes[0].types = {"Connection": 3000}
    assert piled_up(reading(), more) == ["the server holds 3000 objects more, above all 3000 Connection"]
    assert not piled_up(reading(), reading(objects=1100))


def test_the_first_reading_comes_early_and_the_last_at_the_end() -> None:
    assert stops(1_000_000, 50_000) == [50_000, 287_500, 525_000, 762_500, 1_000_000]
    assert stops(10, 50_000)[-1] == 10


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[int, Mock]]:
    """The mock alone: it answers like the gateway where nothing fails."""
    mock = Mock(Tally(), 3, 0, set())
    server = await asyncio.get_running_loop().create_server(lambda: Connection(mock), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], mock
        mock.close_idle()
        mock.close_idle()
        while mock.tally.open_connections:
            await asyncio.sleep(0.001)


def only(*names: str) -> list[Kind]:
    return [BY_NAME[name] for name in names]


async def drive(port: int, kinds: list[Kind]) -> Lanes:
    keys = dict.fromkeys((mix.KNOWN, mix.UNKNOWN, mix.POOR), "k")
    lanes = Lanes(port, keys, 4, iter(kinds * 100))
    await lanes.run(20)
    await lanes.close()
    return lanes


async def test_clients_that_hang_up_are_seen_by_the_upstream() -> None:
    async with upstream() as (port, mock):
        lanes = await drive(port, only("chat", "gone in mid-stream", "gone before the first byte", "stream"))
        assert not lanes.wrong
        assert lanes.left == {"gone in mid-stream": 5, "gone before the first byte": 5}
        assert lanes.ended == lanes.admitted == 20
        while mock.tally.streams_aborted + mock.tally.answers_aborted < 10:
            await asyncio.sleep(0.001)
    assert mock.tally.streams == 10


async def test_what_the_gateway_should_have_done_is_missed_without_it() -> None:
    """Straight to the upstream a reset is a reset, a broken stream has no error event, and everybody is let in."""
    async with upstream() as (port, _):
        lanes = await drive(port, only("chat", "upstream reset", "broken stream", "unknown key"))
    assert lanes.wrong == {"upstream reset": 5, "broken stream": 5, "unknown key": 5}


async def test_a_server_that_is_not_there_stops_the_soak() -> None:
    async with upstream() as (port, _):
        pass
    with pytest.raises(SoakStopped, match="cannot connect"):
        await drive(port, only("chat"))
