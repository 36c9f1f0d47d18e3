from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import Forbidden, GatewayError, InvalidRequest, ModelNotFound, Overloaded, QuotaExhausted, RateLimited, UpstreamFailed
from gateway.errors import UpstreamTimeout as TimedOut
from gateway.wire import sse
from gateway.wire.protocols import INPUT, MESSAGES, OPENAI, RAW, RESPONSES, WireProtocol
from gateway.wire.usage import Usage, tail_value

FAILED = UpstreamFailed("The backend b1 broke off its answer.")


def event(value: dict[str, Any], named: bool = True) -> bytes:
    line = b"event: " + value["type"].encode() + b"\n" if named and "type" in value else b""
    return line + b"data: " + orjson.dumps(value) + b"\n\n"


def parsed(block: bytes) -> tuple[bytes, Any]:
    """(event line or empty, data) of one event."""
    assert list(sse.events(block)) == [block]
    first, _, _ = block.partition(b"\n")
    return first if first.startswith(b"event:") else b"", orjson.loads(sse.data_of(block) or b"")


def test_error_events_in_each_protocols_shape() -> None:
    ours = FAILED.body()["error"]
    assert parsed(OPENAI.error_event(FAILED.body())) == (b"", {"error": ours})
    line, data = parsed(RESPONSES.error_event(FAILED.body(), event({"type": "response.created", "sequence_number": 4})))
    assert line == b"event: error"
    assert data == {"type": "error", "sequence_number": 5, "code": ours["code"], "message": ours["message"], "param": None, "error": ours}
    line, data = parsed(MESSAGES.error_event(FAILED.body()))
    assert (line, data) == (b"event: error", {"type": "error", "error": {**ours, "type": "api_error"}})
    assert parsed(RAW.error_event(FAILED.body())) == (b"event: error", {"type": "error", "error": ours})


def test_a_number_in_a_text_is_no_sequence_number() -> None:
    block = event({"type": "response.output_text.delta", "sequence_number": 7, "delta": '"sequence_number": 99'})
    assert parsed(RESPONSES.error_event(FAILED.body(), block))[1]["sequence_number"] == 8
    assert parsed(RESPONSES.error_event(FAILED.body()))[1]["sequence_number"] == 0


@pytest.mark.parametrize("protocol", [OPENAI, RESPONSES, MESSAGES, RAW])
def test_every_protocol_knows_its_own_error_event(protocol: WireProtocol) -> None:
    data = sse.data_of(protocol.error_event(FAILED.body()))
    assert data is not None
    assert protocol.stream_error_of(data)
    assert protocol.error_message(data) == FAILED.message
    assert b'"error"' in data  # what the relay looks for before it parses
    assert not protocol.is_terminal(b"data: " + data + b"\n\n")


@pytest.mark.parametrize(
    ("protocol", "data", "error"),
    [
        (OPENAI, b"[DONE]", False),
        (OPENAI, b'{"error":{"message":"x"}}', True),
        (RESPONSES, b'{"type":"response.created","response":{"error":null}}', False),
        (RESPONSES, b'{"type":"error","message":"x"}', True),
        (RESPONSES, b'{"type":"response.failed","response":{"error":{"code":"server_error","message":"x"}}}', True),
        (RESPONSES, b'{"type":"response.failed","response":{"error":null}}', True),
        (RESPONSES, b'{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"x"}}}', False),
        (RESPONSES, b'{"type":"response.incomplete","response":{"error":null}}', False),
        (RESPONSES, b"<html>", True),
        (RESPONSES, b"[DONE]", False),
        (MESSAGES, b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', True),
        (MESSAGES, b'{"type":"error","error":{}}', True),
        (MESSAGES, b'{"type":"ping"}', False),
        (RAW, b'{"type":"transcript.text.delta","delta":"error"}', False),
        (RAW, b'{"error":"x"}', True),
        (RAW, b"[1]", False),
    ],
)
def test_what_is_an_error(protocol: WireProtocol, data: bytes, error: bool) -> None:
    assert protocol.stream_error_of(data) is error


@pytest.mark.parametrize(
    ("protocol", "block", "ends"),
    [
        (OPENAI, b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', True),
        (OPENAI, b'data: {"choices":[{"finish_reason":null}]}\n\n', False),
        (OPENAI, b"data: [DONE]\n\n", True),
        (OPENAI, event({"text": '\ndata: [DONE] "finish_reason": "stop"'}), False),
        (RESPONSES, event({"type": "response.completed"}), True),
        (RESPONSES, event({"type": "response.incomplete"}), True),
        (RESPONSES, event({"type": "response.failed"}), True),
        (RESPONSES, event({"type": "response.output_text.delta", "delta": '"type":"response.completed" event: response.completed'}), False),
        (RESPONSES, b"data: [DONE]\n\n", False),
        (MESSAGES, event({"type": "message_stop"}), True),
        (MESSAGES, event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), False),
        (MESSAGES, event({"type": "content_block_delta", "delta": {"text": "message_stop"}}), False),
        (RAW, event({"type": "transcript.text.done"}), True),
        (RAW, event({"type": "image_edit.completed"}), True),
        (RAW, event({"type": "image_generation.partial_image"}), False),
    ],
)
def test_what_ends_a_stream(protocol: WireProtocol, block: bytes, ends: bool) -> None:
    assert protocol.is_terminal(block) is ends


def test_only_chat_and_completions_end_with_done() -> None:
    assert (OPENAI.done, OPENAI.has_done) == (b"data: [DONE]\n\n", True)
    for protocol in (RESPONSES, MESSAGES, RAW):
        assert (protocol.done, protocol.has_done) == (b"", False)


def test_usage_of_a_message_comes_in_two_parts() -> None:
    start = {"type": "message_start", "message": {"model": "up", "usage": {"input_tokens": 25, "output_tokens": 1}}}
    cached = {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 1}
    delta = {"type": "message_delta", "usage": {"output_tokens": 15}}
    assert MESSAGES.tap(event(start)) == (Usage(25, 1), False)
    assert MESSAGES.tap(event(delta), Usage(25, 1)) == (Usage(25, 15), False)
    assert MESSAGES.tap(event(start) + event({"type": "ping"}) + event(delta)) == (Usage(25, 15), False)
    assert MESSAGES.tap(event({"type": "message_start", "message": {"usage": cached}}) + event(delta)) == (Usage(125, 15, 100), False)
    assert MESSAGES.tap(event({"type": "ping"}), Usage(1, 2)) == (Usage(1, 2), False)
    assert MESSAGES.usage_of({"type": "message", "usage": cached}) == Usage(125, 1, 100)
    assert MESSAGES.usage_of({"type": "message"}) is None


def test_usage_of_responses() -> None:
    usage = {
        "input_tokens": 4,
        "output_tokens": 9,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    done = event({"type": "response.completed", "response": {"usage": usage}})
    assert RESPONSES.tap(event({"type": "response.created", "response": {"usage": None}}) + done) == (Usage(4, 9, 2, 3), False)
    assert RESPONSES.tap(event({"type": "response.output_text.done"}), Usage(4, 9)) == (Usage(4, 9), False)
    assert RESPONSES.usage_of({"object": "response", "usage": usage}) == Usage(4, 9, 2, 3)


def test_usage_of_the_rest() -> None:
    assert RAW.tap(event({"type": "transcript.text.done", "usage": {"input_tokens": 3, "output_tokens": 2}})) == (Usage(3, 2), False)
    assert RAW.usage_of({"text": "x", "usage": {"type": "duration", "seconds": 3}}) is None
    assert OPENAI.tap(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})) == (Usage(1, 2), True)
    assert OPENAI.usage_of({"usage": {"total_tokens": 5}}) is None  # says nothing of its two halves: estimated
    assert INPUT.usage_of({"usage": {"total_tokens": 5}}) == Usage(5, None)
    assert INPUT.usage_of({"usage": {"prompt_tokens": 4, "total_tokens": 5}}) == Usage(4, None)
    assert INPUT.usage_of({"results": [], "meta": {"billed_units": {"search_units": 1}}}) is None
    assert INPUT.usage_of({"meta": {"tokens": {"input_tokens": 8}, "billed_units": {"input_tokens": 9}}}) == Usage(8, None)
    assert INPUT.usage_of([]) is None


