"""Points 56 to 60 of tests/wire/points.py: models, tokenize, the newer operations, and good sense."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import orjson
import pytest

from tests.upstream import Seen, Wire, chat_answer, chat_chunk, well_behaved
from tests.wire.served import Served
from tests.wire.spec import check
from tests.wire.stage import CHAT, answers, frame, stage, streams

USER = {"role": "user", "content": "hi"}
UPSTREAM = {"tokenizer": "upstream"}


# 56


def test_56_the_list_of_models(served: Served) -> None:
    with served.http() as http:
        made = http.get("/v1/models").json()
    check(made, "ListModelsResponse")
    assert [model["id"] for model in made["data"]] == ["echo", "org/echo-2", "dead"]
    assert all(isinstance(model["created"], int) for model in made["data"])


def test_56_only_what_the_key_may_use(served: Served) -> None:
    with served.http(served.gateway.key("few", "--models", "org/*")) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["org/echo-2"]
        assert http.get("/v1/models/echo").status_code == 404
        assert http.get("/v1/models/org/echo-2").status_code == 200


# 57


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_57_tokenize_at_the_root_and_below_v1(prefix: str) -> None:
    told = {"tokens": [1, 2], "count": 2, "max_model_len": 100}
    async with stage(answers(told), fields=UPSTREAM) as s:
        answer = await s.post({"model": "m", "prompt": "hi", "add_special_tokens": False}, f"{prefix}/tokenize")
        assert (answer.status, answer.json) == (200, told)
        assert s.up.seen[0].path == "/tokenize"  # vLLM has it beside /v1
        assert s.up.seen[0].json["add_special_tokens"] is False
        s.up.script = answers({"prompt": "hi"})
        assert (await s.post({"model": "m", "tokens": [1, 2]}, f"{prefix}/detokenize")).json == {"prompt": "hi"}
        assert s.up.seen[1].path == "/detokenize"


async def test_57_without_a_tokenizer_it_says_so() -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post({"model": "m", "prompt": "hi"}, "/v1/tokenize")
        assert answer.status == 501
        assert answer.code
        assert not s.up.seen


# 58


EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1", "model": "up", "usage": None}},
    {"type": "response.output_text.delta", "sequence_number": 1, "delta": "a", "item_id": "msg_1", "output_index": 0, "content_index": 0},
    {
        "type": "response.completed",
        "sequence_number": 2,
        "response": {"id": "resp_1", "model": "up", "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}},
    },
]


def typed(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


async def test_58_responses_stream_as_they_are_without_done() -> None:
    sent = b"".join(map(typed, EVENTS))
    async with stage(streams(sent), model="m") as s:
        raw = orjson.dumps({"model": "m", "input": "hi", "stream": True, "odd": 1.50})
        answer = await s.post(raw, "/v1/responses")
        assert (answer.status, answer.complete, answer.body) == (200, True, sent)
        assert (s.up.seen[0].path, s.up.seen[0].body) == ("/v1/responses", raw)
        (record,) = await s.server.ledger.wait(1)
        assert (record.operation, record.prompt_tokens, record.completion_tokens, record.token_source) == ("responses", 7, 3, "backend")


async def test_58_a_broken_stream_of_responses_ends_with_an_error_of_its_own_shape() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(typed(EVENTS[0]) + typed(EVENTS[1]))
        await asyncio.sleep(0.02)
        wire.reset()

    async with stage(breaks) as s:
        answer = await s.post({"model": "m", "input": "hi", "stream": True}, "/v1/responses")
        *_, last = answer.body.removesuffix(b"\n\n").split(b"\n\n")
        name, _, data = last.partition(b"\n")
        assert name == b"event: error"
        assert orjson.loads(data.removeprefix(b"data: "))["type"] == "error"


async def test_58_responses_unstreamed_through_the_sdk() -> None:
    content = [{"type": "output_text", "text": "hello", "annotations": []}]
    output = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}]
    made = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "up", "output": output, "tools": []}
    async with stage(answers(made | {"parallel_tool_calls": True, "tool_choice": "auto"}), model="up") as s, s.sdk() as sdk:
        answer = await sdk.responses.create(model="m", input="hi")
        assert (answer.output_text, answer.model) == ("hello", "m")


async def test_58_what_is_not_offered_is_404() -> None:
    async with stage(well_behaved()) as s:
        for method in ("GET", "DELETE"):
            client = await s.connect()
            client.send(s.head("/v1/responses/resp_1", "content-length: 0", method=method))
            assert (await client.answer()).status == 404
        assert not s.up.seen


# 59


OTHER_PATHS = pytest.mark.xfail(strict=True, reason="rerank is offered at /v1/rerank alone, not at Cohere's /v2 nor at the root")


@pytest.mark.parametrize("path", ["/v1/rerank", pytest.param("/v2/rerank", marks=OTHER_PATHS), pytest.param("/rerank", marks=OTHER_PATHS)])
async def test_59_rerank_passes(path: str) -> None:
    told = {
        "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.10}],
        "meta": {"billed_units": {"search_units": 1}},
    }
    async with stage(answers(told)) as s:
        answer = await s.post({"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 2}, path)
        assert answer.status == 200
        assert answer.json == told


async def test_59_pictures_pass() -> None:
    picture = {"created": 1, "data": [{"b64_json": "AAAA"}, {"b64_json": "BBBB"}]}
    async with stage(answers(picture)) as s, s.sdk() as sdk:
        made = await sdk.images.generate(model="m", prompt="a cat", n=2, size="256x256", response_format="b64_json")
        assert [image.b64_json for image in made.data or ()] == ["AAAA", "BBBB"]
        assert s.up.seen[0].json == {"model": "m", "prompt": "a cat", "n": 2, "size": "256x256", "response_format": "b64_json"}


# 60


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_60_refusals_of_one_client_are_nobody_elses_trouble(status: int) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        if seen.json.get("bad"):
            await wire.answer({"error": "no"}, status)
        else:
            await wire.answer(chat_answer("m"))

    async with stage(script) as s:
        for _ in range(30):
            assert (await s.post(CHAT | {"bad": True})).status == status
        assert (await s.post()).status == 200
        assert len(s.up.seen) == 31  # none was sent twice


async def test_60_one_call_each_for_every_ending() -> None:
    async with stage(well_behaved()) as s:
        for script in (well_behaved(), answers(b"", 500), answers(b"<html>", 200, "text/html"), answers({"error": "no"}, 400)):
            s.up.script = script
            for stream in (False, True):
                before = len(s.up.seen)
                await s.post(CHAT | {"stream": stream, "stream_options": {"include_usage": True}} if stream else CHAT)
                assert len(s.up.seen) == before + 1


async def test_60_a_429_is_asked_at_most_once_more() -> None:
    async with stage(answers({"error": "slow"}, 429)) as s:
        assert (await s.post()).status == 429
        assert len(s.up.seen) <= 2


async def test_60_refused_stream_options_are_left_out_once_and_remembered() -> None:
    async def picky(wire: Wire, seen: Seen) -> None:
        if "stream_options" in seen.json:
            await wire.answer({"error": {"message": "unknown field stream_options"}}, 400)
        else:
            await well_behaved()(wire, seen)

    async with stage(picky) as s:
        for _ in range(3):
            assert (await s.post(CHAT | {"stream": True})).body.endswith(b"data: [DONE]\n\n")
        assert ["stream_options" in seen.json for seen in s.up.seen] == [True, False, False, False]


async def test_60_thirty_slow_streams_run_side_by_side() -> None:
    async with stage(well_behaved(words=5, delay_s=0.1)) as s, s.sdk() as sdk:

        async def one() -> str:
            parts = await sdk.chat.completions.create(model="m", messages=[USER], stream=True)  # type: ignore[list-item]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in parts])

        started_s = time.monotonic()
        texts = await asyncio.gather(*(one() for _ in range(30)))
        assert time.monotonic() - started_s < 12  # one after the other they would take 15
        assert set(texts) == {"w0 w1 w2 w3 w4 "}


async def test_60_what_is_asked_again_by_the_sdk_is_asked_by_it_alone() -> None:
    async def fails_once(wire: Wire, seen: Seen) -> None:
        await wire.answer(*((chat_answer("m"),) if len(s.up.seen) > 1 else (b"", 500)))

    async with stage(fails_once) as s, s.sdk(retries=1) as sdk:
        assert (await sdk.chat.completions.create(model="m", messages=[USER])).choices  # type: ignore[list-item]
        assert len(s.up.seen) == 2
        assert [record.status for record in await s.server.ledger.wait(2)] == [502, 200]
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.create(model="none", messages=[USER])  # type: ignore[list-item]


async def test_60_an_answer_of_megabytes_is_not_changed() -> None:
    body = orjson.dumps(chat_answer("up", "x\u00e9\\" * 300_000))
    async with stage(answers(body), model="up") as s:
        assert (await s.post()).body == body.replace(b'"model":"up"', b'"model":"m"', 1)


async def test_60_a_frame_of_half_a_megabyte_goes_through_whole() -> None:
    sent = frame(chat_chunk({"content": "x" * 500_000}, model="m")) + frame(chat_chunk({}, "stop", model="m"))
    async with stage(streams(*(sent[at : at + 10_000] for at in range(0, len(sent), 10_000)))) as s:
        assert (await s.post(CHAT | {"stream": True})).body == sent + b"data: [DONE]\n\n"
