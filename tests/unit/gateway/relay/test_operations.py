from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.relay.operations import ROUTES, Form, Operation, check_required
from gateway.wire.multipart import Upload
from gateway.wire.protocols import INPUT, MESSAGES, OPENAI, RAW, RESPONSES

ALL = {operation.name: operation for operation in ROUTES.values()}
FORM = b"multipart/form-data; boundary=XyZ"
HEAD = b"Content-Disposition: form-data; name="
BODY = b"--XyZ\r\n" + HEAD + b'"model"\r\n\r\nm\r\n--XyZ\r\n' + HEAD + b'"file"; filename="a"\r\n\r\nRIFF\r\n--XyZ--\r\n'


def test_the_surface_is_what_the_contract_lists() -> None:
    passed_on = {path.decode() for path in ROUTES if ROUTES[path].custom_only}
    assert passed_on == {
        "/v1/responses",
        "/v1/messages",
        "/v1/rerank",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    }
    assert all(path == b"/v1" + operation.path.encode() for path, operation in ROUTES.items() if operation.custom_only)


def test_names_are_labels_and_each_stands_for_one_path() -> None:
    """The names of operations are the only values that metrics and records ever see."""
    routes = ROUTES
    assert len(ALL) == len({operation.path for operation in routes.values()})
    assert all(name.replace("_", "").isalpha() and name == name.lower() and len(name) <= 20 for name in ALL)


def test_protocols() -> None:
    by_protocol = {name: operation.protocol for name, operation in ALL.items()}
    assert by_protocol["chat"] is by_protocol["completions"] is OPENAI
    assert by_protocol["embeddings"] is by_protocol["rerank"] is by_protocol["moderations"] is INPUT
    assert (by_protocol["responses"], by_protocol["messages"]) == (RESPONSES, MESSAGES)
    assert {name for name, protocol in by_protocol.items() if protocol is RAW} == {name for name, o in ALL.items() if o.raw}
    assert {name for name, o in ALL.items() if o.asks_usage} == {"chat", "completions"}
    assert all(o.limit in o.limits for o in ALL.values() if o.generates)


MESSAGE = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("chat", {"messages": MESSAGE}),
        ("responses", {"input": "x"}),
        ("responses", {"input": MESSAGE}),
        ("responses", {"prompt": {"id": "p"}}),
        ("responses", {"previous_response_id": "r"}),
        ("responses", {"conversation": {"id": "c"}}),
        ("messages", {"messages": MESSAGE, "max_tokens": 1}),
        ("rerank", {"query": "q", "documents": ["a", {"text": "b"}]}),
        ("rerank", {"query": "q", "texts": ["a"]}),
        ("moderations", {"input": ["a"]}),
        ("moderations", {"input": [{"type": "text", "text": "x"}]}),
        ("image_generations", {"prompt": "a cat"}),
        ("image_edits", {"image": Upload(3), "prompt": "x"}),
        ("image_edits", {"image[]": [Upload(3), Upload(4)], "prompt": "x"}),
        ("image_edits", {"images": [{"image_url": "data:"}], "prompt": "x"}),
        ("image_variations", {"image": Upload(3)}),
        ("speech", {"input": "x"}),
        ("transcriptions", {"file": Upload(3)}),
        ("translations", {"file": Upload(3)}),
    ],
)
def test_what_an_operation_is_about_is_there(name: str, fields: dict[str, Any]) -> None:
    check_required(ALL[name], fields)


