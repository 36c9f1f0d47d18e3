"""The relay routes: which path is which operation, and what is particular to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.wire import body as wire_body
from gateway.wire import multipart
from gateway.wire.body import Peek
from gateway.wire.protocols import INPUT, MESSAGES, OPENAI, RAW, RESPONSES, WireProtocol

_OUTPUT_LIMITS: Final = frozenset(("max_tokens", "max_completion_tokens", "max_output_tokens"))
_JSON: Final = b"application/json"


MAX_MESSAGES: Final = 10_000  # of one request; each costs an object here, whatever its text


class Form(Enum):
    """How a backend's 2xx answer is relayed."""

    WHOLE = "whole"  # kept until it is complete; must be JSON
    EVENTS = "events"  # whole server-sent events, by the rules of the operation's protocol
    RAW = "raw"  # bytes as they come, with the backend's content type


@dataclass(frozen=True, slots=True)
class Operation:
    """One relayed operation.

    `path` is put behind a backend's base URL. Of each group in `required` one member must be there and not empty. `generates`: the answer
    has completion tokens that the client can bound, so an output limit is part of a reservation: the largest of `limits`, or the route's,
    put into the body as `limit`. `asks_usage`: `stream_options.include_usage` exists. `inside`: answered by the gateway's own tokenizers.
    `raw`: the answer is not JSON by rule, and is committed with its first byte. `json`, `multipart`: which bodies it takes. `custom_only`:
    passed through, never served by a local model.
    """

    name: str
    path: str
    required: tuple[tuple[str, ...], ...]
    protocol: WireProtocol = OPENAI
    generates: bool = False
    streams: bool = False
    asks_usage: bool = False
    limits: tuple[str, ...] = ()
    limit: str = ""
    inside: bool = False
    raw: bool = False
    json: bool = True
    multipart: bool = False
    custom_only: bool = False

    def read(self, body: bytes, content_type: bytes = _JSON) -> Peek:
        """The one look at a request's body. Raises InvalidRequest."""
        if self.multipart and multipart.is_form(content_type):
            return multipart.peek(body, content_type, self.limits)
        if not self.json:
            raise InvalidRequest("The request body must be multipart/form-data.")
        return wire_body.peek(body, self.limits)

    def edit(self, body: bytes, content_type: bytes, replace: dict[str, bytes], insert: Iterable[tuple[str, bytes]] = ()) -> bytes:
        """`body` with members exchanged and put in front, nothing else changed. Values are raw JSON, whatever kind of body it is."""
        if self.multipart and multipart.is_form(content_type):
            return multipart.edit(body, content_type, replace, insert)
        return wire_body.edit(body, replace, insert)

    def content_type(self, content_type: bytes) -> bytes:
        """What the body is sent on as."""
        if self.multipart and multipart.is_form(content_type):
            return multipart.content_type(content_type)
        return _JSON

    def form(self, stream: bool, content_type: bytes) -> Form:
        """How to relay a 2xx answer of this content type (as the backend wrote it). `stream`: the client asked for one."""
        kind = content_type.lower()
        if self.raw:
            if kind.startswith(b"text/event-stream"):
                return Form.EVENTS
            return Form.WHOLE if b"html" in kind else Form.RAW  # an HTML page is an error, and fails as one
        if stream and self.streams and b"json" not in kind and b"html" not in kind:
            return Form.EVENTS
        return Form.WHOLE

    def serves(self, backend_type: str) -> bool:
        """May a target of this type ("custom", "local", "echo") be asked?"""
        return not self.custom_only or backend_type == "custom"

    def not_offered(self, model: str) -> GatewayError:
        """No target of the model may be asked."""
        text = f"The model {model!r} has no backend that offers {self.path}: local models do not have it."
        return NotFound(text, param="model", code="operation_not_supported")

    def member(self, parameter: str) -> str | None:
        """As which member a route's own parameter goes into a body of this operation; None: not at all."""
        if parameter not in _OUTPUT_LIMITS or parameter in self.limits:
            return parameter
        return self.limit or None

    def parameters(self, own: Mapping[str, Any], peek: Peek) -> dict[str, Any]:
        """Those of a route's own parameters that go into this body: what the client did not send, under this operation's names."""
        chosen: dict[str, Any] = {}
        for parameter, value in own.items():
            member = self.member(parameter)
            if member is None or peek.fields.get(member) is not None or (member in self.limits and peek.output_limit is not None):
                continue
            chosen.setdefault(member, value)
        return chosen


