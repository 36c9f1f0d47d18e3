"""Points 36 to 55 of tests/wire/points.py: chat, completions and embeddings, as they pass through.

What a backend generates is its own affair: the gateway's part is that each of these requests reaches it as the client wrote it, and each of
these answers reaches the client as the backend wrote it, in a form that the SDK reads.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import orjson
import pytest
from pydantic import BaseModel

from tests.upstream import USAGE, chat_answer, chat_chunk
from tests.wire.served import Served
from tests.wire.spec import check
from tests.wire.stage import CHAT, COMPLETION, EMBEDDING, Stage, answers, frame, stage, streams

DONE = b"data: [DONE]\n\n"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Z\u00fcrich"}'}}
LOGPROB = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.1, "bytes": None}]}


async def passes(s: Stage, request: Any, path: str = "/v1/chat/completions") -> None:
    """The body reaches the backend byte for byte, with the exotic spacing that a client may use; the answer comes back likewise."""
    raw = orjson.dumps(request, option=orjson.OPT_INDENT_2) + b"\n"
    answer = await s.post(raw, path)
    assert answer.status == 200, answer.body
    assert s.up.seen[-1].body == raw


async def asks(request: dict[str, Any]) -> None:
    async with stage(answers(chat_answer("m"))) as s:
        await passes(s, CHAT | request)


def with_choice(**fields: Any) -> dict[str, Any]:
    made = chat_answer("m")
    made["choices"][0] |= fields
    return made


# chat


def test_36_our_own_answers_have_every_key(served: Served) -> None:
    with served.http() as http:
        made = http.post("/v1/chat/completions", json=CHAT | {"model": "echo"}).json()
    check(made, "CreateChatCompletionResponse")
    assert made["id"].startswith("chatcmpl-")
    assert 1_600_000_000 < made["created"] < 3_000_000_000
    (choice,) = made["choices"]
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None


@pytest.mark.parametrize(
    "answer",
    [
        with_choice(message={"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}, finish_reason="tool_calls"),
        chat_answer("m"),
    ],
)
async def test_36_answers_pass_byte_for_byte(answer: dict[str, Any]) -> None:
    check(answer, "CreateChatCompletionResponse")
    raw = orjson.dumps(answer, option=orjson.OPT_INDENT_2)
    async with stage(answers(raw)) as s:
        assert (await s.post()).body == raw


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": None}]
)
async def test_37_token_limits_pass_under_their_own_names(limits: dict[str, Any]) -> None:
    await asks(limits)


def test_37_our_own_answers_keep_them(served: Served) -> None:
    with served.http() as http:
        for name in ("max_tokens", "max_completion_tokens"):
            made = http.post(
                "/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "a b c d"}], name: 2}
            ).json()
            assert made["usage"]["completion_tokens"] == 2
            assert made["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", [None, "x", ["a", "b", "c", "d"], "\u00e9", []])
async def test_38_stop_passes(stop: Any) -> None:
    await asks({"stop": stop})


async def test_39_nulls_and_unknown_fields_pass() -> None:
    nulls = dict.fromkeys(
        "temperature top_p n stop max_tokens seed tools tool_choice response_format logprobs user stream stream_options".split()
    )
    known = {
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "verbosity": "low",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    unknown = {"guided_json": {"a": [1.50, 1e300]}, "top_k": 5, "x-odd": None, "\u00fc": {"nested": [[]]}, "user": "u"}
    await asks(nulls | known | unknown)


async def test_39_numbers_pass_as_they_are_written() -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":1.50,"seed":12345678901234567890123,"top_p":1E0,"x":-0.0}'
    )
    async with stage(answers(chat_answer("m"))) as s:
        answer = await s.post(raw)
        assert (answer.status, s.up.seen[0].body) == (200, raw)


async def test_40_roles_names_and_message_keys_pass() -> None:
    messages = [
        {"role": "developer", "content": "d", "name": "dev"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "ann"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "t"}], "tool_call_id": "call_1"},
        {"role": "function", "content": "f", "name": "old"},
        {"role": "assistant", "content": "x", "reasoning_content": "thought", "refusal": None, "audio": None},
    ]
    await asks({"messages": messages})


async def test_41_content_parts_pass_images_of_megabytes_too() -> None:
    image = "data:image/png;base64," + base64.b64encode(bytes(300_000)).decode()
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": image, "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
    ]
    await asks({"messages": [{"role": "user", "content": parts}]})


@pytest.mark.parametrize("stream", [False, True])
async def test_42_logprobs_pass(stream: bool) -> None:
    logprobs = {"content": [LOGPROB], "refusal": None}
    if stream:
        chunk = chat_chunk({"content": "a"}, model="m")
        chunk["choices"][0]["logprobs"] = logprobs
        check(chunk, "CreateChatCompletionStreamResponse")
        script = streams(frame(chunk), frame(chat_chunk({}, "stop", model="m")))
    else:
        check(with_choice(logprobs=logprobs), "CreateChatCompletionResponse")
        script = answers(with_choice(logprobs=logprobs))
    async with stage(script) as s, s.sdk() as sdk:
        if stream:
            parts = [
                c async for c in await sdk.chat.completions.create(model="m", messages=[USER], logprobs=True, top_logprobs=1, stream=True)
            ]  # type: ignore[list-item]
            found = parts[0].choices[0].logprobs
        else:
            found = (await sdk.chat.completions.create(model="m", messages=[USER], logprobs=True, top_logprobs=1)).choices[0].logprobs  # type: ignore[list-item, assignment]
        assert found is not None
        assert found.model_dump() == logprobs
        assert s.up.seen[0].json["top_logprobs"] == 1


async def test_43_choices_pass_and_are_counted_once() -> None:
    answer = chat_answer("m")
    answer["choices"] = [answer["choices"][0] | {"index": index} for index in range(3)]
    answer["usage"] = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    async with stage(answers(answer)) as s, s.sdk() as sdk:
        made = await sdk.chat.completions.create(
            model="m", messages=[USER], n=3, seed=5, temperature=0, frequency_penalty=0.5, presence_penalty=-0.5
        )  # type: ignore[list-item]
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        (record,) = await s.server.ledger.wait(1)
        assert (record.prompt_tokens, record.completion_tokens) == (7, 9)
        sent = s.up.seen[0].json
        assert (sent["n"], sent["seed"], sent["temperature"], sent["frequency_penalty"], sent["presence_penalty"]) == (3, 5, 0, 0.5, -0.5)


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "weather"}}])
async def test_44_tools_pass(choice: Any) -> None:
    await asks({"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False})


async def test_44_tool_calls_reach_the_sdk() -> None:
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
    async with stage(answers(with_choice(message=message, finish_reason="tool_calls"))) as s, s.sdk() as sdk:
        made = await sdk.chat.completions.create(model="m", messages=[USER], tools=[TOOL])  # type: ignore[list-item]
        (call,) = made.choices[0].message.tool_calls or ()
        assert call.model_dump() == CALL
        assert made.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["m", "up"])
async def test_45_tool_deltas_add_up(model: str) -> None:
    def delta(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": first.pop("name")} if first else {})
        return chat_chunk({"tool_calls": [{"index": index, "function": function} | first]}, model=model)

    head = {"type": "function", "name": "weather"}
    sent = [
        chat_chunk({"role": "assistant", "content": None}, model=model),
        delta(0, "", id="call_1", **head),
        delta(0, '{"model":'),
        delta(1, "", id="call_2", **head),
        delta(0, '"up","city":"Z\u00fc'),
        delta(1, "{}"),
        delta(0, 'rich"}'),
        chat_chunk({}, "tool_calls", model=model),
    ]
    async with stage(streams(*map(frame, sent), DONE), model=model) as s, s.sdk() as sdk:
        async with sdk.chat.completions.stream(model="m", messages=[USER], tools=[TOOL]) as made:  # type: ignore[list-item]
            final = await made.get_final_completion()
        calls = final.choices[0].message.tool_calls or ()
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
            ("call_1", "weather", '{"model":"up","city":"Z\u00fcrich"}'),
            ("call_2", "weather", "{}"),
        ]
        assert final.model == "m"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    ],
)
async def test_46_response_formats_pass(wanted: dict[str, Any]) -> None:
    await asks({"response_format": wanted})


async def test_46_parse_reads_what_the_backend_wrote() -> None:
    class Wanted(BaseModel):
        a: int

    async with stage(answers(chat_answer("m", '{"a": 5}'))) as s, s.sdk() as sdk:
        made = await sdk.chat.completions.parse(model="m", messages=[USER], response_format=Wanted)  # type: ignore[list-item]
        assert made.choices[0].message.parsed == Wanted(a=5)
        s.up.script = answers(chat_answer("m") | {"choices": [chat_answer("m")["choices"][0] | {"finish_reason": "length"}]})
        with pytest.raises(openai.LengthFinishReasonError):
            await sdk.chat.completions.parse(model="m", messages=[USER], response_format=Wanted)  # type: ignore[list-item]


@pytest.mark.parametrize("stream", [False, True])
async def test_47_the_model_is_the_one_asked_for_and_vendor_fields_pass(stream: bool) -> None:
    vendor = {"reasoning_content": "I think", "reasoning": {"model": "up"}}
    if stream:
        script = streams(frame(chat_chunk(vendor, model="up") | {"vendor": {"model": "up"}}), frame(chat_chunk({}, "stop", model="up")))
    else:
        script = answers(chat_answer("up") | {"choices": [chat_answer()["choices"][0] | vendor], "vendor": {"model": "up"}})
    async with stage(script, model="up") as s:
        answer = await s.post(CHAT | {"stream": stream, "reasoning_effort": "low"})
        values = [orjson.loads(event) for event in answer.events[:-1]] if stream else [answer.json]
        assert {value["model"] for value in values} == {"m"}
        assert values[0]["vendor"] == {"model": "up"}
        holder = values[0]["choices"][0]["delta" if stream else "reasoning"]
        assert (holder["reasoning"] if stream else holder) == {"model": "up"}
        assert s.up.seen[0].json["model"] == "up"
        assert s.up.seen[0].json["reasoning_effort"] == "low"


# completions


def text_answer(*texts: str, **fields: Any) -> dict[str, Any]:
    choices = [{"index": index, "text": text, "logprobs": None, "finish_reason": "stop"} | fields for index, text in enumerate(texts)]
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE}


def test_48_our_own_completions(served: Served) -> None:
    with served.http() as http:
        made = http.post("/v1/completions", json={"model": "echo", "prompt": "a b"}).json()
        streamed = http.post("/v1/completions", json={"model": "echo", "prompt": "a b", "stream": True}).text
    check(made, "CreateCompletionResponse")
    assert made["id"].startswith("cmpl-")
    chunks = [orjson.loads(event[6:]) for event in streamed.removesuffix("\n\n").split("\n\n")[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


@pytest.mark.parametrize("more", [{}, {"max_tokens": 0, "echo": True}, {"max_tokens": 16, "suffix": "x", "best_of": 2}])
async def test_48_completions_pass(more: dict[str, Any]) -> None:
    async with stage(answers(text_answer("a"))) as s:
        await passes(s, COMPLETION | more, "/v1/completions")


@pytest.mark.parametrize("prompt", ["hi", ["a", "b"], [1, 2, 3], [[1, 2], [3]], " "])
async def test_49_every_form_of_prompt_passes(prompt: Any) -> None:
    async with stage(answers(text_answer("a", "b"))) as s:
        await passes(s, COMPLETION | {"prompt": prompt, "n": 2}, "/v1/completions")


@pytest.mark.parametrize("prompt", ["", [], None])
async def test_49_an_empty_prompt_is_400(prompt: Any) -> None:
    async with stage(answers(text_answer("a"))) as s:
        answer = await s.post(COMPLETION | {"prompt": prompt}, "/v1/completions")
        assert (answer.status, answer.json["error"]["param"]) == (400, "prompt")


LOGPROBS = {
    "tokens": ["a", "b"],
    "token_logprobs": [None, -0.30000001192092896],
    "top_logprobs": [None, {"b": -0.30000001192092896}],
    "text_offset": [0, 1],
}


async def test_50_logprobs_of_prompts_pass_to_the_last_digit() -> None:
    raw = orjson.dumps(text_answer("ab", logprobs=LOGPROBS))
    async with stage(answers(raw)) as s, s.sdk() as sdk:
        request = {"prompt": [[1, 2]], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}
        await passes(s, COMPLETION | request, "/v1/completions")
        made = await sdk.completions.create(model="m", prompt=[[1, 2]], max_tokens=1, echo=True, logprobs=1)
        found = made.choices[0].logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert found.token_logprobs[1] == max(found.top_logprobs[1].values()) == -0.30000001192092896


@pytest.mark.parametrize("logprobs", [0, 1, 5, None])
async def test_51_logprobs_of_completions_pass(logprobs: int | None) -> None:
    async with stage(answers(text_answer("ab", logprobs=LOGPROBS))) as s:
        await passes(s, COMPLETION | {"logprobs": logprobs, "return_tokens_as_token_ids": True}, "/v1/completions")


# embeddings


VECTOR = [0.1, -0.25, 3.0]
PACKED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


def embeddings(*vectors: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": "up", "usage": {"prompt_tokens": 5, "total_tokens": 5}}


async def test_52_the_sdks_base64_passes_both_ways() -> None:
    async with stage(answers(embeddings(PACKED)), model="up") as s, s.sdk() as sdk:
        made = await sdk.embeddings.create(model="m", input="hi")
        assert s.up.seen[0].json["encoding_format"] == "base64"
        assert made.data[0].embedding == pytest.approx(VECTOR)
        assert made.model == "m"
        s.up.script = answers(embeddings(VECTOR))
        assert (await sdk.embeddings.create(model="m", input="hi", encoding_format="float")).data[0].embedding == VECTOR


def test_52_our_own_embeddings(served: Served) -> None:
    with served.http() as http:
        both = [
            http.post("/v1/embeddings", json={"model": "echo", "input": "hi", "encoding_format": form}).json()
            for form in ("float", "base64")
        ]
    check(both[0], "CreateEmbeddingResponse")
    plain, packed = (made["data"][0]["embedding"] for made in both)
    assert list(struct.unpack(f"<{len(plain)}f", base64.b64decode(packed))) == pytest.approx(plain)


@pytest.mark.parametrize("given", ["hi", ["a", "b"], [1, 2], [[1, 2], [3]], ["x"] * 2048])
async def test_53_every_form_of_input_passes(given: Any) -> None:
    async with stage(answers(embeddings(VECTOR))) as s:
        await passes(s, EMBEDDING | {"input": given}, "/v1/embeddings")


async def test_54_order_and_usage_are_the_backends() -> None:
    body = orjson.dumps(embeddings(*[[float(n)] * 1536 for n in range(200)]))  # above 1 MB: not parsed as a whole
    assert len(body) > 1_000_000
    async with stage(answers(body), model="up") as s:
        answer = await s.post(EMBEDDING, "/v1/embeddings")
        assert answer.body == body.replace(b'"model":"up"', b'"model":"m"')
        (record,) = await s.server.ledger.wait(1)
        assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (5, 0, "backend")


@pytest.mark.parametrize("dimensions", [1, 256, None])
async def test_55_dimensions_pass(dimensions: int | None) -> None:
    async with stage(answers(embeddings(VECTOR))) as s:
        await passes(s, EMBEDDING | {"dimensions": dimensions, "encoding_format": "float", "user": "u"}, "/v1/embeddings")