@pytest.mark.parametrize(
    ("name", "fields", "param"),
    [
        ("responses", {}, "input"),
        ("responses", {"input": ""}, "input"),
        ("responses", {"input": {"a": 1}}, "input"),
        ("messages", {"messages": []}, "messages"),
        ("messages", {"messages": ["x"]}, "messages"),
        ("completions", {"prompt": {"id": "p"}}, "prompt"),
        ("rerank", {"query": "q"}, "documents"),
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", {"query": "", "documents": ["a"]}, "query"),
        ("rerank", {"query": "q", "documents": []}, "documents"),
        ("rerank", {"query": "q", "documents": "a"}, "documents"),
        ("moderations", {}, "input"),
        ("image_generations", {"prompt": None}, "prompt"),
        ("image_edits", {"prompt": "x"}, "image"),
        ("image_edits", {"image": Upload(3)}, "prompt"),
        ("image_variations", {"image": Upload(0)}, "image"),
        ("speech", {"input": 3}, "input"),
        ("transcriptions", {}, "file"),
        ("transcriptions", {"file": "text"}, "file"),
        ("transcriptions", {"file": Upload(0)}, "file"),
    ],
)
def test_what_is_missing_is_named(name: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_required(ALL[name], fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_forms_and_json_are_read_and_edited_alike() -> None:
    both = ALL["image_edits"]
    assert both.read(BODY, FORM).model == both.read(b'{"model":"m"}', b"application/json").model == "m"
    assert both.edit(BODY, FORM, {"model": b'"up"'}) == BODY.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nup\r\n")
    assert both.edit(b'{"model":"m"}', b"", {"model": b'"up"'}) == b'{"model":"up"}'
    assert both.content_type(b'multipart/form-data; boundary="XyZ"') == FORM
    assert both.content_type(b"text/plain") == b"application/json"
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        ALL["transcriptions"].read(b'{"model":"m"}', b"application/json")
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        ALL["chat"].read(BODY, FORM)


@pytest.mark.parametrize(
    ("name", "stream", "content_type", "form"),
    [
        ("chat", True, b"text/event-stream; charset=utf-8", Form.EVENTS),
        ("chat", True, b"", Form.EVENTS),
        ("chat", True, b"application/json", Form.WHOLE),
        ("chat", True, b"TEXT/HTML", Form.WHOLE),
        ("chat", False, b"text/event-stream", Form.WHOLE),
        ("messages", True, b"text/event-stream", Form.EVENTS),
        ("embeddings", True, b"text/event-stream", Form.WHOLE),
        ("rerank", False, b"application/json", Form.WHOLE),
        ("speech", False, b"audio/mpeg", Form.RAW),
        ("speech", False, b"text/event-stream", Form.EVENTS),
        ("speech", False, b"text/html", Form.WHOLE),
        ("transcriptions", False, b"text/plain", Form.RAW),
        ("transcriptions", True, b"Text/Event-Stream", Form.EVENTS),
        ("image_generations", False, b"application/json", Form.RAW),
    ],
)
def test_how_an_answer_is_relayed(name: str, stream: bool, content_type: bytes, form: Form) -> None:
    assert ALL[name].form(stream, content_type) is form


@pytest.mark.parametrize(
    ("name", "sent", "limit"),
    [
        ("chat", {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ("chat", {"max_output_tokens": 1}, None),  # bounds nothing there, so it must not lower what is reserved
        ("completions", {"max_completion_tokens": 1}, None),
        ("completions", {"max_tokens": 5}, 5),
        ("responses", {"max_tokens": 1, "max_output_tokens": 9}, 9),
        ("messages", {"max_tokens": 3, "max_output_tokens": 1}, 3),
        ("embeddings", {"max_tokens": 3}, None),
    ],
)
def test_only_an_operations_own_limit_bounds_its_answer(name: str, sent: dict[str, Any], limit: int | None) -> None:
    assert ALL[name].read(orjson.dumps(sent)).output_limit == limit


@pytest.mark.parametrize(
    ("name", "sent", "put_in"),
    [
        ("chat", {}, {"temperature": 0.7, "max_tokens": 9}),
        ("chat", {"temperature": 0}, {"max_tokens": 9}),
        ("chat", {"temperature": None, "max_completion_tokens": 1}, {"temperature": 0.7}),
        ("chat", {"max_output_tokens": 1}, {"temperature": 0.7, "max_tokens": 9}),
        ("responses", {}, {"temperature": 0.7, "max_output_tokens": 9}),
        ("responses", {"max_output_tokens": 3}, {"temperature": 0.7}),
        ("messages", {}, {"temperature": 0.7, "max_tokens": 9}),
        ("embeddings", {}, {"temperature": 0.7}),
        ("speech", {}, {"temperature": 0.7}),
    ],
)
def test_a_routes_parameters_go_in_under_the_operations_names(name: str, sent: dict[str, Any], put_in: dict[str, Any]) -> None:
    operation = ALL[name]
    assert operation.parameters({"temperature": 0.7, "max_tokens": 9}, operation.read(orjson.dumps(sent))) == put_in


def test_what_is_passed_on_needs_a_custom_backend() -> None:
    for operation in ALL.values():
        assert operation.serves("custom")
        assert operation.serves("local") is operation.serves("echo") is not operation.custom_only
    error = ALL["rerank"].not_offered("m")
    assert (error.status, error.code, error.param) == (404, "operation_not_supported", "model")
    assert "/rerank" in error.message


def test_control_is_no_route() -> None:
    assert all(isinstance(operation, Operation) and operation.name != "control" for operation in ALL.values())
