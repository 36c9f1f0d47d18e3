"""A served gateway with people of every role and credentials of every kind, for the tests that ask it as strangers would: over a socket."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from auth.keys import mint
from tests.gateway_process import PASSWORD, PLAIN, Gateway, gateway

CONFIG = """
models:
  - id: m
    prices: {input: "1", output: "2"}
    backends: [{type: echo}]
  - id: other
    backends: [{type: echo}]
"""
ROLES = ("admin", "manager", "member", "viewer")
PERSON_PASSWORD = "nine lanterns under the bridge 4"


@dataclass
class Scene:
    """`callers`: name -> credential (None: none is sent). `ids`: what paths are filled with."""

    gateway: Gateway
    http: httpx.Client
    callers: dict[str, str | None] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def client(self, caller: str) -> httpx.Client:
        """From an address of its own: what is limited by address is then no matter of how many callers are asked before."""
        number = 2 + sorted(self.callers).index(caller)
        transport = httpx.HTTPTransport(local_address=f"127.0.1.{number}", verify=PLAIN)
        return httpx.Client(base_url=self.gateway.url, transport=transport, trust_env=False, timeout=20)

    def as_admin(self, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        answer = self.http.request(method, path, json=body, headers={"authorization": f"Bearer {self.callers['login admin']}"})
        assert status is None or answer.status_code == status, answer.text
        assert answer.is_success, (method, path, answer.text)
        return answer.json()

    def log_in(self, email: str, password: str = PERSON_PASSWORD) -> str:
        answer = self.http.post("/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def person(self, name: str, role: str, **fields: Any) -> str:
        """A new user who can log in; the id."""
        body = {"email": f"{name}@example.com", "role": role, "password": PERSON_PASSWORD} | fields
        return str(self.as_admin("POST", "/admin/users", body)["id"])

    def key(self, name: str, owner: str | None = None, **fields: Any) -> dict[str, Any]:
        body = {"name": name, "owner": owner} | fields
        return dict(self.as_admin("POST", "/admin/keys", {k: v for k, v in body.items() if v is not None}))


def forged(token: str) -> str:
    """The same claims without a signature, by an algorithm called none."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "JWT"}).encode()).rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


@contextlib.contextmanager
def scene(folder: Path, *arguments: str, **environment: str) -> Iterator[Scene]:
    """Two teams. In the first a manager, a member, a viewer and a service; in the second a manager and a member; beside them admins."""
    with (
        gateway(folder, CONFIG, arguments=arguments, **environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as http,
    ):
        made = Scene(running, http)
        made.callers["login admin"] = made.log_in("admin@localhost", PASSWORD)
        _fill(made)
        yield made


def _fill(scene: Scene) -> None:
    ids, callers = scene.ids, scene.callers
    ids["team"] = scene.as_admin("POST", "/admin/teams", {"name": "first"}, 201)["id"]
    ids["other_team"] = scene.as_admin("POST", "/admin/teams", {"name": "second"}, 201)["id"]
    for role in ("manager", "member", "viewer"):
        ids[role] = scene.person(role, role, team=ids["team"])
        callers[f"login {role}"] = scene.log_in(f"{role}@example.com")
    ids["service"] = scene.as_admin("POST", "/admin/service-accounts", {"name": "robot", "team": ids["team"]}, 201)["id"]
    ids["other_manager"] = scene.person("other-manager", "manager", team=ids["other_team"])
    ids["other_member"] = scene.person("other-member", "member", team=ids["other_team"])
    ids["loner"] = scene.person("loner", "manager")
    callers["login manager without a team"] = scene.log_in("loner@example.com")
    ids["second_admin"] = scene.person("second-admin", "admin")
    for scope in ("inference", "usage", "metrics", "admin", "content"):
        callers[f"key {scope}"] = scene.key(scope, scopes=[scope])["key"]
    for role in ("manager", "member", "viewer", "service"):
        issued = scene.key(role, owner=ids[role], scopes=["usage"] if role == "viewer" else ["inference", "usage"])
        ids[f"key_of_{role}"], callers[f"key of the {role}"] = issued["id"], issued["key"]
    ids["key_of_other"] = scene.key("other", owner=ids["other_member"])["id"]
    ids["key_of_admin"] = scene.key("admin")["id"]
    callers["key elsewhere"] = scene.key("elsewhere", scopes=["inference", "usage", "metrics", "admin"], networks=["203.0.113.0/24"])["key"]
    _strangers(scene)


def _strangers(scene: Scene) -> None:
    """Credentials that are none (any more)."""
    callers = scene.callers
    callers["nobody"] = None
    callers["unknown key"] = mint()[1]
    callers["nonsense"] = "' OR 1=1 --"
    callers["forged token"] = forged(callers["login admin"] or "")
    revoked = scene.key("revoked", scopes=["inference", "usage", "metrics", "admin"])
    scene.as_admin("POST", f"/admin/keys/{revoked['id']}/revoke")
    callers["revoked key"] = revoked["key"]
    gone = scene.person("gone", "admin")
    callers["login of a disabled admin"] = scene.log_in("gone@example.com")
    callers["key of a disabled admin"] = scene.key("gone", owner=gone, scopes=["admin", "inference"])["key"]
    scene.as_admin("PATCH", f"/admin/users/{gone}", {"disabled": True})
    service = scene.ids["service"]
    assert scene.http.post("/auth/login", json={"email": "robot@service", "password": PERSON_PASSWORD}).status_code == 401, service
