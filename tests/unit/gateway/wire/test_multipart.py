from __future__ import annotations

import email
import email.policy
import itertools
import time

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.wire.multipart import MAX_PARTS, MAX_TEXT_BYTES, Upload, boundary_of, content_type, edit, is_form, parts, peek

TYPE = b"multipart/form-data; boundary=XyZ"


def part(name: str, content: bytes = b"v", more: bytes = b"", headers: bytes = b"") -> bytes:
    return (
        b'--XyZ\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + more + b"\r\n" + headers + b"\r\n" + content + b"\r\n"
    )


def form(*found: bytes) -> bytes:
    return b"".join(found) + b"--XyZ--\r\n"


FILE = part("file", b"\x00\xff\r\n--Xy\r\nRIFF", b'; filename="a.wav"', b"Content-Type: audio/wav\r\n")


def test_a_transcription_as_clients_send_it() -> None:
    body = form(
        part("model", b"whisper"),
        part("stream", b"true"),
        part("tags[]", b"a"),
        part("tags[]", b"b"),
        part("prompt", "안녕".encode()),
        FILE,
    )
    looked = peek(body, TYPE)
    assert looked.model == "whisper"
    assert looked.stream is True
    assert looked.fields["file"] == Upload(14)
    assert looked.fields["tags[]"] == ["a", "b"]
    assert looked.fields["prompt"] == "안녕"
    assert (looked.choices, looked.output_limit, looked.include_usage) == (1, None, False)


def test_what_the_gateway_acts_on_has_the_types_that_json_has() -> None:
    body = form(
        part("n", b"3"), part("max_tokens", b"7"), part("stream", b"False"), part("stream_options", b""), part("max_output_tokens", b"9")
    )
    looked = peek(body, TYPE, ("max_tokens",))
    assert (looked.choices, looked.output_limit, looked.stream, looked.model) == (3, 7, False, None)
    assert peek(form(part("stream", b"1"), part("stream_options", b'{"include_usage":true}')), TYPE).include_usage is True


@pytest.mark.parametrize(
    ("found", "param"),
    [
        ([part("model"), part("model", b"other")], "model"),
        ([part("Model")], "model"),
        ([part("model ")], "model "),
        ([part("MODEL", b"a"), part("model", b"b")], "model"),
        ([part("model", b"m", b'; filename="x"')], "model"),
        ([part("model", b"m", b"; filename*=utf-8''x")], "model"),
        ([part("model", b"\xff")], "model"),
        ([part("model", "ü".encode("latin-1"), headers=b"Content-Type: text/plain; charset=ISO-8859-1\r\n")], "model"),
        ([part("model", b"m+AG0-", headers=b"Content-Type: text/plain; charset=utf-7\r\n")], "model"),
        ([part("_charset_", b"utf-16")], "_charset_"),
        ([part("stream", b"yes")], "stream"),
        ([part("n", b"0")], "n"),
        ([part("n", b"two")], "n"),
        ([part("n", b"1e3")], "n"),
        ([part("n", b"-1")], "n"),
        ([part("n", b"1"), part("n", b"1")], "n"),
        ([part("stream_options", b"{")], "stream_options"),
        ([part("stream_options", b"{}")], "stream_options"),
    ],
)
def test_what_the_gateway_acts_on_is_plain(found: list[bytes], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        peek(form(*found), TYPE)
    assert (refused.value.param or "").strip() == param.strip()


def test_a_charset_that_is_the_same_for_plain_text_is_taken() -> None:
    headers = b"Content-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n"
    body = form(part("model", b"m", headers=headers), part("prompt", "für".encode("latin-1"), headers=headers))
    assert peek(body, TYPE).fields == {"model": "m", "prompt": "für"}


MALFORMED = [
    b"",
    b"--XyZ",
    b"--XyZ--garbage",
    b"--XyZ--\r\nmore",
    b"preamble\r\n" + form(part("a")),
    b"\n" + form(part("a")),
    form(part("a"))[:-4],  # no last boundary
    part("a") + b"--XyZ",
    form(b"--XyZ  \r\n" + part("a").partition(b"\r\n")[2]),
    form(part("a", b"x\n--XyZ\ny")),
    form(part("a", b"x\n--XyZ\r\ny")),
    form(part("a", b"x\r--XyZ\r\ny")),
    form(part("a", b"x\r\n--XyZabc\r\ny")),
    form(part("a", b"x\r\n--XyZ\ny")),
    form(part("a", b"x\r\n--XyZ--\r\ny")),
    form(b"--XyZ\r\n\r\nno headers\r\n"),
    form(b"--XyZ\r\nContent-Disposition: form-data\r\n\r\nv\r\n"),
    form(b'--XyZ\r\nContent-Disposition: attachment; name="a"\r\n\r\nv\r\n'),
    form(b'--XyZ\r\nContent-Disposition: form-data; name="a"\r\nno blank line\r\n'),
    form(b'--XyZ\r\nContent-Disposition: form-data; name="a"\r\n--XyZ--\r\n'),
    form(b'--XyZ\r\nContent-Disposition: form-data;\r\n name="a"\r\n\r\nv\r\n'),
    form(b'--XyZ\nContent-Disposition: form-data; name="a"\n\nv\r\n'),
    form(part("a", headers=b'Content-Disposition: form-data; name="b"\r\n')),
    form(part("a", more=b'; name="model"')),
    form(part("a", more=b"; name*=utf-8''model")),
    form(part('mod\\"el')),
    form(part("mod%65l")),
    form(part("a", headers=b"Content-Transfer-Encoding: base64\r\n")),
    form(part("a", headers=b"Content-Type: multipart/mixed; boundary=q\r\n")),
    form(part("a", headers=b"X: a\n b\r\n")),
    form(part("a", headers=b"X\r\n")),
    form(part("a", headers=b"X: " + b"x" * 9000 + b"\r\n")),
    form(*[part("a")] * (MAX_PARTS + 1)),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_what_two_parsers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        peek(body, TYPE)
    assert refused.value.code == "invalid_multipart"


@pytest.mark.parametrize(
    "written",
    [
        b"multipart/form-data",
        b"multipart/mixed; boundary=a",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=a; boundary=b",
        b"multipart/form-data; boundary=a; Boundary=b",
        b"multipart/form-data; boundary*=utf-8''a",
        b"multipart/form-data; boundary*0=a",
        b'multipart/form-data; boundary="a',
        b'multipart/form-data; boundary="a "',
        b'multipart/form-data; boundary="a\\"b"',
        b"multipart/form-data; boundary=" + b"a" * 71,
        b"multipart/form-data, boundary=a",
        b"multipart/form-data boundary=a",
        b"multipart/form-datax; boundary=a",
        b"multipart/form-data; charset=utf-16; boundary=a",
    ],
)
def test_content_types_without_one_plain_boundary_are_refused(written: bytes) -> None:
    assert is_form(written)
    with pytest.raises(InvalidRequest):
        boundary_of(written)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (b"multipart/form-data; boundary=abc", b"multipart/form-data; boundary=abc"),
        (b'Multipart/Form-Data;BOUNDARY="abc";charset=UTF-8', b"multipart/form-data; boundary=abc"),
        (b'multipart/form-data; boundary="a b:c"', b'multipart/form-data; boundary="a b:c"'),
        (b"multipart/form-data; boundary=a:b", b'multipart/form-data; boundary="a:b"'),
    ],
)
def test_a_content_type_is_sent_on_in_its_plainest_spelling(written: bytes, plain: bytes) -> None:
    assert content_type(written) == plain
    assert boundary_of(plain) == boundary_of(written)
    assert not is_form(b"application/json")


