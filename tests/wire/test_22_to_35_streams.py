"""Points 22 to 35 of tests/wire/points.py: event streams."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import orjson
import pytest

from gateway.routing.table import Timeouts
from tests.upstream import USAGE, Seen, Wire, chat_answer, chat_chunk, well_behaved
from tests.wire.served import Served
from tests.wire.spec import check
from tests.wire.stage import CHAT, COMPLETION, answers, frame, stage, streams

STREAM = CHAT | {"stream": True}
ASKING = STREAM | {"stream_options": {"include_usage": True}}
DONE = b"data: [DONE]\n\n"
ROLE, A, B = (chat_chunk(delta, model="m") for delta in ({"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}))
STOP = chat_chunk({}, "stop", model="m")
LAST = chat_chunk({}, model="m") | {"choices": [], "usage": USAGE}
WHOLE = frame(ROLE) + frame(A) + frame(B) + frame(STOP)


# 22


@pytest.mark.parametrize(
    "done",
    [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE] \n\n", b"data: [DONE]\n", b"data: [DONE]", b""],
)
async def test_22_framing_and_the_last_line(done: bytes) -> None:
    async with stage(streams(WHOLE, *([done] if done else []))) as s:
        answer = await s.post(STREAM)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert "content-length" not in answer.headers
        assert (answer.body, answer.complete) == (WHOLE + DONE, True)


async def test_22_nothing_comes_behind_it() -> None:
    async with stage(streams(WHOLE + DONE + frame(B), frame(A) + DONE)) as s:
        assert (await s.post(STREAM)).body == WHOLE + DONE


# 23


@pytest.mark.alone
async def test_23_the_body_ends_at_once_and_the_connection_is_kept() -> None:
    async def lingers(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(WHOLE + DONE)
        sent.append(time.monotonic())
        await wire.until_closed()

    sent: list[float] = []
    async with stage(lingers) as s:
        client = await s.connect()
        for _ in range(2):
            client.send(s.request(STREAM))
            answer = await client.answer()
            assert time.monotonic() - sent[-1] < 0.5  # not the second for which an end is waited for
            assert (answer.complete, answer.headers.get("connection")) == (True, None)


# 24


def test_24_every_chunk_of_our_own_has_all_keys(served: Served) -> None:
    with served.http() as http:
        body = STREAM | {"model": "echo", "stream_options": {"include_usage": True}}
        events = http.post("/v1/chat/completions", json=body).text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")
        assert all(choice.keys() >= {"index", "delta", "finish_reason"} for choice in chunk["choices"])
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["model"] == "echo"


async def test_24_of_a_backend_with_another_name_only_the_name_is_changed() -> None:
    sent = [chat_chunk({"content": text}, model="up") for text in ("a", 'x","model":"up', "model")] + [chat_chunk({}, "stop", model="up")]
    async with stage(streams(*map(frame, sent)), model="up") as s:
        answer = await s.post(STREAM)
    assert [orjson.loads(event) for event in answer.events[:-1]] == [chunk | {"model": "m"} for chunk in sent]


# 25


async def test_25_deltas_add_up_to_the_whole_message() -> None:
    async with stage(well_behaved(5)) as s, s.sdk() as sdk:
        role = content = ""
        async for chunk in await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True):
            for choice in chunk.choices:
                role += choice.delta.role or ""
                content += choice.delta.content or ""
    assert (role, content) == ("assistant", "w0 w1 w2 w3 w4 ")


# 26


def test_26_one_finish_reason_in_the_last_delta(served: Served) -> None:
    with served.http() as http:
        events = http.post("/v1/chat/completions", json=STREAM | {"model": "echo"}).text.split("\n\n")
    reasons = [orjson.loads(event[6:])["choices"][0]["finish_reason"] for event in events if event[6:].startswith("{")]
    assert reasons[-1] in ("stop", "length")
    assert not any(reasons[:-1])


async def test_26_a_stream_that_ends_without_one_is_not_given_one() -> None:
    """The message was complete: what is missing is the backend's affair, and is not made up."""
    async with stage(streams(frame(ROLE), frame(A))) as s:
        assert (await s.post(STREAM)).body == frame(ROLE) + frame(A) + DONE


# 27


