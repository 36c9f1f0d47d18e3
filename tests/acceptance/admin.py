"""The first admin, logged in over HTTP: quicker than a command for each key, and one more way in that is used for real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from tests.gateway_process import PASSWORD, PLAIN, Gateway


class Admin:
    """Made by `admin`."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def issue(self, name: str, **fields: Any) -> dict[str, Any]:
        """A new key: `id`, `key` and the rest. `fields` as in `POST /admin/keys`."""
        answer = self._http.post("/admin/keys", json={"name": name} | fields)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def key(self, name: str, **fields: Any) -> str:
        """Its text alone."""
        return str(self.issue(name, **fields)["key"])

    def apply(self, document: dict[str, Any]) -> None:
        """Make it the live revision."""
        answer = self._http.post("/admin/revisions", json={"document": document, "note": "test"})
        assert answer.status_code == 201, answer.text

    def revoke(self, key_id: str) -> None:
        answer = self._http.post(f"/admin/keys/{key_id}/revoke")
        assert answer.is_success, answer.text


@contextlib.contextmanager
def admin(running: Gateway) -> Iterator[Admin]:
    """Log in to a gateway that is served."""
    with httpx.Client(base_url=running.url, trust_env=False, verify=PLAIN, timeout=20) as http:
        answer = http.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        http.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield Admin(http)
