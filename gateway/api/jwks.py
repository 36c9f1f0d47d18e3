"""The public keys that login tokens are signed with, so that others can verify them (RFC 7517)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from gateway.api.context import TheControl

_FRESH_S = 60  # a key is published a few seconds before it signs: whoever meets an unknown one asks again


class WebKey(BaseModel):
    """A public key: RSA has n and e, EC has crv, x and y."""

    kty: str = Field(examples=["EC"])
    kid: str
    alg: str = Field(examples=["ES256"])
    use: str = "sig"
    n: str | None = None
    e: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None


class WebKeySet(BaseModel):
    keys: list[WebKey]


async def key_set(control: TheControl, response: Response) -> dict[str, Any]:
    """The public keys of login tokens. Empty where they are signed with a secret (GATEWAY_JWT_ALGORITHM=HS256)."""
    response.headers["cache-control"] = f"public, max-age={_FRESH_S}"
    return {"keys": control.tokens.public_keys()}


def add_routes(app: FastAPI) -> None:
    app.add_api_route(
        "/.well-known/jwks.json", key_set, methods=["GET"], response_model=WebKeySet, response_model_exclude_none=True, tags=["login"]
    )
