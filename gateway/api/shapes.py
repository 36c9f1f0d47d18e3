"""What the documentation says of one relayed operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict


class Open(BaseModel):
    """A shape that allows more than it names."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True, slots=True)
class Shape:
    """How one operation is documented.

    `request`: its JSON body. `form`: its multipart/form-data body. `answer`: its JSON answer. `other`: its answers of other content types,
    as OpenAPI media type objects.
    """

    request: type[BaseModel] | None
    answer: type[BaseModel] | None
    summary: str
    tag: str = "inference"
    form: type[BaseModel] | None = None
    other: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def bodies(self) -> dict[str, type[BaseModel]]:
        """Content type -> model, for each body that it takes."""
        found = {"application/json": self.request, "multipart/form-data": self.form}
        return {name: model for name, model in found.items() if model is not None}


def events(*examples: str) -> dict[str, dict[str, Any]]:
    """The answer to `stream: true`."""
    return {"text/event-stream": {"schema": {"type": "string"}, "example": "\n\n".join(examples) + "\n\n"}}
