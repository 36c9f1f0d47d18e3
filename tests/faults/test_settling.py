"""A step of settling fails: END is written all the same, and everything else is given back."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.limits.shared import SharedLimiter
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, STOP, answers, frame, silence, stream
from tests.upstream import chat_chunk

WHOLE = {
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "x"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}
SAID = [frame(ROLE), frame(chat_chunk({"content": "x"})), frame(STOP), b"data: [DONE]\n\n"]


class Fails:
    """Stands before a part of the relay; its call `name` fails, `times` over."""

    def __init__(self, inner: Any, name: str, times: int) -> None:
        self._inner = inner
        self._name = name
        self.times = times

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._failing(found) if name == self._name else found

    def _failing(self, found: Any) -> Any:
        def call(*args: Any) -> Any:
            if self.times:
                self.times -= 1
                raise TypeError("Integer exceeds 64-bit range")
            return found(*args)

        return call


def break_off(stage: Scene, part: str, name: str, times: int = 1) -> Fails:
    failing = Fails(getattr(stage.server.relay, part), name, times)
    setattr(stage.server.relay, part, failing)
    return failing


@pytest.mark.parametrize("streams", [True, False])
async def test_an_end_that_cannot_be_written_is_written_barely(streams: bool) -> None:
    async with scene(stream(*SAID) if streams else answers(WHOLE)) as stage:
        break_off(stage, "ledger", "end")
        answer = await stage.chat(stream=streams, user="someone")
        assert answer.status == 200
        record = await stage.record()
        await stage.calm()
        assert stage.server.relay.slots.running == 0
    assert (record.status, record.ending, record.attempts) == (200, "success", 1)
    assert record.backend is None
    if not streams:
        assert (record.prompt_tokens, record.completion_tokens) == (3, 4)


async def test_where_no_end_can_be_written_all_else_is_given_back() -> None:
    async with scene(answers(WHOLE)) as stage:
        failing = break_off(stage, "ledger", "end", 2)
        assert (await stage.chat()).status == 200
        relay = stage.server.relay
        assert (failing.times, relay.slots.running, relay.held_bytes, stage.gauge()) == (0, 0, 0, 0)
        assert not relay.load._running
        assert isinstance(relay.limiter, SharedLimiter)
        assert all(running == 0 for running, _ in relay.limiter.running().values())
        stage.server.ledger.begun.clear()


async def test_what_follows_a_step_that_fails_is_done() -> None:
    async with scene(answers(WHOLE)) as stage:
        meter = break_off(stage, "meter", "attempt")
        assert (await stage.chat()).status == 200
        record = await stage.record()
        await stage.calm()
        assert (meter.times, stage.server.relay.slots.running) == (0, 0)
    assert (record.ending, record.completion_tokens) == ("success", 4)


async def test_who_leaves_gives_back_what_was_held_whatever_fails() -> None:
    async with scene(silence()) as stage:
        break_off(stage, "ledger", "end")
        client = await stage.send(CHAT | {"user": "x" * 5000})
        await stage.up.request()
        client.reset()
        record = await stage.record()
        await stage.calm()
    assert record.ending == "client_gone"
