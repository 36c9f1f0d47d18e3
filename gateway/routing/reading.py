"""From plain data (parsed YAML or JSON) to a `RevisionDocument`, or every fault in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from gateway.routing.agreement import disagreements
from gateway.routing.document import (
    BACKEND_TYPES,
    LimitsEntry,
    ModelEntry,
    RevisionDocument,
    SecretRef,
    TimeoutsEntry,
)
from gateway.routing.faults import DocumentInvalid, Fault, Path, nearest
from gateway.routing.prices import PRICE_TAGS, DatedPricesEntry, PricesEntry
from gateway.routing.traffic import ArmEntry, CanaryEntry, ExperimentEntry, ProbeEntry, RetriesEntry, ShadowEntry, StickyEntry

_NESTED: Mapping[str, type[BaseModel]] = {
    "timeouts": TimeoutsEntry,
    "prices": PricesEntry,
    "limits": LimitsEntry,
    "api_key": SecretRef,
    "authorization": SecretRef,
    "sticky": StickyEntry,
    "canary": CanaryEntry,
    "experiment": ExperimentEntry,
    "shadow": ShadowEntry,
    "retries": RetriesEntry,
    "probe": ProbeEntry,
}
_TAGS = frozenset({"text", "reference"})


def parse_document(data: object, *, absolute_paths: bool = True) -> RevisionDocument:
    """The document, or `DocumentInvalid` with every fault. `absolute_paths` False: what comes over HTTP names no folder of the host."""
    document, faults = check_document(data, absolute_paths=absolute_paths)
    if document is None:
        raise DocumentInvalid(faults)
    return document


def check_document(data: object, *, absolute_paths: bool = True) -> tuple[RevisionDocument | None, list[Fault]]:
    """The document and no faults, or None and every fault."""
    if not isinstance(data, dict):
        return None, [Fault((), 'must be a mapping that begins with "models:"')]
    normal = _normal_keys(data, RevisionDocument)
    faults = list(disagreements(normal))
    document = None
    try:
        document = RevisionDocument.model_validate(normal, context={"absolute_paths": absolute_paths})
    except ValidationError as error:
        faults += [_fault(entry) for entry in error.errors(include_input=False, include_url=False)]
    return (None, faults) if faults else (document, [])


def snake_case(key: str) -> str:
    """`baseURL` -> `base_url`; what is no camelCase comes back as it is."""
    if "_" in key or not key[:1].islower():
        return key
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()


def _normal_keys(data: dict[Any, Any], part: type[BaseModel]) -> dict[Any, Any]:
    """The same mapping with the keys that `part` knows in snake_case; unknown ones stay as written, for the message."""
    result: dict[Any, Any] = {}
    for key, value in data.items():
        name = snake_case(key) if isinstance(key, str) else key
        if name not in part.model_fields or (name != key and name in data):
            name = key  # an unknown key, or the same one in both spellings: the second stays unknown
        result[name] = _normal_value(part, name, value)
    return result


def _normal_value(part: type[BaseModel], name: object, value: Any) -> Any:
    if isinstance(value, list) and (part, name) == (RevisionDocument, "models"):
        return [_normal_keys(item, ModelEntry) if isinstance(item, dict) else item for item in value]
    if isinstance(value, list) and (part, name) == (ModelEntry, "backends"):
        return [_normal_keys(item, _backend_part(item)) if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict) and (part, name) == (ExperimentEntry, "arms"):
        return {arm: _normal_keys(item, ArmEntry) if isinstance(item, dict) else item for arm, item in value.items()}
    if isinstance(value, list) and name == "prices":
        return [_normal_keys(item, DatedPricesEntry) if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict) and isinstance(name, str) and name in _NESTED:
        return _normal_keys(value, _NESTED[name])
    return value


def _backend_part(item: dict[Any, Any]) -> type[BaseModel]:
    kind = item.get("type")
    return BACKEND_TYPES.get(kind, BACKEND_TYPES["custom"]) if isinstance(kind, str) else BACKEND_TYPES["custom"]


def _fault(error: Any) -> Fault:
    path = _clean(error["loc"])
    kind, ctx = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault(path, _unknown_key(path, error["loc"]))
    if kind == "union_tag_not_found":
        return Fault((*path, "type"), f"is missing; there are: {', '.join(BACKEND_TYPES)}")
    if kind == "union_tag_invalid":
        tag = str(ctx.get("tag", ""))
        return Fault((*path, "type"), f"{tag!r} is not a backend type{nearest(tag, BACKEND_TYPES)}; there are: {', '.join(BACKEND_TYPES)}")
    if kind == "value_error":
        return Fault(path, str(ctx["error"]))
    return Fault(path, _WORDS.get(kind, error["msg"][:1].lower() + error["msg"][1:]).format_map(ctx))


def _clean(loc: tuple[str | int, ...]) -> Path:
    """Pydantic's path without the names of union members: the step after `backends[n]`, after a credential and after prices."""
    steps: list[str | int] = []
    for position, step in enumerate(loc):
        in_backend = position == 4 and loc[2] == "backends" and step in BACKEND_TYPES
        in_credential = bool(steps) and steps[-1] in ("api_key", "authorization") and step in _TAGS
        in_prices = bool(steps) and steps[-1] == "prices" and step in PRICE_TAGS
        if not (in_backend or in_credential or in_prices or step == "[key]"):
            steps.append(step)
    return tuple(steps)


def _unknown_key(path: Path, loc: tuple[str | int, ...]) -> str:
    key = str(path[-1])
    known = [field.alias or name for name, field in _part_at(path[:-1], loc).model_fields.items()]
    if snake_case(key) != key and snake_case(key) in known:
        return f'"{key}" is given a second time, as "{snake_case(key)}"'
    return f'unknown key "{key}"{nearest(snake_case(key), known)}'


def _part_at(path: Path, loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The kind of mapping that lies at this path."""
    if len(path) < 2:
        return RevisionDocument
    if path[-2] == "arms":
        return ArmEntry
    if path[-2] == "prices":
        return DatedPricesEntry
    if isinstance(path[-1], str):
        return _NESTED.get(path[-1], ModelEntry)
    return ModelEntry if len(path) == 2 else BACKEND_TYPES[str(loc[4])]


_WORDS = {
    "missing": "is missing",
    "string_type": "must be text (put it in quotes)",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "too_short": "must have at least one entry",
    "too_long": "must have at most {max_length} entries",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be at most {le}",
    "invalid_key": "must be text",
}
