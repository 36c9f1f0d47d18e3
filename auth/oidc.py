"""Logging in through an OpenID provider: authorization code with PKCE, for browsers and for the command line.

What a login in progress has to remember (state, nonce, PKCE verifier, where to go on) lies sealed in the browser that began it, and
comes back from there. So a login can only be finished by the browser that began it, any process can finish it, and there is nothing
here that many begun logins could fill up.

    LoginExpired     the browser brings no note of this login, or one that is not of this state, or too old
    (auth.provider)  LoginRefused, ProviderAway
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from auth.errors import AuthError
from auth.oidc_config import OidcConfig
from auth.provider import Identity, Provider
from auth.seal import Seal

LOGIN_S = 600  # how long somebody may take at the provider
APPROVAL_S = 300  # and to say yes to the command line
CODE_S = 60  # and the command line to fetch its tokens
_BEGUN = "oidc login"
_ASKED = "oidc approval"
_MAX_NEXT_CHARS = 1024
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_OWN_PATH = re.compile(r"/(?:[!-.0-[\]-~][!-[\]-~]*)?")  # printable ASCII without a backslash; not "//host"


class LoginExpired(AuthError):
    def __init__(self) -> None:
        super().__init__("state")


@dataclass(frozen=True, slots=True)
class Program:
    """A command line on the same computer as the browser. It gets its answer at this port of the loopback address, and nowhere else."""

    port: int
    challenge: str  # PKCE, S256, between it and the gateway
    state: str

    @property
    def code(self) -> str:
        """What both the terminal and the browser show, so that a person sees that they belong together."""
        text = base64.b32encode(hashlib.sha256(self.challenge.encode()).digest())[:8].decode()
        return f"{text[:4]}-{text[4:]}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/callback"


@dataclass(frozen=True, slots=True)
class Begun:
    """`url`: where the browser goes; `name` and `note`: what it keeps meanwhile."""

    url: str = field(repr=False)
    name: str
    note: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Approved:
    """Who said yes to which program. `token_epoch`: of their logins when they were asked; a later one makes the yes void."""

    user_id: str
    token_epoch: int
    program: Program


@dataclass(frozen=True, slots=True)
class Finished:
    """Who came back, and where to go on: a path of our own, or the program that asked."""

    identity: Identity
    next: str
    program: Program | None


class OidcLogin:
    """One per process; nothing of a login is kept in it. `clock`: Unix seconds."""

    def __init__(self, provider: Provider, seal: Seal, *, clock: Callable[[], float] = time.time) -> None:
        self.provider = provider
        self._seal = seal
        self._clock = clock

    @property
    def config(self) -> OidcConfig:
        return self.provider.config

    async def begin(self, next_path: str, program: Program | None = None) -> Begun:
        """Raises `ProviderAway`."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        note = {"issuer": self.config.issuer, "state": state, "nonce": nonce, "verifier": verifier, "next": next_path}
        if program is not None:
            note |= {"port": str(program.port), "challenge": program.challenge, "program_state": program.state}
        url = await self.provider.authorization_url(state=state, nonce=nonce, challenge=challenge_of(verifier))
        return Begun(url, name_of(state), self._seal.close(_BEGUN, note, self._clock()))

    def known(self, state: str, note: str) -> bool:
        """Did this browser begin the login that this state belongs to?"""
        return self._opened(state, note) is not None

    async def finish(self, *, state: str, note: str, code: str, said_issuer: str | None) -> Finished:
        """Raises `LoginExpired`, `LoginRefused`, `ProviderAway`."""
        begun = self._opened(state, note)
        if begun is None:
            raise LoginExpired
        identity = await self.provider.identity(code=code, verifier=begun["verifier"], nonce=begun["nonce"], said_issuer=said_issuer)
        program = Program(int(begun["port"]), begun["challenge"], begun["program_state"]) if "port" in begun else None
        return Finished(identity, begun["next"], program)

    def ask(self, user_id: str, token_epoch: int, program: Program) -> str:
        """A ticket for the page that asks this user whether the program may act for them."""
        note = {"user_id": user_id, "epoch": str(token_epoch)}
        note |= {"port": str(program.port), "challenge": program.challenge, "state": program.state}
        return self._seal.close(_ASKED, note, self._clock())

    def approved(self, ticket: str) -> Approved:
        """What a ticket stands for. Raises `LoginExpired`."""
        note = self._seal.open(_ASKED, ticket, APPROVAL_S, self._clock())
        if note is None or "epoch" not in note:  # a server before this one sealed it without, minutes ago
            raise LoginExpired
        return Approved(note["user_id"], int(note["epoch"]), Program(int(note["port"]), note["challenge"], note["state"]))

    def _opened(self, state: str, note: str) -> dict[str, str] | None:
        begun = self._seal.open(_BEGUN, note, LOGIN_S, self._clock())
        if begun is None or not hmac.compare_digest(begun["state"].encode(), state.encode()):
            return None
        return begun if begun["issuer"] == self.config.issuer else None  # begun before the provider was exchanged


def challenge_of(verifier: str) -> str:
    """PKCE's S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def name_of(state: str) -> str:
    """What a login in progress is called in the browser: two tabs do not disturb each other."""
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def program_of(port: int, challenge: str, state: str) -> Program:
    """Raises `ValueError`, one sentence."""
    if not 1024 <= port <= 65535:
        raise ValueError("The port is one from 1024 to 65535.")
    if len(challenge) != 43 or _BASE64URL.fullmatch(challenge) is None:
        raise ValueError("The challenge is the SHA-256 of a verifier in base64url: 43 characters.")
    if not 16 <= len(state) <= 128 or _BASE64URL.fullmatch(state) is None:
        raise ValueError("The state is 16 to 128 characters of base64url.")
    return Program(port, challenge, state)


def own_path(text: str) -> bool:
    """Is this a path of our own host, however a browser reads it?"""
    return len(text) <= _MAX_NEXT_CHARS and _OWN_PATH.fullmatch(text) is not None
