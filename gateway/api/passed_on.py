"""How those operations are documented that only custom backends have: responses, messages, rerank, moderations, images, audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from gateway.api.shapes import Open, Shape, events


def _example(**fields: JsonValue) -> ConfigDict:
    return ConfigDict(extra="allow", json_schema_extra={"examples": [fields]})


class ResponsesRequest(Open):
    model_config = _example(model="gpt", input="What is a weight?", max_output_tokens=128)

    model: str = Field(description="A model id of /v1/models.")
    input: str | list[dict[str, Any]] | None = Field(None, description="Text, or a list of items. Not needed with a stored prompt.")
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=0, description="At most this many tokens of answer.")
    temperature: float | None = Field(None, ge=0, le=2)
    stream: bool = False
    tools: list[dict[str, Any]] | None = None


class TokensInOut(Open):
    input_tokens: int = Field(examples=[24])
    output_tokens: int = Field(examples=[12])


class ModelResponse(Open):
    id: str = Field(examples=["resp_7d1f"])
    object: Literal["response"] = "response"
    status: str = Field(examples=["completed"])
    model: str
    output: list[dict[str, Any]]
    usage: TokensInOut | None = None


class MessagesRequest(Open):
    model_config = _example(model="claude", max_tokens=128, messages=[{"role": "user", "content": "What is a weight?"}])

    model: str = Field(description="A model id of /v1/models.")
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0, description="At most this many tokens of answer.")
    system: str | list[dict[str, Any]] | None = None
    temperature: float | None = None
    stream: bool = False
    tools: list[dict[str, Any]] | None = None


class MessageAnswer(Open):
    id: str = Field(examples=["msg_7d1f"])
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None = Field(examples=["end_turn"])
    usage: TokensInOut


class RerankRequest(Open):
    model_config = _example(model="rerank", query="What is a key?", documents=["A key opens.", "A weight divides."], top_n=1)

    model: str
    query: str
    documents: list[str | dict[str, Any]] | None = Field(None, description="What is to be ordered; `texts` is read as well.")
    top_n: int | None = Field(None, ge=1)


class Ranked(Open):
    index: int
    relevance_score: float


class Ranking(Open):
    results: list[Ranked]


class ModerationRequest(Open):
    model_config = _example(model="moderation", input="Is this kind?")

    model: str
    input: str | list[Any]


class Moderation(Open):
    id: str
    model: str
    results: list[dict[str, Any]]


class ImageRequest(Open):
    model_config = _example(model="image", prompt="A lighthouse at night", size="1024x1024")

    model: str
    prompt: str
    n: int | None = Field(None, ge=1)
    size: str | None = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool = False


class ImageEditRequest(Open):
    model_config = _example(model="image", prompt="Make it day", images=[{"image_url": "data:image/png;base64,iVBORw0KGgo="}])

    model: str
    prompt: str
    images: list[dict[str, Any]]


class ImageVariationForm(Open):
    model: str
    image: bytes
    n: int | None = Field(None, ge=1)
    size: str | None = None


class ImageEditForm(ImageVariationForm):
    prompt: str
    mask: bytes | None = None


class Images(Open):
    created: int
    data: list[dict[str, Any]] = Field(description="Each with `b64_json` or `url`.")
    usage: TokensInOut | None = None


class SpeechRequest(Open):
    model_config = _example(model="speech", input="Good morning.", voice="alloy")

    model: str
    input: str
    voice: str | dict[str, Any] | None = None
    response_format: str | None = Field(None, examples=["mp3"])
    speed: float | None = None


class TranslationForm(Open):
    model: str
    file: bytes
    prompt: str | None = None
    response_format: str | None = Field(None, examples=["json"])
    temperature: float | None = None


class TranscriptionForm(TranslationForm):
    language: str | None = Field(None, examples=["ko"])
    stream: bool = False


class Transcription(Open):
    text: str


_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}

PASSED_ON: Mapping[str, Shape] = {
    "responses": Shape(
        ResponsesRequest,
        ModelResponse,
        "Response",
        other=events(
            'event: response.created\ndata: {"type":"response.created","sequence_number":0,...}',
            'event: response.completed\ndata: {"type":"response.completed",...}',
        ),
    ),
    "messages": Shape(
        MessagesRequest,
        MessageAnswer,
        "Message, in Anthropic's shape",
        other=events(
            'event: message_start\ndata: {"type":"message_start","message":{...}}', 'event: message_stop\ndata: {"type":"message_stop"}'
        ),
    ),
    "rerank": Shape(RerankRequest, Ranking, "Documents in the order of their relevance"),
    "moderations": Shape(ModerationRequest, Moderation, "Moderation"),
    "image_generations": Shape(
        ImageRequest, Images, "Pictures of a prompt", "images", other=events('data: {"type":"image_generation.completed",...}')
    ),
    "image_edits": Shape(
        ImageEditRequest, Images, "A picture changed", "images", ImageEditForm, events('data: {"type":"image_edit.completed",...}')
    ),
    "image_variations": Shape(None, Images, "Variations of a picture", "images", ImageVariationForm),
    "speech": Shape(SpeechRequest, None, "Text to speech", "audio", other={"audio/*": _BYTES}),
    "transcriptions": Shape(
        None,
        Transcription,
        "Speech to text",
        "audio",
        TranscriptionForm,
        {"text/plain": _TEXT, **events('data: {"type":"transcript.text.done","text":"..."}')},
    ),
    "translations": Shape(None, Transcription, "Speech to English text", "audio", TranslationForm, {"text/plain": _TEXT}),
}
