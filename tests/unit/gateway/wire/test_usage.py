from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.wire.usage import MAX_TOKENS, Usage, tap, usage_of, usage_of_message, without_usage_events


def frame(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, Usage(1, 2)),
        ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, Usage(0, 0)),
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5, None)),
        ({"usage": {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}}, Usage(1, 2, 1)),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}}, Usage(9, 2)),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 7}}}, Usage(9, 8, 0, 7)),
        ({"type": "response.completed", "response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}, Usage(1, 2)),
        ({"type": "message_start", "message": {"usage": {"input_tokens": 3}}}, Usage(3, None)),
        ({"usage": None}, None),
        ({"usage": {}}, None),
        ({"usage": {"prompt_tokens": True}}, None),
        ({"usage": {"prompt_tokens": "7"}}, None),
        ({"usage": {"prompt_tokens": -7}}, None),
        ({"usage": {"prompt_tokens": 1.5}}, None),
        ({"usage": {"prompt_tokens": MAX_TOKENS + 1}}, None),
        ({"usage": [1]}, None),
        ([], None),
        (None, None),
        ("usage", None),
    ],
)
def test_usage_of(value: Any, usage: Usage | None) -> None:
    assert usage_of(value) == usage


@pytest.mark.parametrize("place", ["usage", "message", "response"])
def test_the_usage_of_a_message_is_read_where_it_stands(place: str) -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}
    value = {"usage": usage} if place == "usage" else {place: {"usage": usage}}
    assert usage_of_message(value) == Usage(7, 5, 4)
    assert usage_of_message({"usage": None, place: []}) is None


ALONE = frame({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
INSIDE = frame({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
OTHER = (
    b": usage\n\n"
    + frame({"choices": [], "prompt_filter_results": [], "usage": None})
    + frame(b'half "usage"'.decode())
    + b'data: {"usage"\n\n'
)


def test_only_frames_that_carry_nothing_else_are_cut() -> None:
    assert tap(ALONE) == (Usage(1, 2), True)
    assert tap(INSIDE) == (Usage(3, 4), False)
    assert tap(ALONE + INSIDE) == (Usage(3, 4), True)
    assert tap(OTHER) == (None, False)
    assert without_usage_events(OTHER + ALONE + INSIDE + OTHER) == OTHER + INSIDE + OTHER
    assert tap(frame({"choices": [], "usage": {}})) == (None, True)
