"""Points 1 to 15 of tests/wire/points.py: HTTP and headers."""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import formatdate
from typing import Any

import openai
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from auth.principal import Limits
from tests.faults.client import Answer
from tests.upstream import Seen, Wire, chat_answer, chat_chunk, well_behaved
from tests.wire.served import Served
from tests.wire.stage import CHAT, EMBEDDING, ENDPOINTS, answers, frame, stage, streams

RESET = re.compile(r"(\d+h)?(\d+m)?\d+(\.\d+)?s|\d+ms")


# 1


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (CHAT, "/v1/chat/completions", 200),
        (CHAT | {"stream": True}, "/v1/chat/completions", 200),
        (b"{", "/v1/chat/completions", 400),
        (EMBEDDING | {"model": "none"}, "/v1/embeddings", 404),
        (b"x" * 1_100_000, "/v1/completions", 413),
    ],
)
async def test_01_every_answer_has_a_request_id(body: Any, path: str, status: int) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(body, path)
        assert answer.status == status
        assert re.fullmatch(r"[\w-]{20,64}", answer.headers["x-request-id"])
        refused = await s.post(body, path, key="sk-wrong")
        assert refused.status == 401
        assert refused.headers["x-request-id"] != answer.headers["x-request-id"]


async def test_01_the_sdk_shows_it() -> None:
    async with stage(well_behaved()) as s, s.sdk() as sdk:
        made = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert made._request_id == (await s.server.ledger.wait(1))[0].request_id
        s.up.script = answers({"oops": 1}, 500)
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.request_id == (await s.server.ledger.wait(2))[1].request_id


def test_01_beside_the_relay_too(served: Served) -> None:
    with served.bare() as http:
        for method, path in [
            ("GET", "/health"),
            ("GET", "/v1/models"),
            ("GET", "/none"),
            ("PUT", "/v1/models"),
            ("GET", "/v1/chat/completions"),
        ]:
            assert http.request(method, path).headers["x-request-id"], path


# 2


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_02_the_scheme_in_any_case(scheme: str) -> None:
    async with stage(well_behaved()) as s:
        assert (await s.post(CHAT, "/v1/chat/completions", f"authorization: {scheme} {s.server.key}", key="")).status == 200


@pytest.mark.parametrize(
    "line",
    [
        "x-other: 1", "authorization:", "authorization: Bearer", "authorization: Bearer ", "authorization: Basic eDp5",
        "authorization: sk-wrong", "authorization: Bearer sk-wrong", "authorization: Bearer \u00e9\u00ff", "authorization: Bearer a b c",
        "authorization: Bearer " + "x" * 9000, "authorization: Bearer eyJhbGciOiJub25lIn0.e30.", "x-api-key: wrong", "api-key:",
    ],
)  # fmt: skip
async def test_02_everything_else_is_401(line: str) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(CHAT, "/v1/chat/completions", line, key="")
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert not s.up.seen


async def test_02_the_credential_is_judged_before_the_body() -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        client.send(s.head("/v1/chat/completions", "content-length: 500000", key="sk-wrong"))  # and no body
        answer = await client.answer()
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        answer = await s.post(b"not json at all", key="sk-wrong")
        assert answer.status == 401


# 3


SECRETS = (b"upstream-secret", b"127.0.0.1", b"localhost", b"Traceback", b'File "')


