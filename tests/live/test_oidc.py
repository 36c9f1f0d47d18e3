"""`gateway login` against a whole gateway of two server processes, with a real OpenID provider beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import PASSWORD, Gateway, free_port, gateway
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, openid_provider

CONFIG = "models: [{id: echo, backends: [{type: echo}]}]"
BROWSER = Path(__file__).parents[1] / "oidc_browser.py"
COMMAND = str(Path(sys.executable).parent / "gateway")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, OpenIdProvider]]:
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    with openid_provider(f"{public}/auth/oidc/callback") as provider:
        provider.put_user("dana", email="dana@example.com", email_verified=True, groups=["staff"])
        environment = {
            "GATEWAY_OIDC_ISSUER": provider.url,
            "GATEWAY_OIDC_CLIENT_ID": CLIENT_ID,
            "GATEWAY_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "GATEWAY_OIDC_PUBLIC_URL": public,
            "GATEWAY_OIDC_ROLE_CLAIM": "groups",
            "GATEWAY_OIDC_ROLES": json.dumps({"staff": "member"}),
        }
        folder = tmp_path_factory.mktemp("oidc")
        with gateway(folder, CONFIG, arguments=["--workers", "2"], start=False, **environment) as made:
            made.port = port
            yield made.start(), provider


@pytest.fixture
def person(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has no gateway of their own."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GATEWAY_HOME": str(tmp_path / "gw")}


def run(person: dict[str, str], *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], env=person | environment, input=stdin, capture_output=True, text=True, timeout=60, cwd=person["HOME"]
    )


def browser(subject: str) -> str:
    return f"{sys.executable} {BROWSER} {subject} %s"


def saved(person: dict[str, str]) -> Any:
    return json.loads((Path(person["GATEWAY_HOME"]) / "login.json").read_text())


def test_login_whoami_logout(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str]) -> None:
    gw, _ = scene
    done = run(person, "login", "--url", gw.url, BROWSER=browser("dana"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"dana@example.com  member  {gw.url}"
    assert re.search(r"the code [A-Z2-7]{4}-[A-Z2-7]{4}:", done.stderr)
    file = Path(person["GATEWAY_HOME"]) / "login.json"
    assert file.stat().st_mode & 0o777 == 0o600
    refresh_token = saved(person)["refresh_token"]

    assert json.loads(run(person, "whoami", "--json").stdout)["email"] == "dana@example.com"
    token = run(person, "whoami", "--access-token").stdout.strip()
    answer = httpx.post(
        f"{gw.url}/v1/chat/completions",
        json={"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
        headers={"authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert answer.status_code == 200

    assert run(person, "logout").returncode == 0
    assert not file.exists()
    gone = httpx.post(f"{gw.url}/auth/refresh", json={"refresh_token": refresh_token}, trust_env=False)
    assert gone.status_code == 401
    again = run(person, "whoami")
    assert (again.returncode, again.stderr) == (1, "You are not logged in: `gateway login --url URL`.\n")
    log = gw.log()
    for secret in (token, refresh_token, CLIENT_SECRET):
        assert secret not in log


def test_in_a_real_browser(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str], tmp_path: Path) -> None:
    """Cookies, the page's content policy and the way back to the program are the browser's to judge."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    script = Path(__file__).parents[1] / "oidc_chromium.py"
    said = tmp_path / "said"
    shell = tmp_path / "browser"
    shell.write_text(f'#!/bin/sh\nexec {sys.executable} {script} {chromium} dana "$1" > {said} 2>&1\n')
    shell.chmod(0o755)
    done = run(person, "login", "--url", scene[0].url, BROWSER=f"{shell} %s")
    assert done.returncode == 0, done.stderr + said.read_text()
    code = re.search(r"the code ([A-Z2-7]{4}-[A-Z2-7]{4}):", done.stderr)
    assert code is not None
    assert code[1] in said.read_text()
    assert "You are logged in" in said.read_text()


