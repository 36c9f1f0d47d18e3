"""Every way a backend can fail before its answer stands: a clean status, an exact record, nothing sent twice, nothing left over."""

from __future__ import annotations

import gzip
import socket

import orjson
import pytest

from gateway.routing.table import Timeouts
from tests.faults import scripts
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, answers, frame, raw, resets, silence, stream
from tests.gateway_process import free_port
from tests.upstream import Script, Seen, Wire, chat_answer, well_behaved

ERROR = {"error": {"message": "it is full", "type": "x", "param": None, "code": None}}
FULL = {"error": {"message": "slow down", "type": "rate_limit_exceeded", "param": None, "code": "rate_limit_exceeded"}}
QUICK, CALM = Timeouts(2, 0.25, 5, 30), Timeouts(2, 10, 5, 30)

CALLS = {
    "chat": ("/v1/chat/completions", CHAT),
    "stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "completion": ("/v1/completions", {"model": "m", "prompt": "hi"}),
    "completion-stream": ("/v1/completions", {"model": "m", "prompt": "hi", "stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": "hi"}),
}


async def _head_then_nothing(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await scripts.closed(wire, seen)


async def _head_then_reset(wire: Wire, seen: Seen) -> None:
    await wire.head(200, "application/json", content_length="100")
    wire.reset()


async def _comments_only(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await wire.chunk(b": still thinking\n\n")
    await scripts.closed(wire, seen)


FAULTS: dict[str, tuple[Script, int, str, str]] = {
    "reset": (resets(), 502, "upstream_error", "upstream_error"),
    "closed": (raw(b""), 502, "upstream_error", "upstream_error"),
    "half a head": (raw(b"HTTP/1.1 200 OK\r\ncontent-ty"), 502, "upstream_error", "upstream_error"),
    "garbage": (raw(b"\x00\x01 no http at all\r\n\r\n"), 502, "upstream_error", "upstream_error"),
    "head then reset": (_head_then_reset, 502, "upstream_error", "upstream_error"),
    "short body": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{}"),
        502,
        "upstream_error",
        "upstream_error",
    ),
    "cut chunk": (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}"), 502, "upstream_error", "upstream_error"),
    "bad chunk": (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}"), 502, "upstream_error", "upstream_error"),
    "html": (answers(b"<html>oops 10.1.2.3</html>", 200, "text/html"), 502, "upstream_error", "upstream_error"),
    "half json": (answers(b'{"id": "x", "cho'), 502, "upstream_error", "upstream_error"),
    "json string": (answers(b'"hello"'), 502, "upstream_error", "upstream_error"),
    "empty": (answers(b""), 502, "upstream_error", "upstream_error"),
    "gzip": (answers(gzip.compress(b"{}"), content_encoding="gzip"), 502, "upstream_error", "upstream_error"),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), 502, "upstream_error", "upstream_error"),
    "upgrade": (
        raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
        502,
        "upstream_error",
        "upstream_error",
    ),
    "endless 100": (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000), 502, "upstream_error", "upstream_error"),
    "huge head": (raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000), 502, "upstream_error", "upstream_error"),
    **{
        f"{s}": (answers(ERROR, s), 502, "upstream_error", "upstream_error")
        for s in (301, 302, 304, 401, 402, 403, 407, 500, 502, 504, 599)
    },
    "503": (answers(ERROR, 503, retry_after="7"), 503, "upstream_unavailable", "upstream_error"),
    "529": (answers(ERROR, 529, retry_after="7"), 503, "upstream_unavailable", "upstream_error"),
    "500 html": (answers(b"<html>Traceback</html>", 500, "text/html"), 502, "upstream_error", "upstream_error"),
    "silence": (silence(), 504, "upstream_first_byte_timeout", "timeout"),
}


