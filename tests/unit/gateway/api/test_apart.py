"""Both ends of the socket over which requests that only read are handed on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message

from gateway.api.apart import Answering, Apart, is_reading

pytestmark = pytest.mark.anyio

LARGE = os.urandom(3_000_000)


def scope(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"by=k%20x", "scheme": "https", "server": ("127.0.0.1", 8000),
        "client": ("192.0.2.7", 4711), "headers": [(b"host", b"gw"), (b"x-name", b"caf\xe9")], "state": {},
    } | more  # fmt: skip


class Client:
    """One request of an ASGI server's side. `gone`: the client has left; `slow`: what it takes waits for `take`."""

    def __init__(self, slow: bool = False) -> None:
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self.take = asyncio.Event()
        if not slow:
            self.take.set()
        self._asked = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        await self.take.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def whole(self) -> bool:
        return not self.messages[-1].get("more_body", True)


def app(name: str, told: dict[str, Any] | None = None) -> FastAPI:
    made = FastAPI()
    seen = {} if told is None else told

    @made.get("/admin/who")
    async def who(request: Request) -> JSONResponse:
        client, query = request.client, request.scope["query_string"]
        said = [client.host if client else None, request.url.scheme, query.decode("latin-1"), request.headers["x-name"]]
        return JSONResponse([name, *said], status_code=201)

    @made.get("/admin/large")
    async def large() -> Response:
        return Response(LARGE)

    @made.get("/admin/long")
    async def long() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(1000):
                seen["sent"] = number
                yield bytes(50_000)

        return StreamingResponse(pieces())

    return made


@pytest.fixture
async def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "reader.sock"


async def current() -> bool:
    return True


async def called(asgi: ASGIApp, path: str, client: Client | None = None, **more: Any) -> Client:
    client = client or Client()
    await asgi(scope(path, **more), client.receive, client.send)
    return client


async def test_a_request_is_answered_apart_as_it_was_asked(socket: Path) -> None:
    answering = await Answering.open(app("reader"), socket, current)
    seen = await called(Apart(app("server"), socket), "/admin/who")
    assert seen.messages[0]["status"] == 201
    assert dict(seen.messages[0]["headers"])[b"content-type"] == b"application/json"
    assert seen.body.decode() == '["reader","192.0.2.7","https","by=k%20x","café"]'
    assert (await called(Apart(app("server"), socket), "/admin/large")).body == LARGE
    await answering.close(1)


async def test_where_nobody_listens_the_server_answers(socket: Path) -> None:
    assert (await called(Apart(app("server"), socket), "/admin/who")).body.startswith(b'["server"')
    answering = await Answering.open(app("reader"), socket, current)
    await answering.close(1)
    assert (await called(Apart(app("server"), socket), "/admin/who")).body.startswith(b'["server"')


async def test_where_a_change_is_not_in_force_apart_the_server_answers(socket: Path) -> None:
    in_force = [False, True]

    async def known() -> bool:
        return in_force.pop(0)

    answering = await Answering.open(app("reader"), socket, known)
    assert (await called(Apart(app("server"), socket), "/admin/who")).body.startswith(b'["server"')
    assert (await called(Apart(app("server"), socket), "/admin/who")).body.startswith(b'["reader"')
    await answering.close(1)


@pytest.mark.parametrize("said", [None, b"", b"H\0", b"X\0\0\0\0", b"H\xff\xff\xff\xff"])
async def test_where_nothing_comes_back_the_server_answers(socket: Path, said: bytes | None) -> None:
    """None: it hangs; else it says so much and closes."""
    hold = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await hold.wait()
        else:
            writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(answer, str(socket)):
        seen = await called(Apart(app("server"), socket, within_s=0.2), "/admin/who")
        assert seen.body.startswith(b'["server"')
        hold.set()


async def test_an_answer_that_breaks_off_is_not_said_to_be_whole(socket: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"H\0\0\0\x08[200,[]]" + b"B\0\0\0\x02ab" + b"B\0\0\0\x09a")
        writer.close()

    async with await asyncio.start_unix_server(answer, str(socket)):
        seen = await called(Apart(app("server"), socket), "/admin/who")
    assert seen.body == b"ab"
    assert not seen.whole


async def test_a_slow_client_holds_up_who_answers(socket: Path) -> None:
    told: dict[str, Any] = {}
    answering = await Answering.open(app("reader", told), socket, current)
    client = Client(slow=True)
    task = asyncio.create_task(called(Apart(app("server"), socket), "/admin/long", client))
    before = None
    while before is None or told["sent"] != before:  # until it gets no further
        before = told.get("sent")
        await asyncio.sleep(0.1)
    assert before < 100  # of 1,000 pieces
    client.take.set()
    await task
    assert len(client.body) == 50_000_000
    assert client.whole
    await answering.close(1)


async def test_who_answers_is_told_that_the_client_left(socket: Path) -> None:
    told: dict[str, Any] = {}
    answering = await Answering.open(app("reader", told), socket, current)
    client = Client(slow=True)
    task = asyncio.create_task(called(Apart(app("server"), socket), "/admin/long", client))
    while len(client.messages) < 1:
        await asyncio.sleep(0)
    client.gone.set()
    client.take.set()
    await task
    await asyncio.wait_for(answering.close(60), 10)  # nothing runs any more
    assert told["sent"] < 999


async def test_what_runs_may_end_before_the_reader_does(socket: Path) -> None:
    told: dict[str, Any] = {}
    answering = await Answering.open(app("reader", told), socket, current)
    client = Client(slow=True)
    task = asyncio.create_task(called(Apart(app("server"), socket), "/admin/long", client))
    while not told:
        await asyncio.sleep(0)
    closing = asyncio.create_task(answering.close(30))
    client.take.set()
    await task
    assert client.whole
    await closing


@pytest.mark.parametrize(
    ("path", "method", "reading"),
    [
        ("/admin/usage", "GET", True),
        ("/v1/usage/requests", "GET", True),
        ("/admin/keys", "GET", True),
        ("/admin/keys", "POST", False),
        ("/admin/usage", "HEAD", False),
        ("/admin/backends", "GET", False),
        ("/v1/models", "GET", False),
        ("/metrics", "GET", False),
        ("/auth/me", "GET", False),
    ],
)
def test_what_only_reads_the_store(path: str, method: str, reading: bool) -> None:
    assert is_reading(scope(path, method)) is reading
