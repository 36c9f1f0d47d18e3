"""Who serves a request for one model, and why: the document's own policy is asked, about backends that are never called."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.routing.document import RevisionDocument, secret_names
from gateway.routing.policies import Affinity
from gateway.routing.policies.affinity import affinity_of, value_of
from gateway.routing.probes import Probed
from gateway.routing.table import BackendSpec, Route, Target, Timeouts, build_table

if TYPE_CHECKING:
    from backends.base import Exchange
    from gateway.routing.document import BackendEntry, ModelEntry

_SAMPLES = 200
_NO_CLOCKS = Timeouts(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: what a policy may look at. Nothing runs anywhere, as far as this command knows."""

    key: str = ""
    user: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def in_flight(self, target: Target) -> int:
        del target
        return 0

    def affinity(self, by: Affinity) -> bytes | None:
        return value_of(by, self.key, {"user": self.user}, self.headers)

    def known_as(self, by: Affinity) -> str:
        """In words, what the policy goes by; empty where too little was said to tell."""
        value = self.affinity(by)
        if value is not None and by.kind != "key":
            return f"{by} {value.decode('utf-8', 'replace')}"
        if self.key and by.kind != "prefix":
            return f"key {self.key}" + ("" if by.kind == "key" else f" (without {by})")
        return ""


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be said of a model. `stages`: who is tried first, second ...; in each, one is drawn. `asker`: "" for anyone."""

    entry: ModelEntry
    asker: str
    arm: str | None
    stages: tuple[tuple[str, ...], ...]
    shares: Mapping[str, float]
    away: Mapping[str, str]

    @property
    def live(self) -> tuple[str, ...]:
        """Backends with a weight, in the document's order."""
        return tuple(name for name, backend in _named(self.entry) if backend.weight > 0)


def explained(
    document: RevisionDocument, entry: ModelEntry, asker: Asker, states: Mapping[str, str], probes: Mapping[str, Probed]
) -> Found:
    """`states`: of local models, by path. `probes`: by `<model>/<backend>`."""
    by = _by(entry)
    known = asker.known_as(by) if by is not None else ""
    sticky = entry.policy == "sticky"
    route = _route(document, entry, even=not sticky)
    away = {name: why for name, backend in _named(entry) if backend.weight > 0 and (why := _away(entry, name, backend, states, probes))}
    usable = tuple(target for target in route.targets if target.id not in away)
    if not any(target.weight > 0 for target in usable):
        usable = route.targets  # then one of them is tried all the same
    undecided = by is not None and not known
    return Found(
        entry=entry,
        asker=known,
        arm=route.arms.arm(asker) if route.arms is not None and known else None,
        stages=() if undecided and not sticky else _stages(route, usable, asker, anyone=undecided),
        shares=shares(entry),
        away=away,
    )


def shares(entry: ModelEntry) -> dict[str, float]:
    """The part of all requests that each backend is the first choice for while all are well, load left aside."""
    parts = [([(name, b) for name, b in _named(entry) if name in members and b.weight > 0], share) for members, share in _parts(entry)]
    total = sum(share for live, share in parts if live)
    count = sum(bool(live) for live, _ in parts)
    found = {name: 0.0 for name, _ in _named(entry)}
    for live, share in parts:
        lead = min((backend.priority for _, backend in live), default=0)
        first = [(name, backend.weight) for name, backend in live if backend.priority == lead]
        for name, weight in first:
            found[name] = (share / total if total else 1 / count) * weight / sum(weight for _, weight in first)
    return found


def part_names(entry: ModelEntry) -> dict[str, str]:
    """Side or arm of each backend that has one."""
    if entry.policy == "canary" and entry.canary is not None:
        return {name: "canary" if name in entry.canary.backends else "stable" for name, _ in _named(entry)}
    if entry.policy == "experiment" and entry.experiment is not None:
        return {backend: name for name, arm in entry.experiment.arms.items() for backend in arm.backends}
    return {}


def _parts(entry: ModelEntry) -> list[tuple[frozenset[str], float]]:
    """Backends that share some of the users, and how many."""
    everyone = frozenset(entry.backend_ids())
    if entry.policy == "canary" and entry.canary is not None:
        new, share = frozenset(entry.canary.backends), entry.canary.percent / 100
        return [(new, share), (everyone - new, 1 - share)]
    if entry.policy == "experiment" and entry.experiment is not None:
        return [(frozenset(arm.backends), float(arm.weight)) for arm in entry.experiment.arms.values()]
    return [(everyone, 1.0)]


def _by(entry: ModelEntry) -> Affinity | None:
    """What the policy tells users apart by; None where it does not."""
    if entry.policy == "sticky":
        return affinity_of(entry.sticky.by, entry.sticky.prefix_bytes) if entry.sticky is not None else affinity_of("key")
    part = {"canary": entry.canary, "experiment": entry.experiment}.get(entry.policy)
    return affinity_of(part.by) if part is not None else None


def _stages(route: Route, usable: tuple[Target, ...], asker: Asker, *, anyone: bool) -> tuple[tuple[str, ...], ...]:
    """Who stands in which places, over many orders: a stage ends where all orders have had the same backends by then.

    The weights of `route` are even, so that no order is too rare to be seen. `anyone`: over many users rather than draws.
    """
    rng = random.Random(1)  # noqa: S311  # nothing is secret here, and the same question gets the same answer
    orders = []
    for number in range(_SAMPLES):
        context = Asker(key=f"{number}") if anyone else asker
        orders.append([target.id for target in route.policy.order(usable, context, rng)])
    stages: list[tuple[str, ...]] = []
    start = 0
    for end in range(1, len(orders[0]) + 1):
        if len({frozenset(order[:end]) for order in orders}) == 1:
            there = frozenset(orders[0][start:end])
            stages.append(tuple(target.id for target in usable if target.id in there))
            start = end
    return tuple(stages)


class _Uncalled:
    """Stands where a backend would."""

    ready = True
    asks_usage = False

    def open(self) -> Exchange:
        raise AssertionError("an explanation calls nobody")

    async def close(self) -> None:
        return


def _route(document: RevisionDocument, entry: ModelEntry, *, even: bool) -> Route:
    """The route, with its own weights or (`even`) 1 for each live backend."""

    def stand_in(spec: BackendSpec) -> _Uncalled:
        del spec
        return _Uncalled()

    backends = [backend.model_copy(update={"weight": min(backend.weight, 1) if even else backend.weight}) for backend in entry.backends]
    alone = RevisionDocument.model_construct(models=[entry.model_copy(update={"backends": backends})])
    return build_table(alone, 0, 0, stand_in, _NO_CLOCKS, dict.fromkeys(secret_names(document), "")).routes[entry.id]


def _away(entry: ModelEntry, name: str, backend: BackendEntry, states: Mapping[str, str], probes: Mapping[str, Probed]) -> str:
    """Why this backend cannot serve now; "" if nothing is known against it."""
    if backend.type == "local":
        state = states.get(backend.path, "not running")
        return "" if state == "ready" else state
    probed = probes.get(f"{entry.id}/{name}")
    if probed is not None and probed.alive is False and probed.valid_s(time.time()) > 0:
        return f"its probe fails: {probed.reason}"
    return ""


def _named(entry: ModelEntry) -> Sequence[tuple[str, Any]]:
    return list(zip(entry.backend_ids(), entry.backends, strict=True))
