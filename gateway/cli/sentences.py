"""What `gateway explain` says, in words."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.cli.reasons import Found, part_names


def why(found: Found) -> str:
    """Who serves and why, who follows, what is wrong just now, and what else a request sets off."""
    if not found.live:
        drained = "no backend would serve, because every weight is 0 (drained); "
        fallback = found.entry.fallback
        return drained + (f"requests go to the model {fallback}." if fallback else "requests get 503 no_backend_available.")
    return " ".join(part for part in (_choice(found), _troubles(found), _besides(found)) if part)


def _choice(found: Found) -> str:
    if len(found.live) == 1:
        return f"{found.live[0]} serves every request, because no other backend has a weight above 0."
    told = {"sticky": _sticky, "canary": _canary, "experiment": _experiment}.get(found.entry.policy)
    return told(found) if told is not None else f"{_drawn(found)}{_tail(found)}"


def _sticky(found: Found) -> str:
    entry = found.entry.sticky
    by, factor = (entry.by, entry.load_factor) if entry is not None else ("key", 1.25)
    full = f"runs more than {factor:g} times its fair share of the requests"
    if not found.asker:
        apart = "all prompts with the same beginning" if by == "prefix" else f"all requests of the same {_measure(by)}"
        return f"{apart} go to one backend ({_shares(found)}), and to the next of their own order while it {full} or if it fails."
    first, *others = [stage[0] for stage in found.stages]
    return f"{found.asker} belongs on {first}; while that {full}, or if it fails before it answers: {', then '.join(others) or 'nobody'}."


def _canary(found: Found) -> str:
    entry = found.entry.canary
    assert entry is not None
    sides = f"{entry.percent:g} percent of all users, told apart by {_measure(entry.by)}, are on the canary side ({_names(entry.backends)})"
    if found.arm is None:
        return f"{sides}, the others on the stable side; over all users: {_shares(found)}."
    return f"{sides}; {found.asker} is on the {found.arm} side: {_drawn(found)}{_tail(found)}"


def _experiment(found: Found) -> str:
    entry = found.entry.experiment
    assert entry is not None
    if found.arm is None:
        arms = ", ".join(f"{name} (weight {arm.weight}: {_names(arm.backends)})" for name, arm in entry.arms.items())
        return f"the experiment {entry.name} divides users by {_measure(entry.by)} into the arms {arms}; over all users: {_shares(found)}."
    return f"{found.asker} is in the arm {found.arm} of the experiment {entry.name}: {_drawn(found)}{_tail(found)}"


def _drawn(found: Found) -> str:
    first = found.stages[0]
    if len(first) == 1:
        return f"{first[0]} serves"
    if found.entry.policy == "least-in-flight":
        return f"the one of {', '.join(first)} with the fewest running requests per weight serves"
    weights = {name: entry.weight for name, entry in zip(found.entry.backend_ids(), found.entry.backends, strict=True)}
    total = sum(weights[name] for name in first)
    ranked = sorted(first, key=lambda name: -weights[name])
    return f"each request draws by weight ({', '.join(f'{name} {weights[name] / total:.1%}' for name in ranked)})"


def _tail(found: Found) -> str:
    """Who follows the first choice, as a rule."""
    first, *others = found.stages
    again = ["another of these"] if len(first) > 1 else []
    following = [*again, *(stage[0] if len(stage) == 1 else f"one of {_names(stage)}" for stage in others)]
    if not following:
        return "."
    return f"; if the first fails before it answers: {', then '.join(following)}."


def _troubles(found: Found) -> str:
    if not found.away:
        return ""
    named = ", ".join(f"{name} ({reason})" for name, reason in found.away.items())
    if len(found.away) < len(found.live):
        return f"{named} cannot serve at the moment, so another serves in its place."
    if all(entry.type == "local" for entry in found.entry.backends if entry.weight > 0):
        return f"None of them can serve at the moment: {named}; requests get 503 model_loading."
    return f"None of them seems able to serve at the moment: {named}; requests are tried all the same."


def _besides(found: Found) -> str:
    entry, said = found.entry, []
    if entry.fallback is not None:
        said.append(f"When none of them serves, the model {entry.fallback} does.")
    if entry.shadow is not None:
        said.append(f"{entry.shadow.sample:.4g} of the requests are copied to {entry.shadow.backend}, whose answers nobody sees.")
    return " ".join(said)


def _shares(found: Found) -> str:
    parts = part_names(found.entry)
    ranked = sorted(found.live, key=lambda name: -found.shares[name])
    return ", ".join(f"{name} {found.shares[name]:.1%}" + (f" in {parts[name]}" if name in parts else "") for name in ranked)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def _measure(by: str) -> str:
    """`user` and headers may be missing from a request; its key never is."""
    return "key" if by == "key" else f"{by} (or else the key)"
