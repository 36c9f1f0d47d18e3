"""A document that is stored already: what an older version accepted and this one refuses is left out, and everything else serves.

New documents are checked strictly (`routing.reading`). One that is live was accepted once, and no rule that came later may take down a
gateway that restarts. What is left out is what the fault lies in: a backend (a canary, an experiment and a shadow go on without it, as
they do without one whose secret is missing), or of a model one of the parts that it can do without. A fault in anything else, such as its
prices, takes all the backends of its model: serving on without it would be another model than its author described.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from gateway.routing.document import RevisionDocument, names_of
from gateway.routing.faults import Fault
from gateway.routing.reading import check_document, snake_case

_SPARE = frozenset({"name", "timeouts", "tokenizer", "shadow", "fallback", "retries", "policy", "sticky", "canary", "experiment"})
_SPREADS = frozenset({"policy", "sticky", "canary", "experiment"})  # one means nothing without the other
_STAND_IN = {"type": "echo", "weight": 0}  # keeps the place of what is left out while the rest is checked


@dataclass(frozen=True, slots=True)
class Stored:
    """What can be used of a stored document, and a sentence for each thing that cannot."""

    document: RevisionDocument
    problems: tuple[str, ...] = ()


def read_stored(data: Any) -> Stored:
    """What can be used of this document, whatever is in it."""
    document, faults = check_document(data)
    return Stored(document) if document is not None else _Sieve(data).sifted(faults)


class _Sieve:
    """Takes out what is at fault until nothing is. Should a round take out nothing, the whole document goes."""

    def __init__(self, data: Any) -> None:
        self._data: dict[str, Any] = deepcopy(data) if isinstance(data, dict) else {"models": data}
        self._problems: list[str] = []
        self._out: set[tuple[int, int]] = set()  # backends: (position of the model, position among its backends)
        self._gone: set[int] = set()  # models
        if isinstance(models := self._data.get("models"), list):
            for model in models:
                _name_backends(model)

    def sifted(self, faults: list[Fault]) -> Stored:
        document: RevisionDocument | None = None
        while document is None:
            before = deepcopy(self._data)
            for fault in faults:
                self._take_out(fault)
            if self._data == before:
                self._say("the whole document", faults[0])
                self._data = {"models": []}
            document, faults = check_document(self._data)
        return Stored(document.model_copy(update={"models": list(self._kept(document))}), tuple(dict.fromkeys(self._problems)))

    def _kept(self, document: RevisionDocument) -> Iterator[Any]:
        for position, model in enumerate(document.models):
            if position not in self._gone:
                kept = [entry for index, entry in enumerate(model.backends) if (position, index) not in self._out]
                yield model.model_copy(update={"backends": kept})

    def _take_out(self, fault: Fault) -> None:
        path, models = fault.path, self._data.get("models")
        if not isinstance(models, list):
            self._say("the whole document", fault)
            self._data = {"models": []}
        elif len(path) < 2 or not isinstance(path[1], int):
            self._say(f'"{fault.place}"', fault)
            self._data = {"models": models}
        elif path[1] in self._gone:
            return  # another fault of the same round
        elif len(path) == 2 or path[2] == "id" or not isinstance(models[path[1]], dict):
            self._leave_model(path[1], fault)
        elif path[2] == "backends":
            self._leave_backends(path[1], path[3] if len(path) > 3 and isinstance(path[3], int) else None, fault)
        else:
            self._leave_part(path[1], str(path[2]), fault)

    def _leave_model(self, position: int, fault: Fault) -> None:
        self._say(f"model {_id(self._data['models'][position], position)}", fault)
        self._gone.add(position)
        self._data["models"][position] = {"id": self._free_id(), "backends": [_STAND_IN]}

    def _leave_backends(self, position: int, index: int | None, fault: Fault) -> None:
        """One, or (None) all of them."""
        model = self._data["models"][position]
        backends = model.get("backends")
        if not isinstance(backends, list) or not backends:
            self._say(f"every backend of model {_id(model, position)}", fault)
            model["backends"] = [_STAND_IN]
            self._out.add((position, 0))
            return
        for number, entry in enumerate(backends) if index is None else [(index, backends[index])]:
            name = entry.get("id") if isinstance(entry, dict) else None
            if (position, number) not in self._out:
                self._say(f"backend {name or number + 1} of model {_id(model, position)}", fault)
                self._out.add((position, number))
                backends[number] = _STAND_IN | ({"id": name} if name else {})
            elif index is not None:  # its own name is what is wrong
                backends[number] = dict(_STAND_IN)

    def _leave_part(self, position: int, part: str, fault: Fault) -> None:
        model = self._data["models"][position]
        spelt = [key for key in model if key == part or _snake(key) == part]
        self._say(f'"{part}" of model {_id(model, position)}', fault)
        for name in [*spelt, *(_SPREADS if part in _SPREADS else ())]:
            model.pop(name, None)
        if part not in _SPARE:
            self._leave_backends(position, None, fault)

    def _free_id(self) -> str:
        taken = [model.get("id") for model in self._data["models"] if isinstance(model, dict)]
        return next(name for number in range(len(taken) + 1) if (name := f"left-out-{number}") not in taken)

    def _say(self, what: str, fault: Fault) -> None:
        self._problems.append(f"{what} is left out: {fault}")


def _name_backends(model: Any) -> None:
    """Every backend keeps the name that it had, whatever is left out before it."""
    backends = model.get("backends") if isinstance(model, dict) else None
    if isinstance(backends, list) and all(isinstance(entry, dict) for entry in backends):
        owns = [entry.get("id") for entry in backends]
        kinds = [str(entry.get("type")) for entry in backends]
        names = names_of([(kind, own if isinstance(own, str) else None) for kind, own in zip(kinds, owns, strict=True)])
        for entry, own, name in zip(backends, owns, names, strict=True):
            if own is None:
                entry["id"] = name


def _id(model: Any, position: int) -> str:
    name = model.get("id") if isinstance(model, dict) else None
    return str(name) if name else f"number {position + 1}"


def _snake(key: object) -> str:
    return snake_case(key) if isinstance(key, str) else ""
