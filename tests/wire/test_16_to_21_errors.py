"""Points 16 to 21 of tests/wire/points.py: errors."""

from __future__ import annotations

from typing import Any

import openai
import orjson
import pytest

from auth.principal import Budget, Limits
from tests.relay_server import route, target
from tests.upstream import Script, Seen, Wire, well_behaved
from tests.wire.served import Served
from tests.wire.spec import check
from tests.wire.stage import CHAT, COMPLETION, EMBEDDING, ENDPOINTS, answers, frame, stage, streams

FOUR = {"message", "type", "param", "code"}


def four_keys(body: bytes) -> dict[str, Any]:
    """The error of an answer, which must have OpenAI's shape."""
    value = orjson.loads(body)
    check(value, "ErrorResponse")
    error: dict[str, Any] = value["error"]
    assert error.keys() == FOUR
    assert error["message"]
    return error


# 16


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/none", 404),
        ("POST", "/v1/none", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/usage?since=x", 400),
    ],
)
def test_16_the_frameworks_own_errors_are_replaced(served: Served, method: str, path: str, status: int) -> None:
    with served.http(served.gateway.key("usage", "--scopes", "inference,usage") if "usage" in path else None) as http:
        answer = http.request(method, path)
    assert answer.status_code == status, answer.text
    four_keys(answer.content)
    if status == 405:
        assert answer.headers["allow"]


ERRORS: list[tuple[Script, dict[str, Any], int]] = [
    (answers({"detail": "Not Found"}, 404), {}, 404),
    (answers({"detail": [{"loc": ["body"], "msg": "bad", "type": "x"}]}, 422), {}, 422),
    (answers({"error": {"message": "m", "type": "t", "param": None, "code": 400}}, 400), {}, 400),
    (answers({"object": "error", "message": "m", "type": "BadRequestError", "param": None, "code": 400}, 400), {}, 400),
    (answers({"error": "a sentence"}, 413), {}, 413),
    (answers(b"", 400), {}, 400),
    (answers(b"<html>", 404, "text/html"), {}, 404),
    (answers([], 400), {}, 400),
    (answers({"error": {"message": "m"}}, 409), {"stream": True}, 409),
    (answers({"error": {"message": 5, "type": 6, "param": 7, "code": 8}}, 400), {}, 400),
    (well_behaved(), {"messages": []}, 400),
    (well_behaved(), {"model": "none"}, 404),
]


@pytest.mark.parametrize(("script", "spoil", "status"), ERRORS)
async def test_16_four_keys_whatever_the_backend_says(script: Script, spoil: dict[str, Any], status: int) -> None:
    async with stage(script) as s:
        answer = await s.post(CHAT | spoil)
        assert answer.status == status
        four_keys(answer.body)


async def test_16_an_error_of_openais_shape_passes_byte_for_byte() -> None:
    body = b'{ "error" : {"message":"m \\u00e9","type":"invalid_request_error","param":"temperature","code":null, "more": 1.50} }'
    async with stage(answers(body, 400)) as s:
        assert (await s.post()).body == body


# 17


@pytest.mark.parametrize(
    ("path", "spoil", "param"),
    [
        ("/v1/chat/completions", {"model": None}, "model"),
        ("/v1/chat/completions", {"model": 5}, "model"),
        ("/v1/chat/completions", {"messages": None}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages"),
        ("/v1/chat/completions", {"stream": "true"}, "stream"),
        ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/chat/completions", {"stream": True, "stream_options": []}, "stream_options"),
        ("/v1/chat/completions", {"n": 0}, "n"),
        ("/v1/chat/completions", {"n": "2"}, "n"),
        ("/v1/chat/completions", {"max_tokens": -1}, "max_tokens"),
        ("/v1/chat/completions", {"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": {}}, "prompt"),
        ("/v1/embeddings", {"input": None}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": 5}, "input"),
    ],
)
async def test_17_what_the_gateway_acts_on_is_400_and_names_the_field(path: str, spoil: dict[str, Any], param: str) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(ENDPOINTS[path] | spoil, path)
        assert answer.status == 400
        error = four_keys(answer.body)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert not s.up.seen


@pytest.mark.parametrize(
    "param", ["temperature", "top_logprobs", "tool_choice", "response_format", "stop", "dimensions", "encoding_format"]
)
async def test_17_the_rest_is_the_backends_own_400(param: str) -> None:
    error = {"error": {"message": f"{param} is wrong", "type": "invalid_request_error", "param": param, "code": None}}
    async with stage(answers(error, 400)) as s, s.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], extra_body={param: "odd"})
        assert caught.value.param == param
        assert s.up.seen[0].json[param] == "odd"


# 18


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/tokenize", "/tokenize", "/v1/detokenize", "/detokenize"])
@pytest.mark.parametrize("stream", [False, True])
async def test_18_an_unknown_model_is_404_everywhere(path: str, stream: bool) -> None:
    body = ENDPOINTS.get(path, {"prompt": "hi", "tokens": [1]}) | {"model": "no/such", "stream": stream}
    async with stage(well_behaved()) as s:
        answer = await s.post(body, path)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
        error = four_keys(answer.body)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        hidden = s.server.keys.issue(models=("other",))
        refused = await s.post(body | {"model": "m"}, path, key=hidden)
        assert (refused.status, four_keys(refused.body)["code"]) == (404, "model_not_found")


