"""Fuzz targets without a connection: the parser of backends' answers, event framing, the look at a JSON body and at a form.

Each is held against an independent reading: h11 for HTTP, the standard library for JSON and forms, a few lines of its own for events.
"""

from __future__ import annotations

import asyncio
import email
import json
import re
from itertools import pairwise
from typing import Any, ClassVar

import h11
import orjson

from backends.custom import CustomBackend
from backends.http1 import Connection
from gateway.errors import InvalidRequest
from gateway.relay.operations import ROUTES
from gateway.wire import body as wire_body
from gateway.wire import multipart, sse
from tests.faults.test_fuzz import ANSWERS, CALL, FakeTransport, Told

HTTP_WORDS = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b",", b"0\r\n\r\n", b"\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n"),
    *(
        b"content-length: 3\r\n",
        b"content-length: 0\r\n",
        b"Content-Length: +3\r\n",
        b"content-length : 3\r\n",
        b"content-length: 3, 3\r\n",
    ),
    *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: xchunked\r\n", b"Transfer-Encoding:\tchunked\r\n", b"te: trailers\r\n"),
    *(b"transfer-encoding: chunked, identity\r\n", b"connection: close\r\n", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n"),
    *(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0", b"upgrade: h2c\r\n", b" folded\r\n", b"\xff", b"x" * 300),
]


class Backend:
    """`backends.http1.Connection` fed with an answer, then the end of the connection. What it calls complete is what h11 reads."""

    name = "backend"
    words: ClassVar[list[bytes]] = HTTP_WORDS
    corpus: ClassVar[list[bytes]] = ANSWERS
    joins = 2

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()

    def check(self, pieces: list[bytes]) -> None:
        self._runner.run(self._check(pieces))

    async def _check(self, pieces: list[bytes]) -> None:
        pool = CustomBackend("http://b/v1")
        connection = Connection(pool)
        connection.connection_made(FakeTransport())
        told = Told()
        exchange = pool.open()
        exchange._call, exchange.sink = CALL, told
        exchange._send(connection, reused=False)
        for piece in pieces:
            if not connection.transport.is_closing():
                connection.data_received(piece)
        pooled = connection in pool.idle and connection.usable
        if not connection.transport.is_closing() or told.ending is None:
            connection.connection_lost(None)
        assert told.ending is not None, "it hangs"
        data = b"".join(pieces)
        if told.ending == "end False":
            read = read_answer(data)
            if read is not None:
                status, body, rest = read
                assert (told.status, told.body) == (status, body), (told.status, told.body, status, body)
                assert not (pooled and rest.strip(b"\r\n")), "pooled with bytes behind its answer"  # blank lines are nobody's answer


def read_answer(data: bytes) -> tuple[int, bytes, bytes] | None:
    """h11's reading of one answer: status, body, what follows it. None where it refuses the bytes or wants more."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "b"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body, connection.trailing_data[0]
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None


class Frames:
    """Event framing: nothing lost, nothing changed, and the same events as a plain reading of the standard gives."""

    name = "frames"
    joins = 6
    corpus: ClassVar[list[bytes]] = [
        b"data: 1\n\n",
        b"data: 1\r\n\r\n",
        b"data: 1\r\r",
        b": comment\n\n",
        b"event: x\ndata: 1\ndata:2\n\n",
        b"data\n\n",
        b"id: 7\r\ndata:  two \r\n\r\n",
        b"data: [DONE]\n\n",
        'data: {"model":"up","c":"né 😀"}\n\n'.encode(),
        b'data: {"x":{"model":"up"},"model": "up"}\n\n',
        b'data: {"a":"\\"model\\":\\"up\\"","model":"u\\u0070"}\r\n\r\n',
        b'data: {"error":{"message":"x"}}\n\n',
    ]
    words: ClassVar[list[bytes]] = [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"data:",
        b"data: ",
        b":",
        b"\xef\xbb\xbf",
        b'"model":"x"',
        b"{",
        b"}",
        b'"',
        b"\\",
    ]

    def close(self) -> None:
        pass

    def check(self, pieces: list[bytes]) -> None:
        framer = sse.Framer()
        blocks = [framer.feed(piece) for piece in pieces]
        data = b"".join(pieces)
        whole = b"".join(blocks)
        assert whole + framer.held == data, "bytes lost"
        found: list[bytes] = []
        for block in blocks:
            events = list(sse.events(block))
            assert b"".join(events) == block, "events are not the block"
            found += [value for value in map(sse.data_of, events) if value is not None]
        plain = plain_events(whole)
        assert found == plain, (found, plain)
        rename = sse.ModelRename("new")
        for block in blocks:
            _check_rename(block, rename.apply(block))


def plain_events(text: bytes) -> list[bytes]:
    """The data of each event by the letter of the standard (WHATWG HTML 9.2.6), for text that ends with a whole event."""
    found, lines = [], []
    for line in re.split(rb"\r\n|\n|\r", text):
        if not line:
            if lines:
                found.append(b"\n".join(lines))
            lines = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return found


def _check_rename(before: bytes, after: bytes) -> None:
    """Only values of a top-level `model` change (a key in escapes is another matter, tested by itself)."""
    if re.search(rb"(?m)^(?!data: \{)[^\r\n]*[\"{}\[\]]", before.replace(b"\r", b"\n")):
        return  # JSON outside a data line (in a comment, over several lines): nothing is promised but the framing
    old, new = plain_events(before), plain_events(after)
    assert len(old) == len(new), "an event more or less"
    for one, other in zip(old, new, strict=True):
        if one == other:
            continue
        try:
            was, is_ = orjson.loads(one), orjson.loads(other)
        except orjson.JSONDecodeError:
            continue  # no JSON: nothing is promised but that it is framed as before
        assert type(was) is dict
        if len(json.loads(one, object_pairs_hook=lambda pairs: pairs)) != len(was):
            continue  # a key twice
        assert was | {"model": "new"} == is_, (one, other)


class Json:
    """The look at a body: what it takes has one reading, and an edit changes what it is told and nothing else."""

    name = "json"
    joins = 1
    corpus: ClassVar[list[bytes]] = [
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":false},"n":2}',
        b'{ "model" : "m" , "prompt" : ["a", 1.5e3, null], "max_tokens" : 5 }',
        '{"messages":[{"content":"né \\u00e9 \\ud83d\\ude00 \\"model\\": \\"x\\""}],"model":"m"}'.encode(),
        b'{"a":{"model":"x","stream":true},"model":"m","tools":[{"model":[]}]}',
        b"{}",
        b"[]",
        b'"model"',
    ]
    words: ClassVar[list[bytes]] = [
        *(
            b'"model":"x",',
            b'"Model":"x",',
            b'"mod\\u0065l":"x",',
            b'"stream":true,',
            b'"STREAM":1,',
            b'"n":3,',
            b'"n":0,',
            b"null",
            b"\\u0000",
        ),
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b"\\",
            b",",
            b":",
            b"\xff",
            b"\xed\xa0\x80",
            b" ",
            b"\n",
            b"1e999",
            b"[" * 200,
            b'"stream_options":{},',
        ),
    ]

    def close(self) -> None:
        pass

    def check(self, pieces: list[bytes]) -> None:
        body = b"".join(pieces)
        try:
            peek = wire_body.peek(body)
        except InvalidRequest as error:
            assert error.status == 400
            return
        try:
            pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=lambda found: found)
        except RecursionError:
            return
        keys = [key for key, _ in pairs]
        for acted_on in ("model", "stream", "stream_options", "n", "max_tokens"):
            assert sum(key.casefold() == acted_on for key in keys) <= 1, f"{acted_on} twice"
        fields = orjson.loads(body)
        assert peek.model == fields.get("model")
        assert peek.stream == bool(fields.get("stream"))
        edited = wire_body.edit(body, {"model": b'"new"'} if "model" in fields else {}, [("zz", b"[1]")])
        wanted = {"zz": [1]} | fields | ({"model": "new"} if "model" in fields else {}) if "zz" not in fields else None
        assert wanted is None or orjson.loads(edited) == wanted, edited


class Forms:
    """The look at a form: what it takes has one `model`, the one that the standard library finds too, and an edit changes that alone."""

    name = "forms"
    joins = 1
    content_type = b"multipart/form-data; boundary=b-7f3a"
    corpus: ClassVar[list[bytes]] = [
        (
            b'--b-7f3a\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
            b'--b-7f3a\r\nContent-Disposition: form-data; name="file"; '
            b'filename="a.wav"\r\ncontent-type: audio/wav\r\n\r\nRIFF\x00\r\n--b-7f3\r\n\xff\r\n--b-7f3a--\r\n'
        ),
        (
            b'--b-7f3a\r\ncontent-disposition: form-data; name="language"\r\n\r\nen\r\n'
            b'--b-7f3a\r\ncontent-disposition: form-data; name="model"\r\n'
            b'\r\nm\r\n--b-7f3a\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b-7f3a--'
        ),
        b'--b-7f3a\r\ncontent-disposition: form-data; name="model"; filename="x"\r\n\r\nm\r\n--b-7f3a--\r\n',
    ]
    words: ClassVar[list[bytes]] = [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b"--b-7f3a",
            b"--b-7f3a\r\n",
            b"--b-7f3a--",
            b"\r\n--b-7f3a\r\n",
            b'"',
            b";",
            b"=",
            b"\\",
            b"\x00",
            b"\xff",
        ),
        *(b'; name="model"', b"; name=model", b"; name*=utf-8''model", b'; filename="x"', b'name="Model"', b"content-type: text/plain\r\n"),
        *(b"content-transfer-encoding: base64\r\n", b'content-disposition: form-data; name="model"\r\n\r\nevil\r\n', b" folded\r\n"),
    ]

    def close(self) -> None:
        pass

    def check(self, pieces: list[bytes]) -> None:
        body = b"".join(pieces)
        try:
            peek = multipart.peek(body, self.content_type)
        except InvalidRequest as error:
            assert error.status == 400
            return
        models = [
            part.get_payload(decode=True)
            for part in _plain_parts(self.content_type, body)
            if part.get_param("name", header="content-disposition") == "model"
        ]
        assert len(models) <= 1, "two models"
        if peek.model is not None and models:
            assert models == [peek.model.encode()], (models, peek.model)
        edited = multipart.edit(body, self.content_type, {"model": b'"new"'}, [])
        again = multipart.peek(edited, self.content_type)
        assert again.model == "new"
        assert {**again.fields, "model": 0} == {**peek.fields, "model": 0}


def _plain_parts(content_type: bytes, body: bytes) -> list[email.message.Message]:
    message = email.message_from_bytes(b"content-type: " + content_type + b"\r\n\r\n" + body)
    payload = message.get_payload()
    return [part for part in payload if isinstance(part, email.message.Message)] if isinstance(payload, list) else []


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """`data` in pieces, none of them empty."""
    bounds = [0, *sorted({a % (len(data) + 1) for a in at}), len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if b > a]


RELAYED = frozenset(ROUTES)
