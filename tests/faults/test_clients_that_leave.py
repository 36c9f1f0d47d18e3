"""The client leaves: the backend sees it within 100 ms, and what was used is settled."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.faults import scripts
from tests.faults.client import Client
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, WORD, frame, silence, stream
from tests.upstream import Seen, Wire

pytestmark = pytest.mark.alone

PROMPT_S = 0.1


async def _leave(stage: Scene, client: Client, how: str) -> None:
    seen = stage.up.seen[0]
    assert not seen.closed.is_set()
    left = time.monotonic()
    client.reset() if how == "reset" else client.close()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert time.monotonic() - left < PROMPT_S
    record = await stage.record()
    assert (record.ending, record.attempts) == ("client_gone", 1)
    await stage.calm()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream_it", [False, True])
async def test_before_the_first_byte(stream_it: bool, how: str) -> None:
    async with scene(silence(), silence()) as stage:
        client = await stage.send(CHAT | {"stream": stream_it})
        await stage.up.request()
        await _leave(stage, client, how)
        record = await stage.record()
        assert (record.status, record.token_source, record.completion_tokens) == (499, "estimate", 0)
        assert record.prompt_tokens > 0, "the backend has had it"
        assert not stage.ups[1].seen


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_in_the_middle_of_a_stream(how: str) -> None:
    async with scene(stream(frame(ROLE), frame(WORD) * 10, after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True})
        await client.head()
        got = b""
        while got.count(b"word") < 10:
            got += await client.chunk()
        await _leave(stage, client, how)
        record = await stage.record()
        assert record.status == 200
        assert 10 <= record.completion_tokens <= 12


async def test_in_the_middle_of_an_unstreamed_answer() -> None:
    async def half(wire: Wire, seen: Seen) -> None:
        await wire.head(200, content_length="1000")
        await wire.send(b'{"choices":')
        await scripts.closed(wire, seen)

    async with scene(half) as stage:
        client = await stage.send(CHAT)
        await stage.up.request()
        await _leave(stage, client, "close")


async def test_before_a_connection_stands() -> None:
    """A backend that does not accept: the attempt is given up with the client."""
    async with scene(f"http://{'192.0.2.1'}:9/v1") as stage:
        client = await stage.send(CHAT)
        while not stage.server.ledger.begun:
            await asyncio.sleep(0)
        client.reset()
        record = await stage.record()
        assert record.ending in ("client_gone", "upstream_error")


async def test_while_its_body_is_on_its_way() -> None:
    async with scene(silence()) as stage:
        client = await stage.connect()
        client.send(stage.request(b"x" * 900_000)[:500_000])
        while not stage.server.relay.held_bytes:
            await asyncio.sleep(0)
        client.reset()
        await stage.calm()
        assert not stage.server.ledger.begun


async def test_with_requests_waiting_behind() -> None:
    async with scene(silence()) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT) * 5)
        await stage.up.request()
        await _leave(stage, client, "reset")
        assert len(stage.up.seen) == 1
        assert len(stage.server.ledger.begun) == 1


async def test_while_it_reads_nothing() -> None:
    async def flood(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        try:
            while True:
                await wire.event({"choices": [], "pad": "x" * 10_000})
        except ConnectionError:
            seen.closed.set()

    async with scene(flood) as stage:
        client = await stage.connect(receive_buffer=4096)
        client.send(stage.request(CHAT | {"stream": True}))
        seen = await stage.up.request()
        edge = next(iter(stage.server.edges))
        while not edge.write_paused:
            await asyncio.sleep(0)
        client.reset()
        await asyncio.wait_for(seen.closed.wait(), 1)
        assert (await stage.record()).ending == "client_gone"
