"""A real OpenID provider on loopback, as a process of its own, with a door before it that also does what it leaves out.

The provider is `oidc-provider-mock` (Authlib behind it). It does not look at PKCE; the door does: it notes the challenge of each code that
is handed out, and lets nobody exchange one without its verifier. It says no to any redirect address but the ones that were registered.

`python -m tests.oidc_provider PORT REDIRECT_URL [...]` runs it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx

from tests.gateway_process import PLAIN, free_port

CLIENT_ID, CLIENT_SECRET = "gateway", "s3cret/with+signs&="
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class OpenIdProvider:
    url: str
    process: subprocess.Popen[bytes]

    def put_user(self, subject: str, **claims: Any) -> None:
        """Make or change somebody. `email_verified` and other claims as they shall be."""
        httpx.put(f"{self.url}/users/{subject}", json=claims, trust_env=False, verify=PLAIN).raise_for_status()

    def sign_in(self, authorization_url: str, subject: str, action: str = "authorize") -> str:
        """What a person does at the provider: the address that their browser is sent back to."""
        response = httpx.post(authorization_url, data={"sub": subject, "action": action}, trust_env=False, verify=PLAIN)
        assert response.status_code == 302, response.text
        return response.headers["location"]


@contextlib.contextmanager
def openid_provider(*redirect_urls: str) -> Iterator[OpenIdProvider]:
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "tests.oidc_provider", str(port), *redirect_urls]
    process = subprocess.Popen(command, cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT)}, stderr=subprocess.DEVNULL)
    try:
        url, end_s = f"http://localhost:{port}", time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/.well-known/openid-configuration", trust_env=False, verify=PLAIN).status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < end_s, "the provider does not start"
            time.sleep(0.05)
        yield OpenIdProvider(url, process)
    finally:
        process.terminate()
        process.wait(10)


Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Door:
    """WSGI: PKCE and registered redirect addresses."""

    def __init__(self, app: Wsgi, redirect_urls: Iterable[str]) -> None:
        self._app = app
        self._redirect_urls = frozenset(redirect_urls)
        self._challenges: dict[str, str] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/oauth2/authorize":
            return self._authorize(environ, start)
        if path == "/oauth2/token":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if not self._may_exchange(dict(parse_qsl(body.decode())), environ.get("HTTP_AUTHORIZATION", "")):
                start("400 Bad Request", [("content-type", "application/json")])
                return [b'{"error": "invalid_grant"}']
            environ["wsgi.input"] = io.BytesIO(body)
        return self._app(environ, start)

    def _authorize(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        fits = query.get("code_challenge_method") == "S256" and re.fullmatch(r"[A-Za-z0-9_-]{43}", query.get("code_challenge", ""))
        if not fits or query.get("redirect_uri") not in self._redirect_urls or query.get("client_id") != CLIENT_ID:
            start("400 Bad Request", [("content-type", "text/plain")])
            return [b"not so"]

        def noting(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            location = next((value for name, value in headers if name.lower() == "location"), "")
            for code in parse_qs(urlsplit(location).query).get("code", ()):
                self._challenges[code] = query["code_challenge"]
            return start(status, headers, *rest)

        return self._app(environ, noting)

    def _may_exchange(self, form: dict[str, str], authorization: str) -> bool:
        encoded = urlencode({CLIENT_ID: CLIENT_SECRET}).replace("=", ":", 1)
        if authorization != f"Basic {base64.b64encode(encoded.encode()).decode()}":
            return False
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        return self._challenges.pop(form.get("code", ""), None) == challenge


def main() -> None:
    import oidc_provider_mock
    import werkzeug.serving

    port, *redirect_urls = sys.argv[1:]
    door = Door(oidc_provider_mock.app(require_nonce=True), redirect_urls)
    werkzeug.serving.run_simple("localhost", int(port), door, threaded=True)


if __name__ == "__main__":
    main()