_OPERATIONS = (
    Operation(
        "chat",
        "/chat/completions",
        (("messages",),),
        generates=True,
        streams=True,
        asks_usage=True,
        limits=("max_completion_tokens", "max_tokens"),
        limit="max_tokens",
    ),
    Operation(
        "completions",
        "/completions",
        (("prompt",),),
        generates=True,
        streams=True,
        asks_usage=True,
        limits=("max_tokens",),
        limit="max_tokens",
    ),
    Operation("embeddings", "/embeddings", (("input",),), INPUT),
    Operation("tokenize", "/tokenize", (("prompt", "messages"),), inside=True),
    Operation("detokenize", "/detokenize", (("tokens",),), inside=True),
)

_PASSED_ON = (
    Operation(
        "responses",
        "/responses",
        (("input", "prompt", "previous_response_id", "conversation"),),
        RESPONSES,
        generates=True,
        streams=True,
        limits=("max_output_tokens",),
        limit="max_output_tokens",
        custom_only=True,
    ),
    Operation(
        "messages",
        "/messages",
        (("messages",),),
        MESSAGES,
        generates=True,
        streams=True,
        limits=("max_tokens",),
        limit="max_tokens",
        custom_only=True,
    ),
    Operation("rerank", "/rerank", (("query",), ("documents", "texts")), INPUT, custom_only=True),
    Operation("moderations", "/moderations", (("input",),), INPUT, custom_only=True),
    Operation("image_generations", "/images/generations", (("prompt",),), RAW, streams=True, raw=True, custom_only=True),
    Operation(
        "image_edits",
        "/images/edits",
        (("image", "image[]", "images"), ("prompt",)),
        RAW,
        streams=True,
        raw=True,
        multipart=True,
        custom_only=True,
    ),
    Operation("image_variations", "/images/variations", (("image",),), RAW, raw=True, json=False, multipart=True, custom_only=True),
    Operation("speech", "/audio/speech", (("input",),), RAW, raw=True, custom_only=True),
    Operation(
        "transcriptions", "/audio/transcriptions", (("file",),), RAW, streams=True, raw=True, json=False, multipart=True, custom_only=True
    ),
    Operation("translations", "/audio/translations", (("file",),), RAW, raw=True, json=False, multipart=True, custom_only=True),
)

CONTROL: Final = Operation("control", "", ())
"""What is not relayed. Named where such a request is refused before ASGI sees it."""

# Request target -> operation. Looked up with the path exactly as the client sent it.
ROUTES: Final[dict[bytes, Operation]] = {b"/v1" + op.path.encode(): op for op in _OPERATIONS + _PASSED_ON} | {
    op.path.encode(): op for op in _OPERATIONS if op.inside
}

OPERATIONS: Final[dict[str, Operation]] = {op.name: op for op in _OPERATIONS + _PASSED_ON}
"""By name."""

# What a member that is required may be, and how that is said. Not named: a string or a list.
_SHAPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "query": ((str, dict), "a string"),
    "documents": ((list,), "a list"),
    "texts": ((list,), "a list"),
    "file": ((multipart.Upload,), "a file"),
    "image": ((multipart.Upload, str, list, dict), "a file"),
    "image[]": ((multipart.Upload, list), "files"),
    "images": ((list,), "a list"),
    "previous_response_id": ((str,), "a string"),
    "conversation": ((str, dict), "a string or an object"),
}
_TEXT: tuple[tuple[type, ...], str] = ((str, list), "a string or a list")


def check_required(operation: Operation, fields: dict[str, Any]) -> None:
    """400 where a member that the operation is about is missing, of a wrong type, or empty."""
    for group in operation.required:
        _check_group(operation, group, fields)


def _check_group(operation: Operation, group: tuple[str, ...], fields: dict[str, Any]) -> None:
    for name in group:
        value = fields.get(name)
        if value is None:
            continue
        if name == "messages":
            if type(value) is not list or not all(type(m) is dict for m in value):
                raise InvalidRequest("'messages' must be a list of message objects.", param="messages")
            if len(value) > MAX_MESSAGES:
                raise InvalidRequest(f"'messages' must have at most {MAX_MESSAGES} messages.", param="messages")
        elif name == "tokens":
            if type(value) is not list:
                raise InvalidRequest("'tokens' must be a list of token ids.", param="tokens")
            return  # an empty list is an empty text
        elif name == "prompt" and type(value) is dict and operation.name == "responses":
            pass  # a stored prompt
        else:
            types, words = _SHAPES.get(name, _TEXT)
            if type(value) not in types:
                raise InvalidRequest(f"'{name}' must be {words}.", param=name)
        if not value and not operation.inside:
            raise InvalidRequest(f"'{name}' must not be empty.", param=name)
        return
    wanted = " or ".join(f"'{name}'" for name in group)
    raise InvalidRequest(f"{wanted} is required.", param=group[0])
