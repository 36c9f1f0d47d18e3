"""The beginning of a prompt: equal for equal beginnings, different for different ones, and cheap for long ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.prefix import prompt_prefix

SYSTEM = {"role": "system", "content": "You are terse."}
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


def chat(*messages: Any) -> bytes | None:
    return prompt_prefix({"messages": list(messages)}, 1024)


def test_conversations_share_what_their_beginnings_share() -> None:
    one = chat(SYSTEM, {"role": "user", "content": "Who?"})
    more = chat(SYSTEM, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."})
    other = chat(SYSTEM, {"role": "user", "content": "What?"})
    assert one is not None
    assert more is not None
    assert more.startswith(one)
    assert other != one
    limited = [prompt_prefix({"messages": [SYSTEM, {"role": "user", "content": text}]}, 20) for text in ("Who?", "What?")]
    assert limited[0] == limited[1]


def test_roles_count_and_text_cannot_pretend_to_be_one() -> None:
    assert chat({"role": "user", "content": "a"}) != chat({"role": "system", "content": "a"})
    assert chat({"role": "user", "content": "a"}, {"role": "user", "content": "b"}) != chat({"role": "user", "content": "auserb"})


def test_parts_of_a_message_read_as_their_texts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat({"role": "user", "content": parts}) == chat({"role": "user", "content": "Hello"})
    image = {"type": "image_url", "image_url": {"url": "data:..."}}
    assert chat({"role": "user", "content": [image]}) != chat({"role": "user", "content": []})


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        ({"prompt": "Once upon"}, b"Once upon"),
        ({"prompt": ["Once", "Twice"]}, b"OnceTwice"),
        ({"prompt": [11, 12]}, b"11 12 "),
        ({"prompt": [[11], [12]]}, b"11 12 "),
        ({"input": "embed me"}, b"embed me"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, b"\x1euser\x1fHi"),
        ({"instructions": "Be kind.", "input": "Hi"}, b"Be kind.Hi"),
        ({"system": "Be kind.", "messages": [{"role": "user", "content": "Hi"}]}, b"Be kind.\x1euser\x1fHi"),
        ({"query": "q", "documents": ["d"]}, b"q"),
        ({}, None),
        ({"messages": []}, None),
        ({"messages": "no list"}, None),
        ({"prompt": None, "input": ""}, None),
        ({"prompt": "한글"}, "한글".encode()),
    ],
)
def test_every_kind_of_prompt(fields: dict[str, Any], prefix: bytes | None) -> None:
    assert prompt_prefix(fields, 1024) == prefix


@given(messages=json, prompt=json, limit=st.integers(1, 40))
def test_whatever_a_client_sends_gives_at_most_so_many_bytes(messages: Any, prompt: Any, limit: int) -> None:
    found = prompt_prefix({"messages": messages, "prompt": prompt}, limit)
    assert found is None or 0 < len(found) <= limit
    assert prompt_prefix({"messages": messages, "prompt": prompt}, limit) == found


def test_a_beginning_is_cut_at_a_byte_wherever_that_falls() -> None:
    assert prompt_prefix({"prompt": "한글"}, 4) == "한글".encode()[:4]
