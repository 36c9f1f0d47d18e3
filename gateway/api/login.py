"""`/auth`: logging in with a password, staying logged in, and who one is.

With `cookie: true` the refresh token is an http-only cookie that only `/auth` gets, and is in no answer. Requests that use or set that
cookie must come from the gateway's own pages: a browser would send it along for another site's page on the same host.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from auth.errors import CredentialInvalid, LoginFailed
from auth.login import REFRESH_LIFETIME_S, TokenPair
from auth.passwords import MIN_CHARS
from auth.principal import Role
from gateway.api.context import By, Caller, TheControl, address_of
from gateway.changes import reset_password
from gateway.changes.actor import EXTERNAL
from gateway.errors import Forbidden, InvalidRequest, Unauthenticated
from gateway.limits.edge import AddressLimits
from gateway.runtime import Control
from gateway.store import users

COOKIE = "gateway_refresh"
LOGIN_RATES = "30/minute;300/hour"
REFRESH_RATES = "60/minute"
_MAX_TEXT = 1024


class LoginRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"email": "admin@localhost", "password": "correct horse battery staple"}]})

    email: str = Field(max_length=254)
    password: str = Field(max_length=_MAX_TEXT)
    cookie: bool = Field(False, strict=True, description="Put the refresh token into an http-only cookie instead of the answer.")


class RefreshRequest(BaseModel):
    refresh_token: str | None = Field(default=None, max_length=_MAX_TEXT, description="Absent: the one in the cookie.")
    cookie: bool = Field(
        default=False, strict=True, description="Put the next refresh token into the cookie. Always so where this one came from it."
    )


class PasswordRequest(BaseModel):
    password: str = Field(max_length=_MAX_TEXT, description="The present one.")
    new_password: str = Field(min_length=MIN_CHARS, max_length=_MAX_TEXT)


class Tokens(BaseModel):
    """`refresh_token` is null where it was put into the cookie."""

    access_token: str = Field(description="For `Authorization: Bearer`.")
    refresh_token: str | None = Field(description="Good for one use.")
    token_type: str = "bearer"
    expires_in: int = Field(description="Seconds the access token is good for.", examples=[900])


class Me(BaseModel):
    id: str = Field(examples=["usr_9f2c1a7be04d5566"])
    email: str | None = Field(examples=["dana@example.com"], description="Null for somebody whom a trusted issuer vouches for.")
    role: Role
    scopes: list[str] = Field(examples=[["inference", "usage"]])


async def own_page(request: Request) -> bool:
    """Does the request come from a page of this gateway, or from no browser at all?"""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()


OwnPage = Annotated[bool, Depends(own_page)]


async def login(request: Request, body: LoginRequest, control: TheControl, response: Response, own: OwnPage) -> Tokens:
    """Log in with e-mail and password."""
    _require_own(own, body.cookie)
    pair = await control.login.login(body.email, body.password, address_of(request))
    return _answer(control, response, pair, body.cookie)


async def from_known_address(request: Request, body: LoginRequest, control: TheControl, **_: object) -> bool:
    """Does this user log in from here often? Then no neighbour behind the same address can shut them out; wrong passwords still wait."""
    return await control.login.knows(body.email, address_of(request))


async def refresh(request: Request, control: TheControl, response: Response, own: OwnPage, body: RefreshRequest | None = None) -> Tokens:
    """Exchange a refresh token for a new pair. A token used twice was copied: then every token of that login is revoked."""
    body = body or RefreshRequest()
    text, from_cookie = _refresh_token(request, body)
    by_cookie = from_cookie or body.cookie
    _require_own(own, by_cookie)
    if text is None:
        raise Unauthenticated("There is no refresh token: log in again.")
    try:
        pair = await control.login.refresh(text, address_of(request))
    except CredentialInvalid as error:
        request.state.refusal = error.reason
        raise Unauthenticated("This refresh token is not valid any more: log in again.") from None
    return _answer(control, response, pair, by_cookie)


async def logout(request: Request, control: TheControl, response: Response, own: OwnPage, body: RefreshRequest | None = None) -> None:
    """End a login: its refresh tokens stop working, its access token runs out by itself. Unknown tokens are fine."""
    text, from_cookie = _refresh_token(request, body or RefreshRequest())
    _require_own(own, from_cookie)
    if text is not None:
        await control.login.logout(text, address_of(request))
    response.delete_cookie(COOKIE, path="/auth", httponly=True, samesite="strict", secure=control.cookie_secure)


async def me(caller: Caller, control: TheControl) -> Me:
    """Who is logged in."""
    user = control.live.user_by_id(caller.user_id)
    if user is None and caller.user_id.startswith(EXTERNAL):
        return Me(id=caller.user_id, email=None, role=caller.role, scopes=sorted(caller.scopes))
    if user is None:  # disabled between the guard and here
        raise Unauthenticated("This login is not valid any more.")
    return Me(id=user.user_id, email=user.email, role=user.role, scopes=sorted(caller.scopes))


async def change_password(request: Request, body: PasswordRequest, caller: Caller, by: By, control: TheControl) -> None:
    """Set one's own password. Every login of this user ends, this one too."""
    async with control.db.look() as conn:
        user = await users.by_id(conn, caller.user_id)
    if user is None:
        raise Forbidden("Only an account of this gateway has a password here.")
    try:
        await control.login.prove(user.email, body.password, address_of(request))
    except LoginFailed:
        raise InvalidRequest("The present password is wrong.", param="password") from None
    new_hash = await control.passwords.hash(body.new_password, email=user.email)
    await reset_password(control.db, control.generation, by, caller.user_id, password_hash=new_hash)


