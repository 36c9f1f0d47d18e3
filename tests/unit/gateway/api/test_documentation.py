"""/docs and /openapi.json: complete, consistent, and without a word from any other host."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import httpx
import pytest

from gateway.api.docs import SWAGGER_UI_VERSION
from gateway.api.policies import POLICIES, RELAY_PATHS
from gateway.api.relayed import SHAPES
from gateway.relay.operations import ROUTES, check_required
from tests.unit.gateway.api.conftest import Plane

HIDDEN = {
    "GET /auth/password/reset",
    "GET /docs",
    "GET /docs/{version}/{name}",
    "GET /openapi.json",
    "HEAD /",
    "HEAD /health",
    "HEAD /healthz",
    "HEAD /readyz",
}
BUNDLE_SHA256 = "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2"


@pytest.fixture
async def document(anyone: httpx.AsyncClient) -> dict[str, Any]:
    response = await anyone.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method.upper()} {path}": operation for path, item in document["paths"].items() for method, operation in item.items()}


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    assert set(operations(document)) == {re.sub(r":(path|int)}", "}", route) for route in POLICIES.keys() - HIDDEN}
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document).items():
        assert operation["tags"], name
        assert operation["summary"], name
        assert "422" not in operation["responses"], name
        public = operation["x-policy"] == "public"
        assert (operation["security"] == []) == public, name
        assert public or {"401", "403"} <= operation["responses"].keys(), name


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {value["$ref"]} if isinstance(value.get("$ref"), str) else set().union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= document["components"]["schemas"].keys()


def test_relay_routes_can_be_used_from_the_page(document: dict[str, Any]) -> None:
    assert set(SHAPES) == {operation.name for operation in ROUTES.values()}
    schemas = document["components"]["schemas"]
    for path in RELAY_PATHS:
        operation = document["paths"][path]["post"]
        relayed = ROUTES[path.encode()]
        bodies = operation["requestBody"]["content"]
        assert set(bodies) == {*["application/json"] * relayed.json, *["multipart/form-data"] * relayed.multipart}
        shape = SHAPES[relayed.name]
        for content_type, model in shape.bodies().items():
            assert bodies[content_type]["schema"]["$ref"].rpartition("/")[2] == model.__name__
        if shape.request is not None:
            example = schemas[shape.request.__name__]["examples"][0]
            shape.request.model_validate(example, strict=True)
            check_required(relayed, example)
        assert operation["responses"]["200"]["content"].keys() >= {*["application/json"] * (shape.answer is not None), *shape.other}
        assert ("text/event-stream" in operation["responses"]["200"]["content"]) == relayed.streams
        error = operation["responses"]["404"]["content"]["application/json"]["schema"]["$ref"]
        assert error.endswith("/OpenAIError")
    form = schemas["TranscriptionForm"]["properties"]["file"]
    assert form["type"] == "string"
    assert form["format"] == "binary"
    assert document["paths"]["/v1/audio/speech"]["post"]["responses"]["200"]["content"].keys() == {"audio/*"}


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="not installed")
    validator.validate(document)


def test_no_secret_field_is_ever_answered(document: dict[str, Any]) -> None:
    """A key's text is in two answers, a made password in one; digests, hashes and secrets are in none."""
    shown = {"KeyIssued": {"key"}, "PasswordOut": {"password"}}
    for name, schema in document["components"]["schemas"].items():
        if name.endswith(("In", "Request", "Change")):
            continue
        leaky = {"key", "password", "password_hash", "secret", "ciphertext", "token_epoch", "value"} & schema.get("properties", {}).keys()
        assert leaky == shown.get(name, set()), name


async def test_the_page_needs_no_network(anyone: httpx.AsyncClient) -> None:
    page = await anyone.get("/docs")
    assert page.status_code == 200
    assert "http:" not in page.text
    assert "https:" not in page.text
    assert not re.search(r"<script(?![^>]*src=)", page.text)
    assert "script-src 'self';" in page.headers["content-security-policy"]
    names = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(names) == 4
    for name in names:
        response = await anyone.get(f"/{name}")
        assert response.status_code == 200
        assert response.content
        assert response.headers["x-content-type-options"] == "nosniff"
        lasting = "no-cache" if name.endswith("start.js") else "public, max-age=31536000, immutable"
        assert response.headers["cache-control"] == lasting


async def test_what_is_vendored_is_what_was_published_with_its_licence(anyone: httpx.AsyncClient) -> None:
    bundle = await anyone.get(f"/docs/{SWAGGER_UI_VERSION}/swagger-ui-bundle.js")
    assert hashlib.sha256(bundle.content).hexdigest() == BUNDLE_SHA256
    assert "Apache License" in (await anyone.get(f"/docs/{SWAGGER_UI_VERSION}/LICENSE")).text


@pytest.mark.parametrize("path", ["5.35.0/..%2fdocs.py", "5.35.0/README.md", "5.35.0/%2e%2e", "0.0.0/swagger-ui.css", "5.35.0/x/y"])
async def test_nothing_else_lies_there(anyone: httpx.AsyncClient, path: str) -> None:
    assert (await anyone.get(f"/docs/{path}")).status_code == 404


async def test_a_relay_path_in_disguise_is_told_how_to_be_written(plane: Plane) -> None:
    async with plane.client(plane.keys["inference"]) as client:
        response = await client.post("/v1/chat%2Fcompletions", json={"model": "x", "messages": []})
        assert response.status_code == 404
        assert "exactly" in response.json()["error"]["message"]
