"""What one request may make the gateway hold or do before anybody knows who sent it, and after."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from gateway.relay.edge import MAX_HEADERS
from gateway.relay.operations import MAX_MESSAGES
from tests.security.inside import Inside, inside

CHAT = "/v1/chat/completions"


async def answered(own: Inside, head: str, body: bytes = b"") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    try:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        line = await asyncio.wait_for(reader.readline(), 10)
        return int(line.split()[1])
    finally:
        writer.close()


async def test_a_stranger_is_told_so_before_the_body(own: Inside) -> None:
    """The head alone is here; nothing of the body is waited for."""
    for path in (CHAT, "/admin/users"):
        assert await answered(own, f"POST {path} HTTP/1.1\nhost: x\ncontent-length: 30000000\n") == 401


async def test_bodies_are_bounded(own: Inside, tmp_path: Any, prepared_home: Any) -> None:
    async with inside(tmp_path / "small", prepared_home, GATEWAY_MAX_BODY_MB="0.1") as small:
        key = await small.key("k")
        async with small.client(key) as http:
            assert (await http.post(CHAT, content=b" " * 200_000)).status_code == 413
        said = f"POST {CHAT} HTTP/1.1\nhost: x\nauthorization: Bearer {key}\ncontent-length: 200000\n"
        assert await answered(small, said) == 413
    async with own.client(await own.log_in(own.admin)) as http:
        assert (await http.post("/admin/keys", content=b" " * 5_000_000)).status_code == 413
    async with own.client() as http:
        assert (await http.post("/auth/login", content=b" " * 100_000)).status_code == 413


@pytest.mark.parametrize("path", [CHAT, "/auth/login"])
async def test_a_body_has_a_time_in_all(tmp_path: Any, prepared_home: Any, path: str) -> None:
    """However soon each read comes after the one before."""
    async with inside(tmp_path / "short", prepared_home, GATEWAY_TIMEOUT_BODY_S="0.3") as short:
        reader, writer = await asyncio.open_connection("127.0.0.1", short.port)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {await short.key('k')}\r\ncontent-length: 900\r\n\r\n"
        writer.write(head.encode())
        line = asyncio.create_task(reader.readline())
        for _ in range(100):
            writer.write(b" ")
            await asyncio.sleep(0.02)
            if line.done():
                break
        writer.close()
        assert line.done(), "100 reads in 2 s, and it waits for more"
        assert (await line).startswith(b"HTTP/1.1 408 ")
        assert short.services.relay.held_bytes == 0


async def test_a_compressed_body_is_not_unpacked(own: Inside) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    async with own.client(await own.key("k")) as http:
        for coding in ("gzip", "deflate", "br", "zstd", "GZIP", "x-gzip"):
            answer = await http.post(CHAT, content=bomb, headers={"content-encoding": coding})
            assert answer.status_code == 415, coding
        assert (await http.post(CHAT, content=bomb)).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 16384},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": -1},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 10**30},
    ],
    ids=["messages", "n", "negative n", "max_tokens"],
)
async def test_counts_are_bounded(own: Inside, body: dict[str, Any]) -> None:
    async with own.client(await own.key("k")) as http:
        answer = await http.post(CHAT, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_nesting_is_bounded(own: Inside) -> None:
    deep = b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    async with own.client(await own.key("k")) as http:
        assert (await http.post(CHAT, content=deep)).status_code == 400
    async with own.client(await own.log_in(own.admin)) as http:
        assert (await http.post("/admin/keys", content=deep)).status_code == 400


async def test_heads_are_bounded(own: Inside) -> None:
    many = "".join(f"x-{number}: 1\n" for number in range(MAX_HEADERS + 20))
    assert await answered(own, f"GET /healthz HTTP/1.1\nhost: x\n{many}") == 431
    assert await answered(own, f"GET /healthz HTTP/1.1\nhost: x\nx: {'a' * 100_000}\n") == 431


async def test_what_is_listed_or_named_is_bounded(own: Inside) -> None:
    async with own.client(await own.log_in(own.admin)) as http:
        for body in (
            {"name": "k", "models": ["*"] * 101},
            {"name": "k" * 201},
            {"name": "k", "models": ["x" * 1000]},
            {"name": "k", "rpm": 10**40},
            {"name": "k", "budget": "9" * 50},
            {"name": "k", "description": "d" * 100_000},
            {"name": "k", "networks": ["10.0.0.0/8"] * 5_000},
        ):
            answer = await http.post("/admin/keys", content=json.dumps(body))
            assert answer.status_code == 400, (list(body), answer.text)


async def test_passwords_of_any_length_cost_nothing_more(own: Inside) -> None:
    async with own.client() as http:
        answer = await http.post("/auth/login", json={"email": own.admin, "password": "x" * 60_000})
        assert answer.status_code == 400
