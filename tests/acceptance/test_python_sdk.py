"""The unmodified OpenAI SDK for Python against a whole gateway: echo, scripted upstream and local models behind it."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.acceptance.admin import admin
from tests.acceptance.misbehaving import misbehaving_upstream, routes
from tests.gateway_process import PLAIN, Gateway, free_port, gateway
from tests.models import tiny_chat, tiny_encoder
from tests.upstream import Upstream

SAY = [{"role": "user", "content": "one two three"}]


@dataclass(frozen=True)
class Installation:
    """A gateway, what stands behind it, and keys of several kinds."""

    gateway: Gateway
    upstream: Upstream
    keys: dict[str, str]

    def client(self, key: str = "plain", **options: Any) -> OpenAI:
        http = openai.DefaultHttpxClient(verify=PLAIN)
        return OpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.keys[key], max_retries=0, timeout=20, http_client=http, **options)

    def async_client(self, key: str = "plain") -> AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=PLAIN)
        return AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.keys[key], max_retries=0, timeout=20, http_client=http)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("sdk")
    tiny_chat(folder / "models" / "tiny-chat")
    tiny_encoder(folder / "models" / "tiny-embed")
    with misbehaving_upstream() as upstream:
        config = f"""
models:
  - id: echo
    backends: [{{type: echo}}]
  - id: org/echo-7b
    name: An echo with a slash
    backends: [{{type: echo}}]
  - id: slow
    backends: [{{type: echo, delay_ms: 3000}}]
  - id: drained
    backends: [{{type: echo, weight: 0}}]
  - id: refused
    backends: [{{type: custom, baseURL: "http://127.0.0.1:{free_port()}/v1"}}]
  - id: chat
    backends: [{{type: local, path: tiny-chat}}]
  - id: embed
    backends: [{{type: local, path: tiny-embed}}]
{routes(upstream.url)}"""
        with gateway(folder, config, LOCAL_MODELS_DIR=str(folder / "models"), GATEWAY_MAX_BODY_MB="1") as running:
            yield Installation(running, upstream, _keys(running))


def _keys(running: Gateway) -> dict[str, str]:
    with admin(running) as root:
        keys = {
            "plain": root.key("plain"),
            "no inference": root.key("reader", scopes=["usage"]),
            "echo only": root.key("narrow", models=["echo"]),
            "one a minute": root.key("slow", rpm=1),
            "one at a time": root.key("single", concurrency=1),
            "few tokens": root.key("small", tpm=100),
            "expired": root.key("short", expires="1s"),
            "malformed": "sk-gw-nothing",
            "foreign": "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
        }
        revoked = root.issue("gone")
        root.revoke(revoked["id"])
    return keys | {"revoked": revoked["key"], "unknown": keys["plain"][:-4] + "0000"}


@pytest.fixture
def client(installed: Installation) -> Iterator[OpenAI]:
    with installed.client() as client:
        yield client


@pytest.fixture
async def async_client(installed: Installation) -> AsyncIterator[AsyncOpenAI]:
    async with installed.async_client() as client:
        yield client


# what works


@pytest.mark.parametrize(
    ("model", "text"), [("echo", "one two three"), ("org/echo-7b", "one two three"), ("up/good", "hello there friend")]
)
def test_chat(client: OpenAI, model: str, text: str) -> None:
    answer = client.chat.completions.create(model=model, messages=SAY, temperature=0)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id is not None
    assert answer._request_id.startswith("req-")


def test_chat_on_a_local_model(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=SAY, temperature=0, max_tokens=6)
    again = client.chat.completions.create(model="chat", messages=SAY, temperature=0, max_completion_tokens=6)
    assert answer.choices[0].message == again.choices[0].message
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.model == "chat"


@pytest.mark.parametrize("model", ["echo", "up/good", "chat"])
@pytest.mark.parametrize("include_usage", [True, False, None])
def test_streamed_chat_equals_the_unstreamed(client: OpenAI, model: str, include_usage: bool | None) -> None:
    asked: dict[str, Any] = {"model": model, "messages": SAY, "temperature": 0, "max_tokens": 12}
    if model == "up/good":
        text, usage = "w0 w1 w2 ", 10
    else:
        whole = client.chat.completions.create(**asked)
        assert whole.usage is not None
        text, usage = whole.choices[0].message.content or "", whole.usage.total_tokens
    options: dict[str, Any] = {} if include_usage is None else {"stream_options": {"include_usage": include_usage}}
    chunks = list(client.chat.completions.create(**asked, **options, stream=True))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] != []
    assert sum(choice.delta.role is not None for chunk in chunks for choice in chunk.choices) == 1
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].model == model
    told = [chunk for chunk in chunks if chunk.usage is not None]
    assert [chunk.usage.total_tokens for chunk in told if chunk.usage] == ([usage] if include_usage else [])
    assert all(chunk.choices == [] and chunk is chunks[-1] for chunk in told)


def test_the_stream_helper_gathers_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=SAY, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "one two three"
    assert final.usage is not None
    assert final.usage.completion_tokens == 3


def test_two_choices_are_told_apart(client: OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="up/two-choices", messages=SAY, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "c0 c0 ", 1: "c1 c1 "}


def test_tool_calls_pass_through(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    whole = client.chat.completions.create(model="up/tool", messages=SAY, tools=tools)
    assert whole.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(model="up/tool", messages=SAY, tools=tools) as stream:
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function"
        assert (call.id, call.function.name, call.function.arguments) == ("call_1", "weather", '{"city":"서울"}')


@pytest.mark.parametrize("model", ["echo", "chat"])
def test_completions(client: OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="one two three", temperature=0, max_tokens=5)
    assert whole.model == model
    assert whole.object == "text_completion"
    chunks = list(client.completions.create(model=model, prompt="one two three", temperature=0, max_tokens=5, stream=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert whole.usage is not None


def test_completions_of_token_ids_and_of_batches(client: OpenAI) -> None:
    one = client.completions.create(model="chat", prompt=[70, 71, 72], temperature=0, max_tokens=3)
    two = client.completions.create(model="chat", prompt=[[70, 71, 72], [80]], temperature=0, max_tokens=3)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    assert two.usage is not None
    assert (two.usage.prompt_tokens, two.usage.completion_tokens) == (4, 6)


@pytest.mark.parametrize("model", ["echo", "embed"])
def test_embeddings(client: OpenAI, model: str) -> None:
    texts = ["a key", "a weight", "열쇠 하나"]
    batch = client.embeddings.create(model=model, input=texts)  # base64, the SDK's default
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [entry.index for entry in batch.data] == [0, 1, 2]
    assert batch.model == model
    for at, text in enumerate(texts):
        single = client.embeddings.create(model=model, input=text)
        assert _near(single.data[0].embedding, batch.data[at].embedding)
        assert _near(plain.data[at].embedding, batch.data[at].embedding, 1e-6)
        assert math.isclose(sum(v * v for v in batch.data[at].embedding), 1, abs_tol=1e-4)
    assert not _near(batch.data[0].embedding, batch.data[1].embedding)
    assert batch.usage.prompt_tokens == plain.usage.prompt_tokens > 0


def test_embeddings_of_token_arrays(client: OpenAI) -> None:
    one = client.embeddings.create(model="embed", input=[70, 71, 72])
    two = client.embeddings.create(model="embed", input=[[70, 71, 72], [80, 81]])
    assert _near(one.data[0].embedding, two.data[0].embedding)
    assert (len(one.data), len(two.data)) == (1, 2)
    assert (one.usage.prompt_tokens, two.usage.prompt_tokens) == (3, 5)


def test_shorter_embeddings(client: OpenAI) -> None:
    vector = client.embeddings.create(model="embed", input="a key", dimensions=8).data[0].embedding
    assert len(vector) == 8
    assert math.isclose(sum(v * v for v in vector), 1, abs_tol=1e-4)


def _near(one: list[float], other: list[float], within: float = 1e-3) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


def test_models(client: OpenAI, installed: Installation) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"echo", "org/echo-7b", "chat", "embed", "up/good"} <= listed.keys()
    for name in ("echo", "org/echo-7b"):
        model = client.models.retrieve(name)  # the SDK sends the slash as %2F
        assert (model.id, model.object, model.owned_by) == (name, "model", listed[name].owned_by)
        assert isinstance(model.created, int)
    with installed.client("echo only") as narrow:
        assert [model.id for model in narrow.models.list()] == ["echo"]
        with pytest.raises(openai.NotFoundError) as caught:
            narrow.models.retrieve("org/echo-7b")
        assert caught.value.code == "model_not_found"


async def test_the_async_client_does_the_same(async_client: AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model="echo", messages=SAY)
    assert answer.choices[0].message.content == "one two three"
    stream = await async_client.chat.completions.create(model="echo", messages=SAY, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "one two three"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [6]
    completion = await async_client.completions.create(model="echo", prompt="one two")
    assert completion.choices[0].text == "one two"
    embeddings = await async_client.embeddings.create(model="embed", input=["a", "b"])
    assert len(embeddings.data[1].embedding) == 32
    assert "chat" in {model.id async for model in await async_client.models.list()}
    assert (await async_client.models.retrieve("org/echo-7b")).id == "org/echo-7b"


async def test_thirty_streams_side_by_side(async_client: AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        text = ""
        stream = await async_client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": f"stream number {number}"}], stream=True
        )
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        return text

    assert await asyncio.gather(*map(one, range(30))) == [f"stream number {number}" for number in range(30)]


# what does not


@dataclass(frozen=True)
class Fault:
    """A call and how it must fail. `code` and `param` None: whatever; `message`: a part of it."""

    name: str
    raises: type[openai.APIError]
    status: int
    code: str | None
    call: Callable[[Any], Any]
    param: str | None = None
    key: str = "plain"
    message: str = ""


def chat(**fields: Any) -> Callable[[Any], Any]:
    return lambda client: client.chat.completions.create(**{"model": "echo", "messages": SAY} | fields)


def local(**fields: Any) -> Callable[[Any], Any]:
    return chat(**{"model": "chat", "max_tokens": 4} | fields)


def completion(**fields: Any) -> Callable[[Any], Any]:
    return lambda client: client.completions.create(**{"model": "chat", "prompt": "hi", "max_tokens": 4} | fields)


def embedding(**fields: Any) -> Callable[[Any], Any]:
    return lambda client: client.embeddings.create(**{"model": "embed", "input": "hi"} | fields)


def raw(**fields: Any) -> Callable[[Any], Any]:
    """Any JSON at all as the body of a chat request."""
    return lambda client: client.post("/chat/completions", cast_to=object, **fields)


def _bad(name: str, param: str | None, call: Callable[[Any], Any], code: str | None = None, message: str = "") -> Fault:
    return Fault(name, openai.BadRequestError, 400, code, call, param, message=message)


def _broken(name: str, code: str = "upstream_error", status: int = 502, model: str = "") -> Fault:
    return Fault(f"upstream {name}", openai.InternalServerError, status, code, chat(model=model or f"up/{name}"))


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

FAULTS = [
    *(
        Fault(f"{kind} key", openai.AuthenticationError, 401, "invalid_api_key", chat(), key=kind)
        for kind in ("unknown", "malformed", "foreign", "revoked", "expired")
    ),
    Fault("key without the scope", openai.PermissionDeniedError, 403, "permission_denied", chat(), key="no inference"),
    Fault("model of others", openai.NotFoundError, 404, "model_not_found", chat(model="org/echo-7b"), "model", "echo only"),
    Fault("unknown model", openai.NotFoundError, 404, "model_not_found", chat(model="gpt-9"), "model"),
    Fault("unknown model, streamed", openai.NotFoundError, 404, "model_not_found", chat(model="gpt-9", stream=True), "model"),
    Fault("unknown model, completions", openai.NotFoundError, 404, "model_not_found", completion(model="gpt-9"), "model"),
    Fault("unknown model, embeddings", openai.NotFoundError, 404, "model_not_found", embedding(model="gpt-9"), "model"),
    Fault("unknown model, retrieved", openai.NotFoundError, 404, "model_not_found", lambda client: client.models.retrieve("a/b"), "model"),
    Fault("unknown path", openai.NotFoundError, 404, None, lambda client: client.post("/nothing/here", cast_to=object, body={})),
    Fault("too many tokens for the key", openai.RateLimitError, 429, "rate_limit_exceeded", chat(max_tokens=5000), key="few tokens"),
    Fault("body too large", openai.APIStatusError, 413, "request_too_large", chat(messages=[{"role": "user", "content": "x" * 1_500_000}])),
    # what the gateway itself checks, whatever stands behind it
    _bad("invalid JSON", None, raw(content=b'{"model": "echo", ')),
    _bad("a list", None, raw(body=[])),
    _bad("null", None, raw(content=b"null")),
    _bad("a lone surrogate", None, raw(content=b'{"model":"echo","messages":[{"role":"user","content":"\\ud800"}]}')),
    _bad("5,000 brackets", None, raw(content=b'{"model":"echo","x":' + b"[" * 5000 + b"]" * 5000 + b"}")),
    _bad("no model", "model", raw(body={"messages": SAY})),
    _bad("model of a wrong type", "model", chat(model=7)),
    _bad("no messages", "messages", raw(body={"model": "echo"})),
    _bad("empty messages", "messages", chat(messages=[])),
    _bad("messages of a wrong type", "messages", chat(messages="hi")),
    _bad("messages that are strings", "messages", chat(messages=["hi"])),
    _bad("stream of a wrong type", "stream", raw(body={"model": "echo", "messages": SAY, "stream": "yes"})),
    _bad("n of zero", "n", chat(n=0)),
    _bad("max_tokens below zero", "max_tokens", chat(max_tokens=-1)),
    _bad("max_tokens in letters", "max_tokens", chat(max_tokens="many")),
    _bad("stream_options without stream", "stream_options", chat(stream_options={"include_usage": True})),
    _bad("stream_options of a wrong type", "stream_options", chat(stream=True, stream_options=[1])),
    _bad("empty input", "input", embedding(input=[])),
    _bad("input of a wrong type", "input", embedding(input=7)),
    _bad("empty prompt", "prompt", completion(prompt=[])),
    # what a local model checks
    _bad("temperature above 2", "temperature", local(temperature=2.5)),
    _bad("temperature in letters", "temperature", local(temperature="hot")),
    _bad("unknown role", "messages", local(messages=[{"role": "robot", "content": "hi"}])),
    _bad("message without content", "messages", local(messages=[{"role": "user"}])),
    _bad("an image", "messages", local(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])),
    _bad("tool result without a call", "messages", local(messages=[*SAY, {"role": "tool", "tool_call_id": "x", "content": "1"}])),
    _bad("five stops", "stop", local(stop=["a", "b", "c", "d", "e"])),
    _bad("top_logprobs without logprobs", "top_logprobs", local(top_logprobs=3)),
    _bad("top_logprobs above 20", "top_logprobs", local(logprobs=True, top_logprobs=21)),
    _bad("tool_choice without tools", "tool_choice", local(tool_choice="auto")),
    _bad("tool_choice of an absent tool", "tool_choice", local(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})),
    _bad("schema without a name", "response_format", local(response_format={"type": "json_schema", "json_schema": {"schema": {}}})),
    _bad("logit_bias of words", "logit_bias", local(logit_bias={"cat": 1, "dog": 2}), message="dog"),
    _bad("dimensions of zero", "dimensions", embedding(dimensions=0)),
    _bad("too many dimensions", "dimensions", embedding(dimensions=4096)),
    _bad("unknown encoding", "encoding_format", embedding(encoding_format="hex")),
    _bad("ids out of the vocabulary", "prompt", completion(prompt=[999_999])),
    _bad("embedding ids out of the vocabulary", "input", embedding(input=[999_999])),
    _bad(
        "prompt too long",
        None,
        local(messages=[{"role": "user", "content": "words " * 2000}]),
        "context_length_exceeded",
        "maximum context length is 512 tokens",
    ),
    # what a remote backend says
    _bad("upstream 400", "temperature", chat(model="up/400"), "invalid_value"),
    _bad("upstream 400 of another shape", None, chat(model="up/400-odd"), message="bad temperature"),
    _bad("upstream context overflow", None, chat(model="up/overflow"), "context_length_exceeded", "maximum context length is 100 tokens"),
    Fault("upstream 404", openai.NotFoundError, 404, "model_not_found", chat(model="up/404"), "model"),
    Fault("upstream 409", openai.ConflictError, 409, None, chat(model="up/409")),
    Fault("upstream 422", openai.UnprocessableEntityError, 422, None, chat(model="up/422")),
    Fault("upstream 429", openai.RateLimitError, 429, "rate_limit_exceeded", chat(model="up/429")),
    *(_broken(name) for name in ("500", "401", "402", "403", "302", "html", "garbage", "reset")),
    _broken("503", "upstream_unavailable", 503),
    _broken("529", "upstream_unavailable", 503),
    _broken("refused", model="refused"),
    _broken("silent", "upstream_first_byte_timeout", 504),
    _broken("drained", "no_backend_available", 503, "drained"),
    Fault("error event first", openai.InternalServerError, 502, "upstream_error", chat(model="up/error-event", stream=True)),
    Fault("refused, streamed", openai.InternalServerError, 502, "upstream_error", chat(model="refused", stream=True)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_each_fault_arrives_as_the_right_exception(installed: Installation, fault: Fault) -> None:
    if fault.key == "expired":
        await _until_refused(installed)
    with installed.client(fault.key) as client, pytest.raises(openai.APIError) as caught:
        await asyncio.to_thread(fault.call, client)
    _check(caught.value, fault, installed)
    async with installed.async_client(fault.key) as async_client:
        with pytest.raises(openai.APIError) as caught:
            await fault.call(async_client)
    _check(caught.value, fault, installed)


def _check(error: openai.APIError, fault: Fault, installed: Installation) -> None:
    assert type(error) is fault.raises, error
    assert isinstance(error, openai.APIStatusError)
    assert error.status_code == fault.status
    assert fault.code is None or error.code == fault.code, error
    assert fault.param is None or error.param == fault.param, error
    assert fault.message in error.message
    assert error.response.headers["content-type"].startswith("application/json")
    assert (error.request_id or "").startswith("req-")
    body = error.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert isinstance(body["error"]["type"], str)
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    shown = error.response.text + str(error.response.headers)
    for secret in (
        installed.keys[fault.key],
        "sk-upstream",
        "secret stack",
        "upstream proxy page",
        "Traceback",
        str(installed.upstream.port),
    ):
        assert secret not in shown


async def _until_refused(installed: Installation) -> None:
    """The key with one second to live: wait for its end."""
    async with installed.async_client("expired") as client:
        for _ in range(40):
            try:
                await client.models.list()
            except openai.AuthenticationError:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("the key outlives its expiry")


def test_no_key_at_all(installed: Installation) -> None:
    with installed.client() as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="echo", messages=SAY, extra_headers={"Authorization": openai.Omit()})
    assert caught.value.code == "invalid_api_key"


def test_all_bad_credentials_get_one_answer(installed: Installation) -> None:
    """A stranger must not learn whether a key existed."""
    answers = set()
    for kind in ("unknown", "malformed", "foreign", "revoked"):
        with installed.client(kind) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="echo", messages=SAY)
        answers.add(caught.value.response.text)
    assert len(answers) == 1
    log = installed.gateway.log_path.read_text()
    assert '"revoked"' in log
    assert '"unknown"' in log


def test_rate_limits(installed: Installation) -> None:
    with installed.client("one a minute") as client:
        first = client.chat.completions.with_raw_response.create(model="echo", messages=SAY)
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="echo", messages=SAY)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_request_that_never_fits_is_not_to_be_retried(installed: Installation) -> None:
    with installed.client("few tokens") as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="echo", messages=SAY, max_tokens=5000)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers


async def test_concurrency(installed: Installation) -> None:
    async with installed.async_client("one at a time") as client:
        stream = await client.chat.completions.create(model="up/stalls", messages=SAY, stream=True)
        await anext(stream)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="echo", messages=SAY)
        assert caught.value.code == "rate_limit_exceeded"
        await stream.close()
        for _ in range(40):  # the place is free again as soon as the gateway has seen the hang-up
            try:
                await client.chat.completions.create(model="echo", messages=SAY)
                return
            except openai.RateLimitError:
                await asyncio.sleep(0.05)
    raise AssertionError("the place was never given back")


def test_retry_after_of_a_backend_is_passed_on(installed: Installation) -> None:
    with installed.client() as client:
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="up/429", messages=SAY)
        assert limited.value.response.headers["retry-after"] == "3"
        assert limited.value.response.headers["retry-after-ms"] == "2500"
        with pytest.raises(openai.InternalServerError) as busy:
            client.chat.completions.create(model="up/503", messages=SAY)
        assert busy.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("model", "code"), [("up/error-event-later", "oom"), ("up/breaks-off", "upstream_error"), ("up/stalls", "upstream_idle_timeout")]
)
async def test_a_stream_that_breaks_is_an_api_error(installed: Installation, model: str, code: str) -> None:
    text = ""
    with installed.client() as client, pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model=model, messages=SAY, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == "one two "
    assert type(caught.value) is openai.APIError
    assert caught.value.code == code
    async with installed.async_client() as client:
        stream = await client.chat.completions.create(model=model, messages=SAY, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code == code


def test_a_client_that_gives_up_is_booked_as_gone(installed: Installation) -> None:
    with installed.client() as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="slow", messages=SAY)
    (row,) = [row for row in _ledger(installed.gateway) if row["model"] == "slow"]
    assert (row["status"], row["ending"]) == (499, "client_gone")


def _ledger(running: Gateway) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in running.cli("ledger", "export").splitlines()]


def test_a_gateway_that_is_not_there() -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="x", max_retries=0)
    with client, pytest.raises(openai.APIConnectionError):
        client.models.list()


@pytest.mark.parametrize("framing", ["content-length: 100000000", "transfer-encoding: chunked"])
def test_a_body_over_the_cap_is_refused_before_it_is_read(installed: Installation, framing: str) -> None:
    with socket.create_connection(("127.0.0.1", installed.gateway.port), timeout=10) as raw_socket:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {installed.keys['plain']}\r\n{framing}\r\n\r\n"
        raw_socket.sendall(head.encode())
        sent = 0
        if framing.startswith("transfer"):
            piece = b"x" * 100_000
            while sent <= 1_000_000:  # the cap; not one piece more is needed
                raw_socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
        answer = raw_socket.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


def test_a_stranger_sends_no_body(installed: Installation) -> None:
    """Credentials are judged on the head alone."""
    with socket.create_connection(("127.0.0.1", installed.gateway.port), timeout=10) as raw_socket:
        raw_socket.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Basic abc\r\ncontent-length: 500000\r\n\r\n")
        assert raw_socket.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_case_insensitive_and_headers_are_equal(installed: Installation, scheme: str) -> None:
    key = installed.keys["plain"]
    with installed.client() as client:
        ask = client.chat.completions.create
        for headers in ({"Authorization": f"{scheme} {key}"}, {"x-api-key": key}, {"api-key": key}):
            extra: Any = {"Authorization": openai.Omit()} | headers
            assert ask(model="echo", messages=SAY, extra_headers=extra).model == "echo"
        with pytest.raises(openai.AuthenticationError):  # two different ones
            ask(model="echo", messages=SAY, extra_headers={"x-api-key": installed.keys["echo only"]})


def test_harmless_headers_and_fields(client: OpenAI) -> None:
    headers = {"OpenAI-Organization": "org-1", "OpenAI-Project": "p", "OpenAI-Beta": "x=1", "Idempotency-Key": "1", "X-use-cache": "false"}
    fields: dict[str, Any] = {"stop": None, "top_p": None, "user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"}
    for model in ("echo", "chat"):
        answer = client.chat.completions.create(
            model=model, messages=SAY, max_tokens=3, extra_headers=headers, extra_body={"verbosity": "low", "unheard_of": [1]}, **fields
        )
        assert answer.model == model


def test_nothing_secret_reached_the_log(installed: Installation) -> None:
    log = installed.gateway.log_path.read_text()
    for secret in (*installed.keys.values(), "sk-upstream", "one two three", "Traceback"):
        assert secret not in log


def test_unknown_fields_reach_a_remote_backend(installed: Installation) -> None:
    before = len(installed.upstream.seen)
    with installed.client() as client:
        client.chat.completions.create(model="up/good", messages=SAY, extra_body={"unheard_of": {"한글": [1, None]}})
    seen = installed.upstream.seen[before]
    assert seen.json == {"model": "good", "messages": SAY, "unheard_of": {"한글": [1, None]}}
    assert seen.headers["authorization"] == "Bearer sk-upstream"
    assert not any(name.startswith("x-stainless") for name in seen.headers)