def test_a_large_text_is_only_counted() -> None:
    assert peek(form(part("prompt", b"x" * (MAX_TEXT_BYTES + 1))), TYPE).fields == {"prompt": Upload(MAX_TEXT_BYTES + 1)}
    assert not Upload(0)


def test_an_edit_that_holds_the_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        edit(form(part("model")), TYPE, {"model": b'"a--XyZ"'}, ())


def test_the_encoder_that_clients_use() -> None:
    httpx = pytest.importorskip("httpx")
    fields = {"model": "whisper", "language": "ko"}
    sent = httpx.Request("POST", "http://x", data=fields, files={"file": ("ü ä.wav", b"\r\n\x00", "audio/wav")})
    written = sent.headers["content-type"].encode()
    assert peek(sent.read(), written).fields == {**fields, "file": Upload(3)}


# any parts, any boundary

_BOUNDARY_CHARACTERS = "09AZaz'()+_,./:=?- "
BOUNDARIES = st.text(_BOUNDARY_CHARACTERS, min_size=1, max_size=70).map(lambda text: (text.strip() or "-").encode())
NAMES = st.sampled_from(["model", "file", "image[]", "prompt", "안녕", "x y", "a;b", "response_format"])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.sampled_from([b"\r\n", b"\n", b"\r", b"--", b"-", b"XyZ", b'Content-Disposition: form-data; name="model"', b"\0"]), max_size=8
    ).map(b"".join),
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """(boundary, body, parts) of a form that is written as RFC 7578 has it. At most one part is named `model`."""
    boundary = draw(BOUNDARIES)
    found: list[tuple[str, bytes]] = []
    pieces = [draw(st.sampled_from([b"", b"\r\n"]))]
    for name, content in draw(st.lists(st.tuples(NAMES, CONTENTS), max_size=5)):
        if name == "model":
            if any(known == "model" for known, _ in found):
                continue
            content = b"model-" + content.hex().encode()
        found.append((name, content))
        more = b'; filename="a.b"' if name in ("file", "image[]") else b""
        headers = draw(st.sampled_from([b"", b"Content-Type: text/plain\r\n", b"content-length: 3\r\nX-Odd: \xed\x95\x9c\r\n"]))
        head = b'\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + more + b"\r\n" + headers + b"\r\n"
        pieces += [b"--" + boundary, head, content, b"\r\n"]
    pieces += [b"--" + boundary + b"--", draw(st.sampled_from([b"", b"\r\n"]))]
    return boundary, b"".join(pieces), found


