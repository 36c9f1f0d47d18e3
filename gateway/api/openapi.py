"""The OpenAPI document: every route with its policy, its errors as they really are, and the relay's requests."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from gateway.api.faults import speaks_detail
from gateway.api.guard import GuardedRoute
from gateway.api.policies import RELAY_PATHS, Policy
from gateway.api.relayed import SHAPES

_TITLE = "Model gateway"
_DESCRIPTION = """An OpenAI-compatible gateway. Point an OpenAI client at `/v1` of this host and give it a key of this gateway.

**Credentials**: a key (`sk-gw-...`) or a login's access token, as `Authorization: Bearer`, `x-api-key` or `api-key`. Use *Authorize* to try
requests on this page. **Errors**: `/auth` and `/admin` answer `{"detail": ...}`, everything else OpenAI's error object.
Every answer carries `x-request-id`."""
_TAGS = {
    "inference": "OpenAI's endpoints",
    "images": "Pictures, of models that make them",
    "audio": "Speech, of models that hear or speak",
    "tokens": "Exact token counts",
    "models": "What this credential may use",
    "usage": "Requests, tokens, cost",
    "metrics": "Rates, times and loads over time",
    "login": "Logging in",
    "users": "Who there is",
    "keys": "API keys",
    "revisions": "What is routed where",
    "backends": "What stands behind each model",
    "prices": "What models and backends cost",
    "secrets": "Keys of upstream services",
    "audit": "Who changed what",
    "operations": "Probes and metrics",
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
_WORDS = {
    "400": "The request is wrong; `param` or `path` names the field",
    "401": "No valid credential",
    "403": "The credential does not allow this",
    "404": "There is no such thing",
    "409": "The state does not allow it",
    "413": "The body is too large",
    "429": "A limit is reached; see `retry-after`",
    "501": "No tokenizer is known for this model",
    "502": "The backend failed",
    "503": "Not at the moment; see `retry-after`",
    "504": "The backend took too long",
}


class ErrorFields(BaseModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str | None = Field(examples=["model_not_found"])


class OpenAIError(BaseModel):
    """OpenAI's error object: all four keys, always."""

    error: ErrorFields


class DetailEntry(BaseModel):
    path: str = Field(examples=["rpm"])
    message: str


class DetailError(BaseModel):
    """`detail` is a sentence, or a list of faults with their places."""

    detail: str | list[DetailEntry]


class Api(FastAPI):
    """FastAPI with this document."""

    _openapi_bytes: bytes | None = None

    def openapi(self) -> dict[str, Any]:
        """Made when it is first asked for: some 200 ms of work."""
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema

    def openapi_bytes(self) -> bytes:
        """The same as JSON. Call it in a thread."""
        if self._openapi_bytes is None:
            self._openapi_bytes = orjson.dumps(self.openapi())
        return self._openapi_bytes


def _document(app: FastAPI) -> dict[str, Any]:
    tags = [{"name": name, "description": text} for name, text in _TAGS.items()]
    document = get_openapi(title=_TITLE, version=app.version, description=_DESCRIPTION, routes=app.routes, tags=tags)
    components = document["components"]
    components["securitySchemes"] = _SCHEMES
    components["schemas"] |= _schemas()
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    guarded = [route for route in app.routes if isinstance(route, GuardedRoute)]
    policies = {(method, route.path_format): route.policy for route in guarded for method in route.methods or ()}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _complete(operation, path, policies[method.upper(), path])
    return document


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [OpenAIError, DetailError, *(body for shape in SHAPES.values() for body in shape.bodies().values())]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template="#/components/schemas/{model}")
    found: dict[str, Any] = definitions["$defs"]
    return found


def _complete(operation: dict[str, Any], path: str, policy: Policy) -> None:
    """Who may, and what can go wrong."""
    operation["x-policy"] = policy.name
    operation["security"] = [] if policy.public else [{name: []} for name in _SCHEMES]
    if policy.loopback:
        operation["security"].append({})
    responses = operation["responses"]
    takes_input = responses.pop("422", None) is not None or "requestBody" in operation
    codes = ["400"] if takes_input else []
    if not policy.public:
        codes += ["401", "403"]
    if path in RELAY_PATHS:
        codes += ["404", "413", "429", "501", "502", "503", "504"]
    elif path.startswith("/auth/"):
        codes += ["401", "403", "429", "503"]
    elif path.startswith("/admin/"):
        codes += ["404", "409", "503"] if takes_input else ["503"]
    elif "{" in path:
        codes += ["404"]
    for code in dict.fromkeys(codes):
        responses.setdefault(code, _error(code, path))


def _error(code: str, path: str) -> dict[str, Any]:
    schema = "DetailError" if speaks_detail(path) else "OpenAIError"
    return {"description": _WORDS[code], "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
