"""The live services of one server process. Built once by `app`; everything else receives it."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from auth.address import Networks
from auth.login import Login
from auth.oidc import OidcLogin
from auth.passwords import Passwords
from auth.ports import Authenticates
from auth.tokens import AccessTokens
from backends.local import LocalState
from gateway.limits.base import Limiter
from gateway.limits.slots import Slots
from gateway.metering.base import Metering
from gateway.metering.log import RequestLog
from gateway.metering.progress import Progress
from gateway.metering.record import UsageRecord
from gateway.metering.spool import Entry
from gateway.routing.health import Health, HealthBoard
from gateway.routing.table import RouteTable, Target
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.key_uses import Uses
from gateway.store.live import LiveTables
from gateway.store.secrets import SecretBox
from gateway.wire.tokens import Tokenizer


class Ledger(Protocol):
    """Where admissions and endings are written. `begin` gives a request its slot in `progress`, `end` takes it back."""

    progress: Progress

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int, prompt_tokens: int) -> int: ...

    def end(self, record: UsageRecord, slot: int) -> None: ...


class Contents(Protocol):
    """Where what was said goes, of requests whose content is logged. `max_bytes`: kept of each side."""

    max_bytes: int

    def keep(self, entry: Entry) -> None: ...


class Counts(Protocol):
    """A request that is over but for counting what it used."""

    def hurry(self) -> None:
        """End it now, with an estimate."""


class Known(Protocol):
    """What credentials are judged by: `LiveTables`."""

    @property
    def applied(self) -> int:
        """Another number after each change that is put in force."""


class Clock:
    """Coarse time, moved forward by the edge's ticker: cheap to read, at most one tick old. Also the Date header of the second."""

    __slots__ = ("date_line", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0  # time.monotonic()
        self.date_line = b""


class InFlight:
    """Running attempts per backend and upstream model (what a `Health` stands for): the count lives over revisions."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[Health, int] = {}

    def in_flight(self, target: Target) -> int:
        return self._running.get(target.health, 0)

    def enter(self, target: Target) -> None:
        health = target.health
        self._running[health] = self._running.get(health, 0) + 1

    def leave(self, target: Target) -> None:
        health = target.health
        left = self._running.get(health, 1) - 1
        if left > 0:
            self._running[health] = left
        else:
            self._running.pop(health, None)


class TokenizerSource(Protocol):
    """Tokenizers by route; None where the route's is not known (or not loaded yet). `pool`: where long texts are encoded."""

    pool: Executor

    def of(self, route_id: str) -> Tokenizer | None: ...


class RequestIds:
    """Ids that no other process has: 64 random bits of this process and a counter. An endless iterator."""

    __slots__ = ("_head", "_number", "_prefix", "_tails")

    def __init__(self) -> None:
        self._prefix = f"req-{secrets.token_hex(8)}"
        self._tails = [f"{number:03x}" for number in range(4096)]
        self._number = -1
        self._head = ""

    def __iter__(self) -> RequestIds:
        return self

    def __next__(self) -> str:
        self._number = number = self._number + 1
        tail = number & 4095
        if not tail:
            self._head = f"{self._prefix}{number >> 12:05x}"
        return self._head + self._tails[tail]


@dataclass(slots=True)
class Relay:
    """What the data plane works with. `table` is the only member that is exchanged: a new revision is a new table."""

    authenticator: Authenticates
    known: Known
    limiter: Limiter
    ledger: Ledger
    meter: Metering
    log: RequestLog
    tokenizers: TokenizerSource
    table: RouteTable
    max_body_bytes: int
    max_answer_bytes: int
    cors_origins: frozenset[bytes]
    contents: Contents | None = None
    default_models: tuple[str, ...] = ()  # embedding, chat: for tokenize and detokenize without a model
    timeout_body_s: float = 600.0  # of a whole request body; 0 = none
    max_held_bytes: int = 512_000_000  # request bodies held in memory by this process at once
    held_bytes: int = 0
    content_bytes: int = 0  # what is gathered for the content log; no part of `held_bytes`, which requests are refused by
    draining: bool = False
    trusted_proxies: Networks = field(default_factory=Networks)
    clock: Clock = field(default_factory=Clock)
    slots: Slots = field(default_factory=lambda: Slots(10_000, 5.0))
    health: HealthBoard = field(default_factory=HealthBoard)
    load: InFlight = field(default_factory=InFlight)
    copies: InFlight = field(default_factory=InFlight)  # those of shadow traffic, which `load` counts too
    counting: set[Counts] = field(default_factory=set)
    most_counting: int = 256  # at once, in line for a thread or in it; beyond it there is the estimate
    count_s: float = 10.0  # in which a count must be done; then there is the estimate
    rng: random.Random = field(default_factory=random.Random)
    ids: RequestIds = field(default_factory=RequestIds)


@dataclass(frozen=True, slots=True)
class Control:
    """What the control plane (FastAPI) works with. One per server process; `relay` is the data plane beside it."""

    db: Database
    generation: Generation
    live: LiveTables
    login: Login
    tokens: AccessTokens
    passwords: Passwords
    secret_box: SecretBox
    content_box: SecretBox
    """Of what was logged of requests and answers."""
    relay: Relay
    local_state: LocalState
    """State of the local models, as the keeper publishes it."""
    cors_origins: tuple[str, ...]
    cookie_secure: bool
    version: str
    ready: Callable[[], tuple[bool, dict[str, str]]]
    """Is this process ready to serve, and what each part says ("migrated", "revision", "models", "draining")."""
    metrics_text: Callable[[], bytes]
    """The Prometheus exposition of this server (of all its processes)."""
    trusted_proxies: Networks = field(default_factory=Networks)
    """Peers whose word on their client's address and scheme is taken."""
    uses: Uses = field(default_factory=Uses)
    """Keys used on the control plane, until that is written; the relay's are in its ledger."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever reads logged content: one may be tens of megabytes, and more while it is made an answer."""
    oidc: OidcLogin | None = None
    """Logging in through an OpenID provider, where one is set up."""
