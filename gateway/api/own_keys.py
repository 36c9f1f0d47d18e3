"""`/auth/keys`: a person's own keys, seen, rotated and revoked with a login. Who makes keys and sets limits is `/admin/keys`' affair."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query

from gateway.api.context import By, Caller, TheControl
from gateway.api.keys import KeyId, KeyIssued, KeyOut, Rotation, page_of, revoke, rotate
from gateway.api.paging import After, Limit, Page
from gateway.errors import NotFound
from gateway.store import keys


async def own_keys(
    control: TheControl,
    caller: Caller,
    revoked: Annotated[bool, Query(description="Revoked ones too.")] = False,
    after: After = "",
    limit: Limit = 50,
) -> Page[KeyOut]:
    """Your own keys, oldest first."""
    async with control.db.look() as conn:
        return await page_of(conn, after, limit, user_id=caller.user_id, revoked=revoked)


async def rotate_own(control: TheControl, caller: Caller, by: By, key_id: KeyId, body: Rotation | None = None) -> KeyIssued:
    """Give one of your keys a new text. Its id, limits and budget stay; the old text works for `grace_s` more seconds."""
    await _require_own(control, caller, key_id)
    return await rotate(control, by, key_id, body)


async def revoke_own(control: TheControl, caller: Caller, by: By, key_id: KeyId) -> KeyOut:
    """Refuse one of your keys from now on. Running requests finish."""
    await _require_own(control, caller, key_id)
    return await revoke(control, by, key_id)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["keys"]
    app.add_api_route("/auth/keys", own_keys, methods=["GET"], response_model=Page[KeyOut], tags=tags)
    app.add_api_route("/auth/keys/{key_id}/rotate", rotate_own, methods=["POST"], response_model=KeyIssued, tags=tags)
    app.add_api_route("/auth/keys/{key_id}/revoke", revoke_own, methods=["POST"], response_model=KeyOut, tags=tags)


async def _require_own(control: TheControl, caller: Caller, key_id: str) -> None:
    """These routes are for one's own, whatever else one may do. A key never changes its owner, so this holds in the change too."""
    async with control.db.look() as conn:
        key = await keys.by_id(conn, key_id)
    if key is None or key.user_id != caller.user_id:
        raise NotFound("There is no such key.")
