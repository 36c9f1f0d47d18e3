from __future__ import annotations

import orjson
import pytest

from gateway.relay.stream import EventStream
from gateway.wire.protocols import OPENAI


def event(value: object, newline: bytes = b"\n") -> bytes:
    return b"data: " + orjson.dumps(value) + newline * 2


def said(text: str, newline: bytes = b"\n") -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]}, newline)


USAGE = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def stream() -> EventStream:
    return EventStream(OPENAI, False, False, None)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_what_the_model_writes_is_no_event(newline: bytes) -> None:
    one = stream()
    for text in ("data: data: x", "y"):
        one.pass_on(said(text, newline) + said("data:", newline))
    assert one.events == 4


@pytest.mark.parametrize("after", [[FINISH], [FINISH, DONE], [FINISH + DONE], [b": ping\n\n", DONE]])
def test_events_without_words_after_the_report(after: list[bytes]) -> None:
    one = stream()
    one.pass_on(said("a"))
    one.pass_on(said("b"))
    one.pass_on(USAGE)
    for block in after:
        one.pass_on(block)
    assert one.reported
    assert one.events == 2


def test_words_after_the_report() -> None:
    one = stream()
    one.pass_on(said("a"))
    one.pass_on(USAGE)
    one.pass_on(said("b"))
    assert not one.reported
    assert one.events == 2
