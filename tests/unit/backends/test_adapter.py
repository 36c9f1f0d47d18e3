"""Backends written as one coroutine, behind the real relay."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import orjson

from backends.adapter import Adapter, Reply
from backends.base import Call
from backends.errors import ConnectFailed
from tests.relay_server import relay_server, route, target
from tests.upstream import chat_answer, chat_chunk

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")]


class Scripted(Adapter):
    def __init__(self, script: Callable[[Call, Reply], Awaitable[None]]) -> None:
        self._script = script

    async def answer(self, call: Call, reply: Reply) -> None:
        await self._script(call, reply)


async def _post(url: str, key: str, **more: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        return await client.post("/v1/chat/completions", json=CHAT | more, headers={"x-api-key": key})


async def test_an_answer_and_a_stream_go_through() -> None:
    async def script(call: Call, reply: Reply) -> None:
        if orjson.loads(call.body).get("stream"):
            await reply.head(200, SSE)
            for word in ("a", "b"):
                await reply.data(b"data: " + orjson.dumps(chat_chunk({"content": word})) + b"\n\n")
        else:
            await reply.head(200, JSON)
            await reply.data(orjson.dumps(chat_answer("up")))

    async with relay_server(route([target(Scripted(script))])) as server:
        assert (await _post(server.url, server.key)).json() == chat_answer("m")
        stream = (await _post(server.url, server.key, stream=True)).text
        assert stream.count("data: {") == 2
        assert stream.endswith("data: [DONE]\n\n")


async def test_a_failure_before_the_answer_goes_to_the_next_target() -> None:
    async def refuse(call: Call, reply: Reply) -> None:
        raise ConnectFailed

    async def bug(call: Call, reply: Reply) -> None:
        raise ZeroDivisionError

    async def nothing(call: Call, reply: Reply) -> None:
        return

    async def fine(call: Call, reply: Reply) -> None:
        await reply.head(200, JSON)
        await reply.data(orjson.dumps(chat_answer("up")))

    for script in (refuse, bug, nothing):
        first, second = target(Scripted(script), id="first", weight=1_000_000), target(Scripted(fine), id="second")
        async with relay_server(route([first, second])) as server:
            assert (await _post(server.url, server.key)).status_code == 200
            (record,) = await server.ledger.wait(1)
            assert (record.backend, record.attempts) == ("second", 2)


async def test_a_client_that_leaves_cancels_the_coroutine() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def script(call: Call, reply: Reply) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with relay_server(route([target(Scripted(script))])) as server:
        request = asyncio.create_task(_post(server.url, server.key))
        await begun.wait()
        request.cancel()
        await asyncio.wait_for(cancelled.wait(), 10)
        (record,) = await server.ledger.wait(1)
        assert record.ending == "client_gone"