@pytest.mark.parametrize("status", [200, 301, 401, 403, 500, 502, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_03_nothing_of_ours_or_of_the_backend_is_echoed(status: int, stream: bool) -> None:
    page = b'<html>upstream-secret at http://127.0.0.1:9/v1 Traceback (most recent call last): File "x.py"</html>'
    async with stage(answers(page, status, "text/html", location="http://127.0.0.1:9/")) as s:
        answer = await s.post(CHAT | {"stream": stream})
        assert answer.status in (502, 503)
        _nothing_leaks(answer, s.server.key, s.up.port)


async def test_03_nor_what_cannot_be_reached() -> None:
    async with stage(well_behaved()) as s:
        port = s.up.port
        await s.up.__aexit__()
        answer = await s.post()
        assert answer.status == 502
        _nothing_leaks(answer, s.server.key, port)


async def test_03_nor_a_wrong_key() -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(key="sk-gw-abcdefghijkl-verysecretindeed")
        assert answer.status == 401
        assert b"verysecret" not in answer.body
        assert b"abcdefghijkl" not in answer.body


def _nothing_leaks(answer: Answer, key: str, port: int) -> None:
    whole = answer.body + repr(answer.headers).encode()
    for secret in (*SECRETS, key.encode(), str(port).encode()):
        assert secret not in whole
    assert answer.json["error"].keys() == {"message", "type", "param", "code"}


# 4


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/json; charset=utf-8", "application/octet-stream"])
async def test_04_json_is_application_json_whatever_the_backend_calls_it(content_type: str) -> None:
    async with stage(answers(chat_answer("m"), content_type=content_type)) as s, s.sdk() as sdk:
        assert (await s.post()).headers["content-type"].partition(";")[0] == "application/json"
        assert (await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])).choices


async def test_04_errors_too() -> None:
    async with stage(answers(b"nope", 422, "text/plain")) as s:
        for answer in (await s.post(), await s.post(b"{"), await s.post(CHAT | {"model": "none", "stream": True}), await s.post(key="no")):
            assert answer.headers["content-type"] == "application/json"
            assert answer.code is not None or answer.status == 422


# 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "headers", [{"retry-after": "7"}, {"retry-after": "0.5"}, {"retry-after-ms": "250"}, {"retry-after-ms": "250", "retry-after": "1"}]
)
async def test_05_retry_after_of_a_backends_429_passes(headers: dict[str, str], stream: bool) -> None:
    async with stage(answers({"error": {"message": "slow", "type": "x", "param": None, "code": "rate"}}, 429, **headers)) as s:
        answer = await s.post(CHAT | {"stream": stream})
        assert answer.status == 429
        assert {name: answer.headers.get(name) for name in headers} == headers


async def test_05_a_date_passes_too() -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    async with stage(answers({"x": 1}, 429, **{"retry-after": date})) as s:
        assert (await s.post()).headers["retry-after"] == date


@pytest.mark.parametrize("status", [503, 529])
async def test_05_retry_after_of_a_busy_backend_passes(status: int) -> None:
    async with stage(answers(b"busy", status, "text/plain", retry_after="7")) as s:
        answer = await s.post()
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.alone
async def test_05_the_sdk_waits_as_long_as_it_says() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        if len(s.up.seen) == 1:
            await wire.answer({"x": 1}, 429, **{"retry-after-ms": "300"})
        else:
            await wire.answer(chat_answer("m"))

    async with stage(script) as s, s.sdk(retries=1) as sdk:
        started_s = time.monotonic()
        await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert time.monotonic() - started_s >= 0.3


# 6


@pytest.mark.parametrize("spoil", [{"messages": []}, {"n": 0}, {"model": "none"}, {"stream": "yes"}, {"max_tokens": -1}])
async def test_06_mistakes_of_clients_are_not_sent_again(spoil: dict[str, Any]) -> None:
    async with stage(well_behaved()) as s, s.sdk(retries=2) as sdk:
        before = s.server.relay.meter
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.post("/chat/completions", body=CHAT | spoil, cast_to=object)
        assert caught.value.status_code in (400, 404)
        assert not s.up.seen
        assert before.running() == 0


async def test_06_a_backends_400_is_asked_once_and_its_failure_three_times() -> None:
    async with stage(answers({"error": "no"}, 400)) as s, s.sdk(retries=2) as sdk:
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert len(s.up.seen) == 1
        s.up.script = answers(b"", 503, retry_after="0")
        with pytest.raises(openai.InternalServerError):
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert len(s.up.seen) == 4


async def test_06_what_never_fits_says_that_it_is_not_to_be_sent_again() -> None:
    async with stage(well_behaved()) as s:
        key = s.server.keys.issue(Limits(tpm=10))
        answer = await s.post(CHAT | {"max_tokens": 1000}, key=key)
        assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")


