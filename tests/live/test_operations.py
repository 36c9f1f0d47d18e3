"""The operations that only custom backends have, through the relay on real sockets: with OpenAI's SDK where it has them, else as bytes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from auth.principal import Budget, Limits
from backends.echo import EchoBackend
from gateway.relay.operations import ROUTES
from gateway.routing.table import Prices
from gateway.wire.multipart import parts
from tests.faults.scene import Scene, scene
from tests.relay_server import route, target
from tests.upstream import Seen, Wire

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \r\n--not-a-boundary\r\n" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(255, -1, -1)) * 8
USAGE = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
DETAILS = {"input_tokens_details": {"text_tokens": 11}, "output_tokens_details": {"image_tokens": 5}}
OUR_ERROR = {"message", "type", "param", "code"}


def frame(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\ndata: ".encode() + orjson.dumps(value) + b"\n\n"


def response(model: str, status: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    text = {"type": "output_text", "text": "hello there", "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "model": model,
        "output": [message] if usage else [],
        "usage": usage and {**usage, "input_tokens_details": {"cached_tokens": 2}, "output_tokens_details": {"reasoning_tokens": 0}},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def response_events(model: str) -> list[bytes]:
    item = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    deltas = [
        {"type": "response.output_text.delta", "sequence_number": n, "delta": text, **item}
        for n, text in ((1, "hello "), (2, '"model":"up"'))
    ]
    first = {"type": "response.created", "sequence_number": 0, "response": response(model, "in_progress")}
    last = {"type": "response.completed", "sequence_number": 3, "response": response(model, "completed", USAGE)}
    return [frame(value) for value in (first, *deltas, last)]


def message_events(model: str) -> list[bytes]:
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None}
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 11, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return [frame(value) for value in values]


def typed_events(kind: str) -> list[bytes]:
    if kind == "transcript":
        done = {"type": "transcript.text.done", "text": "hello", "usage": {"type": "tokens", **USAGE}}
        return [frame({"type": "transcript.text.delta", "delta": "hello"}), frame(done)]
    partial = {"type": f"{kind}.partial_image", "b64_json": "AAAA", "partial_image_index": 0}
    return [frame(partial), frame({"type": f"{kind}.completed", "b64_json": "AAAA", "usage": USAGE})]


WHOLE: dict[str, dict[str, Any]] = {
    "/responses": response("up", "completed", USAGE),
    "/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "up",
        "content": [],
        "stop_reason": "end_turn",
        "usage": USAGE,
    },
    "/rerank": {"model": "up", "results": [{"index": 1, "relevance_score": 0.9}], "usage": {"total_tokens": 11}},
    "/moderations": {"id": "modr-1", "model": "up", "results": [{"flagged": False, "categories": {}, "category_scores": {}}]},
    "/images/generations": {
        "created": 1,
        "data": [{"b64_json": "A" * 20_000}],
        "usage": {**USAGE, "input_tokens_details": {"text_tokens": 11}},
    },
    "/images/edits": {"created": 1, "data": [{"b64_json": "AAAA"}], "usage": USAGE},
    "/images/variations": {"created": 1, "data": [{"b64_json": "AAAA"}]},
    "/audio/transcriptions": {"text": "hello", "usage": {"type": "tokens", **USAGE}},
    "/audio/translations": {"text": "hello"},
}


async def everything(wire: Wire, seen: Seen) -> None:
    """Answers as OpenAI (and Anthropic, and Cohere) do, on all of the paths."""
    path = seen.path.removeprefix("/v1")
    if path == "/audio/speech":
        await wire.answer(WAV, content_type="audio/wav", content_disposition='attachment; filename="a.wav"')
    elif b"srt" in seen.body and path == "/audio/transcriptions":
        await wire.answer(b"1\n00:00:00,000 --> 00:00:01,000\nhello\n", content_type="text/plain; charset=utf-8")
    elif streams(seen):
        await wire.sse_head()
        for event in events_of(path):
            await wire.chunk(event)
        await wire.end()
    else:
        await wire.answer(WHOLE[path])


def streams(seen: Seen) -> bool:
    if seen.headers["content-type"].startswith("multipart/"):
        return fields(seen).get("stream") == b"true"
    return seen.json.get("stream") is True


def fields(seen: Seen) -> dict[str, bytes]:
    boundary = seen.headers["content-type"].partition("boundary=")[2].strip('"').encode()
    return {part.name: seen.body[part.start : part.end] for part in parts(seen.body, boundary)}


def events_of(path: str) -> list[bytes]:
    return {
        "/responses": response_events("up"),
        "/messages": message_events("up"),
        "/audio/transcriptions": typed_events("transcript"),
        "/images/generations": typed_events("image_generation"),
        "/images/edits": typed_events("image_edit"),
    }[path]


@asynccontextmanager
async def sdk(stage: Scene) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stage.server.url}/v1", api_key=stage.key, max_retries=0, timeout=10) as client:
        yield client


# responses


async def test_responses() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        answer = await client.responses.create(model="m", input="hi", max_output_tokens=5)
        assert (answer.model, answer.output_text, answer.status) == ("m", "hello there", "completed")
        assert stage.up.seen[0].path == "/v1/responses"
        assert stage.up.seen[0].json == {"model": "up", "input": "hi", "max_output_tokens": 5}
        record = await stage.record()
        assert (record.operation, record.prompt_tokens, record.completion_tokens, record.token_source) == ("responses", 11, 5, "backend")


async def test_streamed_responses() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        events = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
        assert [event.type for event in events] == ["response.created", *["response.output_text.delta"] * 2, "response.completed"]
        assert events[0].response.model == events[-1].response.model == "m"  # type: ignore[union-attr]
        assert stage.up.seen[0].json == {"model": "up", "input": "hi", "stream": True}  # no stream_options here
        record = await stage.record()
        assert (record.prompt_tokens, record.completion_tokens, record.token_source, record.ending) == (11, 5, "backend", "success")
        assert record.ttft_ms is not None


async def test_streams_of_typed_events_pass_byte_for_byte() -> None:
    async with scene(everything, model="m") as stage:
        for path, expected in (("/v1/responses", response_events("up")), ("/v1/messages", message_events("up"))):
            body = {"model": "m", "input": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
            answer = await stage.post(body, path)
            assert (answer.status, answer.complete, answer.headers["content-type"]) == (200, True, "text/event-stream; charset=utf-8")
            assert answer.body == b"".join(expected)  # and no [DONE]


async def test_a_response_stream_that_breaks_off_says_so_in_its_own_shape() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for event in response_events("up")[:2]:
            await wire.chunk(event)
        await wire.chunk(b"event: response.output_text.delta\ndata: {")
        wire.reset()

    async with scene(breaks) as stage, sdk(stage) as client:
        answer = await stage.post({"model": "m", "input": "hi", "stream": True}, "/v1/responses")
        *_, last, rest = answer.body.split(b"\n\n")
        name, data = last.split(b"\n")
        assert (name, rest, answer.complete) == (b"event: error", b"", True)
        error = orjson.loads(data.removeprefix(b"data: "))
        assert (error["type"], error["code"], error["param"], error["sequence_number"]) == ("error", "upstream_error", None, 2)
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await client.responses.create(model="m", input="hi", stream=True):
                pass
        assert (await stage.record(2)).ending == "upstream_error"


async def test_a_response_stream_that_begins_with_an_error_is_tried_elsewhere() -> None:
    async def fails(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame({"type": "error", "code": "server_error", "message": "no", "param": None, "sequence_number": 0}))
        await wire.end()

    async with scene(fails, everything) as stage:
        answer = await stage.post({"model": "m", "input": "hi", "stream": True}, "/v1/responses")
        assert (answer.status, answer.complete) == (200, True)
        assert b'"response.completed"' in answer.body
        assert len(stage.up.seen) == len(stage.ups[1].seen) == 1


# messages

MESSAGE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


async def test_messages() -> None:
    async with scene(everything) as stage:
        answer = await stage.post(MESSAGE, "/v1/messages", ["anthropic-version: 2023-06-01", "anthropic-beta: b"])
        assert (answer.status, answer.json["model"], answer.json["type"]) == (200, "m", "message")
        seen = stage.up.seen[0]
        assert (seen.path, seen.json) == ("/v1/messages", MESSAGE | {"model": "up"})
        assert (seen.headers["anthropic-version"], seen.headers["anthropic-beta"]) == ("2023-06-01", "b")
        answer = await stage.post(MESSAGE | {"stream": True}, "/v1/messages")
        assert answer.body == b"".join(message_events("m"))
        for number in (1, 2):
            record = await stage.record(number)
            assert (record.operation, record.prompt_tokens, record.completion_tokens, record.ending) == ("messages", 11, 5, "success")


async def test_errors_of_messages_are_anthropics_and_ours() -> None:
    async def refuses(wire: Wire, seen: Seen) -> None:
        error = {"type": "invalid_request_error", "message": "max_tokens: too large"}
        await wire.answer({"type": "error", "error": error, "request_id": "r"}, 400)

    async with scene(refuses) as stage:
        for body, more, status, kind, code in (
            (MESSAGE, ["x-api-key: wrong"], 401, "authentication_error", "invalid_api_key"),
            (MESSAGE | {"model": "other"}, [], 404, "not_found_error", "model_not_found"),
            (MESSAGE | {"messages": []}, [], 400, "invalid_request_error", "invalid_request"),
            (MESSAGE, [], 400, "invalid_request_error", None),
        ):
            answer = await stage.post(body, "/v1/messages", more)
            assert (answer.status, answer.json["type"]) == (status, "error"), answer.body
            error = answer.json["error"]
            assert error.keys() == OUR_ERROR
            assert (error["type"], error["code"]) == (kind, code)


async def test_a_message_stream_that_breaks_off_says_so_in_its_own_shape() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for event in message_events("up")[:4]:
            await wire.chunk(event)
        wire.reset()

    async with scene(breaks) as stage:
        answer = await stage.post(MESSAGE | {"stream": True}, "/v1/messages")
        *events, last, rest = answer.body.split(b"\n\n")
        assert (len(events), rest) == (4, b"")
        assert last.startswith(b'event: error\ndata: {"type":"error","error":{')
        record = await stage.record()
        assert (record.ending, record.prompt_tokens, record.token_source) == ("upstream_error", 11, "estimate")


async def test_a_budget_is_bounded_under_each_operations_own_name() -> None:
    fields = {"prices": Prices(1, 1), "max_output_tokens": 77}
    async with scene(everything, limits=Limits(budget=Budget(10**9)), fields=fields) as stage:
        await stage.post({"model": "m", "input": "hi"}, "/v1/responses")
        await stage.post({"model": "m", "messages": MESSAGE["messages"]}, "/v1/messages")
        await stage.post({"model": "m", "input": "hi"}, "/v1/moderations")
        assert [set(seen.json) - {"model", "input", "messages"} for seen in stage.up.seen] == [{"max_output_tokens"}, {"max_tokens"}, set()]
        assert (stage.up.seen[0].json["max_output_tokens"], stage.up.seen[1].json["max_tokens"]) == (77, 77)


# rerank, moderations


async def test_rerank() -> None:
    async with scene(everything) as stage:
        body = {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 1}
        answer = await stage.post(body, "/v1/rerank")
        assert (answer.status, answer.json) == (200, WHOLE["/rerank"] | {"model": "m"})
        assert stage.up.seen[0].json == body | {"model": "up"}
        record = await stage.record()
        assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (11, 0, "backend")
        for wrong, param in (({"query": "q"}, "documents"), ({"documents": ["a"]}, "query")):
            answer = await stage.post({"model": "m", **wrong}, "/v1/rerank")
            assert (answer.status, answer.json["error"]["param"]) == (400, param)
        assert len(stage.up.seen) == 1


async def test_moderations() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        answer = await client.moderations.create(model="m", input=["is this kind?"])
        assert (answer.model, answer.results[0].flagged) == ("m", False)
        assert (await stage.record()).operation == "moderations"


# images


async def test_images_are_generated() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        pictures = await client.images.generate(model="m", prompt="a lighthouse", n=2)
        assert pictures.data is not None
        assert pictures.data[0].b64_json == "A" * 20_000
        assert stage.up.seen[0].json == {"model": "up", "prompt": "a lighthouse", "n": 2}
        record = await stage.record()
        assert (record.operation, record.prompt_tokens, record.completion_tokens) == ("image_generations", 11, 5)


async def test_images_are_streamed() -> None:
    async with scene(everything) as stage:
        body = {"model": "m", "prompt": "a lighthouse", "stream": True}
        answer = await stage.post(body, "/v1/images/generations")
        assert answer.body == b"".join(typed_events("image_generation"))
        record = await stage.record()
        assert (record.prompt_tokens, record.completion_tokens, record.ending) == (11, 5, "success")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK warns of older endpoints
async def test_image_edits_are_forms() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        files = [io.BytesIO(PNG), io.BytesIO(PNG[::-1])]
        edited = await client.images.edit(model="m", prompt="낮으로", image=files, mask=io.BytesIO(b"mask"), n=1)
        assert edited.data is not None
        seen = stage.up.seen[0]
        boundary = seen.headers["content-type"].partition("boundary=")[2].encode()
        found = [(part.name, seen.body[part.start : part.end]) for part in parts(seen.body, boundary)]
        assert sorted(found) == sorted(
            [("model", b"up"), ("prompt", "낮으로".encode()), ("n", b"1"), ("image[]", PNG), ("image[]", PNG[::-1]), ("mask", b"mask")]
        )
        varied = await client.images.create_variation(model="m", image=io.BytesIO(PNG))
        assert varied.data is not None
        assert fields(stage.up.seen[1]) == {"model": b"up", "image": PNG}
        assert [(await stage.record(n)).operation for n in (1, 2)] == ["image_edits", "image_variations"]


async def test_image_edits_may_be_json() -> None:
    async with scene(everything) as stage:
        body = {"model": "m", "prompt": "day", "images": [{"image_url": "data:image/png;base64,AAAA"}]}
        answer = await stage.post(body, "/v1/images/edits", ["content-type: application/json"])
        assert answer.status == 200
        assert stage.up.seen[0].headers["content-type"] == "application/json"
        assert stage.up.seen[0].json == body | {"model": "up"}


# audio


async def test_speech_passes_as_it_is() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        spoken = await client.audio.speech.create(model="m", input="good morning", voice="alloy")
        assert spoken.content == WAV
        assert spoken.response.headers["content-type"] == "audio/wav"
        assert spoken.response.headers["x-request-id"]
        assert stage.up.seen[0].json == {"model": "up", "input": "good morning", "voice": "alloy"}
        record = await stage.record()
        assert (record.operation, record.ending, record.completion_tokens, record.token_source) == ("speech", "success", 0, "estimate")


async def test_speech_that_breaks_off_is_never_taken_for_whole() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.head(200, "audio/mpeg", content_length="1000")
        await wire.send(b"x" * 400)
        wire.reset()

    async with scene(breaks, everything) as stage:
        answer = await stage.post({"model": "m", "input": "hi"}, "/v1/audio/speech")
        assert (answer.status, answer.complete) == (200, False)
        assert b"error" not in answer.body
        assert (await stage.record()).ending == "upstream_error"
        assert not stage.ups[1].seen  # the first byte was out


@pytest.mark.parametrize("first", ["silent", "html", "500"])
async def test_speech_fails_over_before_its_first_byte(first: str) -> None:
    async def fails(wire: Wire, seen: Seen) -> None:
        if first == "silent":
            await wire.head(200, "audio/mpeg", content_length="1000")
            wire.reset()
        else:
            await wire.answer(b"<html>no</html>", 200 if first == "html" else 500, "text/html")

    async with scene(fails, everything) as stage:
        answer = await stage.post({"model": "m", "input": "hi"}, "/v1/audio/speech")
        assert (answer.status, answer.body, answer.complete) == (200, WAV, True)
        assert len(stage.up.seen) == 1


async def test_transcriptions() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        heard = await client.audio.transcriptions.create(model="m", file=("speech.wav", WAV, "audio/wav"), language="ko")
        assert heard.text == "hello"
        seen = stage.up.seen[0]
        assert seen.path == "/v1/audio/transcriptions"
        assert fields(seen) == {"model": b"up", "language": b"ko", "file": WAV}
        assert b'filename="speech.wav"' in seen.body
        record = await stage.record()
        assert (record.operation, record.prompt_tokens, record.completion_tokens, record.token_source) == (
            "transcriptions",
            11,
            5,
            "backend",
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_transcriptions_in_other_forms() -> None:
    async with scene(everything) as stage, sdk(stage) as client:
        text = await client.audio.transcriptions.create(model="m", file=("a.wav", WAV), response_format="srt")
        assert str(text).startswith("1\n00:00:00,000")
        stream = await client.audio.transcriptions.create(model="m", file=("a.wav", WAV), stream=True)
        assert [event.type async for event in stream] == ["transcript.text.delta", "transcript.text.done"]
        translated = await client.audio.translations.create(model="m", file=("a.wav", WAV))
        assert translated.text == "hello"
        assert [(await stage.record(n)).operation for n in (1, 2, 3)] == ["transcriptions", "transcriptions", "translations"]
        assert (await stage.record(2)).prompt_tokens == 11


async def test_the_bytes_of_a_recording_are_no_tokens() -> None:
    async with scene(everything, limits=Limits(tpm=1000)) as stage, sdk(stage) as client:
        heard = await client.audio.transcriptions.create(model="m", file=("a.wav", WAV * 50))
        assert heard.text == "hello"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n', "invalid_request", "file"),
        (b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--B--\r\n', "invalid_request", "model"),
        (b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n', "invalid_multipart", None),
        (b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n' * 2 + b"--B--\r\n", "invalid_request", "model"),
        (b"", "invalid_multipart", None),
        (b"{}", "invalid_multipart", None),
    ],
)
async def test_forms_that_are_refused_reach_nobody(body: bytes, code: str, param: str | None) -> None:
    async with scene(everything) as stage:
        answer = await stage.post(body, "/v1/audio/transcriptions", ["content-type: multipart/form-data; boundary=B"])
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)
        assert not stage.up.seen


# every one of them

BODIES: dict[str, dict[str, Any]] = {
    "/responses": {"input": "x"},
    "/messages": {"messages": MESSAGE["messages"]},
    "/rerank": {"query": "q", "documents": ["a"]},
    "/moderations": {"input": "x"},
    "/images/generations": {"prompt": "x"},
    "/images/edits": {"prompt": "x", "images": ["x"]},
    "/audio/speech": {"input": "x"},
}
UPLOADS = {"/images/variations": "image", "/audio/transcriptions": "file", "/audio/translations": "file"}
ALL = sorted(path.decode().removeprefix("/v1") for path, operation in ROUTES.items() if operation.custom_only)


def request(path: str, model: str = "m", **more: Any) -> tuple[bytes, list[str]]:
    """(body, header lines) of a request that the operation accepts."""
    if path in BODIES:
        return orjson.dumps({"model": model, **BODIES[path], **more}), []
    head = b'--B\r\nContent-Disposition: form-data; name="'
    upload = head + UPLOADS[path].encode() + b'"; filename="a"\r\n\r\nx\r\n'
    texts = {"model": model, **{name: orjson.dumps(value).decode() for name, value in more.items()}}
    pieces = [head + name.encode() + b'"\r\n\r\n' + value.encode() + b"\r\n" for name, value in texts.items()]
    return b"".join(pieces) + upload + b"--B--\r\n", ["content-type: multipart/form-data; boundary=B"]


@pytest.mark.parametrize("path", ALL)
async def test_each_asks_its_backend_once_and_is_booked_once(path: str) -> None:
    async with scene(everything) as stage:
        body, more = request(path)
        answer = await stage.post(body, f"/v1{path}", more)
        assert (answer.status, answer.complete) == (200, True), answer.body
        assert answer.headers["x-request-id"]
        assert [seen.path for seen in stage.up.seen] == [f"/v1{path}"]
        record = await stage.record()
        assert (record.status, record.ending, record.model, record.backend) == (200, "success", "m", "b1")
        await stage.calm()


@pytest.mark.parametrize("kind", ["echo", "local"])
@pytest.mark.parametrize("path", ALL)
async def test_each_says_that_only_custom_backends_have_it(path: str, kind: str) -> None:
    async with scene(everything) as stage:
        stage.server.set_routes(route([replace(target(EchoBackend()), type=kind)], id="e"))
        body, more = request(path, "e")
        answer = await stage.post(body, f"/v1{path}", more)
        error = answer.json["error"]
        assert (answer.status, error["code"], error["param"]) == (404, "operation_not_supported", "model")
        assert path in error["message"]


@pytest.mark.parametrize("path", ALL)
async def test_each_is_refused_without_a_key_and_for_an_unknown_model(path: str) -> None:
    async with scene(everything) as stage:
        body, more = request(path, "unknown")
        answer = await stage.post(body, f"/v1{path}", more)
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
        stage.key = "wrong"
        answer = await stage.post(body, f"/v1{path}", more)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        assert not stage.up.seen


@pytest.mark.parametrize("path", ALL)
async def test_each_checks_n_and_duplicates(path: str) -> None:
    async with scene(everything) as stage:
        body, more = request(path, n=0)
        answer = await stage.post(body, f"/v1{path}", more)
        assert (answer.status, answer.json["error"]["param"]) == (400, "n")
        body, more = request(path)
        twice = body.replace(b'{"model"', b'{"model":"x","model"') if not more else body[: body.index(b"--B", 3)] + body
        answer = await stage.post(twice, f"/v1{path}", more)
        assert (answer.status, answer.json["error"]["param"]) == (400, "model")
        assert not stage.up.seen


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(("status", "expected"), [(400, 400), (401, 502), (500, 502), (503, 503)])
async def test_each_answers_a_backends_refusal_alike(path: str, status: int, expected: int) -> None:
    async def refuses(wire: Wire, seen: Seen) -> None:
        await wire.answer({"detail": "no"}, status)

    async with scene(refuses) as stage:
        body, more = request(path)
        answer = await stage.post(body, f"/v1{path}", more)
        assert (answer.status, answer.headers["content-type"]) == (expected, "application/json")
        assert answer.json["error"].keys() == OUR_ERROR
        assert (await stage.record()).ending == ("rejected" if status == 400 else "upstream_error")