def add_routes(app: FastAPI, limits: AddressLimits) -> None:
    """Register them; those that take a password or a token from anybody are limited per address."""
    tags: list[Any] = ["login"]
    guarded_login = limits.limit(LOGIN_RATES, unless=from_known_address)(login)
    app.add_api_route("/auth/login", guarded_login, methods=["POST"], response_model=Tokens, tags=tags)
    app.add_api_route("/auth/refresh", limits.limit(REFRESH_RATES)(refresh), methods=["POST"], response_model=Tokens, tags=tags)
    app.add_api_route("/auth/logout", limits.limit(REFRESH_RATES)(logout), methods=["POST"], status_code=204, tags=tags)
    app.add_api_route("/auth/me", me, methods=["GET"], response_model=Me, tags=tags)
    app.add_api_route("/auth/password", limits.limit(LOGIN_RATES)(change_password), methods=["POST"], status_code=204, tags=tags)


def set_refresh_cookie(response: Response, pair: TokenPair, *, secure: bool) -> None:
    """Only `/auth` gets it back, and only from pages of our own."""
    response.set_cookie(
        COOKIE, pair.refresh_token, max_age=REFRESH_LIFETIME_S, path="/auth", secure=secure, httponly=True, samesite="strict"
    )


def _require_own(own: bool, by_cookie: bool) -> None:
    if by_cookie and not own:
        raise Forbidden("The cookie is for the gateway's own pages only.")


def _refresh_token(request: Request, body: RefreshRequest) -> tuple[str | None, bool]:
    """(the token, did it come from the cookie)."""
    if body.refresh_token is not None:
        return body.refresh_token, False
    text = request.cookies.get(COOKIE)
    return text, text is not None


def _answer(control: Control, response: Response, pair: TokenPair, by_cookie: bool) -> Tokens:
    if by_cookie:
        set_refresh_cookie(response, pair, secure=control.cookie_secure)
    text = None if by_cookie else pair.refresh_token
    return Tokens(access_token=pair.access_token, refresh_token=text, token_type="bearer", expires_in=pair.expires_in_s)
