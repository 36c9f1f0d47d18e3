"""Login tokens of a whole gateway with two server processes: rotation of what signs them, of what encrypts that, and tokens of others."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from auth.issuers import AGAIN_S, user_id
from auth.jwks import KeySet
from auth.tokens import ACTIVATION_S, head_of
from tests.gateway_process import PASSWORD, Gateway, free_port, gateway
from tests.unit.auth.signed import Private, jwk, token

CONFIG = "models: [{id: m, backends: [{type: echo}]}]"
TWO = ("--workers", "2")
SERVERS_ALONE = {"GATEWAY_READER_AFTER_S": "-1"}  # each of them is asked
KEY_1, KEY_2, KEY_3 = ("Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0S" + letter * 2 for letter in "aeu")
MESSAGE = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """Each request on a connection of its own."""
    with httpx.Client(trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=10) as client:
        yield client


@dataclass
class Server:
    """A gateway and a way to ask it."""

    gateway: Gateway
    http: httpx.Client

    def get(self, path: str, credential: str = "") -> httpx.Response:
        return self.http.get(self.gateway.url + path, headers={"authorization": f"Bearer {credential}"} if credential else {})

    def post(self, path: str, body: object, credential: str = "") -> httpx.Response:
        return self.http.post(self.gateway.url + path, json=body, headers={"x-api-key": credential} if credential else {})

    def login(self) -> dict[str, Any]:
        answer = self.post("/auth/login", {"email": "admin@localhost", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def statuses(self, credential: str, path: str = "/auth/me") -> set[int]:
        """What every process answers."""
        found: dict[str, set[int]] = {}
        processes = 2 if self.gateway.arguments == TWO else 1
        for _ in range(200):
            answer = self.get(path, credential)
            found.setdefault(answer.headers["x-request-id"][:20], set()).add(answer.status_code)  # "req-" and what names the process
            if len(found) == processes:
                return set().union(*found.values())
        raise AssertionError(f"only {len(found)} processes answer")

    def chat(self, credential: str) -> httpx.Response:
        return self.post("/v1/chat/completions", MESSAGE, credential)

    def published(self) -> dict[str, Any]:
        answer = self.get("/.well-known/jwks.json")
        assert answer.status_code == 200
        return dict(answer.json())


def kid(access_token: str) -> str:
    return str(head_of(access_token)["kid"])


def wait_for(condition: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)


def test_a_new_signing_key_logs_nobody_out(http: httpx.Client, tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG, arguments=TWO, **SERVERS_ALONE, GATEWAY_JWT_ALGORITHM="ES256") as running:
        server = Server(running, http)
        first = server.login()["access_token"]
        made = running.cli_json("secrets", "rotate", "--signing")
        assert made["algorithm"] == "ES256"
        assert server.statuses(first) == {200}
        assert kid(server.login()["access_token"]) == kid(first)  # the new one is published before it signs
        assert [key["kid"] for key in server.published()["keys"]] == [kid(first), made["kid"]]
        time.sleep(ACTIVATION_S)
        second = server.login()
        assert kid(second["access_token"]) == made["kid"]
        for one in (first, second["access_token"]):
            assert server.statuses(one) == {200}
            assert server.chat(one).status_code == 200
            assert KeySet.from_document(server.published()).verify(one, "gateway", "gateway", ("ES256",), time.time())
        last = running.cli_json("secrets", "rotate", "--signing", "--at-once")
        wait_for(lambda: server.statuses(first) == server.statuses(second["access_token"]) == {401}, 2)
        again = server.post("/auth/refresh", {"refresh_token": second["refresh_token"]}).json()["access_token"]
        assert kid(again) == last["kid"]
        assert server.statuses(again) == {200}
        assert [key["kid"] for key in server.published()["keys"]] == [last["kid"]]
        assert all(set(key) == {"kty", "kid", "alg", "use", "crv", "x", "y"} for key in server.published()["keys"])


def test_another_algorithm_logs_nobody_out_either(http: httpx.Client, tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG) as running:
        server = Server(running, http)
        secret = server.login()["access_token"]
        assert server.published() == {"keys": []}
        running.stop()
        running.environment["GATEWAY_JWT_ALGORITHM"] = "RS256"
        running.start()
        assert server.statuses(secret) == {200}
        time.sleep(ACTIVATION_S)
        public = server.login()["access_token"]
        assert head_of(public)["alg"] == "RS256"
        assert server.statuses(public) == {200}
        (key,) = server.published()["keys"]
        assert (key["kid"], key["kty"]) == (kid(public), "RSA")
        assert not {"d", "p", "q", "k"} & set(key)


def test_a_new_secret_key_beside_the_old_one(http: httpx.Client, tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG, start=False, GATEWAY_SECRET_KEY=KEY_1) as running:
        server = Server(running, http)
        running.start()
        access = server.login()["access_token"]
        running.cli("secrets", "set", "upstream", stdin="sk-upstream-1\n")
        running.stop()
        running.environment["GATEWAY_SECRET_KEY"] = KEY_2
        running.cli("serve", "--port", str(running.port), code=1)  # without the old one nothing could be read
        running.environment["GATEWAY_SECRET_KEY_PREVIOUS"] = KEY_1
        running.start()
        assert "`gateway secrets rotate`" in running.log()
        assert "is being replaced" in running.cli("doctor")
        assert server.statuses(access) == {200}
        assert running.cli_json("secrets", "rotate") == {"secrets": 1, "signing_keys": 1, "contents": 0, "contents_unreadable": 0}
        assert server.statuses(access) == {200}
        running.stop()
        del running.environment["GATEWAY_SECRET_KEY_PREVIOUS"]
        running.start()
        assert server.statuses(access) == {200}
        assert "is being replaced" not in running.cli("doctor")
        assert "login tokens are signed with HS256" in running.cli("doctor")
        assert [secret["name"] for secret in running.cli_json("secrets", "list")] == ["upstream"]
        running.stop()
        for wrong in (KEY_1, KEY_3):
            running.environment["GATEWAY_SECRET_KEY"] = wrong
            running.cli("serve", "--port", str(running.port), code=1)
        assert not any(key in running.log() for key in (KEY_1, KEY_2, KEY_3, "sk-upstream-1"))


class Issuer:
    """A real server that publishes its metadata and its keys. `pages`: what it answers, by path."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = rsa.generate_private_key(65537, 2048)
        self.pages: dict[str, Any] = {"/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}}
        self.publish(self.key, "k1")

    def publish(self, key: rsa.RSAPrivateKey, name: str) -> None:
        self.pages["/keys"] = {"keys": [jwk(key, kid=name, use="sig", alg="RS256")]}

    def token(
        self, subject: str = "u1", key: Private | None = None, kid: str | None = "k1", algorithm: str = "RS256", **changes: Any
    ) -> str:
        now_s = int(time.time())
        claims = {"iss": self.url, "aud": "models", "sub": subject, "iat": now_s, "exp": now_s + 300, "groups": ["staff"]}
        return token(claims | changes, key or self.key, algorithm, kid)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Issuer]:
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(pages.get(self.path)).encode()
                self.send_response(200 if self.path in pages else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", int(self.url.rpartition(":")[2])), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def trusting(issuer: Issuer, folder: Path) -> str:
    entry = {"issuer": issuer.url, "audience": "models", "role_claim": "groups", "roles": {"owners": "admin", "staff": "member"}}
    path = folder / "issuers.json"
    path.write_text(json.dumps([entry]))
    return str(path)


def test_tokens_of_a_trusted_issuer(http: httpx.Client, tmp_path: Path, issuer: Issuer) -> None:
    with (
        issuer.serving(),
        gateway(tmp_path, CONFIG, arguments=TWO, **SERVERS_ALONE, GATEWAY_TRUSTED_ISSUERS=trusting(issuer, tmp_path)) as running,
    ):
        server = Server(running, http)
        good = issuer.token()
        assert server.statuses(good, "/v1/models") == {200}
        answer = server.chat(good)
        assert answer.status_code == 200, answer.text
        wait_for(lambda: answer.headers["x-request-id"] in running.cli("ledger", "export"), 5)
        (line,) = [json.loads(text) for text in running.cli("ledger", "export").splitlines()]
        assert (line["user_id"], line["key_id"]) == (user_id(issuer.url, "u1"), None)
        assert server.statuses(good, "/admin/users") == {403}
        pem = issuer.key.public_key().public_numbers().n.to_bytes(256, "big")
        now_s = int(time.time())
        for forged in (
            issuer.token(aud="other"),
            issuer.token(iss=issuer.url + "/"),
            issuer.token(exp=now_s - 60, iat=now_s - 400),
            issuer.token(nbf=now_s + 600),
            issuer.token(groups=["nobody"]),
            issuer.token(key=rsa.generate_private_key(65537, 2048)),
            issuer.token(key=pem, algorithm="HS256"),
            issuer.token(kid=None, key=pem, algorithm="HS256"),
            issuer.token().rpartition(".")[0] + ".AAAA",
            issuer.token(algorithm="none").rpartition(".")[0] + ".",
            issuer.token(iss="gateway", aud="gateway", sub="usr_1", epoch=0),
        ):
            assert server.chat(forged).status_code == 401
            assert server.statuses(forged, "/v1/models") == {401}
        log = running.log()
        assert good not in log
        assert "eyJ" not in log


def test_an_admin_of_a_trusted_issuer(http: httpx.Client, tmp_path: Path, issuer: Issuer) -> None:
    with issuer.serving(), gateway(tmp_path, CONFIG, GATEWAY_TRUSTED_ISSUERS=trusting(issuer, tmp_path)) as running:
        server = Server(running, http)
        boss = issuer.token("boss", groups=["owners"])
        new = {"email": "new@example.com", "role": "member"}
        made = server.post("/admin/users", new, boss)
        assert made.status_code == 201, made.text
        trail = server.get("/admin/audit", boss).json()
        assert user_id(issuer.url, "boss") in json.dumps(trail)
        me = server.get("/auth/me", boss).json()
        assert me == {
            "id": user_id(issuer.url, "boss"),
            "email": None,
            "role": "admin",
            "scopes": ["admin", "inference", "metrics", "usage"],
        }
        own = {"password": PASSWORD, "new_password": "another long one 7"}
        assert server.http.post(f"{running.url}/auth/password", json=own, headers={"x-api-key": boss}).status_code in (400, 403)
        assert server.get("/auth/keys", boss).json()["data"] == []
        member = issuer.token("boss")  # the same person, without the group
        assert server.post("/admin/users", new, member).status_code == 403


def test_keys_of_an_issuer_change_and_it_goes_away(http: httpx.Client, tmp_path: Path, issuer: Issuer) -> None:
    trusted = trusting(issuer, tmp_path)
    with gateway(tmp_path, CONFIG, arguments=TWO, **SERVERS_ALONE, GATEWAY_TRUSTED_ISSUERS=trusted) as running:
        server = Server(running, http)
        assert server.chat(issuer.token()).status_code in (401, 503)  # nobody can say: the issuer is not there
        assert "could not be fetched" in running.log()
        with issuer.serving():
            wait_for(lambda: server.statuses(issuer.token(), "/v1/models") == {200}, AGAIN_S + 5)
            other = rsa.generate_private_key(65537, 2048)
            issuer.publish(other, "k2")
            wait_for(lambda: server.statuses(issuer.token(key=other, kid="k2"), "/v1/models") == {200}, AGAIN_S + 5)
            assert server.statuses(issuer.token(), "/v1/models") == {401}  # withdrawn
        assert server.statuses(issuer.token(key=other, kid="k2"), "/v1/models") == {200}  # its last keys stay good for a while
