"""The beginning of a prompt as one text, by which requests with the same beginning find the backend that has it cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def prompt_prefix(fields: Mapping[str, Any], limit_bytes: int) -> bytes | None:
    """The first `limit_bytes` bytes of what the model reads: roles and texts of the messages in turn, or the prompt; None without any.

    `fields` is a parsed body, nothing in it is trusted to have the type that it should. Equal beginnings of two conversations give
    equal bytes; parts that are no text (images, audio) count by their type alone.
    """
    parts: list[bytes] = []
    left = limit_bytes
    for text in _texts(fields):
        piece = text[:left].encode("utf-8", "surrogatepass")[:left]  # n characters are at least n bytes: no long text is encoded whole
        parts.append(piece)
        left -= len(piece)
        if left <= 0:
            break
    return b"".join(parts) or None


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    system = fields.get("system", fields.get("instructions"))  # messages and responses put it beside the turns
    if system is not None:
        yield from _content(system)
    messages = fields.get("messages")
    if isinstance(messages, list):
        for message in messages:
            yield from _message(message)
        return
    for name in ("prompt", "input", "query"):
        value = fields.get(name)
        if value is not None:
            yield from _content(value)
            return


def _message(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        return
    role = message.get("role")
    yield f"\x1e{role if isinstance(role, str) else ''}\x1f"  # separators: no text of one message reads as the next one's role
    yield from _content(message.get("content"))


def _content(content: Any) -> Iterator[str]:
    """Text, a list of parts or turns, or (completions) a list of token ids."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _part(part)


def _part(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, int):
        yield f"{part} "
    elif isinstance(part, list):
        yield from (f"{token} " for token in part if isinstance(token, int))
    elif isinstance(part, dict):
        text = part.get("text")
        if isinstance(text, str):
            yield text
        elif "role" in part:
            yield from _message(part)
        else:
            yield f"\x1d{part.get('type')}"
