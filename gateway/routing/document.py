"""The revision document: the whole routing table as its author wrote it, checked and in one normal form.

camelCase and snake_case keys are read, snake_case is written. Two documents of the same content have the same `canonical` text.
Keys of upstream services are either text (as they come in) or a reference `{secret: NAME}` (as they are stored): `take_secrets` turns
the one into the other. This is the control plane: pydantic is welcome here, and the relay reads `routing.table` instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationInfo,
)

from gateway.routing.faults import nearest
from gateway.routing.policies import POLICY_NAMES
from gateway.routing.urls import normal_base_url

_MODEL_ID = re.compile(r"[\w.:@+~-]+(/[\w.:@+~-]+)*")  # no glob characters: keys name models by globs
_BACKEND_ID = re.compile(r"[\w.:@+~-]+")  # no slash: `<model>/<backend>` stays unambiguous
_SECRET_NAME = re.compile(r"[\w.:@+~/-]{1,300}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_DECIMAL = re.compile(r"[0-9]{1,7}(\.[0-9]+)?|\.[0-9]+")
_NO_DEFAULTS = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options"})
_MAX_PRICE_USD = 1_000_000
_MAX_WEIGHT = 1_000_000
_AFFINITIES = ("key", "user", "prefix", "header:NAME")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CREDENTIAL_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_PROBE_PATH = re.compile(r"[\x21-\x7e]+")


def _whole(value: object) -> object:
    """Digits in quotes count as a number: that is what `${NAME}` gives."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN differs from itself
        raise ValueError("must be a number of seconds")
    return value


def _number(value: object) -> object:
    """A number, or its digits in quotes; `Field` says within which bounds."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError("must be a number")
    return value


def _price(value: object) -> object:
    """A decimal string, exactly; a YAML number is taken as the digits that it was written with."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a decimal string such as "0.15" (USD per million tokens)')
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise ValueError('must be a decimal string such as "0.15" (USD per million tokens)')
    if amount < 0:
        raise ValueError("must be 0 or more")
    if amount > _MAX_PRICE_USD:
        raise ValueError(f"must be at most {_MAX_PRICE_USD} USD per million tokens")
    if amount != round(amount, 6):
        raise ValueError("must have at most 6 decimals")
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") or "0" if "." in text else text


def _model_id(value: str) -> str:
    if len(value) > 200 or not _MODEL_ID.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise ValueError("must be 1 to 200 letters, digits or . _ - : @ + ~, in parts separated by single slashes")
    return value


def _backend_id(value: str) -> str:
    if len(value) > 80 or not _BACKEND_ID.fullmatch(value):
        raise ValueError("must be 1 to 80 letters, digits or . _ - : @ + ~")
    return value


def secret_name(value: str) -> str:
    """A name that a secret may have; `ValueError` otherwise."""
    if not _SECRET_NAME.fullmatch(value):
        raise ValueError("must be 1 to 300 letters, digits or . _ - : @ + ~ /")
    return value


def _local_path(value: str, info: ValidationInfo) -> str:
    """The rules that need no disk: where the folder really lies is checked when it is loaded."""
    if "\0" in value or "\\" in value or value.startswith("~"):
        raise ValueError("must be a folder name, an absolute path or a hub id")
    if ".." in value.split("/"):
        raise ValueError('must not contain ".."')
    if value.startswith("/") and not (info.context or {}).get("absolute_paths", True):
        raise ValueError("must not be absolute here: absolute paths are taken from the configuration file only")
    return value.rstrip("/") or value


def _base_url(value: str, info: ValidationInfo) -> str:
    return normal_base_url(value, allow_link_local=bool(info.data.get("allow_link_local")))


def _policy(value: str) -> str:
    if value not in POLICY_NAMES:
        raise ValueError(f'"{value}" is not a policy{nearest(value, POLICY_NAMES)}; there are: {", ".join(POLICY_NAMES)}')
    return value


def _affinity(value: str) -> str:
    kind, colon, name = value.partition(":")
    if not colon and value in _AFFINITIES[:-1]:
        return value
    if not colon or kind != "header":
        raise ValueError(f'"{value}" is none of {", ".join(_AFFINITIES)}{nearest(value, _AFFINITIES[:-1])}')
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("must name a header, such as header:X-Session-Id")
    if name.lower() in _CREDENTIAL_HEADERS:
        raise ValueError(f'must not be "{name}", which carries the credential: by: key is what that would be')
    return f"header:{name.lower()}"


def _person(value: str) -> str:
    if _affinity(value) == "prefix":
        raise ValueError('must not be "prefix": a user must stay on one side whatever they write; use key, user or header:NAME')
    return _affinity(value)


def _probe_path(value: str) -> str:
    if not _PROBE_PATH.fullmatch(value) or "#" in value or "\\" in value:
        raise ValueError("has characters that the path of a URL cannot have")
    if value.startswith("//") or "://" in value:
        raise ValueError("must be a path, such as /health (from the root) or models (below baseURL), and no other server's URL")
    if ".." in value.partition("?")[0].split("/"):
        raise ValueError('must not contain ".."')
    return value


def _header_text(value: str) -> str:
    if not value:
        raise ValueError("is empty: leave the key out to send no Authorization header")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("has characters that a header cannot carry (a line break or a space at its end, perhaps)")
    return value


