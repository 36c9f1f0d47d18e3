"""`/auth/oidc`: logging in through an OpenID provider, in a browser and, by way of one, on the command line.

A browser goes login -> provider -> callback -> a page of ours, with the refresh token in the usual cookie. For a command line the last
step is another: the person is asked whether the program whose code they see may act for them, and only a yes sends a one-time code to the
program's port on the loopback address. The code is worth nothing without the PKCE verifier that never left the program.

A yes and its code are void once all logins of the person have ended (a new password, disabled), as they themselves would be.

What a login in progress needs lies sealed in a cookie of its own (`auth.oidc`). Where a browser is sent is never an address that a
request has named: our own, the provider's, or 127.0.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
from typing import Annotated, Any, NoReturn
from urllib.parse import urlencode

import structlog
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

from auth.errors import AuthError
from auth.oidc import CODE_S, LOGIN_S, LoginExpired, OidcLogin, Program, challenge_of, name_of, own_path, program_of
from auth.provider import Identity, LoginRefused, ProviderAway
from gateway.api.context import TheControl, address_of
from gateway.api.faults import answer
from gateway.api.login import OwnPage, Tokens, set_refresh_cookie
from gateway.changes import Actor, admit_identity, issue_login_code, take_login_code
from gateway.errors import Forbidden, GatewayError, InvalidRequest, NotFound, Unavailable
from gateway.limits.edge import AddressLimits
from gateway.runtime import Control
from gateway.store.errors import StoreUnavailable
from gateway.store.login_codes import LoginCode
from gateway.store.logins import Accounts
from gateway.store.users import User

logger = structlog.get_logger(__name__)

RATES = "60/minute;600/hour"
COOKIE = "gateway_oidc_"  # and the name of the login
_MAX_BEGUN = 8  # logins at once in one browser; a page that begins more than that does not fill its cookies up
_MAX_TEXT = 4096
_AGAIN = "This login has expired, or was begun in another browser: begin again."
_STYLE = "body{font:16px/1.5 sans-serif;max-width:34em;margin:4em auto;padding:0 1em}button{font:inherit;padding:.4em 1.2em}"

Text = Annotated[str, Query(max_length=_MAX_TEXT)]


class Login(BaseModel):
    """Whether, and where, a login through a provider begins."""

    enabled: bool
    login_url: str | None = Field(examples=["https://gateway.example.com/auth/oidc/login"])


class CodeRequest(BaseModel):
    code: str = Field(max_length=256, description="What the browser brought to the program's port.")
    code_verifier: str = Field(max_length=256, description="PKCE: what the challenge was made of.")


async def offered(control: TheControl) -> Login:
    """Is a login through a provider possible here?"""
    oidc = control.oidc
    return Login(enabled=oidc is not None, login_url=f"{oidc.config.public_url}/auth/oidc/login" if oidc is not None else None)


async def begin(
    request: Request,
    control: TheControl,
    next: Annotated[str, Query(max_length=_MAX_TEXT, description="Where to go on afterwards: a path of this host.")] = "/ui/",
    cli_port: Annotated[int | None, Query(description="For the command line: its port on the loopback address.")] = None,
    cli_challenge: Annotated[str, Query(max_length=128, description="PKCE, S256.")] = "",
    cli_state: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Send the browser to the provider."""
    oidc = _oidc(control)
    if not own_path(next):
        raise InvalidRequest("This is not a path of this host.", param="next")
    try:
        begun = await oidc.begin(next, _program(cli_port, cli_challenge, cli_state))
    except ProviderAway as error:
        _fail(request, error)
    response = RedirectResponse(begun.url, 302)
    others = [name for name in request.cookies if name.startswith(_prefix(oidc))]
    for name in others if len(others) >= _MAX_BEGUN else ():
        _forget(response, oidc, name)
    response.set_cookie(_prefix(oidc) + begun.name, begun.note, max_age=LOGIN_S, httponly=True, samesite="lax", **_place(oidc))
    return response


async def callback(
    request: Request, control: TheControl, state: Text = "", code: Text = "", error: Text = "", iss: Text | None = None
) -> Response:
    """Where the provider sends the browser back to."""
    oidc = _oidc(control)
    name = _prefix(oidc) + name_of(state)
    try:
        names = [parameter for parameter, _ in request.query_params.multi_items()]
        if len(names) != len(set(names)):
            raise InvalidRequest("A parameter of this address is there twice.")
        note = request.cookies.get(name, "")
        if not oidc.known(state, note):
            _fail(request, LoginExpired())
        if error or not code:
            _fail(request, ProviderAway("error") if error in ("temporarily_unavailable", "server_error") else LoginRefused("denied"))
        response = await _admitted(request, control, oidc, state=state, note=note, code=code, said_issuer=iss)
    except StoreUnavailable:
        raise
    except GatewayError as refusal:
        response = answer(request.scope, refusal)
    _forget(response, oidc, name)  # one attempt each, whatever came of it
    return response


async def approve(request: Request, control: TheControl, own: OwnPage, ticket: Annotated[str, Query(max_length=_MAX_TEXT)]) -> Response:
    """The person says yes: the program that asked gets its code."""
    oidc = _oidc(control)
    if not own:
        raise InvalidRequest("This is for the gateway's own page only.")
    try:
        yes = oidc.approved(ticket)
    except LoginExpired as error:
        _fail(request, error)
    program = yes.program
    code = await issue_login_code(control.db, LoginCode(yes.user_id, yes.token_epoch, program.challenge), CODE_S)
    return RedirectResponse(f"{program.url}?{urlencode({'code': code, 'state': program.state})}", 303)


