"""A multipart/form-data body (RFC 7578, RFC 2046 5.1): one look at its small text parts, and edits made in the bytes.

Two parsers may disagree on a form as they may on JSON, and a backend that disagrees with us would serve a model that the caller may not
use. So everything that is read differently in the wild is refused (400) rather than interpreted: a boundary that is not one plain token,
line ends other than CRLF around the boundary, text before the first part or after the last, a boundary that only begins a line, folded or
repeated part headers, `name*`, escapes in names, a transfer encoding, `_charset_`, a multipart within; and a part that the gateway acts on
(`gateway.wire.body.ACTED_ON`) that is sent twice, as a file, in another charset, or named in other letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.wire.body import ACTED_ON, Peek, include_usage, output_limit, positive

MAX_PARTS = 256
MAX_PART_HEAD_BYTES = 8192
MAX_TEXT_BYTES = 1_000_000
"""A text part above this is only counted, like a file."""

_TYPE = b"multipart/form-data"
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-](?:[0-9A-Za-z'()+_,./:=? -]{0,68}[0-9A-Za-z'()+_,./:=?-])?")  # RFC 2046 5.1.1
_PARAMETER = re.compile(rb';[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("[^"\\\r\n]*(?:\\[^\r\n][^"\\\r\n]*)*"|[^";\s]+)[ \t]*')
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLAIN = re.compile(rb"[0-9A-Za-z_.-]+")  # other characters of a token are quoted: an apostrophe is read as RFC 2231 by some
_WHOLE = re.compile(r"[0-9]{1,15}")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_NUMBERS = ACTED_ON - {"model", "stream", "stream_options"}
_UTF8 = frozenset((b"", b"utf-8", b"utf8", b"us-ascii"))
# What some clients declare for all text: the same as UTF-8 while it is ASCII.
_LATIN = frozenset((b"iso-8859-1", b"latin1", b"windows-1252"))


@dataclass(frozen=True, slots=True)
class Upload:
    """A part that is a file, or too large or not text: what it holds is the backend's affair."""

    size_bytes: int

    def __bool__(self) -> bool:
        return self.size_bytes > 0


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its name, whether it is a file, its charset (lower case), and where its content stands in the body."""

    name: str
    is_file: bool
    charset: bytes
    start: int
    end: int


def is_form(content_type: bytes) -> bool:
    """Is this the content type of a form (well written or not)?"""
    return content_type[:10].lower() == b"multipart/"


def boundary_of(content_type: bytes) -> bytes:
    """The boundary. Raises InvalidRequest."""
    kind = _TYPE
    if content_type[: len(kind)].lower() != kind:
        raise InvalidRequest("The request body must be multipart/form-data.", code="invalid_multipart")
    boundary: bytes | None = None
    for name, value in _parameters(content_type, len(kind)):
        if name == b"boundary" and boundary is None:
            boundary = value
        elif name == b"charset" and value.lower() == b"utf-8":
            continue
        else:
            raise _malformed("its content type has a parameter that cannot be taken")
    if boundary is None or _BOUNDARY.fullmatch(boundary) is None:
        raise _malformed("its content type has no valid boundary")
    return boundary


def content_type(content_type: bytes) -> bytes:
    """The same content type in its plainest spelling."""
    boundary = boundary_of(content_type)
    return _TYPE + b"; boundary=" + (boundary if _PLAIN.fullmatch(boundary) else b'"' + boundary + b'"')


def parts(body: bytes, boundary: bytes) -> list[Part]:
    """All parts in order. Raises InvalidRequest for a body that two parsers could read differently."""
    dashes = b"--" + boundary
    at = _first(body, dashes)
    found: list[Part] = []
    while not body.startswith(b"--", at):
        if not body.startswith(b"\r\n", at):
            raise _malformed("something stands behind a boundary")
        end = _delimiter(body, dashes, at + 2)
        if len(found) == MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        found.append(_part(body, at + 2, end))
        at = end + 2 + len(dashes)
    if body[at + 2 :] not in (b"", b"\r\n"):
        raise _malformed("something stands behind its last boundary")
    return found


def peek(body: bytes, content_type: bytes, limit_names: tuple[str, ...] = ()) -> Peek:
    """What the gateway acts on, by name. `fields`: text as str, files as Upload, what is sent several times as a list of these."""
    fields: dict[str, Any] = {}
    for part in parts(body, boundary_of(content_type)):
        value = _value(body, part)
        if part.name in ACTED_ON and type(value) is str and not _plain(value, part.charset):
            raise InvalidRequest(f"The part {part.name!r} must be UTF-8.", param=part.name)
        if part.name not in fields:
            fields[part.name] = value
        elif part.name in ACTED_ON:
            raise InvalidRequest(f"The part {part.name!r} is sent twice.", param=part.name)
        elif type(fields[part.name]) is list:
            fields[part.name].append(value)
        else:
            fields[part.name] = [fields[part.name], value]
    for name in ACTED_ON & fields.keys():
        fields[name] = _acted_on(name, fields[name])
    stream = fields.get("stream") is True
    return Peek(
        fields=fields,
        model=fields.get("model"),
        stream=stream,
        include_usage=include_usage(fields, stream) if "stream_options" in fields else False,
        choices=positive(fields, "n") if "n" in fields else 1,
        output_limit=output_limit(fields, limit_names),
    )


def edit(body: bytes, content_type: bytes, replace: dict[str, bytes], insert: Iterable[tuple[str, bytes]]) -> bytes:
    """`body` with the contents of the parts in `replace` exchanged, and the parts of `insert` put in front.

    Values are raw JSON: a string becomes its text, anything else stays as it is written. A part of `replace` that is not there is inserted.
    """
    boundary = boundary_of(content_type)
    dashes = b"--" + boundary
    spans = {part.name: part for part in parts(body, boundary) if part.name in replace}
    front = [*insert, *((name, value) for name, value in replace.items() if name not in spans)]
    at = body.index(dashes)
    pieces = [body[:at]]
    for name, value in front:
        head = b'\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n'
        pieces += [dashes, head, _text(value, dashes), b"\r\n"]
    for part in sorted(spans.values(), key=_start):
        pieces += [body[at : part.start], _text(replace[part.name], dashes)]
        at = part.end
    pieces.append(body[at:])
    return b"".join(pieces)


def _start(part: Part) -> int:
    return part.start


def _text(value: bytes, dashes: bytes) -> bytes:
    text = orjson.loads(value).encode() if value[:1] == b'"' else value
    if dashes in text:
        raise _malformed("its boundary is contained in a value; choose a longer one")
    return text


def _first(body: bytes, dashes: bytes) -> int:
    """Where the first boundary ends. A single line end before it is common; anything more is a preamble."""
    for lead in (b"", b"\r\n"):
        if body.startswith(lead + dashes):
            return len(lead) + len(dashes)
    raise _malformed("it does not begin with the boundary of its content type")


def _delimiter(body: bytes, dashes: bytes, start: int) -> int:
    """Where the CRLF of the next boundary stands. Inside a line a boundary is content (RFC 2046); at the start of one it must be whole.

    Fast searches alone, whatever the content: a file of boundaries costs no more than its length.
    """
    at = body.find(dashes, start) - 1
    if at >= 0 and body[at] not in b"\r\n":  # inside a line
        at = body.find(b"\n" + dashes, start - 1)
        if body.find(b"\r" + dashes, start - 1, max(at, 0) or len(body)) >= 0:
            raise _malformed("a line begins with the boundary but is not one")
    if at < 0:
        raise _malformed("its last boundary is missing")
    end = at + 1 + len(dashes)
    if at <= start or body[at - 1 : at + 1] != b"\r\n" or body[end : end + 2] not in (b"\r\n", b"--"):
        raise _malformed("a line begins with the boundary but is not one")
    return at - 1


def _part(body: bytes, start: int, end: int) -> Part:
    """The part between two boundaries: `start` behind the CRLF of the first, `end` before the CRLF of the second."""
    blank = body.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEAD_BYTES))
    if blank < 0:
        raise _malformed("a part has no blank line behind its headers, or too many headers")
    headers = _headers(body[start:blank])
    name, is_file = _disposition(headers.get(b"content-disposition", b""))
    kind = headers.get(b"content-type", b"").lower()
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit") or kind.startswith(b"multipart/"):
        raise _malformed("a part is encoded, or holds parts itself")
    if name == "_charset_" or (name not in ACTED_ON and name.strip().casefold() in ACTED_ON):
        raise InvalidRequest(f"The part {name!r} is not accepted; write names as documented, and text as UTF-8.", param=name.casefold())
    return Part(name, is_file, _charset(kind), blank + 4, end)


def _headers(head: bytes) -> dict[bytes, bytes]:
    """A part's headers: lower-case names, each at most once, none folded."""
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        key = key.lower()
        if not colon or _TOKEN.fullmatch(key) is None or key in headers or any(char in line for char in (b"\n", b"\r", b"\0")):
            raise _malformed("a part has a malformed or repeated header")
        headers[key] = value.strip(b" \t")
    return headers