def test_the_usage_at_the_end_of_megabytes() -> None:
    usage = {
        "input_tokens": 4,
        "input_tokens_details": {"text_tokens": 4},
        "output_tokens": 9,
        "output_tokens_details": {"image_tokens": 9},
    }
    body = orjson.dumps({"data": [{"b64_json": "A" * 50_000}], "usage": usage, "quality": "high"})
    for end in (body, body[-8192:]):
        assert tail_value(end) == {"usage": usage}
        assert RAW.usage_of(tail_value(end)) == Usage(4, 9)
    for end in (
        b"",
        b'"usage"',
        b'"usage":null',
        b'"usage":{',
        b'\\"usage\\":{}',
        b'"usage",{"a":1}',
        b'{"usage":1,"x":{"input_tokens":1}}',
    ):
        assert tail_value(end) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x", param="messages"), "invalid_request_error"),
        (GatewayError("x", code="invalid_api_key"), "authentication_error"),
        (Forbidden("x"), "permission_error"),
        (ModelNotFound("x"), "not_found_error"),
        (RateLimited("x"), "rate_limit_error"),
        (QuotaExhausted("x"), "rate_limit_error"),
        (Overloaded("x"), "overloaded_error"),
        (TimedOut("x", code="upstream_idle_timeout"), "timeout_error"),
        (UpstreamFailed("x"), "api_error"),
    ],
)
def test_errors_for_anthropics_clients_are_a_superset(error: GatewayError, kind: str) -> None:
    ours = error.body()["error"]
    assert MESSAGES.error_body(error.body()) == {"type": "error", "error": {**ours, "type": kind}}
    for protocol in (OPENAI, INPUT, RESPONSES, RAW):
        assert protocol.error_body(error.body()) == error.body()


def test_a_backends_own_word_for_its_error_stays() -> None:
    body = {"error": {"message": "x", "type": "billing_error", "param": None, "code": None}}
    assert MESSAGES.error_body(body) == {"type": "error", **body}
    odd = {"error": {"message": "x", "type": "BadRequest", "param": None, "code": None}}
    assert MESSAGES.error_body(odd)["error"]["type"] == "api_error"


@pytest.mark.parametrize(("protocol", "parent"), [(RESPONSES, "response"), (MESSAGES, "message")])
def test_the_model_is_renamed_where_the_protocol_has_it(protocol: WireProtocol, parent: str) -> None:
    rename = protocol.rename("alias")
    assert rename is not None
    inner = {"id": 1, "tools": [{"model": "deep"}], "text": '"model":"up"', "model": "up-1", "more": {"model": "deep"}}
    first = {"type": "x", "model": "top", parent: inner, "z": {"model": "deep", parent: {"model": "deep"}}}
    text = {"type": "x", "delta": '"model":"up-1"', "item": {"model": "up-1"}}
    for _ in range(2):
        block = rename.apply(event(first) + event(text) + event({"type": "y"}))
        assert block == event({**first, parent: {**inner, "model": "alias"}}) + event(text) + event({"type": "y"})
    assert RAW.rename("alias") is None
