"""Who is asking, and what they may do. Frozen: a change makes a new principal, never edits one."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from auth.address import Networks

CONTENT: Final = "content"
"""Reading what was logged of requests and answers. No role carries it: a key has it where an admin gave it to that key."""
SCOPES = frozenset({"inference", "usage", "metrics", "admin", CONTENT})


class Role(StrEnum):
    """What a person is. A login token carries the scopes of its role; a key carries its own."""

    ADMIN = "admin"
    MANAGER = "manager"
    MEMBER = "member"
    VIEWER = "viewer"

    @property
    def scopes(self) -> frozenset[str]:
        """Of a login."""
        return _ROLE_SCOPES[self]

    @property
    def key_scopes(self) -> frozenset[str]:
        """What keys of such a person may carry."""
        return _ROLE_SCOPES[self] | {CONTENT}


_ROLE_SCOPES = {
    Role.ADMIN: SCOPES - {CONTENT},
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
class TokenBudget:
    """Prompt and completion tokens per window, as `Budget` is money."""

    tokens: int
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """None = unlimited. rpm, rpd: requests per minute and per day; tpm, tpd: prompt + completion tokens; concurrency: requests at once.

    `soft`: the percent of a budget from which on answers warn; it refuses nothing. `since`: when the budgets were last set back, Unix
    seconds: what was spent before does not count.
    """

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: Budget | None = None
    rpd: int | None = None
    tpd: int | None = None
    token_budget: TokenBudget | None = None
    soft: int | None = None
    since: float | None = None

    @property
    def limited(self) -> bool:
        rates = self.rpm is not None or self.tpm is not None or self.rpd is not None or self.tpd is not None
        return rates or self.concurrency is not None or self.budget is not None or self.token_budget is not None


_UNLIMITED = Limits()


class Limited:
    """One of those that a request is counted under: a key, a user, a team, a model.

    `limit_id` names its account: a key's id, "user:", "team:" or "model:" and theirs. There is one for each id in a process, and who made
    it may put other limits in force for it: then they hold for all who refer to it, at once.
    """

    __slots__ = ("limit_id", "limits")

    def __init__(self, limit_id: str, limits: Limits) -> None:
        self.limit_id = limit_id
        self.limits = limits


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of one request.

    `key_id` is None for a login token. `limit_id` is its own name (the key id, else the user id) and `limits` are its own
    limits; `callers` are all that its requests are counted under, itself among them: those that have limits, in the order key, user, team.
    `models` are globs over route ids; ("*",) = all. `team_id`: of the user, None where they are of no team. `networks`: where the key may
    be used from; None = anywhere. `token_epoch`: the one that the login was begun under; None: a key, or a login of somebody else's.
    `content_log`: what it asks and is answered is kept.
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
    callers: tuple[Limited, ...] = field(default=(), compare=False, repr=False)
    content_log: bool = False

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
