"""Who is asking, and what they may do. Frozen: a change makes a new principal, never edits one."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from enum import StrEnum

from auth.address import Networks

SCOPES = frozenset({"inference", "usage", "metrics", "admin"})


class Role(StrEnum):
    """What a person is. A login token carries the scopes of its role; a key carries its own."""

    ADMIN = "admin"
    MANAGER = "manager"
    MEMBER = "member"
    VIEWER = "viewer"

    @property
    def scopes(self) -> frozenset[str]:
        return _ROLE_SCOPES[self]


_ROLE_SCOPES = {
    Role.ADMIN: SCOPES,
    Role.MANAGER: frozenset({"inference", "usage"}),
    Role.MEMBER: frozenset({"inference", "usage"}),
    Role.VIEWER: frozenset({"usage"}),
}


@dataclass(frozen=True, slots=True)
class Budget:
    """Money per window. `amount_pusd` is in 1e-12 USD (exact integers); `window` None = for ever; windows are UTC."""

    amount_pusd: int
    window: str | None = None  # "day" | "week" | "month" | None


@dataclass(frozen=True, slots=True)
class Limits:
    """None = unlimited. rpm: requests per minute; tpm: prompt + completion tokens per minute; concurrency: requests at once."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: Budget | None = None

    @property
    def limited(self) -> bool:
        return self != _UNLIMITED


_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of one request.

    `key_id` is None for a login token. `limit_id` names the buckets that its requests are counted in (the key id, else the user id).
    `models` are globs over route ids; ("*",) = all. `team_id`: of the user, None where they are of no team. `networks`: where the key may
    be used from; None = anywhere. `token_epoch`: the one that the login was begun under; None: a key, or a login of somebody else's.
    """

    user_id: str
    role: Role
    scopes: frozenset[str]
    key_id: str | None = None
    models: tuple[str, ...] = ("*",)
    limits: Limits = _UNLIMITED
    limit_id: str = ""
    _allows: re.Pattern[str] | None = field(default=None, compare=False, repr=False)
    team_id: str | None = None
    networks: Networks | None = None
    token_epoch: int | None = None

    @staticmethod
    def compile_globs(globs: tuple[str, ...]) -> re.Pattern[str] | None:
        """The pattern for `_allows`; None = every model."""
        if "*" in globs:
            return None
        return re.compile("|".join(fnmatch.translate(g) for g in globs) or r"(?!)")

    def may_use(self, model: str) -> bool:
        """May this caller see and use the route `model`?"""
        return self._allows is None or self._allows.match(model) is not None

    def may_come_from(self, address: str) -> bool:
        """May this caller come from there? `address`: normalised, of `auth.address.client_address`; "" (not known) is in no network."""
        return self.networks is None or address in self.networks
