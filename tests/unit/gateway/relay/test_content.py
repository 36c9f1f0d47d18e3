"""What the model said, in an answer as it went over the wire."""

from __future__ import annotations

import pytest

from gateway.relay.content import words_of


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("events", [0, 1, 977, 978, 979, 5000])
def test_words_of_a_stream_of_any_length(end: bytes, events: int) -> None:
    """It is read in blocks: nothing is lost, and nothing torn, where they meet."""
    stream = b"".join(b'data: {"choices": [{"index": 0, "delta": {"content": "%d "}}]}' % number + end for number in range(events))
    said = "".join(f"{number} " for number in range(events))
    assert words_of("chat", "text/event-stream", stream + b"data: [DONE]" + end) == ([said] if events else [])


def test_words_of_a_stream_that_was_cut_off() -> None:
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
    assert words_of("chat", "text/event-stream", event * 3000 + event[:30]) == ["x" * 3000]


def test_words_of_what_is_no_stream() -> None:
    assert words_of("chat", "text/event-stream", b"x" * 200_000) == []
    assert words_of("chat", "application/json", b"no json") is None
    assert words_of("embeddings", "application/json", b"{}") is None
