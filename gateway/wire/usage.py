"""Token counts as backends report them, in the shapes of all operations. Which shape is read where: `gateway.wire.protocols`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson

from gateway.wire import sse

_USAGE_BYTES: Final = 4096  # no usage object is larger
MAX_TOKENS: Final = 10**9  # a count above this is a fault of the backend, and its price would not fit into the store


class Usage:
    """Tokens of one request. Zero is a number; a missing count is None. (No named tuple: making one cost more than finding its numbers.)"""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens", "reasoning_tokens")

    def __init__(self, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int = 0, reasoning_tokens: int = 0) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._all() == other._all()

    def __repr__(self) -> str:
        return f"Usage{self._all()}"

    def _all(self) -> tuple[int | None, int | None, int, int]:
        return self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens


def usage_of(value: Any) -> Usage | None:
    """The usage in a parsed answer or chunk, or None."""
    usage = _usage_object(value)
    return None if usage is None else _read(usage)


def _usage_object(value: Any) -> dict[str, Any] | None:
    if type(value) is not dict:
        return None
    usage = value.get("usage")
    if type(usage) is not dict:
        response = value.get("response") or value.get("message")  # responses and messages wrap it in their events
        usage = response.get("usage") if type(response) is dict else None
    return usage if type(usage) is dict else None


def _read(usage: dict[str, Any]) -> Usage | None:
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    if prompt is None and completion is None:
        return None
    return Usage(
        prompt,
        completion,
        _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
        _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )


def usage_of_input(value: Any) -> Usage | None:
    """The usage of what only reads (embeddings, rerank, moderations): also a bare total, and Cohere's `meta`."""
    found = usage_of(value)
    if found is not None or type(value) is not dict:
        return found
    usage, meta = value.get("usage"), value.get("meta")
    prompt = _count(usage, "total_tokens") if type(usage) is dict else None
    for name in ("tokens", "billed_units"):
        group = meta.get(name) if type(meta) is dict else None
        if prompt is None and type(group) is dict:
            prompt = _count(group, "input_tokens")
    return None if prompt is None else Usage(prompt, None)


def usage_of_message(value: Any) -> Usage | None:
    """The usage of a message in Anthropic's shape, or of an event of it. What went through the cache is counted beside the rest there."""
    usage = _usage_object(value)
    found = _read(usage) if usage is not None else None
    if usage is None or found is None or found.prompt_tokens is None:
        return found
    read = _count(usage, "cache_read_input_tokens") or 0
    written = _count(usage, "cache_creation_input_tokens") or 0
    return Usage(min(found.prompt_tokens + read + written, MAX_TOKENS), found.completion_tokens, read, found.reasoning_tokens)


def merged(before: Usage | None, found: Usage | None) -> Usage | None:
    """Two reports on one answer, each perhaps of one side only, both cumulative: the higher of each."""
    if before is None or found is None:
        return found or before
    return Usage(
        _higher(before.prompt_tokens, found.prompt_tokens),
        _higher(before.completion_tokens, found.completion_tokens),
        max(before.cached_tokens, found.cached_tokens),
        max(before.reasoning_tokens, found.reasoning_tokens),
    )


def _higher(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _count(usage: dict[str, Any], name: str, other_name: str = "") -> int | None:
    value = usage.get(name)
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    return _count(usage, other_name) if other_name else None


def _detail(usage: dict[str, Any], groups: tuple[str, ...], name: str) -> int:
    for group in groups:
        details = usage.get(group)
        if type(details) is dict:
            value = details.get(name)
            if type(value) is int and 0 <= value <= MAX_TOKENS:
                return value
    return 0


def tap(block: bytes) -> tuple[Usage | None, bool]:
    """The last usage in a block of whole events, and whether some event of it says nothing else.

    "Nothing else" is an event whose `choices` is an empty list: the one that `include_usage` asks for.
    """
    found: Usage | None = None
    alone = False
    for value in with_usage(block):
        found = usage_of(value) or found
        alone = alone or _usage_alone(value)
    return found, alone


def with_usage(block: bytes) -> Iterator[Any]:
    """The parsed data of those events that have a member `usage` somewhere."""
    for event in sse.events(block):
        if b'"usage"' not in event:
            continue
        data = sse.data_of(event)
        if data is None:
            continue
        try:
            yield orjson.loads(data)
        except orjson.JSONDecodeError:
            continue


def _usage_alone(value: Any) -> bool:
    return type(value) is dict and value.get("choices") == [] and type(value.get("usage")) is dict


def without_usage_events(block: bytes) -> bytes:
    """The block less the events that only carry usage (`choices` empty). Everything else stays as it came."""
    kept = []
    for event in sse.events(block):
        if b'"usage"' in event:
            data = sse.data_of(event)
            try:
                value = orjson.loads(data) if data is not None else None
            except orjson.JSONDecodeError:
                value = None
            if _usage_alone(value):
                continue
        kept.append(event)
    return b"".join(kept)


def tail_value(end: bytes) -> dict[str, Any] | None:
    """`{"usage": {...}}` out of a JSON answer of which only the end is here, or the rest is too large to be parsed (numbers, pictures)."""
    at = end.rfind(b'"usage"')
    start = end.find(b"{", at) if at >= 0 else -1
    if start < 0 or end[at + 7 : start].strip() != b":":
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(end[start : start + _USAGE_BYTES].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return {"usage": value}