def written(boundary: bytes) -> bytes:
    return b'multipart/form-data; boundary="' + boundary + b'"'


@settings(max_examples=300, deadline=None, derandomize=True)
@given(forms())
@example((b"-", b"-----", []))
def test_any_form_is_read_as_it_was_written(made: tuple[bytes, bytes, list[tuple[str, bytes]]]) -> None:
    boundary, body, found = made
    assume(all(b"--" + boundary not in content for _, content in found))
    read = parts(body, boundary_of(written(boundary)))
    assert [(p.name, body[p.start : p.end]) for p in read] == found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(forms(), st.sampled_from(["up", "한", 'we"ird', "a\\b"]), st.booleans())
def test_an_edit_changes_one_part_alone(made: tuple[bytes, bytes, list[tuple[str, bytes]]], model: str, inserts: bool) -> None:
    boundary, body, found = made
    assume(all(b"--" + boundary not in content for _, content in [*found, ("model", model.encode())]))
    insert = [("temperature", b"0.5"), ("options", b'{"a":[1]}')] if inserts else []
    edited = edit(body, written(boundary), {"model": orjson.dumps(model)}, insert)
    read = [(p.name, edited[p.start : p.end]) for p in parts(edited, boundary)]
    changed: list[tuple[str, bytes]] = [(name, model.encode() if name == "model" else content) for name, content in found]
    front: list[tuple[str, bytes]] = [("temperature", b"0.5"), ("options", b'{"a":[1]}')] if inserts else []
    if not any(name == "model" for name, _ in found):
        front.append(("model", model.encode()))
    assert read == front + changed
    if not front:
        before = next(p for p in parts(body, boundary) if p.name == "model")
        assert edited[: before.start] == body[: before.start]
        assert edited.endswith(body[before.end :])


HIDDEN = b'\nContent-Disposition: form-data; name="model"\r\n\r\nhidden\r\n'
JUNK = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([b"\n", b"\r\n", b'"', b";", b" ", b"model", b'name="model"', b"\\", b"\r\n\r\n"]),
    st.sampled_from(
        [b"\n--B\r" + HIDDEN, b"\r--B\r" + HIDDEN, b"\r\n--B" + HIDDEN, b"\r\n--B \r" + HIDDEN, b"\r\n--B--", b"--B", b"\n--B"]
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """(boundary, body): a form with something put into it, perhaps a boundary (B) that is almost one."""
    boundary, body, _ = draw(forms())
    at = draw(st.sampled_from([0, *(i for i in range(len(body)) if body[i : i + 2] == b"\r\n"), len(body)])) + draw(st.integers(0, 5))
    return boundary, body[:at] + draw(JUNK).replace(b"B", boundary) + body[at:]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(st.tuples(BOUNDARIES, st.binary(max_size=200)), damaged()))
def test_garbage_is_refused_in_words_or_read_in_full(made: tuple[bytes, bytes]) -> None:
    """Nothing but InvalidRequest is ever raised, and no boundary at the start of a line is passed over."""
    boundary, body = made
    try:
        read = parts(body, boundary_of(written(boundary)))
    except InvalidRequest:
        return
    assert all(one.end < other.start for one, other in itertools.pairwise(read))
    lines = body.replace(b"\r", b"\n").split(b"\n")
    assert sum(line.startswith(b"--" + boundary) for line in lines) == len(read) + 1


@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged())
def test_a_lenient_reader_sees_the_same_model(made: tuple[bytes, bytes]) -> None:
    """The standard library's mail parser takes nearly everything. What is not refused here, it reads as it is read here."""
    boundary, body = made
    try:
        looked = peek(body, written(boundary))
    except InvalidRequest:
        return
    message = email.message_from_bytes(b"Content-Type: " + content_type(written(boundary)) + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    found = [p for p in message.iter_parts() if p.get_param("name", header="content-disposition") == "model"]
    assert [p.get_payload(decode=True) for p in found] == ([] if looked.model is None else [looked.model.encode()])


@pytest.mark.parametrize("content", [b"\r\n--Xy", b"x--XyZ", b"-----", b"\r\n\r\n", b"\r--Xy\n"])
def test_a_file_of_almost_boundaries_is_searched_fast(content: bytes) -> None:
    """A step of Python per occurrence would take a second and more for these."""
    upload = content * (10_000_000 // len(content))
    body = form(part("model", b"m"), part("file", upload, b'; filename="f"'))
    began_s = time.process_time()
    assert peek(body, TYPE).fields["file"] == Upload(len(upload))
    assert time.process_time() - began_s < 0.5
