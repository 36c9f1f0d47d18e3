"""The revision document: the whole routing table as its author wrote it, checked and in one normal form.

camelCase and snake_case keys are read, snake_case is written. Two documents of the same content have the same `canonical` text.
Keys of upstream services are either text (as they come in) or a reference `{secret: NAME}` (as they are stored): `take_secrets` turns
the one into the other. This is the control plane: pydantic is welcome here, and the relay reads `routing.table` instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from gateway.routing.prices import PricesValue
from gateway.routing.traffic import CanaryEntry, ExperimentEntry, ProbeEntry, RetriesEntry, ShadowEntry, StickyEntry
from gateway.routing.values import (
    BackendId,
    BaseUrl,
    BudgetText,
    HeaderText,
    Limit,
    LocalPath,
    Milliseconds,
    ModelId,
    OutputTokens,
    Parameters,
    Part,
    PolicyName,
    Port,
    Priority,
    Seconds,
    SoftPercent,
    Text,
    TokenBudgetText,
    Weight,
    absent,
)

_SECRET_NAME = re.compile(r"[\w.:@+~/-]{1,300}")


def secret_name(value: str) -> str:
    """A name that a secret may have; `ValueError` otherwise."""
    if not _SECRET_NAME.fullmatch(value):
        raise ValueError("must be 1 to 300 letters, digits or . _ - : @ + ~ /")
    return value


class SecretRef(Part):
    """Names an upstream key in the secret store."""

    secret: Annotated[Text, AfterValidator(secret_name)]


Credential = Annotated[
    Annotated[HeaderText, Tag("text")] | Annotated[SecretRef, Tag("reference")],
    Discriminator(lambda value: "reference" if isinstance(value, dict | SecretRef) else "text"),
]


class TimeoutsEntry(Part):
    """Clocks of one model in seconds; absent = the installation's default, 0 = none."""

    connect_s: Seconds | None = None
    first_byte_s: Seconds | None = None
    idle_s: Seconds | None = None
    total_s: Seconds | None = None


class LimitsEntry(Part):
    """What all callers of a model may use together; absent = unlimited. `soft`: the percent of a budget from which on answers warn."""

    rpm: Limit | None = None
    rpd: Limit | None = None
    tpm: Limit | None = None
    tpd: Limit | None = None
    concurrency: Limit | None = None
    budget: BudgetText | None = None
    token_budget: TokenBudgetText | None = None
    soft: SoftPercent | None = None


class _BackendEntry(Part):
    """`prices`: of what this backend serves, in place of its model's."""

    type: str
    id: BackendId | None = None
    model: Text | None = None
    weight: Weight = 1
    priority: Priority = Field(0, exclude_if=absent)
    prices: PricesValue | None = None


class CustomEntry(_BackendEntry):
    """Any URL that speaks the OpenAI protocol. At most one of `api_key` (sent as a bearer token) and `authorization` (whole header)."""

    type: Literal["custom"]
    allow_link_local: bool = Field(False, exclude_if=absent)  # before base_url, whose check looks at it
    base_url: BaseUrl
    api_key: Credential | None = Field(None, repr=False)
    authorization: Credential | None = Field(None, repr=False)
    probe: ProbeEntry | None = None


class LocalEntry(_BackendEntry):
    """A transformers model that this installation runs itself."""

    type: Literal["local"]
    path: LocalPath
    port: Port | None = None


class EchoEntry(_BackendEntry):
    """Deterministic answers without a network. Delays: before the answer, and between two chunks."""

    type: Literal["echo"]
    delay_ms: Milliseconds = Field(0, exclude_if=absent)
    chunk_delay_ms: Milliseconds = Field(0, exclude_if=absent)


BackendEntry = CustomEntry | LocalEntry | EchoEntry
BACKEND_TYPES: dict[str, type[BackendEntry]] = {"custom": CustomEntry, "local": LocalEntry, "echo": EchoEntry}


