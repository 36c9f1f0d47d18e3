"""The relay routes as the documentation shows them. They are served below ASGI, by `gateway.relay`; these models check nothing there.

Fields that are not listed are accepted and passed on to the backend as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field, JsonValue

from gateway.api.passed_on import PASSED_ON
from gateway.api.policies import RELAY_PATHS
from gateway.api.shapes import Open, Shape, events
from gateway.errors import NotFound
from gateway.relay.operations import ROUTES, Operation

_MESSAGES: list[JsonValue] = [{"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": "What is a weight?"}]


class Message(Open):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(examples=["user"])
    content: str | list[dict[str, Any]] | None = Field(None, description="Text, or parts of text and images.")
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(Open):
    include_usage: bool = Field(False, description="One last chunk with the usage of the whole stream.")


class Sampling(Open):
    """What chat and completions share."""

    model: str = Field(description="A model id of /v1/models.", examples=["demo-chat"])
    stream: bool = Field(False, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, description="At most this many tokens of answer.", examples=[128])
    temperature: float | None = Field(None, ge=0, le=2, examples=[0.7])
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)


class ChatRequest(Sampling):
    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "demo-chat", "messages": _MESSAGES, "temperature": 0}]},
    )

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, description="As max_tokens.")
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(Sampling):
    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"model": "demo-chat", "prompt": "A gateway is", "max_tokens": 32}]}
    )

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None


class EmbeddingsRequest(Open):
    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "demo-embed", "input": ["What is a key?", "키란 무엇인가요?"]}]},
    )

    model: str = Field(examples=["demo-embed"])
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class TokenizeRequest(Open):
    """`prompt` or `messages`."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"model": "demo-chat", "prompt": "Hello, 세계"}]})

    model: str | None = Field(None, description="Absent: the installation's default model.")
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = Field(None, description="Default: true for prompt, false for messages.")
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Open):
    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"model": "demo-chat", "tokens": [72, 101, 108]}]})

    model: str | None = None
    tokens: list[int]


class Usage(Open):
    prompt_tokens: int = Field(examples=[24])
    completion_tokens: int | None = Field(None, examples=[12])
    total_tokens: int = Field(examples=[36])


class Choice(Open):
    index: int
    message: Message
    finish_reason: str | None = Field(examples=["stop"])
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Open):
    id: str = Field(examples=["chatcmpl-7d1f"])
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class TextChoice(Open):
    index: int
    text: str
    finish_reason: str | None = Field(examples=["length"])
    logprobs: dict[str, Any] | None = None


class Completion(Open):
    id: str = Field(examples=["cmpl-7d1f"])
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Embedding(Open):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or little-endian float32 in base64.")


class Embeddings(Open):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class TokenList(Open):
    tokens: list[int]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None = None


class Text(Open):
    prompt: str


SHAPES: Mapping[str, Shape] = {
    "chat": Shape(
        ChatRequest,
        ChatCompletion,
        "Chat completion",
        other=events('data: {"id":"chatcmpl-7d1f","object":"chat.completion.chunk",...}', "data: [DONE]"),
    ),
    "completions": Shape(
        CompletionRequest,
        Completion,
        "Text completion",
        other=events('data: {"id":"cmpl-7d1f","object":"text_completion",...}', "data: [DONE]"),
    ),
    "embeddings": Shape(EmbeddingsRequest, Embeddings, "Embeddings"),
    "tokenize": Shape(TokenizeRequest, TokenList, "Text or messages to tokens", "tokens"),
    "detokenize": Shape(DetokenizeRequest, Text, "Tokens to text", "tokens"),
    **PASSED_ON,
}


async def below() -> None:
    """Reached only by a path that is written otherwise than the relay's (`/v1/chat%2Fcompletions`)."""
    raise NotFound("Write the path exactly as it is documented, without escapes.")


def add_routes(app: FastAPI) -> None:
    """Register the relay's paths: for the documentation, for 405 and preflights, and so that their policies are in the one table."""
    for path in RELAY_PATHS:
        operation = ROUTES[path.encode()]
        shape = SHAPES[operation.name]
        good: dict[str, Any] = {"description": "The answer", "content": dict(shape.other)}
        if shape.answer is not None:
            good["model"] = shape.answer
        schemas = {name: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}} for name, model in shape.bodies().items()}
        app.add_api_route(
            path,
            below,
            methods=["POST"],
            summary=shape.summary,
            description=_description(operation),
            response_class=JSONResponse if shape.answer is not None else Response,
            responses={200: good},
            openapi_extra={"requestBody": {"content": schemas, "required": True}},
            tags=[shape.tag],
        )


def _description(operation: Operation) -> str:
    if operation.inside:
        return ""
    text = "Passed on to a backend of the model; fields that are not listed are too."
    return f"{text} For models with a backend of type `custom`." if operation.custom_only else text