async def test_27_usage_only_where_it_was_asked_for() -> None:
    async with stage(well_behaved()) as s, s.sdk() as sdk:
        messages: Any = [{"role": "user", "content": "hi"}]
        plain = await sdk.chat.completions.create(model="m", messages=messages)
        asked = [
            c
            async for c in await sdk.chat.completions.create(
                model="m", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        ]
        unasked = [c async for c in await sdk.chat.completions.create(model="m", messages=messages, stream=True)]
        assert [bool(chunk.usage) for chunk in asked] == [False] * (len(asked) - 1) + [True]
        assert asked[-1].choices == []
        assert asked[-1].usage == plain.usage
        assert not any(chunk.usage for chunk in unasked)
        assert all(chunk.choices for chunk in unasked)
        records = await s.server.ledger.wait(3)
        assert {(r.prompt_tokens, r.completion_tokens, r.token_source) for r in records} == {(7, 3, "backend")}
        assert len(s.up.seen) == 3


@pytest.mark.parametrize("asked", [{"stream_options": {"include_usage": False}}, {"stream_options": None}, {"stream_options": {}}])
async def test_27_declining_is_not_asking(asked: dict[str, Any]) -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(STREAM | asked)
        assert b'"usage":{' not in answer.body


# 28


async def test_28_two_choices_one_usage_one_end() -> None:
    def chunk(index: int, text: str | None, finish: str | None = None) -> dict[str, Any]:
        made = chat_chunk({"content": text} if text else {}, finish, model="m")
        made["choices"][0]["index"] = index
        return made

    sent = [chunk(0, "a"), chunk(1, "b"), chunk(1, None, "stop"), chunk(0, "c"), chunk(0, None, "length")]
    async with stage(streams(*map(frame, [*sent, LAST]), DONE)) as s:
        answer = await s.post(ASKING | {"n": 2})
        assert answer.body == b"".join(map(frame, [*sent, LAST])) + DONE
        assert s.up.seen[0].json["n"] == 2


# 29


@pytest.mark.parametrize("how", ["reset", "close", "half a frame", "silence", "error event", "garbage"])
async def test_29_an_error_after_the_first_event_is_one_event_without_done(how: str) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(ROLE) + frame(A))
        await asyncio.sleep(0.02)
        if how == "reset":
            wire.reset()
        elif how == "half a frame":
            await wire.chunk(b'data: {"id": "x", "cho')
            wire.close()
        elif how == "silence":
            await wire.until_closed()
        elif how == "error event":
            await wire.chunk(frame({"error": {"message": "no room", "type": "x", "param": None, "code": "oom"}}))
            await wire.end()
        elif how == "garbage":
            await wire.send(b"zzzz\r\n not a chunk")
        else:
            wire.close()

    async with stage(script, fields={"timeouts": Timeouts(1, 1, 0.3, 5)}) as s, s.sdk() as sdk:
        answer = await s.post(STREAM)
        assert (answer.status, answer.complete) == (200, True)
        assert answer.events[:2] == [orjson.dumps(ROLE), orjson.dumps(A)]
        (error,) = answer.events[2:]
        assert orjson.loads(error)["error"]["message"]
        text = ""
        with pytest.raises(openai.APIError) as caught:
            async for chunk in await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True):
                text += chunk.choices[0].delta.content or ""
        assert text == "a"
        assert isinstance(caught.value.body, dict)


# 30


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_30_errors_before_the_first_event_keep_their_status(status: int) -> None:
    async with stage(answers({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, status)) as s:
        answer = await s.post(STREAM)
        assert answer.status == (502 if status == 500 else status)
        assert answer.headers["content-type"] == "application/json"


async def test_30_nothing_is_sent_before_the_backend_has_sent_an_event() -> None:
    go = asyncio.Event()

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(b": thinking\n\n")
        await go.wait()
        await wire.chunk(frame({"error": {"message": "m", "type": "t", "param": None, "code": None}}))
        await wire.end()

    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request(STREAM))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.2)
        go.set()
        assert (await client.answer()).status == 502


# 31


TEXT = "caf\u00e9 \U0001f642\u200d\u2764\ufe0f \ud55c\uad6d\uc5b4 \u0000 end"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("escaped", [False, True])
async def test_31_characters_may_be_split_anywhere(size: int, escaped: bool) -> None:
    import json

    sent = b"".join(
        b"data: " + json.dumps(chat_chunk({"content": c}, model="m"), ensure_ascii=escaped).encode() + b"\n\n" for c in TEXT
    ) + frame(STOP)
    async with stage(streams(*(sent[at : at + size] for at in range(0, len(sent), size)))) as s, s.sdk() as sdk:
        assert (await s.post(STREAM)).body == sent + DONE
        parts = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in parts]) == TEXT


