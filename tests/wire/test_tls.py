"""TLS on both sides: a gateway with a certificate of its own in front of backends with certificates of a private authority."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from cryptography import x509
from openai import AsyncOpenAI

from tests.faults.client import Client
from tests.gateway_process import PASSWORD, free_port
from tests.upstream import Seen, Wire, chat_answer, chat_chunk, well_behaved
from tests.wire.authority import HOST, Authority
from tests.wire.tls_parts import TlsGateway, TlsUpstream

GONE_S = 0.1
DRAIN_S = 3.0
ROUTES = ("good", "expired", "otherhost", "stranger", "plain", "mute")
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Stage:
    """Everything that the tests of this file share. Each route has a backend of its own at a port of its own."""

    gateway: TlsGateway
    authority: Authority
    contexts: dict[str, ssl.SSLContext | None]
    ports: dict[str, int]
    key: str
    folder: Path

    def upstream(self, route: str, script: Callable[[Wire, Seen], Awaitable[None]] | None = None) -> TlsUpstream:
        return TlsUpstream(self.contexts[route], self.ports[route], script)

    def request(self, route: str = "good", more: tuple[str, ...] = (), version: str = "1.1", **fields: Any) -> bytes:
        data = orjson.dumps({"model": route} | BODY | fields)
        return self.head(f"content-length: {len(data)}", *more, version=version) + data

    def head(self, *more: str, version: str = "1.1") -> bytes:
        lines = [f"POST /v1/chat/completions HTTP/{version}", "host: x", f"authorization: Bearer {self.key}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.gateway.cli("ledger", "export").splitlines()]

    async def ending(self, request_id: str) -> str:
        """How the ledger says that this request ended."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = [row for row in await asyncio.to_thread(self.ledger) if row["request_id"] == request_id]
            if found:
                assert len(found) == 1
                return str(found[0]["ending"])
        raise AssertionError("never in the ledger")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority(folder), Authority(folder, "other")
    contexts = {
        "good": authority.server_context("good"),
        "expired": authority.server_context("expired", expired=True),
        "otherhost": authority.server_context("otherhost", "models.example"),
        "stranger": other.server_context("stranger"),
        "plain": None,
        "mute": None,
    }
    ports = {route: free_port() for route in ROUTES}
    models = [
        {
            "id": r,
            "timeouts": {"connect_s": 1 if r == "mute" else 10},
            "backends": [{"type": "custom", "id": r, "baseURL": f"https://{HOST}:{ports[r]}/v1", "model": r}],
        }
        for r in ROUTES
    ]
    cert, key = authority.issue("gateway")
    environment = {
        "GATEWAY_TLS_CERT_FILE": str(cert),
        "GATEWAY_TLS_KEY_FILE": str(key),
        "GATEWAY_UPSTREAM_CA_FILE": str(authority.file),
        "GATEWAY_MAX_BODY_MB": "8",
        "GATEWAY_DRAIN_S": str(DRAIN_S),
    }
    made = TlsGateway(folder / "home", json.dumps({"models": models}), environment, context=authority.client_context())
    try:
        made.start()
        yield Stage(made, authority, contexts, ports, made.key(), folder)
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        made.kill()


@pytest.fixture(autouse=True)
async def _gone(stage: Stage) -> AsyncIterator[None]:
    yield
    await stage.gateway.drop_clients()


