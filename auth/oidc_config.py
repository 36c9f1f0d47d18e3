"""How the gateway is set up at an OpenID provider, and which of its values mean which role. Imports nothing heavy: settings use it."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from auth.principal import Role

CALLBACK = "/auth/oidc/callback"


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """Made by `oidc_config`, which checks it. `public_url`: scheme, host and port, without a slash at the end."""

    issuer: str
    client_id: str
    public_url: str
    client_secret: str = field(default="", repr=False)
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    role_claim: str = ""
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = None
    link_by_email: bool = False
    trust_email: bool = False

    @property
    def redirect_url(self) -> str:
        """Where the provider sends browsers back to: told to it by whoever registered the gateway there."""
        return self.public_url + CALLBACK

    @property
    def secure(self) -> bool:
        """Do browsers speak https with the gateway?"""
        return self.public_url.startswith("https:")


def checked_issuer(url: str) -> str:
    """Raises `ValueError`, one sentence."""
    parts = urlsplit(url)
    if not is_safe_url(url, plain_allowed=_is_loopback(parts.hostname)) or parts.query or parts.fragment:
        raise ValueError("an issuer is an https address without a query (http only on this machine)")
    return url


def checked_public_url(url: str) -> str:
    """The URL without a slash at its end. Raises `ValueError`, one sentence."""
    parts = urlsplit(url)
    if not is_safe_url(url, plain_allowed=_is_loopback(parts.hostname)) or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("this is an https address such as https://gateway.example.com, without a path (http only on this machine)")
    return f"{parts.scheme}://{parts.netloc}".lower()


def parse_roles(text: str) -> dict[str, Role]:
    """Raises `ValueError`, one sentence."""
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(value in tuple(Role) for value in found.values()):
        raise ValueError(f'this is a JSON object such as {{"staff": "member"}}, with the roles {", ".join(Role)}')
    return {value: Role(role) for value, role in found.items()}


def checked_scopes(text: str) -> tuple[str, ...]:
    """Raises `ValueError`, one sentence."""
    scopes = tuple(text.split())
    if "openid" not in scopes:
        raise ValueError("openid must be among the scopes")
    return scopes


def is_safe_url(url: str, *, plain_allowed: bool) -> bool:
    """An absolute https (or http) URL that every parser reads alike: printable ASCII, no credentials, no backslash."""
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' "<>\\^`{|}'):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        (parts.scheme == "https" or (plain_allowed and parts.scheme == "http"))
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and port != 0
    )


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
