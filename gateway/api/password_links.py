"""One-time links for passwords: issued at `/admin/users/{id}/password-link`, used at `/auth/password/reset`.

The link is a page of the gateway. Its secret stands behind the `#`, which browsers send to nobody: it is in no log of a server or proxy.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from auth.password_rules import MIN_CHARS
from gateway.api.context import By, TheControl, address_of
from gateway.api.moments import moment
from gateway.api.users import UserId
from gateway.changes import issue_password_link, password_link_user, use_password_link
from gateway.limits.edge import AddressLimits

PATH = "/auth/password/reset"
RATES = "20/minute;100/hour"
_SCRIPT = """
const form = document.forms[0], said = document.getElementById("said");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (form.password.value !== form.again.value) { said.textContent = "The two are not the same."; return; }
  const body = JSON.stringify({token: location.hash.slice(1), new_password: form.password.value});
  try {
    const answer = await fetch(location.pathname, {method: "POST", headers: {"content-type": "application/json"}, body});
    if (answer.ok) { form.remove(); said.textContent = "The password is set: log in with it."; return; }
    const detail = (await answer.json()).detail;
    said.textContent = typeof detail === "string" ? detail : detail.map((fault) => fault.message).join(" ");
  } catch { said.textContent = "The gateway did not answer: try again."; }
});
"""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 24rem; margin: 4rem auto; padding: 0 1rem; color: #222; background: #fff; }
input, button { font: inherit; display: block; width: 100%; box-sizing: border-box; padding: .5rem; margin: .25rem 0 1rem; }
"""
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Model gateway: set a password</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Set a password</h1>
<form>
<label>New password, at least {MIN_CHARS} characters
<input type="password" name="password" autocomplete="new-password" minlength="{MIN_CHARS}" required></label>
<label>The same again
<input type="password" name="again" autocomplete="new-password" required></label>
<button>Set it</button>
</form>
<p id="said" role="status"></p>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _source(text: str) -> str:
    """How a content security policy names one inline script or style: by its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PasswordLinkOut(BaseModel):
    """Shown this once. The page at `path` of this gateway asks for a new password; so does `POST /auth/password/reset`."""

    token: str = Field(examples=["usr_9f2c1a7be04d5566.J0b5..."])
    path: str = Field(examples=[f"{PATH}#usr_9f2c1a7be04d5566.J0b5..."])
    expires_at: datetime


class ResetRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=200)
    new_password: str = Field(min_length=MIN_CHARS, max_length=1024)


async def issue(control: TheControl, by: By, user_id: UserId) -> PasswordLinkOut:
    """Make a link with which this user sets a password. It is good once, for a day; the link before it is void."""
    link = await issue_password_link(control.db, control.generation, by, user_id)
    return PasswordLinkOut(token=link.token, path=f"{PATH}#{link.token}", expires_at=moment(link.expires_at))


async def reset(request: Request, body: ResetRequest, control: TheControl) -> None:
    """Set one's password with a link. Every login of this user ends."""
    user = await password_link_user(control.db, body.token)  # before anything is hashed: strangers get no further
    new_hash = await control.passwords.hash(body.new_password, email=user.email)
    where = address_of(request) or None
    await use_password_link(control.db, control.generation, token=body.token, password_hash=new_hash, address=where)


async def page() -> Response:
    """The page that a link leads to."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})


def add_routes(app: FastAPI, limits: AddressLimits) -> None:
    """Register them."""
    path, tags = "/admin/users/{user_id}/password-link", ["users"]
    app.add_api_route(path, issue, methods=["POST"], response_model=PasswordLinkOut, status_code=201, tags=list[Any](tags))
    app.add_api_route(PATH, limits.limit(RATES)(reset), methods=["POST"], status_code=204, tags=["login"])
    app.add_api_route(PATH, page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