def _disposition(value: bytes) -> tuple[str, bool]:
    """The part's name, and whether it is a file."""
    if value[:9].lower() != b"form-data":
        raise _malformed("a part is not form-data")
    given: dict[bytes, bytes] = {}
    for key, text in _parameters(value, 9):
        if key in given:
            raise _malformed("a part's disposition names a parameter twice")
        given[key] = text
    name = given.get(b"name")
    if name is None or b"name*" in given or b"\\" in name or b"%" in name:
        raise _malformed("a part has no plain name")
    try:
        return name.decode(), b"filename" in given or b"filename*" in given
    except UnicodeDecodeError:
        raise _malformed("a part's name is not UTF-8") from None


def _charset(kind: bytes) -> bytes:
    """The charset of a part's content type, in lower case."""
    at = kind.find(b"charset")
    return kind[at + 7 :].replace(b'"', b"").strip(b" =;") if at >= 0 else b""


def _plain(text: str, charset: bytes) -> bool:
    """Does everybody read this text as we do?"""
    return charset in _UTF8 or (charset in _LATIN and text.isascii())


def _parameters(value: bytes, at: int) -> list[tuple[bytes, bytes]]:
    """The parameters behind `at`: lower-case names, values without their quotes."""
    found = []
    while at < len(value):
        match = _PARAMETER.match(value, at)
        if match is None:
            raise _malformed("a header has malformed parameters")
        text = match.group(2)
        found.append((match.group(1).lower(), text[1:-1] if text[:1] == b'"' else text))
        at = match.end()
    return found


def _value(body: bytes, part: Part) -> str | Upload:
    size_bytes = part.end - part.start
    if part.is_file or size_bytes > MAX_TEXT_BYTES:
        return Upload(size_bytes)
    try:
        return body[part.start : part.end].decode()
    except UnicodeDecodeError:
        return body[part.start : part.end].decode("latin-1") if part.charset in _LATIN else Upload(size_bytes)


def _acted_on(name: str, value: Any) -> Any:
    """The value of a part that the gateway acts on, as JSON would have it. An empty one is none."""
    if type(value) is not str:
        raise InvalidRequest(f"The part {name!r} must be text.", param=name)
    if name == "model":
        return value
    if not value:
        return None
    if name == "stream":
        flag = _FLAGS.get(value.lower())
        if flag is None:
            raise InvalidRequest("'stream' must be true or false.", param="stream")
        return flag
    if name in _NUMBERS:
        return int(value) if _WHOLE.fullmatch(value) else value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise InvalidRequest(f"The part {name!r} must be JSON.", param=name) from None


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not valid multipart/form-data: {why}.", code="invalid_multipart")
