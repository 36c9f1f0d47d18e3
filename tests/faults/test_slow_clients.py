"""A client that does not read: memory stays bounded, reading resumes, clocks stand still, and nobody is waited for without end."""

from __future__ import annotations

import asyncio

import pytest

from gateway.relay import edge as edge_module
from gateway.routing.table import Timeouts
from tests.faults.client import Client
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import frame
from tests.upstream import Seen, Wire, chat_answer

EVENT = {"choices": [], "pad": "x" * 20_000}
BOUND = 2_000_000


async def _paused(stage: Scene) -> edge_module.Edge:
    while not stage.server.edges:
        await asyncio.sleep(0)
    edge = next(iter(stage.server.edges))
    while not edge.write_paused:
        await asyncio.sleep(0)
    return edge


def _flood(count: int) -> tuple[list[int], object]:
    sent = [0]

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for _ in range(count):
            await wire.event(EVENT)
            sent[0] += 1
        await wire.event(b"[DONE]")
        await wire.end()

    return sent, script


async def _settled(sent: list[int]) -> int:
    """How much the backend could send until it was stopped."""
    before = -1
    while before != sent[0]:
        before = sent[0]
        await asyncio.sleep(0.1)
    return before


async def test_a_flood_is_stopped_at_the_backend_and_goes_on_when_the_client_reads() -> None:
    sent, script = _flood(1500)  # 30 MB
    async with scene(script, model="m", timeouts=Timeouts(2, 5, 1.0, 30)) as stage:  # type: ignore[arg-type]
        client = await stage.connect(receive_buffer=4096)
        client.send(stage.request(CHAT | {"stream": True}))
        edge = await _paused(stage)
        stopped_at = await _settled(sent)
        assert stopped_at < 1500
        assert edge.transport.get_write_buffer_size() < BOUND
        await asyncio.sleep(1.5)  # longer than the idle clock, which stands still
        assert not stage.server.ledger.ended
        answer = await client.answer()
        assert answer.complete
        assert answer.body == frame(EVENT) * 1500 + b"data: [DONE]\n\n"
        assert (await stage.record()).ending == "success"


async def test_a_second_stream_behind_an_unread_answer_is_bounded_too() -> None:
    """The write buffer is already full when the next request of the connection has its turn."""
    sent, flood = _flood(1000)

    async def script(wire: Wire, seen: Seen) -> None:
        if seen.json.get("stream"):
            await flood(wire, seen)  # type: ignore[operator]
        else:
            await wire.answer(chat_answer("m", "y" * 10_000_000))

    async with scene(script, model="m", max_answer_bytes=20_000_000) as stage:
        client = await stage.connect(receive_buffer=4096)
        client.send(stage.request(CHAT) + stage.request(CHAT | {"stream": True}))
        edge = await _paused(stage)
        await _settled(sent)
        assert edge.transport.get_write_buffer_size() < 10_000_000 + BOUND
        assert len((await client.answer()).body) > 10_000_000
        assert (await client.answer()).body.count(b"data:") == 1001


@pytest.mark.parametrize("keep", [True, False])
async def test_a_client_that_never_reads_is_given_up(keep: bool) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer(chat_answer("m", "y" * 10_000_000))

    async with scene(script, model="m", max_answer_bytes=20_000_000) as stage:
        client = await stage.connect(receive_buffer=4096)
        client.send(stage.request(CHAT, more=() if keep else ["connection: close"]))
        edge = await _paused(stage)
        await stage.record()
        await asyncio.sleep(0.1)
        assert edge.deadline_s, "a clock runs"
        for _ in range(2):
            edge.deadline_s = 1e-9  # it has run out; the first time the buffer may have moved
            while edge.deadline_s == 1e-9 and edge in stage.server.edges:
                await asyncio.sleep(0.01)
        await _gone(stage)
        assert len(await _swallow(client)) < 10_000_000


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer(chat_answer("m", "y" * 10_000_000))

    async with scene(script, model="m", max_answer_bytes=20_000_000) as stage:
        client = await stage.connect(receive_buffer=4096)
        client.send(stage.request(CHAT))
        edge = await _paused(stage)
        await stage.record()
        got = len(await client.reader.readuntil(b"\r\n\r\n")) * 0
        for _ in range(3):
            got += len(await client.reader.readexactly(300_000))
            edge.deadline_s = 1e-9
            while edge.deadline_s == 1e-9 and edge in stage.server.edges:
                await asyncio.sleep(0.01)
        assert edge in stage.server.edges
        got += len(await client.reader.readexactly(8_000_000))
        assert got == 8_900_000


async def _gone(stage: Scene) -> None:
    while stage.server.edges:
        await asyncio.sleep(0.01)


async def _swallow(client: Client) -> bytes:
    got = b""
    try:
        while data := await client.reader.read(1_000_000):
            got += data
    except ConnectionError:
        pass
    return got