# 32


DIALECTS = {
    "crlf": b"".join(b"data: " + orjson.dumps(c) + b"\r\n\r\n" for c in (ROLE, A, B, STOP)),
    "cr": b"".join(b"data: " + orjson.dumps(c) + b"\r\r" for c in (ROLE, A, B, STOP)),
    "no space": b"".join(b"data:" + orjson.dumps(c) + b"\n\n" for c in (ROLE, A, B, STOP)),
    "comments": b": hello\n\n" + b"".join(b": ping\n\ndata: " + orjson.dumps(c) + b"\n: pong\n\n" for c in (ROLE, A, B, STOP)),
    "id, retry, event": b"".join(b"id: 1\nretry: 10\nevent: message\ndata: " + orjson.dumps(c) + b"\n\n" for c in (ROLE, A, B, STOP)),
    "several lines": b"".join(
        b"data: " + orjson.dumps(c).replace(b',"object"', b'\ndata: ,"object"') + b"\n\n" for c in (ROLE, A, B, STOP)
    ),
    "blank lines": b"\n\n" + b"\n\n\n".join(frame(c) for c in (ROLE, A, B, STOP)) + b"\n\n",
    "bom": b"\xef\xbb\xbf" + WHOLE,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", [1, 50, 10_000])
async def test_32_every_way_to_write_events(dialect: str, size: int) -> None:
    sent = DIALECTS[dialect]
    async with stage(streams(*(sent[at : at + size] for at in range(0, len(sent), size)))) as s, s.sdk() as sdk:
        answer = await s.post(STREAM)
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body == sent + DONE
        parts = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in parts]) == "ab"
        assert (await s.server.ledger.wait(2))[0].ending == "success"


# 33


async def test_33_each_event_goes_on_as_it_comes() -> None:
    pause = asyncio.Semaphore(0)
    events = [frame(ROLE), frame(A), frame(B) + frame(A), frame(STOP)]

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for event in events:
            await wire.chunk(event)
            await pause.acquire()
        await wire.end()

    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request(STREAM))
        await client.head()
        for event in events:
            assert await client.chunk() == event
            pause.release()


# 34


@pytest.mark.alone
@pytest.mark.parametrize("when", ["mid-stream", "before the first event", "unstreamed"])
async def test_34_who_leaves_stops_the_backend(when: str) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        if when == "mid-stream":
            await wire.sse_head()
            await wire.chunk(frame(ROLE))
        began.set()
        await wire.until_closed()
        left.append(time.monotonic())

    began, left = asyncio.Event(), list[float]()
    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request(STREAM if when != "unstreamed" else CHAT))
        await asyncio.wait_for(began.wait(), 5)
        if when == "mid-stream":
            await client.head()
        gone_s = time.monotonic()
        client.close()
        (record,) = await s.server.ledger.wait(1)
        assert (record.ending, record.status) == ("client_gone", 200 if when == "mid-stream" else 499)
        await asyncio.wait_for(s.up.seen[0].over.wait(), 1)
        assert left[0] - gone_s < 0.1


# 35


async def test_35_a_stream_that_has_begun_is_never_begun_again() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(ROLE) + frame(A))
        await asyncio.sleep(0.02)
        wire.reset()

    async with stage(breaks, breaks) as s, s.sdk(retries=2) as sdk:
        with pytest.raises(openai.APIError):
            async for _ in await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True):
                pass
        assert len(s.ups[0].seen) + len(s.ups[1].seen) == 1


async def test_35_before_it_another_backend_may_be_asked() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        wire.reset()

    async with stage(breaks, breaks) as s:
        for number, script in enumerate((well_behaved(), breaks)):
            s.ups[number].script = script
        answers_ = [await s.post(STREAM) for _ in range(6)]
        assert all(answer.body.endswith(DONE) for answer in answers_)


async def test_35_completions_are_the_same() -> None:
    sent = [{"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [{"index": 0, "text": t, "logprobs": None, "finish_reason": f}]} for t, f in (("a", None), ("b", "stop"))]  # fmt: skip  # noqa: E501
    async with stage(streams(*map(frame, sent))) as s:
        answer = await s.post(COMPLETION | {"stream": True}, "/v1/completions")
        assert answer.body == b"".join(map(frame, sent)) + DONE
        s.up.script = answers(chat_answer("m"))
        assert (await s.post(COMPLETION | {"stream": True}, "/v1/completions")).headers["content-type"] == "application/json"
