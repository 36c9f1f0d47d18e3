"""A gateway on another machine, or on this one, asked over HTTP: what a person may do without holding its database."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from auth.oidc_config import is_safe_url
from gateway.cli.output import fail

_TIMEOUT_S = 30.0


class Remote:
    """`url`: without a path; https, or http where nothing leaves this machine or `plain_http` says that it may."""

    def __init__(self, url: str, *, ca_file: str = "", plain_http: bool = False) -> None:
        import httpx

        self.url = _checked(url, plain_http)
        self.ca_file = str(Path(ca_file).expanduser().absolute()) if ca_file else ""
        try:
            verify: ssl.SSLContext | bool = (
                ssl.create_default_context(cafile=self.ca_file or None) if self.url.startswith("https:") else False
            )
        except (OSError, ssl.SSLError) as error:
            fail(f"--ca-file: {self.ca_file} cannot be used ({getattr(error, 'strerror', None) or 'no certificates in it'}).")
        self._client = httpx.Client(base_url=self.url, verify=verify, trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S)

    def ask(self, method: str, path: str, *, body: dict[str, Any] | None = None, token: str = "") -> tuple[int, dict[str, Any]]:
        """(status, JSON object or {}). `CommandFailed` where the gateway cannot be reached."""
        import httpx

        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            response = self._client.request(method, path, json=body, headers=headers)
            found = response.json() if response.content else {}
        except httpx.HTTPError as error:
            fail(f"{self.url} cannot be reached ({_why(error)}).")
        except ValueError:
            found = {}
        return response.status_code, found if isinstance(found, dict) else {}

    def demand(self, method: str, path: str, *, body: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
        """The object of a 2xx answer. `CommandFailed` with the gateway's own words otherwise."""
        status, found = self.ask(method, path, body=body, token=token)
        if not 200 <= status < 300:
            refused(self.url, status, found)
        return found


def refused(url: str, status: int, found: dict[str, Any]) -> NoReturn:
    detail = found.get("detail")
    words = "".join(c if c.isprintable() else " " for c in detail[:500]) if isinstance(detail, str) else ""
    fail(words or f"{url} answered {status}: is this a gateway?")


def _checked(url: str, plain_http: bool) -> str:
    parts = urlsplit(url)
    if not is_safe_url(url, plain_allowed=True) or parts.path not in ("", "/") or parts.query or parts.fragment:
        fail("--url is the address of a gateway, such as https://gateway.example.com.")
    if parts.scheme == "http" and not plain_http and not _is_loopback(parts.hostname or ""):
        fail("Over plain http everybody on the way could read your password and tokens: use https, or say --plain-http.")
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: Exception) -> str:
    """The kind of the failure; its words may hold addresses with what was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