def pieces(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


async def rest(client: Client) -> bytes:
    """What is left of a chunked answer."""
    found = []
    while length := int(await client.reader.readuntil(b"\r\n"), 16):
        found.append(await client.reader.readexactly(length))
        await client.reader.readexactly(2)
    return b"".join(found)


# bytes


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_stream_comes_byte_for_byte(stage: Stage, size: int) -> None:
    events = [chat_chunk({"content": f"\u00e9\U0001f642 {n}"}, model="good") for n in range(8)] + [chat_chunk({}, "stop", model="good")]
    sent = b": odd\r\n\r\n" + b"".join(b"data:  " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for piece in pieces(sent, size):
            await wire.chunk(piece)
        await wire.end()

    async with stage.upstream("good", script):
        client = await stage.gateway.connect()
        client.send(stage.request(stream=True, stream_options={"include_usage": True}))
        answer = await client.answer()
        client.close()
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body == sent


async def test_an_answer_comes_byte_for_byte(stage: Stage) -> None:
    sent = b'{ "id":"x", "object" : "chat.completion","model":"good",  "choices":[], "odd": 1.50, "text":"\\u00e9" }\n'

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer(sent)

    async with stage.upstream("good", script) as up:
        client = await stage.gateway.connect()
        client.send(stage.request(odd={"b": [1, 2.50]}))
        answer = await client.answer()
        client.close()
        assert answer.body == sent
        assert up.seen[0].body == orjson.dumps({"model": "good", **BODY, "odd": {"b": [1, 2.50]}})
        assert up.seen[0].headers["host"] == f"{HOST}:{up.port}"


async def test_the_sdk(stage: Stage) -> None:
    http = httpx2.AsyncClient(verify=stage.authority.client_context(), trust_env=False)
    async with (
        stage.upstream("good"),
        AsyncOpenAI(base_url=f"{stage.gateway.url}/v1", api_key=stage.key, max_retries=0, http_client=http) as sdk,
    ):
        whole = await sdk.chat.completions.create(model="good", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == "hello there friend"
        stream = await sdk.chat.completions.create(model="good", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "w0 w1 w2 "


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_bodies(stage: Stage, framing: str) -> None:
    text = os.urandom(2_500_000).hex()  # 5 MB
    data = orjson.dumps({"model": "good", "messages": [{"role": "user", "content": text}]})
    answer_body = orjson.dumps(chat_answer("good", os.urandom(8_000_000).hex()))  # 16 MB
    told: list[str] = []

    async def script(wire: Wire, seen: Seen) -> None:
        told.append(hashlib.sha256(seen.body).hexdigest())
        await wire.answer(answer_body)

    async with stage.upstream("good", script):
        client = await stage.gateway.connect()
        if framing == "length":
            client.send(stage.head(f"content-length: {len(data)}") + data)
        else:
            client.send(stage.head("transfer-encoding: chunked"))
            for piece in pieces(data, 100_000):
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        answer = await client.answer()
        client.close()
    assert told == [hashlib.sha256(data).hexdigest()]
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(answer_body).digest()


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_a_slow_client_holds_the_backend_up_and_loses_nothing(stage: Stage) -> None:
    event = b"data: " + orjson.dumps(chat_chunk({"content": "x" * 10_000}, model="good")) + b"\n\n"
    count, sent = 4_000, 0  # 40 MB; the kernel's own buffers take some 12
    (server,) = stage.gateway.children("gateway.cli.server")
    resident = _resident_bytes(server)

    async def script(wire: Wire, seen: Seen) -> None:
        nonlocal sent
        await wire.sse_head()
        for _ in range(count):
            await wire.chunk(event)
            sent += 1
        await wire.chunk(b"data: [DONE]\n\n")
        await wire.end()

    async with stage.upstream("good", script):
        client = await stage.gateway.connect(receive_buffer=32_768)
        client.send(stage.request(stream=True, stream_options={"include_usage": True}))
        await client.head()
        before = -1
        while sent != before:  # until the backend is held up
            before = sent
            await asyncio.sleep(0.3)
        assert sent < count // 2
        assert _resident_bytes(server) - resident < 4_000_000
        assert await rest(client) == event * count + b"data: [DONE]\n\n"


# leaving


@dataclass
class Watch:
    """When the backend saw the gateway leave."""

    began: asyncio.Event
    left: asyncio.Event
    left_s: float = 0.0


def watching(first: bytes | None, stream: bool) -> tuple[Watch, Callable[[Wire, Seen], Awaitable[None]]]:
    """A backend that sends `first` (of a stream, of an answer, or nothing) and then waits for the end."""
    watch = Watch(asyncio.Event(), asyncio.Event())

    async def script(wire: Wire, seen: Seen) -> None:
        if first is not None:
            await (wire.sse_head() if stream else wire.head(content_length="1000"))
            await (wire.chunk(first) if stream else wire.send(first))
        watch.began.set()
        try:
            await wire.until_closed()
        except ConnectionError:
            pass
        watch.left_s = time.monotonic()
        watch.left.set()
        wire.close()

    return watch, script


def _close(client: Client) -> None:
    client.close()


def _reset(client: Client) -> None:
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


def _vanish(client: Client) -> None:
    """A FIN without TLS's own goodbye."""
    client.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)


@pytest.mark.alone
@pytest.mark.parametrize("leave", [_close, _reset, _vanish])
@pytest.mark.parametrize("when", ["mid-stream", "before the first byte", "unstreamed", "mid-answer"])
async def test_a_client_that_leaves_stops_the_backend(stage: Stage, when: str, leave: Callable[[Client], None]) -> None:
    stream = when in ("mid-stream", "before the first byte")
    first = {"mid-stream": b"data: " + orjson.dumps(chat_chunk({"content": "a"}, model="good")) + b"\n\n", "mid-answer": b"{"}.get(when)
    watch, script = watching(first, stream)
    async with stage.upstream("good", script):
        client = await stage.gateway.connect()
        client.send(stage.request(stream=stream))
        await asyncio.wait_for(watch.began.wait(), 5)
        if when == "mid-stream":
            await client.head()
            await client.chunk()
        left_s = time.monotonic()
        leave(client)
        await asyncio.wait_for(watch.left.wait(), 5)
        client.close()
    assert watch.left_s - left_s < GONE_S


@pytest.mark.alone
async def test_a_client_that_leaves_during_the_handshake_with_the_backend(stage: Stage) -> None:
    greeted, left = asyncio.Event(), asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        greeted.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        left.set()
        writer.close()

    async with await asyncio.start_server(mute, HOST, stage.ports["mute"]):
        client = await stage.gateway.connect()
        client.send(stage.request("mute"))
        await asyncio.wait_for(greeted.wait(), 5)
        client.close()
        await asyncio.wait_for(left.wait(), GONE_S)


@pytest.mark.alone
async def test_half_closing_is_leaving(stage: Stage) -> None:
    """A goodbye of TLS says that nothing more will come; whoever says so mid-answer is taken to have left, as on plain TCP."""
    watch, script = watching(None, stream=False)
    async with stage.upstream("good", script):

        def half_close() -> bytes:
            with (
                socket.create_connection((HOST, stage.gateway.port)) as raw,
                stage.authority.client_context().wrap_socket(raw, server_hostname=HOST) as sock,
            ):
                sock.sendall(stage.request())
                loop.call_soon_threadsafe(sent.set)
                said.wait(5)
                sock.settimeout(3)
                with contextlib.suppress(OSError):
                    return sock.unwrap().recv(100)
                return b""

        import threading

        loop, sent, said = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        closing = asyncio.create_task(asyncio.to_thread(half_close))
        await asyncio.wait_for(watch.began.wait(), 5)
        said_s = time.monotonic()
        said.set()
        await asyncio.wait_for(watch.left.wait(), 5)
        assert watch.left_s - said_s < GONE_S
        assert await closing == b""


# certificates of backends


@pytest.mark.parametrize("route", ["expired", "otherhost", "stranger"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_backend_that_cannot_prove_itself_gets_nothing(stage: Stage, route: str, stream: bool) -> None:
    async with stage.upstream(route) as up:
        client = await stage.gateway.connect()
        client.send(stage.request(route, stream=stream))
        answer = await client.answer()
        client.close()
        assert (answer.status, answer.code) == (502, "upstream_error")
        assert not up.seen
    assert HOST.encode() not in answer.body
    assert str(stage.ports[route]).encode() not in answer.body
    assert await stage.ending(answer.headers["x-request-id"]) == "upstream_error"


async def test_a_backend_without_tls_is_not_asked_without_it(stage: Stage) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    told: list[bytes] = []
    async with await asyncio.start_server(plain, HOST, stage.ports["plain"]):
        client = await stage.gateway.connect()
        client.send(stage.request("plain"))
        answer = await client.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    # A handshake record and no line of HTTP; words as short as the prompt's come up in its random bytes.
    assert all(said[:1] == b"\x16" and b"HTTP/1.1" not in said for said in told)


async def test_a_handshake_that_hangs_is_a_connection_that_does_not_come(stage: Stage) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    async with await asyncio.start_server(mute, HOST, stage.ports["mute"]):
        client = await stage.gateway.connect()
        started_s = time.monotonic()
        client.send(stage.request("mute"))
        answer = await client.answer()
        client.close()
    assert (answer.status, answer.code) == (504, "upstream_connect_timeout")
    assert 0.9 < time.monotonic() - started_s < 5


# the connection of the client


async def test_connections_are_kept_on_both_sides(stage: Stage) -> None:
    async with stage.upstream("good") as up:
        client = await stage.gateway.connect()
        asked: list[tuple[dict[str, Any], int]] = [({}, 200), ({"stream": True}, 200), ({"messages": []}, 400), ({}, 200)]
        for fields, status in [*asked, ({"stream": True}, 200), ({"model": "no such"}, 404), ({}, 200)]:
            client.send(stage.request(**fields))
            answer = await client.answer()
            assert answer.status == status
            assert "connection" not in answer.headers
        client.close()
        assert (len(up.seen), up.connections) == (5, 1)


async def test_pipelined_requests_and_their_split_records(stage: Stage) -> None:
    async with stage.upstream("good", well_behaved()):
        client = await stage.gateway.connect()
        for piece in pieces(stage.request(user="1") + stage.request(stream=True) + stage.request(user="2"), 50):
            client.send(piece)
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
        client.close()


async def test_http_1_0_ends_with_a_goodbye(stage: Stage) -> None:
    """A body that ends where the connection does must end with close_notify: else it cannot be told from one that was cut."""
    async with stage.upstream("good"):
        context = stage.authority.client_context()

        def ask() -> bytes:
            with (
                socket.create_connection((HOST, stage.gateway.port)) as raw,
                context.wrap_socket(raw, server_hostname=HOST, suppress_ragged_eofs=False) as sock,
            ):
                sock.settimeout(5)
                sock.sendall(stage.request(version="1.0", stream=True))
                whole = b""
                while data := sock.recv(65536):
                    whole += data
                return whole

        head, _, body = (await asyncio.to_thread(ask)).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_413_reaches_a_client_that_sends_first_and_reads_afterwards(stage: Stage, framing: str) -> None:
    """TLS cannot shut down one direction: what was refused is read and dropped for a while before the connection is closed."""
    size = 9_000_000
    client = await stage.gateway.connect()
    client.send(stage.head(f"content-length: {size}" if framing == "length" else "transfer-encoding: chunked"))
    piece = b"x" * 100_000
    with contextlib.suppress(ConnectionError):
        for _ in range(size // len(piece)):
            client.send(piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.writer.drain()
    answer = await client.answer()
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert await client.rest() == b""  # and it is closed in the end
    client.close()


async def test_garbage_is_a_400_and_the_end(stage: Stage) -> None:
    client = await stage.gateway.connect()
    client.send(b"\x16\x03 nonsense\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert await client.rest() == b""
    client.close()


async def test_plain_http_is_not_spoken_and_harms_nobody(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection(HOST, stage.gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert b"HTTP/" not in await asyncio.wait_for(reader.read(-1), 5)
    writer.close()
    assert "Traceback" not in stage.gateway.log()
    with stage.gateway.http() as http:
        assert http.get("/healthz").status_code == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_versions_and_protocol(stage: Stage) -> None:
    def offer(version: ssl.TLSVersion, alpn: list[str]) -> tuple[str | None, str | None]:
        context = stage.authority.client_context()
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.set_alpn_protocols(alpn)
        with socket.create_connection((HOST, stage.gateway.port)) as raw, context.wrap_socket(raw, server_hostname=HOST) as sock:
            return sock.version(), sock.selected_alpn_protocol()

    assert offer(ssl.TLSVersion.TLSv1_3, ["h2", "http/1.1"]) == ("TLSv1.3", "http/1.1")
    assert offer(ssl.TLSVersion.TLSv1_2, ["http/1.1"]) == ("TLSv1.2", "http/1.1")
    with pytest.raises(ssl.SSLError):
        offer(ssl.TLSVersion.TLSv1_1, ["http/1.1"])


def test_the_control_plane_knows_that_it_is_safe(stage: Stage) -> None:
    with stage.gateway.http() as http:
        answer = http.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD, "cookie": True})
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "gateway_build_info" in http.get("/metrics").text
    stage.gateway.environment["PORT"] = str(stage.gateway.port)
    said = stage.gateway.cli("doctor")
    assert "the gateway answers" in said
    assert "gateway.crt and its key can be used" in said


def test_the_images_health_check_speaks_tls_too(stage: Stage) -> None:
    lines = (Path(__file__).parents[2] / "deploy" / "Dockerfile").read_text().splitlines()
    check = next(line for line in lines if line.strip().startswith("CMD") and "readyz" in line)
    _, option, program = json.loads(check.partition("CMD")[2])

    def health(port: int) -> int:
        environment = {
            "PORT": str(port),
            "GATEWAY_HOME": str(stage.gateway.home),
            "GATEWAY_TLS_CERT_FILE": stage.gateway.environment["GATEWAY_TLS_CERT_FILE"],
        }
        return subprocess.run([sys.executable, option, program], env=environment, capture_output=True).returncode

    assert health(stage.gateway.port) == 0
    assert health(free_port()) != 0


# the files


def _serial(stage: Stage) -> int:
    context = stage.authority.client_context()
    with socket.create_connection((HOST, stage.gateway.port)) as raw, context.wrap_socket(raw, server_hostname=HOST) as sock:
        der = sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def _of(cert: Path) -> int:
    return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number


def replaced(file: Path, by: Path) -> None:
    """In one step: no half of it can be read."""
    shutil.copyfile(by, file.with_suffix(".next")).replace(file)


async def until(condition: Callable[[], bool], what: str, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def test_changed_files_are_taken_up_and_standing_connections_go_on(stage: Stage) -> None:
    cert, key = stage.folder / "gateway.crt", stage.folder / "gateway.key"
    before = await asyncio.to_thread(_serial, stage)
    assert before == _of(cert)
    new_cert, new_key = stage.authority.issue("renewed")
    async with stage.upstream("good", well_behaved(words=40, delay_s=0.1)):
        client = await stage.gateway.connect()
        client.send(stage.request(stream=True))
        await client.head()
        replaced(cert, new_cert)  # the chain alone: it does not belong to the key that is there
        await until(lambda: "cannot be used" in stage.gateway.log(), "nothing is said of files that do not belong together")
        assert await asyncio.to_thread(_serial, stage) == before
        replaced(key, new_key)
        await until(lambda: _serial(stage) == _of(new_cert), "the new certificate is not in force")
        body = await rest(client)
        client.close()
    assert body.endswith(b"data: [DONE]\n\n")
    assert stage.gateway.log().count("cannot be used") == 1


async def test_a_stop_lets_streams_finish_and_tells_those_that_cannot(stage: Stage) -> None:
    """Last of this file: it ends the gateway."""

    async def script(wire: Wire, seen: Seen) -> None:
        await well_behaved(words=seen.json["words"], delay_s=0.1)(wire, seen)

    async with stage.upstream("good", script):
        short, long, idle = [await stage.gateway.connect() for _ in range(3)]
        heads = []
        for client, words in ((short, 15), (long, 200)):
            client.send(stage.request(stream=True, words=words))
            heads.append((await client.head())[1])
        stopped_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(stage.gateway.stop, signal.SIGTERM))
        assert (await rest(short)).endswith(b"data: [DONE]\n\n")
        assert await idle.rest() == b""
        last = (await rest(long)).rstrip().rpartition(b"data: ")[2]
        assert orjson.loads(last)["error"]["code"] == "shutting_down"
        assert await stopping == 0
        assert DRAIN_S - 0.2 < time.monotonic() - stopped_s < DRAIN_S + 12  # the long one would take 20
    assert [await stage.ending(head["x-request-id"]) for head in heads] == ["success", "shutdown"]
    assert "Traceback" not in stage.gateway.log()
