"""Tokenize and detokenize: operations that the gateway answers itself, in the shapes of vLLM (root and /v1).

    tokenize    {model?, prompt | messages, add_special_tokens?, add_generation_prompt?, continue_final_message?, tools?,
                return_token_strs?, chat_template_kwargs?}  ->  {tokens, count, max_model_len, token_strs?}
    detokenize  {model?, tokens}  ->  {prompt}

They go through the same flow as any request, so they are an `Exchange`, not a route of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import orjson

from backends.base import Call, Sink
from backends.errors import BackendError
from gateway.errors import GatewayError, InvalidRequest
from gateway.wire.body import parse
from gateway.wire.tokens import Tokenizer

AT_ONCE_BYTES = 8192
"""Bodies up to this are answered on the loop: encoding takes about 0.3 ms per KB, a hop to a thread and back about 0.1 ms."""

_JSON = ((b"content-type", b"application/json"),)
_Answer = tuple[int, bytes]


class TokenizeExchange:
    """One tokenize or detokenize request. Implements `backends.base.Exchange`.

    `operation` is "tokenize" or "detokenize". Long bodies are worked on in `pool` (None: the loop's own). A client's mistake is a 400 with
    the OpenAI error object; a failure of the tokenizer itself is `on_error`, with what was raised as its cause.
    """

    __slots__ = ("_aborted", "_answer", "_operation", "_paused", "_pool", "_sink", "_step", "_tokenizer", "_work")
    connect_ms: float | None = None
    sent = True

    def __init__(self, tokenizer: Tokenizer, operation: str, pool: Executor | None = None) -> None:
        self._tokenizer = tokenizer
        self._operation = operation
        self._pool = pool
        self._answer: _Answer | None = None
        self._work: asyncio.Future[_Answer] | None = None
        self._step = 0
        self._paused = self._aborted = False

    def start(self, call: Call, sink: Sink) -> None:
        self._sink = sink
        if len(call.body) > AT_ONCE_BYTES:
            loop = asyncio.get_running_loop()
            self._work = loop.run_in_executor(self._pool, answer, self._tokenizer, self._operation, call.body)
            self._work.add_done_callback(self._worked)
            return
        try:
            self._answer = answer(self._tokenizer, self._operation, call.body)
        except Exception as error:
            self._fail(error)
        else:
            self._deliver()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._deliver()

    def abort(self) -> None:
        self._aborted = True
        self._answer = None
        if self._work is not None:
            self._work.cancel()  # takes it out of the queue; work that has begun ends by itself and is dropped

    def _worked(self, work: asyncio.Future[_Answer]) -> None:
        self._work = None
        if work.cancelled() or self._aborted:
            return
        error = work.exception()
        if error is not None:
            self._fail(error)
            return
        self._answer = work.result()
        self._deliver()

    def _deliver(self) -> None:
        """Hand over what there is, step by step: the sink may pause, resume or abort from inside each callback."""
        while self._answer is not None and not self._paused:
            status, body = self._answer
            self._step += 1
            if self._step == 1:
                self._sink.on_head(status, _JSON)
            elif self._step == 2:
                self._sink.on_data(body)
            else:
                self._answer = None
                self._sink.on_end(False)

    def _fail(self, cause: BaseException) -> None:
        error = BackendError("tokenizer")
        error.__cause__ = cause
        self._sink.on_error(error)


def answer(tokenizer: Tokenizer, operation: str, body: bytes) -> _Answer:
    """Status and JSON body for one request. Safe in any thread."""
    try:
        fields = parse(body)
        result = _tokenize(tokenizer, fields) if operation == "tokenize" else _detokenize(tokenizer, fields)
    except GatewayError as error:
        return error.status, orjson.dumps(error.body())
    return 200, orjson.dumps(result)


def prompt_tokens(tokenizer: Tokenizer, operation: str, body: Mapping[str, Any]) -> int | None:
    """The prompt tokens of a "chat", "completions" or "embeddings" body, as its model server will count them.

    None where that cannot be said: images, a body that the backend will refuse, a model without a chat template.
    """
    try:
        if operation == "chat":
            return len(tokenizer.encode(_chat_text(tokenizer, body), _flag(body, "add_special_tokens", False)))
        field = {"completions": "prompt", "embeddings": "input"}.get(operation)
        return None if field is None else _count(tokenizer, body.get(field), _flag(body, "add_special_tokens", True))
    except InvalidRequest:
        return None


def _tokenize(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> dict[str, Any]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidRequest("Send either `prompt` or `messages`.", param="prompt" if prompt is None else "messages")
    with_strs = _flag(fields, "return_token_strs", False)
    if messages is not None:
        text, special = _chat_text(tokenizer, fields), _flag(fields, "add_special_tokens", False)
    elif isinstance(prompt, str):
        text, special = prompt, _flag(fields, "add_special_tokens", True)
    else:
        raise InvalidRequest("`prompt` must be a string.", param="prompt")
    tokens = tokenizer.encode(text, special)
    result: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": tokenizer.max_model_len}
    if with_strs:
        result["token_strs"] = tokenizer.token_strs(tokens)
    return result


def _detokenize(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InvalidRequest("`tokens` must be a list of integers.", param="tokens")
    return {"prompt": tokenizer.decode(tokens)}


def _chat_text(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> str:
    """The prompt that the chat template makes of `messages`."""
    if fields.get("chat_template") is not None:  # it would run a caller's code; to leave it out silently would count wrongly
        raise InvalidRequest("`chat_template` is not accepted: the model's own template is used.", param="chat_template")
    messages = _messages(fields.get("messages"))
    tools = _tools(fields.get("tools")) if fields.get("tool_choice") != "none" else None
    continues = _flag(fields, "continue_final_message", False)
    generates = _flag(fields, "add_generation_prompt", not continues)
    if continues and generates:
        raise InvalidRequest("Only one of continue_final_message and add_generation_prompt can be true.", param="continue_final_message")
    variables = fields.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, dict):
        raise InvalidRequest("`chat_template_kwargs` must be an object.", param="chat_template_kwargs")
    return tokenizer.render(tokenizer.prepare(messages, tools), generates, continues, tools, variables)


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest("`messages` must be a list of at least one message.", param="messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest("Each of `messages` must be an object with a `role`.", param="messages")
        if not isinstance(message.get("content"), str | list | None):
            raise InvalidRequest("The `content` of a message must be a string or a list of parts.", param="messages")
    return value


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """An empty list is no tools."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InvalidRequest("`tools` must be a list of objects.", param="tools")
    return value or None


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` must be true or false.", param=name)
    return value


def _count(tokenizer: Tokenizer, value: Any, special: bool) -> int | None:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return len(tokenizer.encode(value, special))
    if not isinstance(value, list) or not value:
        return None
    if all(type(item) is int for item in value):
        return len(value)
    counts = [_count(tokenizer, item, special) if isinstance(item, str) else _ids(item) for item in value]
    return sum(count for count in counts if count is not None) if None not in counts else None


def _ids(value: Any) -> int | None:
    return len(value) if isinstance(value, list) and all(type(item) is int for item in value) else None