# 7


async def test_07_rate_limit_headers() -> None:
    async with stage(well_behaved()) as s:
        key = s.server.keys.issue(Limits(rpm=3, tpm=100_000))
        seen = [await s.post(CHAT | {"stream": stream}, key=key) for stream in (False, True, False, False)]
        assert [answer.status for answer in seen] == [200, 200, 200, 429]
        for answer in seen:
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
            assert 0 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 100_000
            for kind in ("requests", "tokens"):
                assert RESET.fullmatch(answer.headers[f"x-ratelimit-reset-{kind}"]), answer.headers
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in seen] == ["2", "1", "0", "0"]
        assert 1 <= int(seen[-1].headers["retry-after"]) <= 20
        assert not [name for name in (await s.post()).headers if name.startswith("x-ratelimit")]


# 8


async def test_08_unknown_headers_are_harmless_and_stay_here() -> None:
    lines = [
        "X-Stainless-Lang: js", "X-Stainless-Retry-Count: 0", "OpenAI-Organization: org-x", "OpenAI-Project: p",
        "Idempotency-Key: k", "ChatUI-Conversation-ID: 1", "X-use-cache: false", "Cookie: a=b",
        "X-Forwarded-For: 1.2.3.4", "Range: bytes=0-1", "If-None-Match: *",
    ]  # fmt: skip
    async with stage(well_behaved()) as s:
        assert (await s.post(CHAT, "/v1/chat/completions", *lines, "OpenAI-Beta: assistants=v2", "traceparent: 00-a-b-01")).status == 200
        got = s.up.seen[0].headers
        assert got["openai-beta"] == "assistants=v2"
        assert got["traceparent"] == "00-a-b-01"
        assert not {line.partition(":")[0].lower() for line in lines} & got.keys()
        assert got["authorization"] == "Bearer upstream-secret"


# 9


PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
}


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/tokenize", "/tokenize", "/v1/models", "/v1/models/echo"])
def test_09_preflights_are_allowed(served: Served, path: str) -> None:
    with served.bare() as http:
        answer = http.options(path, headers=PREFLIGHT)
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-stainless-lang"))
    assert "access-control-allow-credentials" not in answer.headers


def test_09_and_the_answers_after_them(served: Served) -> None:
    origin = {"origin": "https://app.example"}
    with served.http() as http:
        for answer in (
            http.post("/v1/chat/completions", json=CHAT | {"model": "echo"}, headers=origin),
            http.post("/v1/chat/completions", json=CHAT | {"model": "echo", "stream": True}, headers=origin),
            http.post("/v1/chat/completions", json=CHAT | {"model": "none"}, headers=origin),
            http.post("/v1/chat/completions", json=CHAT, headers=origin | {"authorization": "Bearer wrong"}),
            http.get("/v1/models", headers=origin),
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        for path in ("/auth/me", "/admin/keys"):
            assert "access-control-allow-origin" not in http.get(path, headers=origin).headers


# 10


def _chunked(data: bytes, size: int) -> bytes:
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 65_536])
async def test_10_chunked_bodies(size: int) -> None:
    body = orjson.dumps(CHAT | {"messages": [{"role": "user", "content": "\u00e9\U0001f642" * 500}]})
    async with stage(well_behaved()) as s:
        answer = await s.exchange(s.head("/v1/chat/completions", "transfer-encoding: chunked") + _chunked(body, size))
        assert answer.status == 200
        assert s.up.seen[0].body == body


@pytest.mark.parametrize("text", [r"a\u0000b", r"\ud83d\ude42", "\U0001f642", r"\/\b\f\n\r\t\u20ac"])
async def test_10_odd_strings_pass_as_they_are(text: str) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"' + text.encode() + b'"}]}'
    async with stage(well_behaved()) as s:
        assert (await s.post(body)).status == 200
        assert s.up.seen[0].body == body


