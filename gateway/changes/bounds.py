"""How far keys and users reach: models, networks, an end, limits. Of two it says which reaches further, as far as that can be said.

Whoever may only narrow something, or give no more than they carry, is held to this.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from gateway.store.keys import ApiKey
from gateway.store.users import User

REACH = ("models", "networks", "expires_at")
"""What of a key decides where it opens anything at all."""
LIMITS = ("rpm", "tpm", "rpd", "tpd", "concurrency", "budget", "token_budget", "soft")
DISABLED = "disabled"
"""Stands beside the limits in `User.held`."""
_PATTERN = frozenset("*?[")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def value_of(subject: ApiKey | User, name: str) -> Any:
    """One of `REACH` and `LIMITS`."""
    return getattr(subject.limits if name in LIMITS else subject, name)


def bounds_of(subject: ApiKey | User) -> tuple[str, ...]:
    """The names of all that bounds it, sorted."""
    names = (*REACH, *LIMITS) if isinstance(subject, ApiKey) else LIMITS
    return tuple(sorted(name for name in names if _bounds(name, value_of(subject, name))))


def held_after(subject: ApiKey | User, named: Collection[str]) -> tuple[str, ...]:
    """`held` of what an admin has changed, who named these fields: what they bound is theirs from now on, what they freed is nobody's."""
    kept = [name for name in subject.held if name not in named]
    return tuple(sorted(kept + [name for name in bounds_of(subject) if name in named]))


def wider(names: Iterable[str], before: ApiKey | User, after: ApiKey | User) -> str | None:
    """The first of these names in which `after` reaches further than `before`, or may; None: in none."""
    for name in names:
        if not _within(name, value_of(after, name), value_of(before, name)):
            return name
    return None


def _bounds(name: str, value: Any) -> bool:
    if name == "models":
        return "*" not in value
    return bool(value) if name == "networks" else value is not None


def _within(name: str, value: Any, of: Any) -> bool:
    if value == of or not _bounds(name, of):
        return True
    if not _bounds(name, value):
        return False
    if name == "models":
        return all(_matches_no_more(glob, of) for glob in value)
    if name == "networks":
        return _all_inside(value, of)
    if name == "budget":  # how a day's compares with a month's nobody can say
        return bool(value.window == of.window and value.amount_pusd <= of.amount_pusd)
    if name == "token_budget":
        return bool(value.window == of.window and value.tokens <= of.tokens)
    return bool(value <= of)


def _matches_no_more(glob: str, than: Sequence[str]) -> bool:
    """Is whatever this pattern matches matched by one of those? Where only the two patterns' languages could tell: no."""
    if glob in than:
        return True
    if not _PATTERN & set(glob):
        return any(re.match(fnmatch.translate(wide), glob) for wide in than)
    # "chat-small-*" is within "chat-*": all that it matches begins so
    return any(wide[-1:] == "*" and not _PATTERN & set(wide[:-1]) and glob.startswith(wide[:-1]) for wide in than)


def _all_inside(texts: Sequence[str], of: Sequence[str]) -> bool:
    try:
        inner, outer = [ipaddress.ip_network(text) for text in texts], [ipaddress.ip_network(text) for text in of]
    except ValueError:  # no change writes such a thing
        return False
    whole = list(_joined(outer))
    return all(any(_is_inside(network, wide) for wide in whole) for network in inner)


def _joined(networks: Sequence[_Network]) -> Iterator[_Network]:
    """Neighbours as the one network that they make up."""
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))


def _is_inside(network: _Network, wide: _Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(wide, ipaddress.IPv4Network):
        return network.subnet_of(wide)
    return isinstance(network, ipaddress.IPv6Network) and isinstance(wide, ipaddress.IPv6Network) and network.subnet_of(wide)
