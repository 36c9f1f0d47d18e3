"""What endpoints are handed: the live services, who asks, and in whose name a change is made."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from auth.address import client_address
from auth.principal import Principal
from gateway.changes import Actor
from gateway.runtime import Control


# Coroutines all: FastAPI would send plain functions through its thread pool.
async def control_of(request: Request) -> Control:
    control: Control = request.app.state.control
    return control


async def principal_of(request: Request) -> Principal:
    """Set by the guard; a route with a public policy has none."""
    principal: Principal = request.state.principal
    return principal


async def actor_of(request: Request) -> Actor:
    """The caller as the author of a change. What they may is looked up again inside the change."""
    principal: Principal = request.state.principal
    return Actor(
        principal.user_id,
        "api",
        address_of(request) or None,
        principal.scopes,
        login=principal.key_id is None,
        key_id=principal.key_id,
        epoch=principal.token_epoch,
    )


def address_of(request: Request) -> str:
    """The client's address, behind trusted proxies too; "" where it cannot be known."""
    control: Control = request.app.state.control
    return client_address(request.client.host if request.client else "", request.scope["headers"], control.trusted_proxies)


TheControl = Annotated[Control, Depends(control_of)]
Caller = Annotated[Principal, Depends(principal_of)]
By = Annotated[Actor, Depends(actor_of)]
