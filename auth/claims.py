"""What the claims of a verified token say, where only the operator knows how they are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auth.principal import Role


def claim_at(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, else what lies at this path ("realm_access.roles"); None where there is neither."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def role_of(claims: Mapping[str, Any], name: str, roles: Mapping[str, Role], default: Role | None) -> Role | None:
    """The highest role that a value of the claim means; `default` where none does. `name` "": no claim is looked at."""
    value = claim_at(claims, name) if name else None
    values = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    found = {roles[v] for v in values if v in roles}
    return next((role for role in Role if role in found), default)
