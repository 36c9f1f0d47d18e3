"""The shapes of OpenAI's own description (openai_spec_subset.json beside this file; OpenAI API 2.3.0, MIT)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_FILE = Path(__file__).with_name("openai_spec_subset.json")


@cache
def _registry() -> Registry[Any]:
    return Registry().with_resource("urn:openai", Resource(_modern(json.loads(_FILE.read_text())), DRAFT202012))


def _modern(value: Any) -> Any:
    """`nullable` is OpenAPI 3.0: a validator of today does not know it."""
    if isinstance(value, list):
        return [_modern(part) for part in value]
    if not isinstance(value, dict):
        return value
    made = {name: _modern(part) for name, part in value.items() if name != "nullable"}
    return {"anyOf": [made, {"type": "null"}]} if value.get("nullable") is True else made


def faults(value: Any, schema: str) -> list[str]:
    """What is wrong with `value` by that schema."""
    validator = Draft202012Validator({"$ref": f"urn:openai#/components/schemas/{schema}"}, registry=_registry())
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(value)]


def check(value: Any, schema: str) -> None:
    assert not (found := faults(value, schema)), found
