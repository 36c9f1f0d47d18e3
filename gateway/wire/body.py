"""The request body: one typed peek at what the gateway acts on, and edits made in the bytes.

The body is parsed once (orjson validates all of it: UTF-8, surrogates, nesting) and otherwise forwarded as it came. An edit replaces or
inserts the raw bytes of one top-level member; nothing is ever re-dumped.

Two parsers may disagree on a body: the last of two equal keys or the first, `"mod\\u0065l"` or `"Model"` as `model` or not. A backend that
disagrees with us would serve a model that the caller may not use. So keys that the gateway acts on must be unambiguous: duplicates,
escaped spellings and twins that differ in case are refused (400).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequest

MAX_CHOICES: Final = 128  # as OpenAI has it
LIMIT_NAMES: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
ACTED_ON: Final = frozenset({"model", "stream", "stream_options", "n", "best_of", *LIMIT_NAMES})

# Keys that clients commonly send and that are no twin of ours: spares the case-fold below. Not a list of what is allowed: all is.
_COMMON: Final = frozenset(
    "messages prompt input temperature top_p stop seed tools tool_choice response_format presence_penalty frequency_penalty logprobs "
    "top_logprobs user encoding_format dimensions metadata store logit_bias parallel_tool_calls echo suffix".split()
)

# One JSON string or one structural character, on bytes already known to be valid JSON.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)
# \u0041 to \u007a spell ASCII letters and the underscore: no client escapes those, so a body with one gets the exact scan.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_LONG_BYTES: Final = 16_384
_MOST_QUOTES: Final = 256
_WRITTEN: Final = {key: b'"' + key.encode() + b'"' for key in ACTED_ON}
_EMPTY: Final = re.compile(rb"\s*}")
_VALUE_AFTER_KEY: Final = re.compile(rb'\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*"|[^\s",{}\[\]]+)')


@dataclass(frozen=True, slots=True)
class Member:
    """One top-level member: its key as decoded and as written, and where its value stands in the body."""

    key: str
    written: bytes
    start: int
    end: int


class Peek:
    """What the gateway acts on. `fields` is the parsed body, for checks only; `choices` is n, at least 1; `output_limit` is in tokens per
    choice, None where the client sends none.
    """

    __slots__ = ("choices", "fields", "include_usage", "model", "output_limit", "stream")

    def __init__(
        self, fields: dict[str, Any], model: str | None, stream: bool, include_usage: bool, choices: int, output_limit: int | None
    ) -> None:
        self.fields = fields
        self.model = model
        self.stream = stream
        self.include_usage = include_usage
        self.choices = choices
        self.output_limit = output_limit


def parse(body: bytes) -> dict[str, Any]:
    """The body as an object, or InvalidRequest in words a client can act on."""
    try:
        fields = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {_json_fault(error)}", code="invalid_json") from None
    if type(fields) is not dict:
        raise InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    return fields


def _json_fault(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"{error.msg.split(':')[0]} (line {error.lineno}, column {error.colno})."
    return "it is nested too deeply."


def peek(body: bytes, limit_names: tuple[str, ...] = LIMIT_NAMES) -> Peek:
    """Parse and check `body`. `limit_names`: the members that bound the answer's tokens in this operation; others bound nothing there.

    The types checked here are those that the gateway acts on; the rest is the backend's to judge.
    """
    fields = parse(body)
    _refuse_ambiguous(body, fields)
    model = fields.get("model")
    if model is not None and type(model) is not str:
        raise InvalidRequest("'model' must be a string.", param="model")
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        raise InvalidRequest("'stream' must be true or false.", param="stream")
    return Peek(
        fields=fields,
        model=model,
        stream=stream is True,
        include_usage=include_usage(fields, stream is True) if "stream_options" in fields else False,
        choices=positive(fields, "n") if "n" in fields else 1,
        output_limit=output_limit(fields, limit_names),
    )


def include_usage(fields: dict[str, Any], stream: bool) -> bool:
    options = fields["stream_options"]
    if options is None:
        return False
    if type(options) is not dict:
        raise InvalidRequest("'stream_options' must be an object.", param="stream_options")
    if not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    include = options.get("include_usage")
    if include is not None and type(include) is not bool:
        raise InvalidRequest("'stream_options.include_usage' must be true or false.", param="stream_options")
    return include is True


def positive(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if value is None:
        return 1
    if type(value) is not int or value < 1:
        raise InvalidRequest(f"'{name}' must be a whole number of at least 1.", param=name)
    if value > MAX_CHOICES:
        raise InvalidRequest(f"'{name}' must be at most {MAX_CHOICES}.", param=name)
    return value


def output_limit(fields: dict[str, Any], limit_names: tuple[str, ...]) -> int | None:
    """The largest of the limits that are there."""
    limit = None
    for name in limit_names:
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 0:
            raise InvalidRequest(f"'{name}' must be a whole number that is not negative.", param=name)
        limit = value if limit is None else max(limit, value)
    return limit


def _refuse_ambiguous(body: bytes, fields: dict[str, Any]) -> None:
    written: list[bytes] = []
    for key in fields:
        ours = _WRITTEN.get(key)
        if ours is not None:
            written.append(ours)
        elif key not in _COMMON and key.casefold() in ACTED_ON:
            plain = key.casefold()
            raise InvalidRequest(f"The key {key!r} differs from {plain!r} only in case; write it as documented.", param=plain)
    if not _spelled_once(body, written):
        _refuse_twins(body)


def _spelled_once(body: bytes, written: list[bytes]) -> bool:
    """Is it plain that none of these keys, which are there, stands twice? Every look is a fast search, also over a prompt of megabytes."""
    if b"\\" in body and _ESCAPED_LETTER.search(body) is not None:
        return False
    if len(body) > _LONG_BYTES:
        once = _once_each(body, tuple(written))
        if once is not None:
            return once
    for key in written:
        at = body.rfind(key)  # from the end: four times as fast as forwards over a long text
        if at < 0 or body.rfind(key, 0, at) >= 0:
            return False
    return True


def _once_each(body: bytes, written: tuple[bytes, ...]) -> bool | None:
    """The same for a long body with few strings: from one quotation mark to the next, each a search for one byte, ten times as fast again.

    None where there are too many. All keys are there at least once, so as many finds as keys are one each.
    """
    found = 0
    at = body.find(b'"')
    for _ in range(_MOST_QUOTES):
        if at < 0:
            return found == len(written)
        if body.startswith(written, at):
            found += 1
        at = body.find(b'"', at + 1)
    return None


def _refuse_twins(body: bytes) -> None:
    """The exact look: every top-level key, as it is written."""
    seen: set[str] = set()
    for member in members(body):
        if member.key not in ACTED_ON:
            continue
        if member.key in seen:
            raise InvalidRequest(f"The key {member.key!r} appears twice in the request body.", param=member.key)
        if member.written != b'"' + member.key.encode() + b'"':
            raise InvalidRequest(f"The key {member.key!r} is written with escapes; write it plainly.", param=member.key)
        seen.add(member.key)


def members(body: bytes) -> Iterator[Member]:
    """The top-level members of a valid JSON object, in order, duplicates included. Exact, and slower than `find_member`."""
    depth = 0
    key: bytes | None = None
    start = -1
    for match in _TOKEN.finditer(body):
        token = match.group()
        first = token[0]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if depth == 0 and key is not None:
                yield _member(body, key, start, match.start())
        elif depth == 1:
            if first == 0x22 and key is None:
                key = token
            elif first == 0x3A:
                start = match.end()
            elif first == 0x2C and key is not None:
                yield _member(body, key, start, match.start())
                key = None


def _member(body: bytes, key: bytes, start: int, end: int) -> Member:
    raw = body[start:end]
    lead = len(raw) - len(raw.lstrip())
    return Member(orjson.loads(key), key, start + lead, start + len(raw.rstrip()))


def find_member(body: bytes, key: str) -> Member | None:
    """Where the value of the top-level member `key` stands. `body` has passed `peek`, so the key is unique at the top."""
    written = b'"' + key.encode() + b'"'
    at = body.find(written)
    if at >= 0 and body.rfind(written) == at:  # four times as fast over a long prompt as a search onwards
        match = _VALUE_AFTER_KEY.match(body, at + len(written))
        if match is not None:
            return Member(key, written, match.start(1), match.end(1))
    return next((m for m in members(body) if m.key == key), None)


def edit(body: bytes, replace: dict[str, bytes], insert: Iterable[tuple[str, bytes]]) -> bytes:
    """`body` with the values of the members in `replace` exchanged, and the members of `insert` put in front.

    Values are raw JSON. A member of `replace` that is not there is inserted.
    """
    front = list(insert)
    spans: list[tuple[int, int, bytes]] = []
    for key, value in replace.items():
        member = find_member(body, key)
        if member is None:
            front.append((key, value))
        else:
            spans.append((member.start, member.end, value))
    pieces: list[bytes] = []
    at = 0
    if front:
        at = body.index(b"{") + 1
        inserted = b",".join([b'"' + key.encode() + b'":' + value for key, value in front])
        pieces += [body[:at], inserted, b"" if _EMPTY.match(body, at) else b","]
    for start, end, value in sorted(spans):
        pieces += [body[at:start], value]
        at = end
    pieces.append(body[at:])
    return b"".join(pieces)
