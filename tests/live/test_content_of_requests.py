"""What the relay gathers of requests whose content is logged: whatever their ending, what the client got, within bounds, no more."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from gateway.metering.spool import FULL, Entry
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, STOP, WORD, answers, frame, resets, silence, stream
from tests.upstream import Seen, Wire, chat_answer

LOGGED = "x-gateway-content-log"


class Kept:
    """Takes entries as `ContentLog` does, and keeps them."""

    def __init__(self, max_bytes: int = 100_000) -> None:
        self.max_bytes = max_bytes
        self.entries: list[Entry] = []

    def keep(self, entry: Entry) -> None:
        self.entries.append(entry)

    @property
    def only(self) -> Entry:
        (entry,) = self.entries
        return entry


def request_of(entry: Entry) -> bytes:
    assert entry.request is not None
    return b"".join(entry.request)


def answer_of(entry: Entry) -> bytes:
    assert entry.answer is not None
    return b"".join(entry.answer)


def log_key(stage: Scene) -> None:
    stage.server.keys.change(stage.key, content_log=True)


async def test_nothing_of_a_request_that_is_not_logged() -> None:
    kept = Kept()
    async with scene(answers(chat_answer()), contents=kept) as stage:
        answer = await stage.chat()
        assert answer.status == 200
        assert LOGGED not in answer.headers
    assert kept.entries == []


async def test_a_key_says_so() -> None:
    kept = Kept()
    async with scene(answers(chat_answer()), contents=kept) as stage:
        log_key(stage)
        answer = await stage.chat()
        assert answer.headers[LOGGED] == "on"
        record = await stage.record()
    entry = kept.only
    assert request_of(entry) == orjson.dumps(CHAT)
    assert answer_of(entry) == answer.body
    assert (entry.request_id, entry.request_id) == (answer.headers["x-request-id"], record.request_id)
    assert (entry.key_id, entry.user_id, entry.model, entry.operation) == (record.key_id, "u1", "m", "chat")
    assert (entry.status, entry.ending, entry.at) == (200, "success", record.started_at)
    assert (entry.request_type, entry.answer_type) == ("application/json", "application/json")
    assert (entry.request_bytes, entry.answer_bytes) == (len(orjson.dumps(CHAT)), len(answer.body))
    assert entry.size_bytes == entry.request_bytes + entry.answer_bytes


async def test_a_model_says_so() -> None:
    kept = Kept()
    async with scene(answers(chat_answer()), contents=kept, fields={"content_log": True}) as stage:
        assert (await stage.chat()).headers[LOGGED] == "on"
    assert kept.only.ending == "success"


async def test_a_model_that_another_falls_back_to_says_so() -> None:
    from dataclasses import replace

    from tests.relay_server import route

    kept = Kept()
    async with scene(resets(), answers(chat_answer()), contents=kept) as stage:
        first, second = stage.server.relay.table.routes["m"].targets
        asked = route([first], fallback="n", max_attempts=1)
        stage.server.set_routes(asked, replace(route([second], id="n"), content_log=True))
        answer = await stage.chat()
        assert (answer.status, answer.headers[LOGGED]) == (200, "on")
    assert kept.only.model == "m"
    assert answer_of(kept.only) == answer.body


async def test_a_stream_as_the_client_got_it() -> None:
    kept = Kept()
    async with scene(stream(frame(ROLE), frame(WORD), frame(WORD), frame(STOP)), contents=kept) as stage:
        log_key(stage)
        answer = await stage.chat(stream=True)
        assert answer.headers[LOGGED] == "on"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer_of(kept.only) == answer.body
    assert kept.only.answer_type == "text/event-stream"
    assert kept.only.answer_bytes == len(answer.body)


async def test_a_client_that_leaves_in_the_middle() -> None:
    async def waits(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(ROLE) + frame(WORD))
        await seen.closed.wait()

    kept = Kept()
    async with scene(waits, contents=kept) as stage:
        log_key(stage)
        client = await stage.send(CHAT | {"stream": True})
        status, headers = await client.head()
        assert (status, headers[LOGGED]) == (200, "on")
        await asyncio.wait_for(client.reader.readuntil(b"word "), 5)
        client.close()
        assert (await stage.record()).ending == "client_gone"
    assert kept.only.ending == "client_gone"
    assert answer_of(kept.only) == (frame(ROLE) + frame(WORD)).replace(b'"up"', b'"m"')  # as the client got it


async def test_a_backend_that_breaks_off() -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(ROLE) + frame(WORD))
        wire.reset()

    kept = Kept()
    async with scene(breaks, contents=kept) as stage:
        log_key(stage)
        answer = await stage.chat(stream=True)
    assert kept.only.ending == "upstream_error"
    assert answer_of(kept.only) == answer.body
    assert b'"error"' in answer.body


async def test_an_error_before_the_answer() -> None:
    kept = Kept()
    async with scene(resets(), contents=kept) as stage:
        log_key(stage)
        answer = await stage.chat()
        assert (answer.status, answer.headers[LOGGED]) == (502, "on")
    assert (kept.only.status, kept.only.ending) == (502, "upstream_error")
    assert request_of(kept.only) == orjson.dumps(CHAT)
    assert answer_of(kept.only) == answer.body


async def test_each_side_is_bounded() -> None:
    kept = Kept(max_bytes=1000)
    words = [frame(WORD)] * 50
    async with scene(stream(frame(ROLE), *words, frame(STOP)), contents=kept) as stage:
        log_key(stage)
        body = CHAT | {"stream": True, "messages": [{"role": "user", "content": "x" * 5000}]}
        answer = await stage.post(body)
        assert answer.status == 200
    entry = kept.only
    assert request_of(entry) == orjson.dumps(body)[:1000]
    assert entry.request_bytes == len(orjson.dumps(body))
    assert answer_of(entry) == answer.body[:1000]
    assert entry.answer_bytes == len(answer.body)


async def test_what_is_kept_refuses_nobody() -> None:
    """It takes a share of its own: the bound that requests are refused by knows nothing of it."""
    kept = Kept()
    body = orjson.dumps(CHAT | {"messages": [{"role": "user", "content": "x" * 5000}]})
    async with scene(silence(), contents=kept, max_held_bytes=24_000) as stage:
        log_key(stage)
        client = await stage.send(body)
        await stage.up.request()
        relay = stage.server.relay
        assert (relay.held_bytes, relay.content_bytes) == (len(body), len(body))
        client.close()
        await stage.record()
        assert relay.content_bytes == 0
    assert request_of(kept.only) == body


@pytest.mark.parametrize(("prompt", "said"), [("x" * 5000, "words"), ("x", "words " * 1000)])
async def test_where_the_share_is_full_nothing_is_kept(prompt: str, said: str) -> None:
    """And the row says so; the request goes on."""
    kept = Kept()
    body = CHAT | {"messages": [{"role": "user", "content": prompt}]}
    async with scene(answers(chat_answer(text=said)), contents=kept, max_held_bytes=16_000) as stage:
        log_key(stage)
        answer = await stage.post(body)
        assert answer.status == 200
        assert stage.server.relay.content_bytes == 0
    entry = kept.only
    assert (entry.not_kept, entry.request, entry.answer, entry.size_bytes) == (FULL, None, None, 0)
    assert (entry.request_bytes, entry.answer_bytes) == (len(orjson.dumps(body)), len(answer.body))


@pytest.mark.parametrize("named", ["image/png", "multipart/form-data; boundary=x", "application/octet-stream", "text", ""])
async def test_no_name_of_a_body_hides_it(named: str) -> None:
    """The relay reads such a body as JSON whatever its type says: so does the log."""
    kept = Kept()
    async with scene(answers(chat_answer()), contents=kept) as stage:
        log_key(stage)
        await stage.post(CHAT, more=[f"content-type: {named}"])
    assert request_of(kept.only) == orjson.dumps(CHAT)
    assert kept.only.request_type == "application/json"


async def test_a_sound_is_only_weighed() -> None:
    kept = Kept()
    async with scene(answers(b"\xff\xfbsound" * 100, content_type="audio/mpeg"), contents=kept) as stage:
        log_key(stage)
        answer = await stage.post({"model": "m", "input": "say it", "voice": "x"}, path="/v1/audio/speech")
        assert (answer.status, answer.headers[LOGGED]) == (200, "on")
    assert (kept.only.answer, kept.only.answer_bytes, kept.only.answer_type) == (None, 700, "audio/mpeg")
    assert b"say it" in request_of(kept.only)


async def test_a_form_is_only_weighed() -> None:
    kept = Kept()
    parts = [("model", b"m"), ('file"; filename="a.wav', b"RIFF secret words")]
    form = b"".join(b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value) for name, value in parts)
    async with scene(answers({"text": "heard"}), contents=kept) as stage:
        log_key(stage)
        answer = await stage.post(form + b"--x--\r\n", "/v1/audio/transcriptions", more=["content-type: multipart/form-data; boundary=x"])
        assert answer.status == 200, answer.body
    entry = kept.only
    assert (entry.request, entry.request_type, entry.request_bytes) == (None, "multipart/form-data", len(form) + len(b"--x--\r\n"))
    assert answer_of(entry) == answer.body


async def test_what_cannot_be_kept_costs_no_request() -> None:
    class Broken(Kept):
        def keep(self, entry: Entry) -> None:
            raise OSError

    async with scene(answers(chat_answer()), contents=Broken()) as stage:
        log_key(stage)
        assert (await stage.chat()).status == 200
