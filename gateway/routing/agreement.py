"""What no single field of a document shows: names that must be unique, or must name something, and parts that need each other.

Works on data that nothing has checked yet (keys are in snake_case, that is all), so that these faults come together with all others.
What has a wrong type is passed over: it is a fault of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gateway.routing.document import names_of
from gateway.routing.faults import Fault, Path, nearest

_Items = list[tuple[int, dict[Any, Any]]]
_POLICY_PARTS = ("sticky", "canary", "experiment")
_NEED_THEIR_PART = ("canary", "experiment")


def disagreements(data: dict[Any, Any]) -> Iterator[Fault]:
    """Every such fault in a document."""
    models = _items(data.get("models"))
    yield from _duplicates(models, ("models",), "model")
    for position, model in models:
        place: Path = ("models", position)
        yield from _backends(model, (*place, "backends"))
        yield from _policy(model, place)
        yield from _names(model, place)
    yield from _fallbacks(models)


def _backends(model: dict[Any, Any], place: Path) -> Iterator[Fault]:
    backends = _items(model.get("backends"))
    yield from _duplicates(backends, place, "backend")
    for index, backend in backends:
        if backend.get("api_key") is not None and backend.get("authorization") is not None:
            yield Fault((*place, index, "authorization"), "is given beside api_key: only one of the two can be sent")


def _policy(model: dict[Any, Any], place: Path) -> Iterator[Fault]:
    """A policy and the part that describes it go together: one without the other would do nothing, silently."""
    policy = model.get("policy", "weighted")
    for name in _POLICY_PARTS:
        if model.get(name) is not None and policy != name:
            yield Fault((*place, name), f'does nothing unless the model says "policy: {name}"')
    if policy in _NEED_THEIR_PART and model.get(policy) is None:
        yield Fault((*place, "policy"), f'needs "{policy}:" beside it, which says how')


def _names(model: dict[Any, Any], place: Path) -> Iterator[Fault]:
    """Parts that name backends of their model."""
    if not isinstance(model.get("backends"), list):
        return
    known = _backend_names(model["backends"])
    shadow = model.get("shadow")
    if isinstance(shadow, dict):
        yield from _unknown([shadow.get("backend")], known, lambda _: (*place, "shadow", "backend"))
    canary = model.get("canary")
    if isinstance(canary, dict) and isinstance(canary.get("backends"), list):
        yield from _canary(canary["backends"], known, (*place, "canary", "backends"))
    experiment = model.get("experiment")
    if isinstance(experiment, dict) and isinstance(experiment.get("arms"), dict):
        yield from _arms(experiment["arms"], known, (*place, "experiment", "arms"))


def _canary(named: list[Any], known: tuple[str, ...], place: Path) -> Iterator[Fault]:
    yield from _unknown(named, known, lambda index: (*place, index))
    if known and not set(known) - {name for name in named if isinstance(name, str)}:
        yield Fault(place, "names every backend of the model: nothing is left for the stable side")


def _arms(arms: dict[Any, Any], known: tuple[str, ...], place: Path) -> Iterator[Fault]:
    if len(arms) < 2:
        yield Fault(place, "must be at least two: with fewer there is nothing to compare")
    elif all(isinstance(arm, dict) and arm.get("weight", 1) in (0, "0") for arm in arms.values()):
        yield Fault(place, "must not all have the weight 0: nobody could be assigned")
    taken: dict[str, str] = {}
    for name, arm in arms.items():
        named = arm.get("backends") if isinstance(arm, dict) else None
        if not isinstance(named, list):
            continue
        yield from _unknown(named, known, lambda index, arm=name: (*place, arm, "backends", index))
        for index, backend in enumerate(named):
            if isinstance(backend, str) and taken.setdefault(backend, name) != name:
                yield Fault((*place, name, "backends", index), f'"{backend}" is in the arm "{taken[backend]}" already')


def _unknown(named: Iterable[Any], known: tuple[str, ...], place: Any) -> Iterator[Fault]:
    for index, name in enumerate(named):
        if isinstance(name, str) and name and name not in known:
            yield Fault(place(index), f'"{name}" is no backend of this model{nearest(name, known)}; there are: {", ".join(known)}')


def _backend_names(backends: list[Any]) -> tuple[str, ...]:
    """As `ModelEntry.backend_ids`, as far as types and ids can be read."""
    entries = (entry if isinstance(entry, dict) else {} for entry in backends)
    return names_of([(str(entry.get("type")), entry["id"] if isinstance(entry.get("id"), str) else None) for entry in entries])


def _fallbacks(models: _Items) -> Iterator[Fault]:
    """Each must name a model, and no chain of them may lead back to where it began."""
    names = [model["id"] for _, model in models if isinstance(model.get("id"), str)]
    following = {model["id"]: model.get("fallback") for _, model in models if isinstance(model.get("id"), str)}
    reported: set[str] = set()
    for position, model in models:
        name, fallback = model.get("id"), model.get("fallback")
        if not isinstance(name, str) or not isinstance(fallback, str) or not fallback:
            continue
        place: Path = ("models", position, "fallback")
        if fallback not in following:
            yield Fault(place, f'there is no model "{fallback}"{nearest(fallback, names)}')
            continue
        circle = _circle(name, following)
        if circle and name not in reported:
            reported.update(circle)
            yield Fault(place, f"leads back to where it began: {' -> '.join((*circle, name))}")


def _circle(start: str, following: dict[str, Any]) -> list[str]:
    """The models passed on the way from `start` back to it; empty where the chain ends or turns elsewhere."""
    passed = [start]
    while isinstance(step := following.get(passed[-1]), str) and step in following:
        if step == start:
            return passed
        if step in passed:
            return []
        passed.append(step)
    return []


def _items(value: object) -> _Items:
    return [(i, item) for i, item in enumerate(value) if isinstance(item, dict)] if isinstance(value, list) else []


def _duplicates(items: _Items, place: Path, what: str) -> Iterator[Fault]:
    seen: set[str] = set()
    for position, item in items:
        name = item.get("id")
        if isinstance(name, str):
            if name in seen:
                yield Fault((*place, position, "id"), f'there is already a {what} with the id "{name}"')
            seen.add(name)
