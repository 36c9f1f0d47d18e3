"""What of the users and their keys a caller of the administration sees: all of them, or those of one team."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from auth.principal import Principal, Role
from gateway.store.users import User


@dataclass(frozen=True, slots=True)
class Reach:
    """`team_id` None: everything; else what is of this team, "" being the team that nobody is of."""

    team_id: str | None = ""

    def sees(self, user: User) -> bool:
        return self.team_id is None or (bool(self.team_id) and user.team_id == self.team_id)


def reach(principal: Principal) -> Reach:
    """Of a caller that the policy `manage` has let in. Read from what the process knows; changes look again, in the database."""
    if "admin" in principal.scopes:
        return Reach(None)
    return Reach(principal.team_id or "") if is_manager(principal) else Reach()


def is_manager(principal: Principal) -> bool:
    """A person who manages a team and has logged in. A key never has a manager's powers."""
    return principal.key_id is None and principal.role == Role.MANAGER


async def reach_of(request: Request) -> Reach:
    return reach(request.state.principal)


TheReach = Annotated[Reach, Depends(reach_of)]
