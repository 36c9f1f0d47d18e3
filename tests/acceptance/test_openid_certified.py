"""A login through a certified OpenID provider (`oidc-provider` for Node), as its own forms have it.

It is strict where the one of the other tests is not: it demands PKCE itself, gives claims at the user-info endpoint only, and names
itself in what the browser brings back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urljoin

import httpx
import pytest

from tests.gateway_process import PLAIN, Gateway, free_port, gateway

HERE = Path(__file__).parent / "openid"
CONFIG = "models: [{id: echo, backends: [{type: echo}]}]"


def _cannot(reason: str) -> NoReturn:
    """Without Node this test is skipped, except where everything must have run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def folder() -> Path:
    """A folder with the pinned provider, installed once per lock file, outside the source tree."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _cannot("node and npm are needed for the certified OpenID provider")
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-gateway-tests"
    found = cache / f"openid-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not found.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, made)
        done = subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=made, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(made)
            _cannot(f"npm ci failed: {done.stderr[-500:]}")
        with contextlib.suppress(OSError):  # another run was quicker
            made.rename(found)
    shutil.copy(HERE / "provider.mjs", found)
    return found


@pytest.fixture(scope="module")
def site(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    port, provider_port = free_port(), free_port()
    public, issuer, secret = f"http://127.0.0.1:{port}", f"http://localhost:{provider_port}", "a secret with spaces, & : %"
    command = ["node", "provider.mjs", str(provider_port), "gateway", secret, f"{public}/auth/oidc/callback"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as provider:
        try:
            _wait_for(f"{issuer}/.well-known/openid-configuration")
            environment = {
                "GATEWAY_OIDC_ISSUER": issuer,
                "GATEWAY_OIDC_CLIENT_ID": "gateway",
                "GATEWAY_OIDC_CLIENT_SECRET": secret,
                "GATEWAY_OIDC_PUBLIC_URL": public,
                "GATEWAY_OIDC_ROLE_CLAIM": "groups",
                "GATEWAY_OIDC_ROLES": json.dumps({"staff": "viewer"}),
            }
            with gateway(tmp_path_factory.mktemp("openid"), CONFIG, start=False, **environment) as made:
                made.port = port
                yield made.start()
        finally:
            provider.terminate()


def test_a_login(site: Gateway) -> None:
    with httpx.Client(trust_env=False, timeout=10) as browser:
        back = _signed_in(browser, browser.get(f"{site.url}/auth/oidc/login").headers["location"], "dana")
        assert "iss=" in back
        response = browser.get(back)
        assert (response.status_code, response.headers["location"]) == (302, f"{site.url}/ui/")
        token = browser.post(f"{site.url}/auth/refresh").json()["access_token"]
        me = browser.get(f"{site.url}/auth/me", headers={"authorization": f"Bearer {token}"}).json()
        assert (me["email"], me["role"]) == ("dana@example.com", "viewer")
    users = {user["email"]: user for user in site.cli_json("users", "list")}
    assert users["dana@example.com"]["name"] == "Somebody called dana"


def test_another_code_verifier_is_refused_by_the_provider(site: Gateway) -> None:
    """The same code under the state of another login: the provider itself says no, for the verifier is another."""
    with httpx.Client(trust_env=False, timeout=10) as browser:
        first = browser.get(f"{site.url}/auth/oidc/login").headers["location"]
        second = browser.get(f"{site.url}/auth/oidc/login").headers["location"]
        back = httpx.URL(_signed_in(browser, first, "dana"))
        state = httpx.URL(second).params["state"]
        response = browser.get(back.copy_set_param("state", state))
        assert response.status_code == 403
        assert "refresh" not in response.headers.get("set-cookie", "")


def _signed_in(browser: httpx.Client, url: str, who: str) -> str:
    """Through the provider's forms; the address that the browser is sent back to."""
    page = browser.get(url)
    for _ in range(10):
        while page.is_redirect:
            target = urljoin(str(page.url), page.headers["location"])
            if "/auth/oidc/callback" in target:
                return target
            page = browser.get(target)
        form = re.search(r'<form[^>]*action="([^"]+)"', page.text)
        prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
        assert form is not None and prompt is not None, page.text
        page = browser.post(urljoin(str(page.url), form[1]), data={"prompt": prompt[1], "login": who, "password": "any"})
    raise AssertionError("the provider asks without end")


def _wait_for(url: str) -> None:
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, trust_env=False, verify=PLAIN).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the provider does not start")