def test_the_access_token_is_renewed_once_by_many_at_once(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str]) -> None:
    gw, _ = scene
    assert run(person, "login", "--url", gw.url, "--email", "admin@localhost", "--password-stdin", stdin=f"{PASSWORD}\n").returncode == 0
    file = Path(person["GATEWAY_HOME"]) / "login.json"
    before = saved(person)
    file.write_text(json.dumps(before | {"expires_at": time.time()}))
    several = [
        subprocess.Popen([COMMAND, "whoami", "--access-token"], env=person, stdout=subprocess.PIPE, cwd=person["HOME"]) for _ in range(4)
    ]
    tokens = {process.communicate(timeout=60)[0] for process in several}
    assert all(process.returncode == 0 for process in several)
    assert len(tokens) == 1
    assert saved(person)["refresh_token"] != before["refresh_token"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_login_that_was_ended_elsewhere(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str]) -> None:
    gw, _ = scene
    assert run(person, "login", "--url", gw.url, "--email", "admin@localhost", "--password-stdin", stdin=f"{PASSWORD}\n").returncode == 0
    kept = saved(person)
    httpx.post(f"{gw.url}/auth/logout", json={"refresh_token": kept["refresh_token"]}, trust_env=False)
    file = Path(person["GATEWAY_HOME"]) / "login.json"
    file.write_text(json.dumps(kept | {"expires_at": 0}))
    done = run(person, "whoami")
    assert (done.returncode, "log in again" in done.stderr, file.exists()) == (1, True, False)


def test_a_wrong_password(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str]) -> None:
    done = run(person, "login", "--url", scene[0].url, "--email", "admin@localhost", "--password-stdin", stdin="wrong one\n")
    assert (done.returncode, done.stderr) == (1, "The e-mail address or the password is wrong.\n")
    assert not (Path(person["GATEWAY_HOME"]) / "login.json").exists()


def test_the_address_can_be_pasted(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str]) -> None:
    """The browser is on another machine: what it cannot open is carried over by hand."""
    command = [COMMAND, "login", "--url", scene[0].url, "--paste"]
    with subprocess.Popen(
        command, env=person, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=person["HOME"]
    ) as process:
        assert process.stderr is not None
        page = next(line.strip() for line in process.stderr if line.strip().startswith("http"))
        visited = subprocess.run([sys.executable, str(BROWSER), "dana", page, "--stop"], capture_output=True, text=True, timeout=30)
        out, _ = process.communicate(visited.stdout, timeout=30)
    assert process.returncode == 0
    assert out.startswith("dana@example.com  member")


@pytest.mark.parametrize("pasted", ["", "http://127.0.0.1:1/callback?code=x&state=y", "not an address"])
def test_another_address_is_not_taken(scene: tuple[Gateway, OpenIdProvider], person: dict[str, str], pasted: str) -> None:
    done = run(person, "login", "--url", scene[0].url, "--paste", stdin=f"{pasted}\n")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "This is not the address at which this login ends.")


def test_a_gateway_that_is_away_or_none(person: dict[str, str]) -> None:
    done = run(person, "login", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1 and "cannot be reached" in done.stderr
    for url in ("http://gateway.example.com", "ftp://localhost", "https://a/b", "localhost:8000"):
        done = run(person, "login", "--url", url, "--email", "a@b", "--password-stdin", stdin="x\n")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, url


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"GATEWAY_OIDC_CLIENT_ID": ""}, "GATEWAY_OIDC_CLIENT_ID"),
        ({"GATEWAY_OIDC_PUBLIC_URL": ""}, "GATEWAY_OIDC_PUBLIC_URL"),
        ({"GATEWAY_OIDC_PUBLIC_URL": "http://gw.example.com"}, "https address"),
        ({"GATEWAY_OIDC_ISSUER": "http://id.example.com"}, "issuer"),
        ({"GATEWAY_OIDC_ROLES": "{"}, "JSON"),
        ({"GATEWAY_OIDC_DEFAULT_ROLE": "admin"}, "GATEWAY_OIDC_DEFAULT_ROLE"),
        ({"GATEWAY_OIDC_SCOPES": "email"}, "openid"),
    ],
)
def test_settings_that_do_not_fit_are_said_at_the_start(person: dict[str, str], changed: dict[str, str], words: str) -> None:
    whole = {
        "GATEWAY_OIDC_ISSUER": "https://id.example.com",
        "GATEWAY_OIDC_CLIENT_ID": "gateway",
        "GATEWAY_OIDC_PUBLIC_URL": "https://gw.example.com",
    }
    done = run(person, "serve", **(whole | changed))
    assert done.returncode == 1
    assert words in done.stderr
