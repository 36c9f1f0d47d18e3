"""Passwords: argon2id through passlib, one hash at a time on the host, off the event loop. The only module that imports passlib.

Parameters are OWASP's (m = 19,456 KiB, t = 2, p = 1): about 20 to 40 ms of CPU a hash.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from passlib.hash import argon2

from auth.password_rules import MAX_BYTES, MIN_CHARS, check_password
from auth.turns import Turns

__all__ = ["MAX_BYTES", "MIN_CHARS", "Passwords"]

_MEMORY_KIB = 19_456
_ROUNDS = 2
_LANES = 1


class Passwords:
    """Hashes and checks passwords.

    `lock_file`: see `auth.turns`; a flood of logins costs one thread, a share of one core and a bounded amount of memory.
    """

    def __init__(
        self, lock_file: Path | None = None, *, memory_kib: int = _MEMORY_KIB, rounds: int = _ROUNDS, turns: Turns | None = None
    ) -> None:
        scheme: Any = argon2
        self._scheme = scheme.using(type="ID", memory_cost=memory_kib, time_cost=rounds, parallelism=_LANES)
        self.turns = turns or Turns(lock_file)
        self._decoy: str | None = None

    async def hash(self, password: str, *, email: str = "") -> str:
        """The hash to store of a new password of the user with this e-mail.

        For callers who have proven who they are: their turn is ahead of strangers'. Raises `PasswordUnsuitable` and `HasherBusy`.
        """
        check_password(password, email)
        return await self.turns.run(lambda: str(self._scheme.hash(password)), ahead=True)

    async def verify(self, password: str, stored: str | None, *, ahead: bool = False) -> tuple[bool, str | None]:
        """(does it match, the hash to store instead, if `stored` was made with other parameters).

        `stored` None (no such user, or no password set) takes as long as a wrong password. `ahead`: see `auth.turns`.
        Raises `HasherBusy`.
        """
        if len(password.encode()) > MAX_BYTES:
            return False, None
        return await self.turns.run(lambda: self._verify(password, stored), ahead=ahead)

    def require_room(self) -> None:
        """Raises `HasherBusy` where `verify` of a stranger would. Cheap."""
        self.turns.require_room(ahead=False)

    def close(self) -> None:
        self.turns.close()

    def _verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        if stored is None:
            if self._decoy is None:
                self._decoy = str(self._scheme.hash(secrets.token_urlsafe(16)))
            self._scheme.verify(password, self._decoy)
            return False, None
        try:
            matches = bool(self._scheme.verify(password, stored))
        except ValueError:  # not an argon2 hash: nobody can log in with it
            return self._verify(password, None)
        if matches and self._scheme.needs_update(stored):
            return True, str(self._scheme.hash(password))
        return matches, None
