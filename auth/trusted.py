"""Which issuers are trusted, with what: GATEWAY_TRUSTED_ISSUERS, a JSON list or the path of a file with one.

    [{"issuer": "https://id.example.com", "audience": "gateway", "role_claim": "groups",
      "roles": {"ml-platform": "admin", "staff": "member"}, "default_role": null,
      "models": ["chat-*"], "rpm": 60, "tpm": 100000, "concurrency": 4}]

`audience` may be a list: a token for any of them is accepted. `jwks_url` is looked up in the issuer's metadata where it is absent.
Limits are those of each person.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auth.claims import role_of
from auth.jwks import ALGORITHMS
from auth.oidc_config import checked_issuer, is_safe_url
from auth.principal import Limits, Principal, Role

_DEFAULT_ALGORITHMS = ("RS256", "ES256")
# A manager is one of a team, and nobody of another issuer is in one.
_ROLES = (Role.ADMIN, Role.MEMBER, Role.VIEWER)
_MEMBERS = frozenset(
    ("issuer", "audience", "jwks_url", "role_claim", "roles", "default_role", "algorithms", "models", "rpm", "tpm", "concurrency")
)
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """One of them. `roles`: what a value of the claim `role_claim` means here; `default_role`: for whom none fits, None: nobody."""

    issuer: str
    audiences: tuple[str, ...]
    jwks_url: str | None = None
    role_claim: str = ""
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = None
    algorithms: tuple[str, ...] = _DEFAULT_ALGORITHMS
    models: tuple[str, ...] = ("*",)
    limits: Limits = field(default_factory=Limits)
    allows: re.Pattern[str] | None = field(default=None, compare=False, repr=False)

    @property
    def discovery_url(self) -> str:
        return f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"

    def role_of(self, claims: Mapping[str, Any]) -> Role | None:
        return role_of(claims, self.role_claim, self.roles, self.default_role)


def trusted_issuers(setting: str) -> tuple[TrustedIssuer, ...]:
    """Raises `ValueError`, one plain sentence. Empty: none is trusted."""
    text = setting.strip()
    if not text:
        return ()
    try:
        if not text.startswith("["):
            path = Path(text).expanduser()
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"{path} is too large")
            text = path.read_text("utf-8")
        listed = json.loads(text)
    except OSError as error:
        raise ValueError(f"the file {setting.strip()} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"the file {setting.strip()} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError("it is no JSON list of objects") from None
    if not isinstance(listed, list) or not all(isinstance(value, dict) for value in listed):
        raise ValueError("it is no JSON list of objects")
    found = tuple(_read(value, number) for number, value in enumerate(listed, 1))
    if len({each.issuer for each in found}) != len(found):
        raise ValueError("an issuer is listed twice: give it several audiences instead")
    return found


def _read(value: Mapping[str, Any], number: int) -> TrustedIssuer:
    try:
        if unknown := sorted(value.keys() - _MEMBERS):
            raise ValueError(f"{unknown[0]!r} is not known; there are {', '.join(sorted(_MEMBERS))}")
        issuer = value.get("issuer")
        if not isinstance(issuer, str):
            raise ValueError("issuer is missing")
        models = _texts(value, "models", ("*",))
        made = TrustedIssuer(
            issuer=checked_issuer(issuer),
            audiences=_texts(value, "audience", ()),
            jwks_url=_url(value, issuer),
            role_claim=_text(value, "role_claim"),
            roles=_roles(value.get("roles", {})),
            default_role=_role(value["default_role"]) if value.get("default_role") is not None else None,
            algorithms=_texts(value, "algorithms", _DEFAULT_ALGORITHMS),
            models=models,
            limits=Limits(rpm=_count(value, "rpm"), tpm=_count(value, "tpm"), concurrency=_count(value, "concurrency")),
            allows=Principal.compile_globs(models),
        )
        if not made.audiences:
            raise ValueError("audience is missing: without it, tokens for other services would be accepted")
        if not set(made.algorithms) <= set(ALGORITHMS) or not made.algorithms:
            raise ValueError(f"algorithms are some of {', '.join(ALGORITHMS)}")
        if bool(made.role_claim) != bool(made.roles):
            raise ValueError("role_claim and roles go together")
        if not made.roles and made.default_role is None:
            raise ValueError("nobody would be let in: give role_claim and roles, or default_role")
        return made
    except ValueError as error:
        raise ValueError(f"entry {number}: {error}") from None


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name) or ""
    if not isinstance(found, str):
        raise ValueError(f"{name} is not text")
    return found


def _texts(value: Mapping[str, Any], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    found = value.get(name, default)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{name} is neither text nor a list of texts")
    return tuple(found)


def _url(value: Mapping[str, Any], issuer: str) -> str | None:
    found = _text(value, "jwks_url")
    if found and not is_safe_url(found, plain_allowed=issuer.startswith("http:")):
        raise ValueError("jwks_url is no https address (http only where the issuer is on this machine)")
    return found or None


def _roles(value: object) -> dict[str, Role]:
    if not isinstance(value, dict):
        raise ValueError("roles is no object of claim values and roles")
    return {claim: _role(role) for claim, role in value.items()}


def _role(value: object) -> Role:
    if value not in _ROLES:
        raise ValueError(f"a role is one of {', '.join(_ROLES)}")
    return Role(str(value))


def _count(value: Mapping[str, Any], name: str) -> int | None:
    found = value.get(name)
    if found is not None and (type(found) is not int or not 0 < found < 2**53):
        raise ValueError(f"{name} is no number above 0")
    return found
