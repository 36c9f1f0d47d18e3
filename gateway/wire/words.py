"""What the backend's model wrote, in the answers and the events of all protocols: what its tokens can be counted from.

Words are lists of (place, text). Texts of one place belong together, in order: they are one text of the model (the content of a choice,
the arguments of a tool call, what it reasoned). Nothing here raises for what a backend sends.
"""

from __future__ import annotations

from typing import Any

import orjson

Words = list[tuple[str, str]]

_SPOKEN = ("content", "text", "refusal", "transcript")
_REASONED = ("reasoning_content", "reasoning")  # two names of one thing: some send both
_NO_WORDS = ("audio.delta", "partial_image")  # typed deltas that are not text


def openai_words(value: Any) -> Words:
    """Chat and completions: an event, or a whole answer."""
    words: Words = []
    choices = value.get("choices") if type(value) is dict else None
    for choice in choices if type(choices) is list else ():
        if type(choice) is dict:
            part = choice.get("delta") or choice.get("message") or choice
            if type(part) is dict:
                _message_words(words, str(choice.get("index", 0)), part)
    return words


def _message_words(words: Words, place: str, part: dict[str, Any]) -> None:
    for name in _SPOKEN:
        _add(words, f"{place}.{name}", part.get(name))
    for name in _REASONED:
        if part.get(name):
            _add(words, f"{place}.reasoning", part[name])
            break
    calls = part.get("tool_calls")
    for number, call in enumerate(calls if type(calls) is list else ()):
        if type(call) is dict:
            _call_words(words, f"{place}.{call.get('index', number)}", call.get("function"))
    _call_words(words, place, part.get("function_call"))


def _call_words(words: Words, place: str, function: Any) -> None:
    if type(function) is dict:
        _add(words, f"{place}.name", function.get("name"))
        _add(words, f"{place}.arguments", function.get("arguments"))


def responses_words(value: Any) -> Words:
    """OpenAI's responses: a typed event, or a whole response."""
    words: Words = []
    if type(value) is not dict:
        return words
    kind = value.get("type")
    if type(kind) is str and kind.endswith(".delta"):
        if not kind.endswith(_NO_WORDS):
            _add(words, f"{value.get('output_index', 0)}.{value.get('content_index', 0)}.{kind}", value.get("delta"))
        return words
    output = value.get("output")
    for number, item in enumerate(output if type(output) is list else ()):
        if type(item) is dict:
            _add(words, f"{number}.arguments", item.get("arguments"))
            for name in ("content", "summary"):
                _add(words, f"{number}.{name}", item.get(name))
    return words


def messages_words(value: Any) -> Words:
    """Anthropic's messages: an event, or a whole message."""
    words: Words = []
    if type(value) is not dict:
        return words
    place = str(value.get("index", 0))
    if value.get("type") == "content_block_delta":
        _block_words(words, place, value.get("delta"))
    elif value.get("type") == "content_block_start":
        _block_words(words, place, value.get("content_block"))
    else:
        content = value.get("content")
        for number, block in enumerate(content if type(content) is list else ()):
            _block_words(words, str(number), block)
    return words


def _block_words(words: Words, place: str, block: Any) -> None:
    if type(block) is dict:
        for name in ("text", "thinking", "partial_json", "name"):
            _add(words, f"{place}.{name}", block.get(name))
        if block.get("input"):
            _add(words, f"{place}.input", _compact(block["input"]))


def _compact(value: Any) -> str | None:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return None


def _add(words: Words, place: str, value: Any) -> None:
    """A text, or a list of parts of which some hold one."""
    if type(value) is str:
        if value:
            words.append((place, value))
    elif type(value) is list:
        for number, part in enumerate(value):
            if type(part) is dict and type(part.get("text")) is str:
                words.append((f"{place}.{number}", part["text"]))
