"""The login that the command line keeps: tokens of one gateway, in a file for its owner alone."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gateway.cli.output import fail

FILE_NAME = "login.json"


@dataclass(frozen=True, slots=True)
class SavedLogin:
    """`url`: of the gateway; `expires_at`: of the access token, Unix seconds; `ca_file`: its authorities, "" the system's."""

    url: str
    email: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: float
    ca_file: str = ""


class LoginFile:
    """In `home`, which is made if need be."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.path = home / FILE_NAME

    def read(self) -> SavedLogin:
        """`CommandFailed` where there is none, or others can read it."""
        try:
            if self.path.stat().st_mode & 0o077:
                fail(f"{self.path} can be read by other users of this machine: `gateway logout`, then log in again.")
            return SavedLogin(**json.loads(self.path.read_text()))
        except FileNotFoundError:
            fail("You are not logged in: `gateway login --url URL`.")
        except (ValueError, TypeError):
            fail(f"{self.path} is damaged: delete it and log in again.")

    def write(self, login: SavedLogin) -> None:
        """Whole or not at all, and never readable by others."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._home / f".{FILE_NAME}.{secrets.token_hex(8)}"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(asdict(login), file)
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of several commands at once one exchanges the refresh token; a token that is used twice would end the login."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._home / f".{FILE_NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