def names_of(backends: Sequence[tuple[str, str | None]]) -> tuple[str, ...]:
    """The name of each backend from its type and id: its own id, else `<type>-<n>`, counted per type and never one that is taken."""
    taken = {own for _, own in backends if own is not None}
    names: list[str] = []
    for position, (kind, own) in enumerate(backends):
        number = 1 + sum(earlier == kind for earlier, _ in backends[:position])
        while own is None and f"{kind}-{number}" in taken:
            number += 1
        names.append(own or f"{kind}-{number}")
        taken.add(names[-1])
    return tuple(names)


class ModelEntry(Part):
    """One model name and what stands behind it."""

    id: ModelId
    name: Text | None = None
    policy: PolicyName = "weighted"
    parameters: Parameters = Field(default_factory=dict, exclude_if=absent)
    timeouts: TimeoutsEntry | None = None
    prices: PricesValue | None = None
    limits: LimitsEntry | None = None
    max_output_tokens: OutputTokens | None = None
    content_log: bool = Field(False, exclude_if=absent)
    tokenizer: LocalPath | None = None
    sticky: StickyEntry | None = None
    canary: CanaryEntry | None = None
    experiment: ExperimentEntry | None = None
    shadow: ShadowEntry | None = None
    fallback: ModelId | None = None
    retries: RetriesEntry | None = None
    backends: Annotated[list[Annotated[BackendEntry, Field(discriminator="type")]], Field(min_length=1)]

    def backend_ids(self) -> tuple[str, ...]:
        """The name of each backend."""
        return names_of([(entry.type, entry.id) for entry in self.backends])


class RevisionDocument(Part):
    """The whole routing table. Ids are unique (checked by `routing.reading`, with every other fault)."""

    models: list[ModelEntry]

    def as_dict(self) -> dict[str, Any]:
        """snake_case, nothing that is absent."""
        return self.model_dump(mode="json", exclude_none=True)


def canonical(document: RevisionDocument) -> str:
    """One text per content: the same whatever spelling, order of keys or quoting the author used."""
    return json.dumps(document.as_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def fingerprint(document: RevisionDocument) -> str:
    """SHA-256 of the content, hex. Of a document whose keys are still text it covers them too: a changed key is changed content."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def take_secrets(document: RevisionDocument) -> tuple[RevisionDocument, dict[str, str]]:
    """The document with references in place of every key given as text, and those keys by name (`<model>/<backend id>`).

    None gets a name that the document itself refers to: that is another backend's key.
    """
    taken: dict[str, str] = {}
    referred = secret_names(document)

    def stored(model: ModelEntry, backend_id: str, entry: BackendEntry) -> BackendEntry:
        if not isinstance(entry, CustomEntry):
            return entry
        update: dict[str, SecretRef] = {}
        for field in ("api_key", "authorization"):
            value = getattr(entry, field)
            if isinstance(value, str):
                name = next(name for name in numbered(f"{model.id}/{backend_id}") if name not in referred)
                taken[name] = value
                update[field] = SecretRef(secret=name)
        return entry.model_copy(update=update)

    models = [
        model.model_copy(update={"backends": [stored(model, *pair) for pair in zip(model.backend_ids(), model.backends, strict=True)]})
        for model in document.models
    ]
    return RevisionDocument.model_construct(models=models), taken


def numbered(name: str) -> Iterator[str]:
    """`name`, `name~2`, `name~3` and so on."""
    yield name
    yield from (f"{name}~{number}" for number in count(2))


def secret_names(document: RevisionDocument) -> frozenset[str]:
    """Every secret that the document refers to."""
    return frozenset(ref.secret for ref in _references(document))


def _references(document: RevisionDocument) -> Iterator[SecretRef]:
    for model in document.models:
        for entry in model.backends:
            if isinstance(entry, CustomEntry):
                yield from (value for value in (entry.api_key, entry.authorization) if isinstance(value, SecretRef))
