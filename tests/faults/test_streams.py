"""After the commit point: what the client receives is what the backend sent, and a failure is one error event and the end."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from auth.principal import Limits
from gateway.routing.table import Timeouts
from tests.faults import scripts
from tests.faults.client import Answer
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, STOP, WORD, answers, cut, frame, in_turn, raw, reset, stream
from tests.upstream import USAGE, Script, Seen, Wire, chat_chunk, well_behaved

DONE = b"data: [DONE]\n\n"
ASK = {"stream_options": {"include_usage": True}}
TOTAL: dict[str, Any] = {**chat_chunk({}), "choices": [], "usage": USAGE}
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


async def _streamed(stage: Scene, ending: str = "success", number: int = 1, **more: Any) -> Answer:
    answer = await stage.chat(stream=True, **more)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers
    record = await stage.record(number)
    assert (record.status, record.ending, record.attempts) == (200, ending, 1)
    assert record.ttft_ms is not None
    return answer


def _error_of(answer: Answer) -> dict[str, Any]:
    """The error event that must be the last one."""
    assert b"[DONE]" not in answer.body
    error = orjson.loads(answer.events[-1])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error  # type: ignore[no-any-return]


# failures


@pytest.mark.parametrize(
    "script",
    [
        stream(frame(ROLE), frame(WORD), after=cut),
        stream(frame(ROLE), frame(WORD), after=reset),
        stream(frame(ROLE), frame(WORD), b'data: {"half', after=cut),
        stream(frame(ROLE), frame(WORD), frame(STOP), after=cut),
        raw(
            SSE_HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n" % len(frame(ROLE) * 2) + frame(ROLE) + frame(ROLE) + b"\r\nzz\r\n"
        ),
        raw(SSE_HEAD + b"content-length: 100000\r\n\r\n" + frame(ROLE) + frame(WORD)),
        raw(SSE_HEAD + b"\r\n" + frame(ROLE) + frame(WORD)),
        raw(SSE_HEAD + b"\r\n" + frame(ROLE) + frame(WORD) + b'data: {"half'),
        stream(frame(ROLE), frame(WORD), b"data: " + b"x" * 1_100_000),
    ],
    ids=["close", "reset", "half frame", "close after finish", "chunk garbage", "short length", "eof", "eof in a frame", "huge event"],
)
async def test_the_backend_breaks_off(script: Script) -> None:
    async with scene(script, well_behaved(), model="m") as stage:
        answer = await _streamed(stage, "upstream_error")
        error = _error_of(answer)
        assert error["code"] == "upstream_error"
        assert len(answer.events) in (3, 4)
        assert answer.body.startswith(frame(ROLE))
        assert b"half" not in answer.body
        record = await stage.record()
        assert answer.body.count(b"word ") <= record.completion_tokens <= answer.body.count(b"word ") + 1
        assert record.prompt_tokens > 0
        assert record.token_source == "estimate"
        assert not stage.ups[1].seen, "never another backend after the commit point"


async def test_the_backend_stalls() -> None:
    async with scene(stream(frame(ROLE), after=scripts.closed), timeouts=Timeouts(2, 5, 0.2, 30), model="m") as stage:
        answer = await _streamed(stage, "timeout")
        assert _error_of(answer)["code"] == "upstream_idle_timeout"
        assert answer.body.startswith(frame(ROLE))
        await stage.up.seen[0].closed.wait()


async def test_comments_and_bare_fields_do_not_wind_the_idle_clock() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.event(ROLE)
        while True:
            await wire.chunk(b": still here\n\n")
            await wire.chunk(b"event: ping\n\n")
            await asyncio.sleep(0.05)

    async with scene(script, timeouts=Timeouts(2, 5, 0.25, 30)) as stage:
        assert _error_of(await _streamed(stage, "timeout"))["code"] == "upstream_idle_timeout"


async def test_events_wind_the_idle_clock_and_the_total_clock_runs_on() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        while True:
            await wire.event(WORD)
            await asyncio.sleep(0.05)

    async with scene(script, timeouts=Timeouts(2, 5, 1.0, 2.0)) as stage:
        answer = await _streamed(stage, "timeout")
        assert _error_of(answer)["code"] == "upstream_total_timeout"
        assert len(answer.events) > 5
        assert (await stage.record()).duration_ms >= 2000


@pytest.mark.parametrize("tail", [b"", DONE, frame(WORD) + DONE])
async def test_an_error_object_later_in_the_stream(tail: bytes) -> None:
    event = frame({"error": {"message": "out of memory", "type": "x", "param": None, "code": None}})
    async with scene(stream(frame(ROLE), event + tail), model="m") as stage:
        answer = await _streamed(stage, "upstream_error")
        assert answer.body.startswith(frame(ROLE) + event)
        assert b"[DONE]" not in answer.body


# what passes, and what does not


@pytest.mark.parametrize("split", [1, 3, 7, 1000])
async def test_bytes_pass_however_they_are_split(split: int) -> None:
    body = (
        frame(ROLE)
        + b": note\n\n"
        + frame({**WORD, "x_new": "né 한국어 \U0001f600", "n": 1.10})
        + b"event: x\nid: 7\n"
        + frame(WORD)
        + frame(STOP)
    )

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for at in range(0, len(body), split):
            await wire.chunk(body[at : at + split])
        await wire.end()

    async with scene(script, model="m") as stage:
        assert (await _streamed(stage)).body == body + DONE


@pytest.mark.parametrize(
    "last",
    [
        b"",
        DONE,
        b"data:[DONE]\n\n",
        b"data: [DONE] \n\n",
        b"data: [DONE]\r\n\r\n",
        b"data: [DONE]",
        b"data:[DONE]\n",
        DONE + DONE,
        DONE + frame(WORD),
    ],
)
async def test_the_last_event_is_done_in_exactly_that_form(last: bytes) -> None:
    async with scene(stream(frame(ROLE) + frame(STOP) + last), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + frame(STOP) + DONE


async def test_done_alone_is_an_empty_stream() -> None:
    for number, spelling in enumerate((DONE, b"data:[DONE]\n\n", b"data:  [DONE]\n\n"), 1):
        async with scene(stream(spelling)) as stage:
            assert (await _streamed(stage)).body == DONE, number


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
@pytest.mark.parametrize("split", [1, 5, 10_000])
async def test_every_line_end(end: bytes, split: int) -> None:
    body = (b": hello" + end * 2) + b"".join(b"data: " + orjson.dumps(v) + end * 2 for v in (ROLE, WORD, STOP))

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        for at in range(0, len(body), split):
            await wire.chunk(body[at : at + split])
        await wire.end()

    async with scene(script, model="m") as stage:
        answer = await _streamed(stage)
        assert answer.body.removesuffix(DONE).rstrip(b"\r\n") == body.rstrip(b"\r\n")
        assert answer.body.endswith(DONE)


async def test_comments_before_the_first_event_pass_in_order() -> None:
    async with scene(stream(b": one\n\n", b": two\n\n" + frame(ROLE), frame(STOP)), model="m") as stage:
        assert (await _streamed(stage)).body == b": one\n\n: two\n\n" + frame(ROLE) + frame(STOP) + DONE


async def test_an_unfinished_last_event_counts_if_it_is_whole() -> None:
    async with scene(stream(frame(ROLE) + frame(STOP).rstrip()), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + frame(STOP) + DONE
    async with scene(stream(frame(ROLE) + b'data: {"half'), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + DONE


@pytest.mark.parametrize("tail", [frame(STOP), frame(STOP) + DONE, DONE, frame({"type": "x", "choices": [{"finish_reason": "length"}]})])
async def test_the_end_by_close_counts_after_a_finish(tail: bytes) -> None:
    async with scene(raw(SSE_HEAD + b"\r\n" + frame(ROLE) + tail), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + tail.removesuffix(DONE) + DONE


@pytest.mark.parametrize(
    "null",
    [b'"finish_reason":null', b'"finish_reason": null', b'"finish_reason" : null', b'"finish_reason":  null'],
)
async def test_no_finish_in_odd_spelling(null: bytes) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{},' + null + b"}]}\n\n"
    async with scene(raw(SSE_HEAD + b"\r\n" + event)) as stage:
        _error_of(await _streamed(stage, "upstream_error"))


async def test_the_end_comes_at_once_though_the_backend_lingers() -> None:
    async with scene(stream(frame(ROLE), DONE, after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True})
        answer = await client.answer()
        assert answer.events[-1] == b"[DONE]"
        assert not stage.up.seen[0].closed.is_set(), "nobody waited for the backend"
        client.send(stage.request(CHAT | {"stream": True}))
        assert (await client.answer()).complete, "the connection lives on"
        await stage.up.seen[0].closed.wait()


async def test_a_backend_that_ends_soon_after_done_keeps_its_connection() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.event(ROLE)
        await wire.event(b"[DONE]")
        await asyncio.sleep(0.02)
        await wire.end()

    async with scene(script) as stage:
        for _ in range(3):
            assert (await stage.chat(stream=True)).complete
            await stage.calm()
        assert stage.up.connections == 1


# model


@pytest.mark.parametrize(
    "spelling",
    [b'"model":"up"', b'"model": "up"', b'"model" : "up"', b'"model"\t:\n "up"', rb'"model": "u\u0070"', b'"model":"up-2024-01"'],
)
async def test_only_the_value_of_model_changes(spelling: bytes) -> None:
    key, value = spelling.rsplit(b'"', 2)[0], b'"' + spelling.rsplit(b'"', 2)[1] + b'"'
    nested = b'{"tool":{"model":"up"},' + key + value + b',"choices":[{"delta":{"content":"\\"model\\":\\"up\\""}}]}'
    wanted = b'{"tool":{"model":"up"},' + key + b'"m"' + b',"choices":[{"delta":{"content":"\\"model\\":\\"up\\""}}]}'
    plain = b'{"id":"1",' + key + value + b',"choices":[]}'
    renamed = b'{"id":"1",' + key + b'"m"' + b',"choices":[]}'
    if b"\n" not in spelling:
        async with scene(stream(frame(plain), frame(plain) + frame(plain), frame(nested), frame(b'{"no":1}'), frame(plain))) as stage:
            answer = await _streamed(stage)
            assert answer.body == frame(renamed) * 3 + frame(wanted) + frame(b'{"no":1}') + frame(renamed) + DONE
    async with scene(answers(nested)) as stage:
        assert (await stage.chat()).body == wanted


async def test_the_alias_is_sent_as_the_backends_own_name() -> None:
    async with scene(well_behaved(), model='we"ird/ü') as stage:
        answer = await stage.chat()
        assert answer.json["model"] == "m"
        assert stage.up.seen[0].json["model"] == 'we"ird/ü'


# usage


async def test_usage_that_was_not_asked_for_is_kept_from_the_client() -> None:
    async with scene(well_behaved()) as stage:
        answer = await _streamed(stage)
        assert b"usage" not in answer.body
        assert stage.up.seen[0].json["stream_options"] == {"include_usage": True}
        record = await stage.record()
        assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (7, 3, "backend")


async def test_usage_that_was_asked_for_passes() -> None:
    async with scene(stream(frame(ROLE), frame(STOP) + frame(TOTAL), DONE), model="m") as stage:
        assert (await _streamed(stage, **ASK)).body == frame(ROLE) + frame(STOP) + frame(TOTAL) + DONE
        assert orjson.loads(stage.up.seen[0].body) == CHAT | {"stream": True} | ASK


async def test_other_stream_options_stay() -> None:
    async with scene(well_behaved()) as stage:
        await _streamed(stage, stream_options={"include_usage": False, "x": [1]})
        assert stage.up.seen[0].json["stream_options"] == {"include_usage": True, "x": [1]}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("usage", [{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, USAGE])
async def test_zero_is_a_number(usage: dict[str, int], together: bool) -> None:
    blocks = [frame(ROLE), frame(WORD), frame(STOP), frame({**TOTAL, "usage": usage}), DONE]
    async with scene(stream(b"".join(blocks)) if together else stream(*blocks), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + frame(WORD) + frame(STOP) + DONE
        record = await stage.record()
        assert (record.prompt_tokens, record.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert record.token_source == "backend"


async def test_usage_in_the_finish_chunk_passes_and_counts() -> None:
    finish = frame({**STOP, "usage": USAGE})
    async with scene(stream(frame({**ROLE, "usage": None}), finish, DONE), model="m") as stage:
        assert (await _streamed(stage)).body == frame({**ROLE, "usage": None}) + finish + DONE
        assert (await stage.record()).completion_tokens == 3


async def test_usage_in_the_finish_chunk_and_alone_behind_it() -> None:
    finish = frame({**STOP, "usage": USAGE})
    for block in ([finish + frame(TOTAL) + DONE], [finish, frame(TOTAL), DONE], [frame(TOTAL) + finish + DONE]):
        async with scene(stream(frame(ROLE), *block), model="m") as stage:
            assert (await _streamed(stage)).body == frame(ROLE) + finish + DONE


@pytest.mark.parametrize("usage", [{}, {"total_tokens": 5}, {"prompt_tokens": "7"}, {"prompt_tokens": -1, "completion_tokens": -1}])
async def test_usage_without_numbers_is_no_usage(usage: dict[str, Any]) -> None:
    async with scene(stream(frame(ROLE), frame({**TOTAL, "usage": usage}), DONE), model="m") as stage:
        assert (await _streamed(stage)).body == frame(ROLE) + DONE
        record = await stage.record()
        assert record.token_source == "estimate"
        assert record.prompt_tokens > 0


async def test_absurd_usage_is_no_usage() -> None:
    async with scene(stream(frame(ROLE), frame({**TOTAL, "usage": {"prompt_tokens": 2**63, "completion_tokens": 2**64 - 1}}))) as stage:
        await _streamed(stage)
        record = await stage.record()
        assert record.token_source == "estimate"


async def test_an_estimate_counts_events_not_reads() -> None:
    async with scene(stream(frame(ROLE), frame(WORD) * 50, frame(STOP)), model="m") as stage:
        await _streamed(stage)
        assert 50 <= (await stage.record()).completion_tokens <= 52


# stream_options that a backend does not know


def _refuses_options(status: int = 400) -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        if "stream_options" in seen.json:
            await wire.answer({"error": {"message": "Extra inputs", "type": "x", "param": "stream_options", "code": None}}, status)
        else:
            await well_behaved()(wire, seen)

    return script


@pytest.mark.parametrize("status", [400, 422])
async def test_refused_stream_options_are_left_out_and_remembered(status: int) -> None:
    async with scene(_refuses_options(status)) as stage:
        assert (await _streamed(stage)).events[-1] == b"[DONE]"
        assert [("stream_options" in s.json) for s in stage.up.seen] == [True, False]
        await _streamed(stage, number=2)
        assert [("stream_options" in s.json) for s in stage.up.seen] == [True, False, False]


async def test_what_is_refused_either_way_proves_nothing() -> None:
    body = {"error": {"message": "no", "type": "x", "param": None, "code": "bad"}}
    async with scene(in_turn(answers(body, 400), answers(body, 400), well_behaved())) as stage:
        assert (await stage.chat(stream=True)).json == body
        record = await stage.record()
        assert (record.status, record.ending, record.attempts) == (400, "rejected", 1)
        assert len(stage.up.seen) == 2
        await _streamed(stage, number=2)
        assert "stream_options" in stage.up.seen[2].json


async def test_what_one_backend_refused_is_not_held_against_another() -> None:
    error = {"error": {"message": "no", "type": "x", "param": None, "code": "bad"}}
    async with scene(in_turn(answers(error, 400), answers(error, 500)), well_behaved()) as stage:
        assert (await stage.chat(stream=True)).status == 200
        assert (await stage.record()).completion_tokens == 3, "the second backend was asked for usage"
        assert stage.pools[1].asks_usage
        assert stage.pools[0].asks_usage


async def test_stream_options_of_the_client_are_its_own() -> None:
    async with scene(_refuses_options()) as stage:
        assert (await stage.chat(stream=True, **ASK)).status == 400
        assert len(stage.up.seen) == 1
        assert stage.pools[0].asks_usage


# stale connections


async def test_a_connection_closed_while_idle_costs_nothing() -> None:
    async def one_answer(wire: Wire, seen: Seen) -> None:
        await well_behaved()(wire, seen)
        wire.close()

    async with scene(one_answer) as stage:
        for number in range(1, 6):
            assert (await stage.chat(stream=number % 2 == 0)).status == 200
            assert (await stage.record(number)).attempts == 1


async def _closes_on_the_second(wire: Wire, seen: Seen) -> None:
    await well_behaved()(wire, seen)
    await wire._reader.read(1)
    wire.reset() if seen.json.get("stream") else wire.close()


@pytest.mark.parametrize("stream_it", [False, True])
async def test_a_stale_connection_is_tried_once_more(stream_it: bool) -> None:
    async with scene(_closes_on_the_second) as stage:
        for number in (1, 2, 3):
            answer = await stage.chat(stream_it)
            assert answer.status == 200
            assert (await stage.record(number)).attempts == 1


async def test_many_stale_connections_are_one_mishap() -> None:
    """A backend restarts: every connection that idled is dead, and no request fails for it."""
    together = asyncio.Barrier(8)

    async def script(wire: Wire, seen: Seen) -> None:
        await together.wait()
        await _closes_on_the_second(wire, seen)

    async with scene(script) as stage:
        first = [await stage.send(CHAT) for _ in range(8)]
        for client in first:
            assert (await client.answer()).status == 200
        assert len(stage.pools[0].idle) == 8
        second = [await stage.send(CHAT) for _ in range(8)]
        assert [(await client.answer()).status for client in second] == [200] * 8


async def test_a_fresh_connection_that_dies_is_not_tried_again() -> None:
    async with scene(scripts.resets()) as stage:
        assert (await stage.chat()).status == 502
        assert len(stage.up.seen) == 1


# run-together and unsolicited bytes: never another user's answer

_TWO = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"who":1}'
_EVIL = _TWO.replace(b"1}", b"2}")


@pytest.mark.parametrize(
    "data",
    [
        _TWO + _EVIL,
        _TWO + b"garbage",
        _TWO + b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + _TWO + _EVIL,
    ],
)
async def test_an_answer_with_more_behind_it_is_never_pooled(data: bytes) -> None:
    async with scene(in_turn(raw(data, close=False), raw(_TWO, close=False)), model="m") as stage:
        for number in (1, 2):
            answer = await stage.chat()
            assert (answer.status, answer.body) == (200, b'{"who":1}'), number
        assert stage.up.connections == 2


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    async def late(wire: Wire, seen: Seen) -> None:
        await wire.send(_TWO)
        await asyncio.sleep(0.02)
        await wire.send(_EVIL)

    async with scene(late, model="m") as stage:
        assert (await stage.chat()).body == b'{"who":1}'
        await asyncio.sleep(0.05)
        assert (await stage.chat()).body == b'{"who":1}'
        assert stage.up.connections == 2


@pytest.mark.parametrize("code", [100, 102, 103])
async def test_informational_answers_are_skipped(code: int) -> None:
    early = b"HTTP/1.1 %d Early\r\nlink: </x>\r\ncontent-length: 0\r\n\r\n" % code
    async with scene(raw(early + early + _TWO, close=False), model="m") as stage:
        for _ in range(3):
            assert (await stage.chat()).body == b'{"who":1}'
        assert stage.up.connections == 1
    eof = early + b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"who":1}'
    async with scene(raw(eof), model="m") as stage:
        assert (await stage.chat()).body == b'{"who":1}'


async def test_an_answer_before_the_body_was_taken_is_not_pooled() -> None:
    body = CHAT | {"pad": "x" * 5_000_000}

    async def early(wire: Wire, seen: Seen) -> None:
        await wire.answer({"error": {"message": "too long", "type": "x", "param": None, "code": "long"}}, 413)

    async with scene(early, max_body_bytes=10_000_000, limits=Limits()) as stage:
        answer = await stage.post(body)
        assert answer.status == 413
        assert len(stage.up.seen[0].body) > 5_000_000