def test_18_in_the_list_of_models_too(served: Served) -> None:
    with served.http() as http:
        answer = http.get("/v1/models/no/such")
    assert (answer.status_code, four_keys(answer.content)["code"]) == (404, "model_not_found")


# 19


OVERFLOW = "This model's maximum context length is 100 tokens. However, you requested 200 tokens."


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": OVERFLOW, "type": "BadRequestError", "param": None, "code": 400},
        {"error": {"message": OVERFLOW, "type": "BadRequestError", "param": None, "code": 400}},
        {"error": {"message": OVERFLOW, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}},
        {"detail": OVERFLOW},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_19_context_overflow_is_told_in_a_form_that_clients_know(body: dict[str, Any], stream: bool) -> None:
    async with stage(answers(body, 400)) as s:
        answer = await s.post(CHAT | {"stream": stream})
        error = four_keys(answer.body)
        assert (answer.status, error["code"]) == (400, "context_length_exceeded")
        assert "maximum context length is 100 tokens" in error["message"]


# 20


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"5", b"{'a': 1}", b"\xef\xbb\xbf{}", b'{"model":"m"} x', b"true"])
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_20_what_is_no_object_is_400(body: bytes, path: str) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(body, path)
        assert answer.status == 400
        four_keys(answer.body)
        assert not s.up.seen


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","model":"other","messages":[{}]}',
        b'{"mod\\u0065l":"m","messages":[{}]}',
        b'{"model":"m","Model":"other","messages":[{}]}',
        b'{"model":"m","stream":false,"stream":true,"messages":[{}]}',
    ],
)
async def test_20_what_two_parsers_may_read_differently_is_400(body: bytes) -> None:
    async with stage(well_behaved()) as s:
        assert (await s.post(body)).status == 400
        assert not s.up.seen


# 21


async def test_21_limits_are_429_with_the_time_to_come_back() -> None:
    async with stage(well_behaved()) as s:
        key = s.server.keys.issue(Limits(rpm=1))
        await s.post(key=key)
        answer = await s.post(key=key)
        error = four_keys(answer.body)
        assert (answer.status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) > 0


async def test_21_a_spent_budget_is_a_quota() -> None:
    async with stage(well_behaved(), fields={"prices": None}) as s:
        from gateway.routing.table import Prices

        s.server.set_routes(route([target(s.up.url, model="m")], prices=Prices(10**9, 10**9)))
        key = s.server.keys.issue(Limits(budget=Budget(1)))
        answer = await s.post(key=key)
        error = four_keys(answer.body)
        assert (answer.status, error["code"], answer.headers["x-should-retry"]) == (429, "insufficient_quota", "false")
        assert "retry-after" not in answer.headers


FAULTS: dict[str, tuple[Script, int, str]] = {
    "401": (
        answers({"error": {"message": "bad key sk-abc", "type": "x", "param": None, "code": "invalid_api_key"}}, 401),
        502,
        "upstream_error",
    ),
    "403": (answers({"error": "x"}, 403), 502, "upstream_error"),
    "500": (answers(b"x", 500), 502, "upstream_error"),
    "302": (answers(b"", 302, location="/x"), 502, "upstream_error"),
    "html": (answers(b"<html></html>", 200, "text/html"), 502, "upstream_error"),
    "garbage": (answers(b"\x00\x01 nothing"), 502, "upstream_error"),
    "503": (answers(b"", 503), 503, ""),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_21_the_backends_faults_are_ours(name: str, path: str, stream: bool) -> None:
    script, status, code = FAULTS[name]
    async with stage(script) as s:
        answer = await s.post(ENDPOINTS[path] | ({"stream": True} if stream else {}), path)
        error = four_keys(answer.body)
        assert answer.status == status
        assert not code or error["code"] == code
        assert "sk-abc" not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_21_a_hang_up_is_502_and_silence_504(stream: bool) -> None:
    from gateway.routing.table import Timeouts

    async def hang_up(wire: Wire, seen: Seen) -> None:
        wire.close()

    async def silence(wire: Wire, seen: Seen) -> None:
        await wire.until_closed()

    async with stage(hang_up) as s:
        answer = await s.post(CHAT | {"stream": stream})
        assert (answer.status, four_keys(answer.body)["code"]) == (502, "upstream_error")
    async with stage(silence, fields={"timeouts": Timeouts(5, 0.2, 1, 5)}) as s:
        answer = await s.post(CHAT | {"stream": stream})
        assert (answer.status, four_keys(answer.body)["code"]) == (504, "upstream_first_byte_timeout")


async def test_21_an_error_inside_a_stream_before_its_first_event_keeps_its_status() -> None:
    async with stage(streams(frame({"error": {"message": "no room", "type": "x", "param": None, "code": "oom"}}))) as s:
        for body, path in ((CHAT, "/v1/chat/completions"), (COMPLETION, "/v1/completions")):
            answer = await s.post(body | {"stream": True}, path)
            assert answer.status == 502
            four_keys(answer.body)
        assert (await s.post(EMBEDDING, "/v1/embeddings")).status == 502  # not JSON