async def token(request: Request, body: CodeRequest, control: TheControl) -> Tokens:
    """Exchange the code that the browser brought for tokens. It is good for one attempt."""
    _oidc(control)
    found = await take_login_code(control.db, body.code)
    account = None
    if found is not None and hmac.compare_digest(found.challenge.encode(), challenge_of(body.code_verifier).encode()):
        account = await Accounts(control.db).account_by_id(found.user_id)
    if account is None or found is None or account.user.token_epoch != found.token_epoch:  # all their logins have ended meanwhile
        raise InvalidRequest("This code is not valid any more: begin again.", param="code")
    pair = await control.login.open(account.user, address_of(request))
    return Tokens(access_token=pair.access_token, refresh_token=pair.refresh_token, token_type="bearer", expires_in=pair.expires_in_s)


def add_routes(app: FastAPI, limits: AddressLimits) -> None:
    """Register them; all but the first are limited per address."""
    tags: list[Any] = ["login"]
    nowhere: dict[int | str, dict[str, Any]] = {404: {"description": "No provider is set up here"}}
    on: dict[int | str, dict[str, Any]] = nowhere | {302: {"description": "To the provider"}}
    back: dict[int | str, dict[str, Any]] = nowhere | {302: {"description": "To the page that was asked for"}}
    app.add_api_route("/auth/oidc", offered, methods=["GET"], response_model=Login, tags=tags)
    for path, endpoint, method, responses in (
        ("/auth/oidc/login", begin, "GET", on),
        ("/auth/oidc/callback", callback, "GET", back),
        ("/auth/oidc/approve", approve, "POST", nowhere | {303: {"description": "To the program that asked"}}),
    ):
        limited = limits.limit(RATES)(endpoint)
        app.add_api_route(path, limited, methods=[method], response_model=None, response_class=Response, responses=responses, tags=tags)
    app.add_api_route("/auth/oidc/token", limits.limit(RATES)(token), methods=["POST"], response_model=Tokens, responses=nowhere, tags=tags)


async def _admitted(
    request: Request, control: Control, oidc: OidcLogin, *, state: str, note: str, code: str, said_issuer: str | None
) -> Response:
    try:
        finished = await oidc.finish(state=state, note=note, code=code, said_issuer=said_issuer)
    except AuthError as error:
        _fail(request, error)
    user = await _user(request, control, oidc, finished.identity)
    if finished.program is not None:
        return _question(user, finished.program, oidc.ask(user.id, user.token_epoch, finished.program))
    account = await Accounts(control.db).account_by_id(user.id)
    if account is None:  # disabled this moment
        raise Forbidden("This account is disabled.")
    pair = await control.login.open(account.user, address_of(request))
    response = RedirectResponse(oidc.config.public_url + finished.next, 302)
    set_refresh_cookie(response, pair, secure=oidc.config.secure)
    return response


async def _user(request: Request, control: Control, oidc: OidcLogin, identity: Identity) -> User:
    actor = Actor(None, "api", address_of(request) or None)
    try:
        return await admit_identity(control.db, control.generation, actor, identity, link_by_email=oidc.config.link_by_email)
    except Forbidden:
        request.state.refusal = "oidc account"
        raise


def _question(user: User, program: Program, ticket: str) -> Response:
    """The page that asks. Without it any program on this computer could have a browser that is logged in at the provider log it in."""
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Log in on the command line</title><style>{_STYLE}</style>
<h1>Log in on the command line?</h1>
<p>A program on this computer wants to act as <b>{html.escape(user.email)}</b>. Say yes only if you have just started
<code>gateway login</code> yourself and your terminal shows this code:</p>
<p><code>{html.escape(program.code)}</code></p>
<form method="post" action="/auth/oidc/approve?{html.escape(urlencode({"ticket": ticket}))}"><button>Yes, log in</button></form>
<p>Otherwise close this page.</p></html>"""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    # The form's answer leads to the program: browsers hold redirects of a form to this list too.
    forms = f"form-action 'self' http://127.0.0.1:{program.port}"
    policy = f"default-src 'none'; style-src 'sha256-{style}'; {forms}; frame-ancestors 'none'; base-uri 'none'"
    # Without a referrer a form's Origin is "null", and older browsers send nothing else to tell our page from others.
    return HTMLResponse(page, headers={"content-security-policy": policy, "referrer-policy": "same-origin"})


def _oidc(control: Control) -> OidcLogin:
    if control.oidc is None:
        raise NotFound("No login through a provider is set up here.")
    return control.oidc


def _program(port: int | None, challenge: str, state: str) -> Program | None:
    if port is None:
        return None
    try:
        return program_of(port, challenge, state)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _fail(request: Request, error: AuthError) -> NoReturn:
    """What went wrong, for the person; the reason is for the log."""
    request.state.refusal = f"oidc {error.reason}"
    if isinstance(error, ProviderAway):
        logger.warning("the OpenID provider could not be asked", reason=error.reason)
        raise Unavailable("The provider does not answer as it should: try again.", retry_after_s=error.retry_after_s) from None
    if isinstance(error, LoginRefused):
        raise Forbidden("The provider did not vouch for this login: begin again.") from None
    raise InvalidRequest(_AGAIN) from None


def _prefix(oidc: OidcLogin) -> str:
    """With `__Host-` no other host of the domain can set such a cookie, and so no one can slip us a login that they began."""
    return f"__Host-{COOKIE}" if oidc.config.secure else COOKIE


def _place(oidc: OidcLogin) -> dict[str, Any]:
    return {"path": "/", "secure": True} if oidc.config.secure else {"path": "/auth/oidc", "secure": False}


def _forget(response: Response, oidc: OidcLogin, name: str) -> None:
    response.delete_cookie(name, httponly=True, samesite="lax", **_place(oidc))
