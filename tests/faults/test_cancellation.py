"""The client leaves, anywhere, however: what works for it is told within 100 ms, and pays for nothing that was never sent.

`test_clients_that_leave.py` has the moments of one request one by one; here is the breadth: every endpoint, TLS, a connection that does not
stand yet, a body that is still on its way to the backend, many at once, and a local worker. Proof is what the backend saw.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from auth.principal import Limits
from backends.custom import CustomBackend
from backends.local import LocalBackend, LocalState, ModelState
from backends.local.state import write_state
from gateway.routing.table import Timeouts
from tests.faults import scripts
from tests.faults.calls import CALLS, Call
from tests.faults.client import Client
from tests.faults.matrix import nowhere
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, frame, silence, stream
from tests.live.test_worker import LONG, Worker
from tests.models import tiny_chat
from tests.upstream import Script, Seen, Upstream, Wire
from tests.wire.authority import Authority

pytestmark = pytest.mark.alone

PROMPT_S = 0.1
WAYS = ("close", "reset")


def _leave(client: Client, how: str) -> float:
    """Go, and say when (time.monotonic())."""
    client.reset() if how == "reset" else client.close()
    return time.monotonic()


async def _told(seen: Seen, left_s: float, within_s: float = PROMPT_S) -> None:
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at_s - left_s < within_s


async def _post(stage: Scene, call: Call) -> Client:
    content_type, body = call.request("m")
    return await stage.send(body, call.path, [f"content-type: {content_type}"])


def _half(call: Call) -> Script:
    """Half of the good answer, then nothing."""

    async def script(wire: Wire, seen: Seen) -> None:
        if call.kind == "stream":
            await wire.sse_head()
            await wire.chunk(call.frames[0])
        else:
            await wire.head(200, call.content_type, content_length=str(len(call.good)))
            await wire.send(call.good[: len(call.good) // 2])
        await scripts.closed(wire, seen)

    return script


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", CALLS)
async def test_before_the_first_byte_of_any_endpoint(name: str, how: str) -> None:
    async with scene(silence(), fields={"tokenizer": "upstream"}) as stage:
        client = await _post(stage, CALLS[name])
        seen = await stage.up.request()
        await _told(seen, _leave(client, how))
        record = await stage.record()
        assert (record.status, record.ending, record.completion_tokens) == (499, "client_gone", 0)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", CALLS)
async def test_in_the_middle_of_any_answer(name: str, how: str) -> None:
    call = CALLS[name]
    async with scene(_half(call), fields={"tokenizer": "upstream"}, model="m") as stage:
        client = await _post(stage, call)
        seen = await stage.up.request()
        if call.kind == "whole":
            await asyncio.sleep(0.05)  # nothing of it shows before the whole of it is here
        else:
            await client.head()
            await client.reader.readuntil(b"\n")
        await _told(seen, _leave(client, how))
        record = await stage.record()
        assert (record.status, record.ending) == (499 if call.kind == "whole" else 200, "client_gone")


async def test_a_hundred_at_once() -> None:
    async with scene(stream(frame(ROLE), after=scripts.closed), limits=Limits()) as stage:
        clients = [await stage.send(CHAT | {"stream": True}) for _ in range(100)]
        for client in clients:
            await client.head()
            await client.chunk()
        left_s = time.monotonic()
        for client in clients:
            client.reset()
        for seen in stage.up.seen:
            await _told(seen, left_s, 1.0)  # the last of them after 99 others
        assert {record.ending for record in await stage.server.ledger.wait(100)} == {"client_gone"}


async def test_while_the_second_backend_works() -> None:
    async with scene(scripts.resets(), silence()) as stage:
        client = await stage.send(CHAT)
        seen = await stage.ups[1].request()
        await _told(seen, _leave(client, "reset"))
        record = await stage.record()
        assert (record.ending, record.attempts, record.backend) == ("client_gone", 2, "b2")


async def test_while_its_body_goes_to_the_backend() -> None:
    """The backend reads nothing: most of the body waits in the gateway."""
    async with Upstream(early=_reads_nothing) as up, scene(up.url, max_body_bytes=20_000_000, limits=Limits()) as stage:
        client = await stage.send(CHAT | {"pad": "x" * 15_000_000})
        seen = await up.request()
        await asyncio.sleep(0.05)
        left_s = _leave(client, "reset")
        await _told(seen, left_s)
        assert (await stage.record()).ending == "client_gone"


async def _reads_nothing(wire: Wire, seen: Seen) -> None:
    """Only a broken connection ends this: the end of file lies behind a body that nobody reads."""
    transport = wire.writer.transport
    while not transport.is_closing():
        try:
            await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError:
            break
        await asyncio.sleep(0.005)
    seen.note_closed()


# before a connection stands: nothing was sent, so nothing is charged


async def _admitted(stage: Scene) -> None:
    while not stage.server.ledger.begun:
        await asyncio.sleep(0)


async def _left_for_nothing(stage: Scene, client: Client, how: str) -> None:
    await _admitted(stage)
    await asyncio.sleep(0.05)
    left_s = _leave(client, how)
    record = await stage.record()
    assert time.monotonic() - left_s < PROMPT_S
    assert (record.status, record.ending, record.attempts) == (499, "client_gone", 1)
    assert (record.prompt_tokens, record.completion_tokens, record.cost_pusd) == (0, 0, 0)


@pytest.mark.parametrize("stream_it", [False, True])
@pytest.mark.parametrize("how", WAYS)
async def test_while_connecting(how: str, stream_it: bool) -> None:
    with nowhere() as (_, deaf):
        async with scene(deaf) as stage:
            client = await stage.send(CHAT | {"stream": stream_it})
            await _left_for_nothing(stage, client, how)


class Mute:
    """Takes connections and says nothing: a TLS handshake that does not come. Knows when each was closed."""

    def __init__(self) -> None:
        self.closed_at_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        if not self.closed_at_s.done():
            self.closed_at_s.set_result(time.monotonic())
        writer.close()


@asynccontextmanager
async def mute() -> AsyncIterator[tuple[Mute, str]]:
    one = Mute()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    try:
        yield one, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


async def test_while_shaking_hands() -> None:
    async with mute() as (_one, url), scene(url) as stage:
        client = await stage.send(CHAT)
        await _left_for_nothing(stage, client, "reset")


async def test_a_handshake_is_given_up_with_its_client() -> None:
    async with mute() as (one, url), scene(url) as stage:
        client = await stage.send(CHAT)
        await _admitted(stage)
        await asyncio.sleep(0.05)
        left_s = _leave(client, "reset")
        assert await asyncio.wait_for(one.closed_at_s, 5) - left_s < PROMPT_S


async def test_a_handshake_that_does_not_come_is_the_connect_clock() -> None:
    async with mute() as (_one, url), scene(url, timeouts=Timeouts(0.2, 10, 10, 20)) as stage:
        answer = await stage.chat()
        assert (answer.status, answer.code) == (504, "upstream_connect_timeout")
        assert (await stage.record()).prompt_tokens == 0


# over TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_tls(authority: Authority) -> ssl.SSLContext:
    return authority.server_context("backend")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("begun", [False, True])
async def test_over_tls(authority: Authority, server_tls: ssl.SSLContext, begun: bool, how: str) -> None:
    script = stream(frame(ROLE), after=scripts.closed) if begun else silence()
    async with Upstream(script, tls=server_tls) as up:
        backend = CustomBackend(up.url, "Bearer x", tls=authority.client_context())
        async with scene(backend) as stage:
            client = await stage.send(CHAT | {"stream": True})
            seen = await up.request()
            if begun:
                await client.head()
            await _told(seen, _leave(client, how))
            assert (await stage.record()).ending == "client_gone"


# a local worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    root = tmp_path_factory.mktemp("worker")
    started = Worker(tiny_chat(root / "chat", max_length=16_384), root / "chat.log", "--max-queue", "4")
    yield started.wait_ready()
    started.process.terminate()
    started.process.wait(10)


def _local(worker: Worker, folder: Path) -> LocalBackend:
    write_state(folder / "local.json", {"chat": ModelState("ready", time.time(), port=worker.port)})
    state = LocalState(folder / "local.json")
    state.reload()
    return LocalBackend("chat", state)


async def _stopped(worker: Worker, count: int) -> dict[str, Any]:
    """The worker's own line about the n-th generation that it gave up."""
    async with asyncio.timeout(10):
        while len(worker.lines("generation cancelled")) < count:
            await asyncio.sleep(0.01)
    return worker.lines("generation cancelled")[count - 1]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("when", ["whole", "before the first byte", "in the stream"])
async def test_a_local_worker_stops(worker: Worker, tmp_path: Path, when: str, how: str) -> None:
    before = len(worker.lines("generation cancelled"))
    async with scene(_local(worker, tmp_path), model="chat") as stage:
        asked = LONG | {"stream": when != "whole"}
        if when == "before the first byte":  # a long prompt takes a while before there is anything to say
            asked |= {"messages": [{"role": "user", "content": "how do I create a key? " * 500}]}
        client = await stage.send(asked)
        if when == "in the stream":
            await client.head()
            await client.chunk()
        else:
            await _admitted(stage)
            await asyncio.sleep(0.02 if when == "before the first byte" else 0.2)
        left_at = time.time()
        _leave(client, how)
        line = await _stopped(worker, before + 1)
        assert datetime.fromisoformat(line["time"]).timestamp() - left_at < PROMPT_S + 0.05  # one step of the model may be under way
        assert line["steps"] < 16_000
        record = await stage.record()
        begun = when == "in the stream" or (when == "before the first byte" and record.ttft_ms is not None)  # the worker may be that quick
        assert (record.ending, record.status) == ("client_gone", 200 if begun else 499)
    assert json.dumps(line).find("create a key") < 0