async def _check_failure(stage: Scene, call: str, status: int, code: str, ending: str) -> None:
    path, body = CALLS[call]
    answer = await stage.post(body, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert "10.1.2.3" not in answer.body.decode()
    assert "Traceback" not in answer.body.decode()
    record = await stage.record()
    assert (record.status, record.ending, record.attempts, record.backend) == (status, ending, 1, "b1")
    assert record.request_id == answer.headers["x-request-id"]
    assert record.ttft_ms is None
    assert record.completion_tokens == 0
    if ending != "timeout":
        assert (record.prompt_tokens, record.cost_pusd) == (0, 0)
    assert len(stage.up.seen) == 1, "one upstream call"


@pytest.mark.parametrize("call", ["chat", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_one_backend_that_fails(fault: str, call: str) -> None:
    script, status, code, ending = FAULTS[fault]
    async with scene(script, timeouts=QUICK if fault == "silence" else CALM) as stage:
        await _check_failure(stage, call, status, code, ending)


@pytest.mark.parametrize("call", ["completion", "completion-stream", "embeddings"])
@pytest.mark.parametrize("fault", ["reset", "html", "500", "503"])
async def test_every_operation_fails_alike(fault: str, call: str) -> None:
    script, status, code, ending = FAULTS[fault]
    async with scene(script, timeouts=CALM) as stage:
        await _check_failure(stage, call, status, code, ending)


@pytest.mark.parametrize(
    "script",
    [
        stream(),
        stream(frame(ERROR)),
        stream(b": hi\n\n" + frame(ERROR) + frame(ROLE)),
        stream(frame(b"{half")),
        stream(b'data: {"half'),
        stream(b"<html><body>\n\n</body></html>\n\n"),
        stream(b": a comment\n\n"),
        stream(b"event: ping\n\n"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: x\n\ndata: {"),
    ],
    ids=["nothing", "error", "comment, error", "not json", "half a frame", "html", "comment", "no data", "eof", "eof in a frame"],
)
async def test_a_stream_without_a_first_event(script: Script) -> None:
    async with scene(script) as stage:
        await _check_failure(stage, "stream", 502, "upstream_error", "upstream_error")


@pytest.mark.parametrize("script", [_head_then_nothing, _comments_only])
async def test_a_stream_that_does_not_begin(script: Script) -> None:
    async with scene(script, timeouts=QUICK) as stage:
        await _check_failure(stage, "stream", 504, "upstream_first_byte_timeout", "timeout")
        await stage.up.seen[0].closed.wait()


async def test_the_total_clock() -> None:
    async with scene(silence(), timeouts=Timeouts(2, 0, 0, 0.2)) as stage:
        await _check_failure(stage, "chat", 504, "upstream_total_timeout", "timeout")


async def test_a_backend_that_nobody_listens_at() -> None:
    async with scene(f"http://127.0.0.1:{free_port()}/v1") as stage:
        for number, stream_it in enumerate((False, True), 1):
            answer = await stage.chat(stream_it)
            assert (answer.status, answer.code) == (502, "upstream_error")
            assert "127.0.0.1" not in answer.body.decode()
            record = await stage.record(number)
            assert (record.ending, record.attempts, record.prompt_tokens) == ("upstream_error", 1, 0)


async def test_a_backend_that_does_not_accept() -> None:
    """A full backlog: the connect clock runs out, and nothing is charged because nothing was sent."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        try:
            async with scene(f"http://127.0.0.1:{port}/v1", timeouts=Timeouts(0.3, 10, 10, 20)) as stage:
                answer = await stage.chat()
                assert (answer.status, answer.code) == (504, "upstream_connect_timeout")
                record = await stage.record()
                assert (record.ending, record.prompt_tokens, record.completion_tokens) == ("timeout", 0, 0)
        finally:
            for filler in fillers:
                filler.close()


async def test_no_such_host() -> None:
    async with scene("http://no-such-host.invalid/v1") as stage:
        assert (await stage.chat()).code in ("upstream_error", "upstream_connect_timeout"), "a name server may not answer"
    async with scene(f"http://{'a' * 70}.invalid/v1") as stage:
        assert (await stage.chat()).code in ("upstream_error", "upstream_connect_timeout"), "a name server may not answer"


@pytest.mark.parametrize("status", [400, 404, 408, 409, 413, 415, 422, 451])
async def test_other_4xx_pass(status: int) -> None:
    body = {"error": {"message": "no", "type": "invalid_request_error", "param": "messages", "code": "bad"}}
    async with scene(answers(body, status), answers(body, 500)) as stage:
        answer = await stage.chat()
        assert (answer.status, answer.body) == (status, orjson.dumps(body))
        record = await stage.record()
        assert (record.status, record.ending, record.attempts, record.prompt_tokens) == (status, "rejected", 1, 0)
        assert not stage.ups[1].seen, "a 4xx is never tried elsewhere"


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"detail":"wrong"}', "wrong", None),
        (b'{"error":"wrong"}', "wrong", None),
        (b'{"error":{"message":"wrong","type":"t","param":"p","code":400}}', "wrong", None),
        (b'{"object":"error","message":"wrong","type":"BadRequestError","param":null,"code":400}', "wrong", None),
        (b"<html>10.1.2.3</html>", "The backend refused the request with status 400.", None),
        (b"", "The backend refused the request with status 400.", None),
        (
            b'{"error":{"message":"This model\'s maximum context length is 16 tokens, you asked for 99","code":400}}',
            "This model's maximum context length is 16 tokens, you asked for 99",
            "context_length_exceeded",
        ),
    ],
)
async def test_a_4xx_of_another_shape_is_rewrapped(body: bytes, message: str, code: str | None) -> None:
    async with scene(answers(body, 400)) as stage:
        answer = await stage.chat()
        assert answer.status == 400
        assert answer.code == code
        assert answer.json["error"]["message"] == message
        assert isinstance(answer.json["error"]["type"], str)


async def test_429_passes_with_its_waiting_time() -> None:
    async with scene(answers(FULL, 429, retry_after="3", retry_after_ms="2500")) as stage:
        answer = await stage.chat()
        assert (answer.status, answer.json) == (429, FULL)
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")
        assert (await stage.record()).ending == "rejected"


async def test_429_is_tried_once_at_another_backend() -> None:
    async with scene(answers(FULL, 429), well_behaved(), well_behaved()) as stage:
        assert (await stage.chat()).status == 200
        assert (await stage.record()).attempts == 2
        assert [len(up.seen) for up in stage.ups] == [1, 1, 0]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry_after": "7"}, "7"),
        ({"retry_after": "0.2"}, "1"),
        ({"retry_after_ms": "1500"}, "2"),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "-5"}, None),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
async def test_503_with_its_waiting_time(headers: dict[str, str], expected: str | None) -> None:
    async with scene(answers(ERROR, 503, **headers)) as stage:
        answer = await stage.chat()
        assert answer.status == 503
        assert answer.headers.get("retry-after") == expected


async def test_503_with_a_date() -> None:
    async with scene(answers(ERROR, 503, retry_after="Fri, 31 Dec 2100 23:59:59 GMT")) as stage:
        answer = await stage.chat()
        assert int(answer.headers["retry-after"]) > 10**9


@pytest.mark.parametrize("stream_it", [False, True])
@pytest.mark.parametrize("fault", ["reset", "closed", "garbage", "html", "401", "500", "503", "half json"])
async def test_failover(fault: str, stream_it: bool) -> None:
    async with scene(FAULTS[fault][0], well_behaved()) as stage:
        answer = await stage.chat(stream_it)
        assert (answer.status, answer.complete) == (200, True)
        record = await stage.record()
        assert (record.ending, record.attempts, record.backend) == ("success", 2, "b2")
        assert (record.prompt_tokens, record.completion_tokens) == (7, 3)
        assert stage.ups[0].seen[0].headers["x-request-id"] == stage.ups[1].seen[0].headers["x-request-id"] == record.request_id


async def test_an_error_event_first_fails_over() -> None:
    async with scene(stream(frame(ERROR)), well_behaved()) as stage:
        answer = await stage.chat(stream=True)
        assert answer.status == 200
        assert b"it is full" not in answer.body


async def test_no_more_attempts_than_allowed() -> None:
    async with scene(answers(ERROR, 500), resets(), well_behaved()) as stage:
        answer = await stage.chat()
        assert answer.status == 502
        record = await stage.record()
        assert (record.attempts, record.backend) == (2, "b2")
        assert not stage.ups[2].seen


async def test_a_drained_route() -> None:
    async with scene() as stage:
        answer = await stage.chat()
        assert (answer.status, answer.code) == (503, "no_backend_available")
        record = await stage.record()
        assert (record.status, record.ending, record.attempts, record.backend, record.prompt_tokens) == (503, "rejected", 0, None, 0)


async def test_an_answer_above_the_cap() -> None:
    async with scene(answers(chat_answer(text="x" * 300_000)), max_answer_bytes=200_000) as stage:
        await _check_failure(stage, "chat", 502, "upstream_error", "upstream_error")


async def test_an_event_above_a_megabyte() -> None:
    async with scene(stream(b"data: " + b"x" * 1_100_000)) as stage:
        await _check_failure(stage, "stream", 502, "upstream_error", "upstream_error")


async def test_comments_before_the_first_event_are_bounded() -> None:
    async def flood(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        comment = b": " + b"x" * 10_000 + b"\n\n"
        for _ in range(500):
            await wire.chunk(comment)
        await scripts.closed(wire, seen)

    async with scene(flood) as stage:
        await _check_failure(stage, "stream", 502, "upstream_error", "upstream_error")


async def test_200_json_to_a_stream_is_an_unstreamed_answer() -> None:
    async with scene(answers(chat_answer("up"))) as stage:
        answer = await stage.chat(stream=True)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json == chat_answer("m")
        record = await stage.record()
        assert (record.ending, record.prompt_tokens, record.completion_tokens, record.ttft_ms) == ("success", 7, 3, None)


@pytest.mark.parametrize("head", [b"", b"content-type: text/plain\r\n"])
async def test_a_stream_without_its_content_type(head: bytes) -> None:
    body = frame(ROLE) + frame(b"[DONE]")
    answer_bytes = b"HTTP/1.1 200 OK\r\n" + head + b"content-length: %d\r\n\r\n" % len(body) + body
    async with scene(raw(answer_bytes, close=False), model="m") as stage:
        answer = await stage.chat(stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body == body


async def test_an_answer_delimited_by_close() -> None:
    body = orjson.dumps(chat_answer("m"))
    async with scene(raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body), model="m") as stage:
        assert (await stage.chat()).body == body
    async with scene(raw(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + body[:-5]), model="m") as stage:
        assert (await stage.chat()).status == 502