@pytest.mark.parametrize(
    "content",
    [
        rb'"\ud800"',
        rb'"\udc00 x"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'"\x00"',
        b"NaN",
    ],
)
async def test_10_what_is_no_json_is_a_400(content: bytes) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(b'{"model":"m","messages":[{"role":"user","content":' + content + b"}]}")
        assert answer.status == 400
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert not s.up.seen


# 11


async def test_11_the_connection_survives_refusals_and_finished_streams() -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        for data, status in [
            (s.request(b"{"), 400),
            (s.request(CHAT | {"stream": True}), 200),
            (s.request(key="sk-wrong"), 401),
            (s.request(CHAT | {"model": "none"}), 404),
            (s.request(CHAT | {"stream": True}), 200),
            (s.request(CHAT), 200),
        ]:
            client.send(data)
            answer = await client.answer()
            assert (answer.status, answer.complete, answer.headers.get("connection")) == (status, True, None)
        s.up.script = answers(b"", 500)
        for _ in range(2):
            client.send(s.request())
            assert (await client.answer()).status == 502


# 12


async def test_12_a_body_over_the_cap_is_refused_before_it_is_read() -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        client.send(s.head("/v1/chat/completions", "content-length: 30000000"))
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        client = await s.connect()
        client.send(s.head("/v1/chat/completions", "transfer-encoding: chunked") + _chunked(b"x" * 1_200_000, 65_536))
        assert (await client.answer()).status == 413
        assert not s.up.seen
        assert s.server.relay.held_bytes == 0


# 13


@pytest.mark.parametrize("path", ["/v1/models/org/echo-2", "/v1/models/org%2Fecho-2"])
def test_13_slashes_in_model_ids(served: Served, path: str) -> None:
    with served.http() as http:
        answer = http.get(path)
    assert (answer.status_code, answer.json()["id"]) == (200, "org/echo-2")


# 14


def test_14_health_needs_no_key(served: Served) -> None:
    with served.bare() as http:
        for path in ("/health", "/healthz", "/readyz"):
            assert http.get(path).status_code == 200
            assert http.head(path).status_code == 200


def test_14_metrics_hold_no_secrets(served: Served) -> None:
    prompt = "a very private prompt"
    with served.http() as http:
        made = http.post(
            "/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": prompt}], "user": "private-user"}
        )
        http.post("/v1/chat/completions", json={"model": "model-that-is-" + "x" * 30, "messages": [{"role": "user", "content": prompt}]})
        text = http.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    labels = {value for family in families for sample in family.samples for value in sample.labels.values()}
    assert "echo" in labels
    for secret in (
        served.key,
        served.key.split("-")[2],
        prompt,
        "private-user",
        made.headers["x-request-id"],
        "model-that-is",
        "upstream-secret",
    ):
        assert not any(secret in label for label in labels)


# 15


async def test_15_streams_are_not_compressed_and_come_as_they_are_sent() -> None:
    go = asyncio.Event()
    first, last = frame(chat_chunk({"content": "a"}, model="m")), frame(chat_chunk({}, "stop", model="m"))

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(first)
        await go.wait()
        await wire.chunk(last)
        await wire.end()

    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request(CHAT | {"stream": True}, "/v1/chat/completions", "accept-encoding: gzip, br, zstd"))
        _, headers = await client.head()
        assert "content-encoding" not in headers
        assert await client.chunk() == first  # while the backend still holds back the rest
        go.set()
        assert await client.chunk() + await client.chunk() == last + b"data: [DONE]\n\n"
        assert s.up.seen[0].headers["accept-encoding"] == "identity"


async def test_15_a_compressed_stream_of_a_backend_is_not_taken_for_one() -> None:
    """We ask for identity: a backend that compresses all the same has not answered with an event stream."""
    import gzip

    async with stage(
        streams(gzip.compress(frame(chat_chunk({"content": "a"}))), content_type="text/event-stream\r\ncontent-encoding: gzip")
    ) as s:
        answer = await s.post(CHAT | {"stream": True})
        assert (answer.status, answer.code) == (502, "upstream_error")