def _parameters(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if bad := sorted(_NO_DEFAULTS & value.keys()):
        raise ValueError(f'cannot set "{bad[0]}": that is the request itself')
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("has a number that JSON cannot carry") from None
    return value


Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=2000)]
ModelId = Annotated[Text, AfterValidator(_model_id)]
BackendId = Annotated[Text, AfterValidator(_backend_id)]
LocalPath = Annotated[Text, AfterValidator(_local_path)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=31_536_000)]
Price = Annotated[str, BeforeValidator(_price)]
Weight = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_MAX_WEIGHT)]
Milliseconds = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=3_600_000)]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65535)]
Priority = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1000)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Percent = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100)]
LoadFactor = Annotated[float, BeforeValidator(_number), Field(ge=1, le=100)]
PrefixBytes = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65_536)]
Attempts = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10)]
Copies = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1000)]
ProbeSeconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.1, le=3600)]
Person = Annotated[Text, AfterValidator(_person)]
OutputTokens = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=100_000_000)]


def _absent(value: object) -> bool:
    return not value


class Part(BaseModel):
    """A mapping of the document: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SecretRef(Part):
    """Names an upstream key in the secret store."""

    secret: Annotated[Text, AfterValidator(secret_name)]


_HeaderText = Annotated[str, StringConstraints(strict=True), AfterValidator(_header_text)]
Credential = Annotated[
    Annotated[_HeaderText, Tag("text")] | Annotated[SecretRef, Tag("reference")],
    Discriminator(lambda value: "reference" if isinstance(value, dict | SecretRef) else "text"),
]


class TimeoutsEntry(Part):
    """Clocks of one model in seconds; absent = the installation's default, 0 = none."""

    connect_s: Seconds | None = None
    first_byte_s: Seconds | None = None
    idle_s: Seconds | None = None
    total_s: Seconds | None = None


class PricesEntry(Part):
    """USD per million tokens, decimal strings."""

    input: Price
    output: Price
    cached: Price | None = None


class StickyEntry(Part):
    """Policy sticky. `prefix_bytes`: how much of the prompt counts where `by` is prefix. `load_factor`: times its fair share of what runs."""

    by: Annotated[Text, AfterValidator(_affinity)] = "key"
    prefix_bytes: PrefixBytes = 1024
    load_factor: LoadFactor = 1.25


class CanaryEntry(Part):
    """Policy canary: `percent` of the users go to `backends`, everyone else to the rest."""

    backends: Annotated[list[BackendId], Field(min_length=1)]
    percent: Percent
    by: Person = "user"


class ArmEntry(Part):
    """One arm of an experiment. Weight 0: nobody is assigned to it."""

    backends: Annotated[list[BackendId], Field(min_length=1)]
    weight: Weight = 1


class ExperimentEntry(Part):
    """Policy experiment. `name` and the arms' names go into every usage record."""

    name: BackendId
    by: Person = "user"
    arms: dict[BackendId, ArmEntry]


class ShadowEntry(Part):
    """A sampled part of the requests is copied to `backend`; no client sees its answers."""

    backend: BackendId
    sample: Share
    max_in_flight: Copies = 16


class RetriesEntry(Part):
    """`ratio`: retries per request, on the average. `max_attempts`: per request, the first one included."""

    ratio: Share = 0.2
    max_attempts: Attempts = 2


class ProbeEntry(Part):
    """Active probing: GET `path` (below the root of the server if it begins with a slash, else below base_url); any 2xx is alive."""

    path: Annotated[Text, AfterValidator(_probe_path)]
    interval_s: ProbeSeconds = 10.0
    timeout_s: ProbeSeconds = 2.0


class _BackendEntry(Part):
    type: str
    id: BackendId | None = None
    model: Text | None = None
    weight: Weight = 1
    priority: Priority = Field(0, exclude_if=_absent)


class CustomEntry(_BackendEntry):
    """Any URL that speaks the OpenAI protocol. At most one of `api_key` (sent as a bearer token) and `authorization` (whole header)."""

    type: Literal["custom"]
    allow_link_local: bool = Field(False, exclude_if=_absent)  # before base_url, whose check looks at it
    base_url: Annotated[Text, AfterValidator(_base_url)]
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
    delay_ms: Milliseconds = Field(0, exclude_if=_absent)
    chunk_delay_ms: Milliseconds = Field(0, exclude_if=_absent)


BackendEntry = CustomEntry | LocalEntry | EchoEntry
BACKEND_TYPES: dict[str, type[BackendEntry]] = {"custom": CustomEntry, "local": LocalEntry, "echo": EchoEntry}


class ModelEntry(Part):
    """One model name and what stands behind it."""

    id: ModelId
    name: Text | None = None
    policy: Annotated[Text, AfterValidator(_policy)] = "weighted"
    parameters: Annotated[dict[str, JsonValue], AfterValidator(_parameters)] = Field(default_factory=dict, exclude_if=_absent)
    timeouts: TimeoutsEntry | None = None
    prices: PricesEntry | None = None
    max_output_tokens: OutputTokens | None = None
    tokenizer: LocalPath | None = None
    sticky: StickyEntry | None = None
    canary: CanaryEntry | None = None
    experiment: ExperimentEntry | None = None
    shadow: ShadowEntry | None = None
    fallback: ModelId | None = None
    retries: RetriesEntry | None = None
    backends: Annotated[list[Annotated[BackendEntry, Field(discriminator="type")]], Field(min_length=1)]

    def backend_ids(self) -> tuple[str, ...]:
        """The name of each backend: its own, else `<type>-<n>`, counted per type and never one that is taken."""
        taken = {entry.id for entry in self.backends if entry.id is not None}
        names: list[str] = []
        for position, entry in enumerate(self.backends):
            number = 1 + sum(earlier.type == entry.type for earlier in self.backends[:position])
            while entry.id is None and f"{entry.type}-{number}" in taken:
                number += 1
            names.append(entry.id or f"{entry.type}-{number}")
            taken.add(names[-1])
        return tuple(names)


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
