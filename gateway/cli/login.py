"""`gateway login`, `whoami` and `logout`: a person at a gateway, over HTTP, with what that person may do there.

Through an OpenID provider the login happens in a browser; this process gets a one-time code on a port of 127.0.0.1 and exchanges it with
a PKCE verifier that nobody else has seen. The tokens lie in GATEWAY_HOME/login.json.
"""

from __future__ import annotations

import getpass
import secrets
import sys
import time
import webbrowser
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from gateway.cli.login_file import LoginFile, SavedLogin
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, tell
from gateway.settings import Settings, load_settings

Url = Annotated[str, typer.Option("--url", metavar="URL", help="The gateway. Default: the one on this machine.", show_default=False)]
Email = Annotated[str, typer.Option("--email", metavar="E", help="Log in with a password instead of in a browser.", show_default=False)]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address of the page and open nothing.")]
Paste = Annotated[bool, typer.Option("--paste", help="The browser is on another machine: paste the address that it ends at.")]
CaFile = Annotated[
    str, typer.Option("--ca-file", metavar="FILE", help="Authorities of the gateway's certificate, PEM.", show_default=False)
]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Allow http to another machine.")]
TokenOnly = Annotated[bool, typer.Option("--access-token", help="Print an access token that is good for some minutes, and nothing else.")]

_WAIT_S = 600.0
_SPARE_S = 30.0  # an access token that ends sooner is exchanged first


def login(
    url: Url = "",
    email: Email = "",
    password_stdin: FromStdin = False,
    no_browser: NoBrowser = False,
    paste: Paste = False,
    ca_file: CaFile = "",
    plain_http: PlainHttp = False,
    as_json: Json = False,
) -> None:
    """Log in at a gateway, in the browser or with a password."""
    from gateway.cli.remote import Remote

    settings = load_settings()
    remote = Remote(url or _here(settings), ca_file=ca_file, plain_http=plain_http)
    if email:
        password = sys.stdin.readline().rstrip("\r\n") if password_stdin else getpass.getpass("Password: ")
        tokens = remote.demand("POST", "/auth/login", body={"email": email, "password": password})
    else:
        tokens = _in_browser(remote, open_it=not (no_browser or paste), paste=paste)
    me = remote.demand("GET", "/auth/me", token=_text(tokens, "access_token"))
    LoginFile(settings.home).write(_saved(remote.url, remote.ca_file, str(me.get("email")), tokens))
    _show_me(me, remote.url, as_json)


def whoami(access_token: TokenOnly = False, as_json: Json = False) -> None:
    """Who is logged in, and where."""
    from gateway.cli.remote import Remote

    file = LoginFile(load_settings().home)
    saved = fresh(file)
    if access_token:
        show(saved.access_token)
        return
    me = Remote(saved.url, ca_file=saved.ca_file, plain_http=True).demand("GET", "/auth/me", token=saved.access_token)
    _show_me(me, saved.url, as_json)


def logout() -> None:
    """End the login, here and at the gateway."""
    from gateway.cli.output import CommandFailed
    from gateway.cli.remote import Remote

    file = LoginFile(load_settings().home)
    with file.alone():
        try:
            saved = file.read()
        except CommandFailed:
            file.delete()  # whatever it is, nobody is logged in by it any more
            raise
        file.delete()
        try:
            remote = Remote(saved.url, ca_file=saved.ca_file, plain_http=True)
            remote.demand("POST", "/auth/logout", body={"refresh_token": saved.refresh_token})
        except CommandFailed as error:
            fail(f"You are logged out on this machine; the gateway could not be told: {error}")
    show(f"Logged out at {saved.url}.")


def fresh(file: LoginFile) -> SavedLogin:
    """The login with an access token that is still good for a while. `CommandFailed` where the login is over."""
    from gateway.cli.remote import Remote, refused

    with file.alone():
        saved = file.read()
        if saved.expires_at > time.time() + _SPARE_S:
            return saved
        remote = Remote(saved.url, ca_file=saved.ca_file, plain_http=True)
        status, tokens = remote.ask("POST", "/auth/refresh", body={"refresh_token": saved.refresh_token})
        if status == 401:
            file.delete()
            fail(f"Your login at {saved.url} is over: log in again.")
        if status != 200:
            refused(saved.url, status, tokens)
        renewed = _saved(saved.url, saved.ca_file, saved.email, tokens)
        file.write(renewed)
        return renewed


def _in_browser(remote: Any, *, open_it: bool, paste: bool) -> dict[str, Any]:
    """The tokens that a login in the browser ends in."""
    from auth.oidc import challenge_of, program_of
    from auth.oidc_config import is_safe_url
    from gateway.cli.loopback import listening

    offered = remote.demand("GET", "/auth/oidc")
    begin = offered.get("login_url")
    if not offered.get("enabled") or not isinstance(begin, str):
        fail("This gateway has no login through a provider: give your e-mail with --email.")
    if not is_safe_url(begin, plain_allowed=True):
        fail("The gateway names no address to log in at.")
    verifier, state = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    with listening(state) as mailbox:
        program = program_of(mailbox.port, challenge_of(verifier), state)
        page = f"{begin}?{urlencode({'cli_port': program.port, 'cli_challenge': program.challenge, 'cli_state': state})}"
        tell(f"Log in on this page, and say yes only if it shows the code {program.code}:\n\n  {page}\n")
        if open_it and not webbrowser.open(page):
            tell("No browser could be opened: open the page yourself.")
        if paste:
            tell("At the end the browser goes to an address at 127.0.0.1 that it cannot open: paste that address here.")
            if not mailbox.offer(sys.stdin.readline().strip()):
                fail("This is not the address at which this login ends.")
        code = mailbox.wait(_WAIT_S)
        found: dict[str, Any] = remote.demand("POST", "/auth/oidc/token", body={"code": code, "code_verifier": verifier})
    return found


def _here(settings: Settings) -> str:
    return f"http{'s' if settings.tls_cert_file else ''}://127.0.0.1:{settings.port}"


def _saved(url: str, ca_file: str, email: str, tokens: dict[str, Any]) -> SavedLogin:
    lifetime_s = tokens.get("expires_in")
    expires_at = time.time() + (lifetime_s if isinstance(lifetime_s, int) else 0)
    return SavedLogin(url, email, _text(tokens, "access_token"), _text(tokens, "refresh_token"), expires_at, ca_file)


def _text(tokens: dict[str, Any], name: str) -> str:
    found = tokens.get(name)
    return found if isinstance(found, str) else fail("The answer holds no tokens: is this a gateway?")


def _show_me(me: dict[str, Any], url: str, as_json: bool) -> None:
    if as_json:
        show_json(me | {"url": url})
    else:
        show(f"{me.get('email')}  {me.get('role')}  {url}")
