"""The route table: what the relay reads. Frozen; a new revision is a new table, swapped in whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from auth.principal import Budget, Limited, Limits, TokenBudget
from backends.base import Backend
from gateway.routing.choice import policy_of
from gateway.routing.document import CustomEntry, EchoEntry, LimitsEntry, LocalEntry, ModelEntry, RevisionDocument, SecretRef
from gateway.routing.health import Health
from gateway.routing.policies import Arms, Canary, Experiment, Policy, Shadow
from gateway.routing.prices import DatedPricesEntry, PricesEntry, entries_of, seconds_of
from gateway.routing.retries import RATIO, RetryBudget

DEFAULT_MAX_OUTPUT_TOKENS: Final = 1024
DEFAULT_MAX_ATTEMPTS: Final = 2

_SECRET_CHARS: Final = 8  # of a backend's credential: shorter ones are words


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """Everything that makes one backend. Equal specs are served by one live `Backend` (and its pool), across routes and revisions."""

    type: str  # "custom" | "local" | "echo"
    base_url: str = ""  # custom: no trailing slash
    authorization: str | None = field(default=None, repr=False)  # custom: the whole header value
    allow_link_local: bool = False  # custom
    path: str = ""  # local: as written in the document
    port: int | None = None  # local
    delay_ms: int = 0  # echo: before the answer
    chunk_delay_ms: int = 0  # echo: between two chunks


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One backend of one route. `id` is its name in records, metrics and errors, `secret` what no error repeats. Compared by identity.

    `prices`: its own, which lead to the route's for the time before them; None: the route's.
    """

    id: str
    type: str
    upstream_model: str
    weight: int
    backend: Backend
    path: str | None = None
    priority: int = 0
    health: Health = field(default_factory=Health, repr=False)
    secret: bytes = field(default=b"", repr=False)
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The four clocks of a request in seconds; 0 = none."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Prices:
    """1e-12 USD per token, exact. `cached_pusd` None: cached prompt tokens cost what others cost.

    `from_s`: Unix seconds from which on they count; `before`: what counts until then. So the newest prices of a list lead to all others,
    and in the usual case, where nothing is planned ahead, one comparison finds what counts.
    `text`: the same as records hold it, INPUT/OUTPUT/CACHED in USD per million tokens, CACHED empty where there is none.
    """

    input_pusd: int
    output_pusd: int
    cached_pusd: int | None = None
    from_s: float = 0.0
    before: Prices | None = field(default=None, compare=False, repr=False)
    text: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        cached = "" if self.cached_pusd is None else _per_million(self.cached_pusd)
        object.__setattr__(self, "text", f"{_per_million(self.input_pusd)}/{_per_million(self.output_pusd)}/{cached}")

    def at(self, at_s: float) -> Prices | None:
        """What counts at this time (Unix seconds); None: no price yet."""
        found: Prices | None = self
        while found is not None and at_s < found.from_s:
            found = found.before
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One model name and all that a request for it needs.

    `live`: some target has a weight above zero. `has_local`: one of those is a local model. `fallback`: the route to try when no target of
    this one serves. `arms`: the policy, where it divides users (canary, experiment). `max_attempts`: of one request, the first included.
    `limited`: the limits of all its callers together. `prices`: of targets without their own; `own_prices`: some have.
    `content_log`: what is asked and answered is kept.
    """

    id: str
    name: str
    created: int
    targets: tuple[Target, ...]
    policy: Policy
    parameters: Mapping[str, Any]
    timeouts: Timeouts
    prices: Prices | None
    max_output_tokens: int
    tokenizer: str | None
    revision: int
    live: bool
    retries: RetryBudget = field(default_factory=RetryBudget, repr=False)
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    fallback: str | None = None
    arms: Arms | None = None
    shadow: Shadow | None = None
    has_local: bool = False
    limited: Limited | None = None
    content_log: bool = False
    own_prices: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_prices", any(target.prices is not None for target in self.targets))


@dataclass(frozen=True, slots=True, eq=False)
class RouteTable:
    """All routes of one revision. `problems`: sentences for the log about what had to be left out.

    `health_keys`: backend and upstream model of every target, what a `HealthBoard` must go on remembering.
    """

    revision: int
    routes: dict[str, Route]
    problems: tuple[str, ...] = ()
    health_keys: frozenset[tuple[BackendSpec, str]] = frozenset()


class SecretMissing(Exception):
    """A backend names a secret that is not in the store."""


def _unwatched(spec: BackendSpec, upstream_model: str) -> Health:
    del spec, upstream_model
    return Health()


def _fresh_budget(route_id: str, ratio: float) -> RetryBudget:
    del route_id
    return RetryBudget(ratio)


def _limited(limit_id: str, limits: Limits) -> Limited | None:
    return Limited(limit_id, limits) if limits.limited else None


def build_table(
    document: RevisionDocument,
    revision_id: int,
    created: int,
    open_backend: Callable[[BackendSpec], Backend],
    defaults: Timeouts,
    secrets: Mapping[str, str],
    health_of: Callable[[BackendSpec, str], Health] = _unwatched,
    retries_of: Callable[[str, float], RetryBudget] = _fresh_budget,
    problems: Sequence[str] = (),
    limited_of: Callable[[str, Limits], Limited | None] = _limited,
) -> RouteTable:
    """The table of one revision. `created`: Unix seconds. `secrets`: plain values by name.

    `health_of`: by backend and upstream model; `retries_of`: by route id and ratio. Both live over revisions.
    A target whose secret is missing is left out rather than sent without its credential; the others go on serving. `problems`: what was
    left out of the document before (`routing.stored`). `limited_of`: whoever is counted under this limit id, with these limits from now on.
    """
    found = list(problems)
    named: set[tuple[BackendSpec, str]] = set()

    def watched(spec: BackendSpec, upstream_model: str) -> Health:
        named.add((spec, upstream_model))
        return health_of(spec, upstream_model)

    def route_of(model: ModelEntry) -> Route:
        prices = _prices(model.prices)
        targets = tuple(_targets(model, open_backend, secrets, found, watched, prices))
        if not targets:
            found.append(f"model {model.id} has no backend left: its requests get 503, or its fallback")
        policy, retries = policy_of(model, targets), model.retries
        return Route(
            id=model.id,
            name=model.name or model.id,
            created=created,
            targets=targets,
            policy=policy,
            parameters=model.parameters,
            timeouts=_timeouts(model, defaults),
            prices=prices,
            limited=limited_of(f"model:{model.id}", _limits(model.limits)),
            max_output_tokens=model.max_output_tokens or DEFAULT_MAX_OUTPUT_TOKENS,
            tokenizer=model.tokenizer,
            revision=revision_id,
            live=any(target.weight > 0 for target in targets),
            retries=retries_of(model.id, retries.ratio if retries else RATIO),
            max_attempts=retries.max_attempts if retries else DEFAULT_MAX_ATTEMPTS,
            fallback=model.fallback,
            arms=policy if isinstance(policy, Canary | Experiment) else None,
            shadow=_shadow(model, targets),
            has_local=any(target.type == "local" and target.weight > 0 for target in targets),
            content_log=model.content_log,
        )

    routes = {model.id: route_of(model) for model in document.models}
    return RouteTable(revision_id, routes, tuple(found), frozenset(named))


def local_specs(document: RevisionDocument) -> tuple[BackendSpec, ...]:
    """The local models that this revision needs, each once, in the order of the document (drained ones too: they stay loaded)."""
    entries = (entry for model in document.models for entry in model.backends if isinstance(entry, LocalEntry))
    return tuple(dict.fromkeys(spec_of(entry, {}) for entry in entries))


def _targets(
    model: ModelEntry,
    open_backend: Callable[[BackendSpec], Backend],
    secrets: Mapping[str, str],
    problems: list[str],
    health_of: Callable[[BackendSpec, str], Health],
    prices: Prices | None,
) -> Iterator[Target]:
    for backend_id, entry in zip(model.backend_ids(), model.backends, strict=True):
        try:
            spec = spec_of(entry, secrets)
        except SecretMissing as missing:
            problems.append(f'backend {backend_id} of model {model.id} is left out: the secret "{missing}" is not in the store')
            continue
        upstream_model = entry.model or model.id
        yield Target(
            id=backend_id,
            type=entry.type,
            upstream_model=upstream_model,
            weight=entry.weight,
            backend=open_backend(spec),
            path=spec.path or None,
            priority=entry.priority,
            health=health_of(spec, upstream_model),
            secret=_secret_of(spec),
            prices=_prices(entry.prices, prices) if entry.prices is not None else None,
        )


def _shadow(model: ModelEntry, targets: tuple[Target, ...]) -> Shadow | None:
    """None too where its backend had to be left out."""
    wanted = model.shadow
    if wanted is None:
        return None
    return next((Shadow(target, wanted.sample, wanted.max_in_flight) for target in targets if target.id == wanted.backend), None)


def spec_of(entry: CustomEntry | LocalEntry | EchoEntry, secrets: Mapping[str, str]) -> BackendSpec:
    """What the document says of one backend, its credential in the clear. Raises `SecretMissing`."""
    if isinstance(entry, LocalEntry):
        return BackendSpec("local", path=entry.path, port=entry.port)
    if isinstance(entry, EchoEntry):
        return BackendSpec("echo", delay_ms=entry.delay_ms, chunk_delay_ms=entry.chunk_delay_ms)
    header = None
    if entry.authorization is not None:
        header = _plain(entry.authorization, secrets)
    elif entry.api_key is not None:
        header = f"Bearer {_plain(entry.api_key, secrets)}"
    return BackendSpec("custom", base_url=entry.base_url, authorization=header, allow_link_local=entry.allow_link_local)


def _secret_of(spec: BackendSpec) -> bytes:
    """The credential without its scheme; nothing where it is too short to be told from other words."""
    words = (spec.authorization or "").split()
    return words[-1].encode() if words and len(words[-1]) >= _SECRET_CHARS else b""


def _plain(value: str | SecretRef, secrets: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return value
    if value.secret not in secrets:
        raise SecretMissing(value.secret)
    return secrets[value.secret]


def _timeouts(model: ModelEntry, defaults: Timeouts) -> Timeouts:
    own = model.timeouts
    if own is None:
        return defaults

    def pick(value: float | None, default: float) -> float:
        return default if value is None else value  # 0 is a value: no clock

    return Timeouts(
        connect_s=pick(own.connect_s, defaults.connect_s),
        first_byte_s=pick(own.first_byte_s, defaults.first_byte_s),
        idle_s=pick(own.idle_s, defaults.idle_s),
        total_s=pick(own.total_s, defaults.total_s),
    )


def model_limits(document: RevisionDocument) -> dict[str, Limits]:
    """Of the models that have any, by limit id."""
    return {f"model:{model.id}": _limits(model.limits) for model in document.models if model.limits is not None}


def _limits(entry: LimitsEntry | None) -> Limits:
    if entry is None:
        return Limits()
    budget = token_budget = None
    if entry.budget is not None:
        amount, _, window = entry.budget.partition("/")
        budget = Budget(int(Decimal(amount).scaleb(12)), window or None)
    if entry.token_budget is not None:
        amount, _, window = entry.token_budget.partition("/")
        token_budget = TokenBudget(int(amount), window or None)
    return Limits(entry.rpm, entry.tpm, entry.concurrency, budget, entry.rpd, entry.tpd, token_budget, entry.soft)


def _prices(prices: PricesEntry | list[DatedPricesEntry] | None, before: Prices | None = None) -> Prices | None:
    """The newest, which leads to the others. `before`: what counts until the first of them does."""
    found = before
    for moment, entry in entries_of(prices):
        cached = None if entry.cached is None else _pusd(entry.cached)
        from_s = 0.0 if moment is None else seconds_of(moment)
        found = Prices(_pusd(entry.input), _pusd(entry.output), cached, from_s, found if from_s > 0.0 else None)
    return found


def _per_million(pusd: int) -> str:
    """The other way round, in as few digits as say it."""
    return f"{Decimal(pusd).scaleb(-6).normalize():f}"


def _pusd(usd_per_million: str) -> int:
    """USD per million tokens -> 1e-12 USD per token: exactly a factor of a million, and a whole number (at most 6 decimals)."""
    return int(Decimal(usd_per_million).scaleb(6))
