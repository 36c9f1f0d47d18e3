"""The kinds of value that a document holds, each with the words for what is wrong with it."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, ValidationInfo

from gateway.routing.faults import nearest
from gateway.routing.policies import POLICY_NAMES
from gateway.routing.urls import normal_base_url

_MODEL_ID = re.compile(r"[\w.:@+~-]+(/[\w.:@+~-]+)*")  # no glob characters: keys name models by globs
_BACKEND_ID = re.compile(r"[\w.:@+~-]+")  # no slash: `<model>/<backend>` stays unambiguous
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_DECIMAL = re.compile(r"[0-9]{1,7}(\.[0-9]+)?|\.[0-9]+")
_NO_DEFAULTS = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options"})
_MAX_PRICE_USD = 1_000_000
_MAX_WEIGHT = 1_000_000
_AFFINITIES = ("key", "user", "prefix", "header:NAME")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CREDENTIAL_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_USD = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,12})0*)?")
WINDOWS = ("day", "week", "month")  # of a budget
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


def _budget(value: object) -> object:
    """USD[/day|week|month], exactly, in one form."""
    words = 'must be USD[/day|week|month], such as "20/month", with at most 12 decimals'
    amount, window = _windowed(value, words)
    found = _USD.fullmatch(amount)
    if found is None:
        raise ValueError(words)
    decimals = (found[2] or "").rstrip("0")
    return str(int(found[1])) + (f".{decimals}" if decimals else "") + window


def _token_budget(value: object) -> object:
    amount, window = _windowed(value, 'must be TOKENS[/day|week|month], such as "1000000/day"')
    if not re.fullmatch(r"[0-9]{1,15}", amount):
        raise ValueError('must be TOKENS[/day|week|month], such as "1000000/day"')
    return f"{int(amount)}{window}"


def _windowed(value: object, words: str) -> tuple[str, str]:
    """(the amount, "" or its window with a slash before it)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(words)
    amount, slash, window = str(value).strip().partition("/")
    if slash and window not in WINDOWS:
        raise ValueError(f'"{window}" is not a window{nearest(window, WINDOWS)}; there are: {", ".join(WINDOWS)}, or none for ever')
    return amount, slash + window


def _model_id(value: str) -> str:
    if len(value) > 200 or not _MODEL_ID.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise ValueError("must be 1 to 200 letters, digits or . _ - : @ + ~, in parts separated by single slashes")
    return value


def _backend_id(value: str) -> str:
    if len(value) > 80 or not _BACKEND_ID.fullmatch(value):
        raise ValueError("must be 1 to 80 letters, digits or . _ - : @ + ~")
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
Limit = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10**15)]
SoftPercent = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=100)]
BudgetText = Annotated[str, BeforeValidator(_budget)]
TokenBudgetText = Annotated[str, BeforeValidator(_token_budget)]
Attempts = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10)]
Copies = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1000)]
ProbeSeconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.1, le=3600)]
Person = Annotated[Text, AfterValidator(_person)]
OutputTokens = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=100_000_000)]
Affinity = Annotated[Text, AfterValidator(_affinity)]
BaseUrl = Annotated[Text, AfterValidator(_base_url)]
PolicyName = Annotated[Text, AfterValidator(_policy)]
ProbePath = Annotated[Text, AfterValidator(_probe_path)]
HeaderText = Annotated[str, StringConstraints(strict=True), AfterValidator(_header_text)]
Parameters = Annotated[dict[str, JsonValue], AfterValidator(_parameters)]


def absent(value: object) -> bool:
    """For `exclude_if`: what is not there is not written, so that documents without it keep their text."""
    return not value


class Part(BaseModel):
    """A mapping of the document: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
