"""All prices of a document as lines of a table: listed, written as CSV, read from CSV, and brought into a document.

Columns: model, backend (empty: of the model), from (empty: from the beginning), input, output, cached (empty: as input). Prices are plain
decimals in USD per million tokens, times are RFC 3339. `read_csv(write_csv(lines_of(document)))` changes nothing in the document.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.routing.document import BackendEntry, ModelEntry, RevisionDocument
from gateway.routing.faults import DocumentInvalid, Fault, nearest
from gateway.routing.prices import DatedPricesEntry, PricesEntry, entries_of, normal_moment, seconds_of
from gateway.routing.values import Price

COLUMNS = ("model", "backend", "from", "input", "output", "cached")
_NEEDED = ("model", "input", "output")
_PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_MOST_FAULTS = 100
_SHOWN_CHARS = 200  # of a name that is not known
_price: TypeAdapter[str] = TypeAdapter(Price)

Of = tuple[str, str | None]  # model, backend


class PricesInvalid(DocumentInvalid):
    """A table of prices cannot be used. Its faults have lines."""

    code = "invalid_prices"


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One price. `backend` None: of the model; `from_` None: from the beginning. `line`: where it was read, from 1."""

    model: str
    backend: str | None
    from_: str | None
    input: str
    output: str
    cached: str | None
    line: int = 0

    @property
    def of(self) -> Of:
        return self.model, self.backend

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        return self.model, self.backend or "", self.from_ or "", self.input, self.output, self.cached or ""


def lines_of(document: RevisionDocument) -> list[PriceLine]:
    """Every price of the document: models in its order, each before its backends, earliest first."""
    found: list[PriceLine] = []
    for model in document.models:
        owners: list[tuple[str | None, ModelEntry | BackendEntry]] = [(None, model)]
        owners += zip(model.backend_ids(), model.backends, strict=True)
        for backend, owner in owners:
            for moment, entry in entries_of(owner.prices):
                found.append(PriceLine(model.id, backend, moment, entry.input, entry.output, entry.cached))
    return found


def in_force(lines: Sequence[PriceLine], at_s: float) -> set[PriceLine]:
    """Of each model and backend, what counts of its own at this time (Unix seconds)."""
    latest: dict[Of, PriceLine] = {}
    for line in lines:
        if line.from_ is None or seconds_of(line.from_) <= at_s:
            latest[line.of] = line  # the later ones come later
    return set(latest.values())


def write_csv(lines: Iterable[PriceLine]) -> str:
    """RFC 4180, with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(line.cells() for line in lines)
    return text.getvalue()


def read_csv(text: str, from_: str | None = None) -> list[PriceLine]:
    """The prices in this text; `from_`: of lines that do not say. `PricesInvalid` with the first faults and their lines."""
    rows = _rows(text.removeprefix("\ufeff"))
    number, header = next(rows, (1, []))
    columns = [name.strip().lower() for name in header]
    faults = list(islice(_header_faults(columns, number), _MOST_FAULTS))
    if faults:
        raise PricesInvalid(faults)
    lines: list[PriceLine] = []
    seen: dict[tuple[Of, str | None], int] = {}
    for number, row in rows:
        if len(faults) >= _MOST_FAULTS:
            break
        line, wrong = _line(columns, row, number, from_)
        faults += wrong
        if line is None:
            continue
        if (first := seen.setdefault((line.of, line.from_), number)) != number:
            faults.append(Fault((), f"says again what line {first} says", number))
        lines.append(line)
    if not lines and not faults:
        faults = [Fault((), "there is no price in this table", number)]
    if faults:
        raise PricesInvalid(faults[:_MOST_FAULTS])
    return lines


def with_prices(document: RevisionDocument, lines: Sequence[PriceLine]) -> RevisionDocument:
    """The document with these prices; `PricesInvalid` with the first faults of what does not fit it.

    A price takes the place of the one with the same time, and stands beside those of other times. One without a time would count
    from the beginning, before all those: so it must be the only one, or all others must be in `lines` too.
    """
    if faults := list(islice(_misfits(document, lines), _MOST_FAULTS)):  # no more are looked for: each costs a search for a near name
        raise PricesInvalid(faults)
    wanted: dict[Of, list[PriceLine]] = {}
    for line in lines:
        wanted.setdefault(line.of, []).append(line)
    return RevisionDocument.model_construct(models=[_priced(model, wanted) for model in document.models])


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells), without empty lines. The line is that on which the row begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise PricesInvalid([Fault((), f"not CSV: {error}", before + 1)]) from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield before + 1, row
        before = reader.line_num


def _header_faults(columns: list[str], line: int) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in columns:
        if name not in COLUMNS:
            yield Fault((), f'unknown column "{name[:50]}"{nearest(name[:50], COLUMNS)}; there are: {", ".join(COLUMNS)}', line)
        elif name in seen:
            yield Fault((), f'the column "{name}" is there twice', line)
        seen.add(name)
    for name in _NEEDED:
        if name not in columns:
            yield Fault((), f'the column "{name}" is missing', line)


def _line(columns: list[str], row: list[str], number: int, from_: str | None) -> tuple[PriceLine | None, list[Fault]]:
    if len(row) != len(columns):
        return None, [Fault((), f"has {len(row)} values for {len(columns)} columns", number)]
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    faults: list[Fault] = []
    found: dict[str, Any] = {}
    for name in ("input", "output", "cached"):
        try:
            found[name] = _amount(cells.get(name, ""), needed=name in _NEEDED)
        except ValueError as error:
            faults.append(Fault((name,), str(error), number))
    try:
        found["from_"] = normal_moment(cells["from"]) if cells.get("from") else from_
    except ValueError as error:
        faults.append(Fault(("from",), str(error), number))
    if not cells["model"]:
        faults.append(Fault(("model",), "is missing", number))
    if faults:
        return None, faults
    return PriceLine(cells["model"], cells.get("backend") or None, line=number, **found), []


def _amount(text: str, *, needed: bool) -> str | None:
    """In its normal form. `ValueError` says what is wrong."""
    if not text and not needed:
        return None
    if not text:
        raise ValueError("is missing")
    if not _PLAIN.fullmatch(text):
        raise ValueError("must be a plain decimal such as 0.15 (USD per million tokens)")
    try:
        return _price.validate_python(text)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def _misfits(document: RevisionDocument, lines: Sequence[PriceLine]) -> Iterator[Fault]:
    models = {model.id: model for model in document.models}
    backends = {model.id: model.backend_ids() for model in document.models}
    given = {(line.of, line.from_) for line in lines}
    stored: dict[Of, list[str | None]] = {}
    for known in lines_of(document):
        stored.setdefault(known.of, []).append(known.from_)
    near_model: Callable[[str], str] = cache(lambda name: nearest(name, models))
    for line in lines:
        if line.model not in models:
            name = line.model[:_SHOWN_CHARS]
            yield Fault(("model",), f'there is no model "{name}"{near_model(name)}', line.line)
        elif line.backend is not None and line.backend not in backends[line.model]:
            name = line.backend[:_SHOWN_CHARS]
            near = nearest(name, backends[line.model])
            yield Fault(("backend",), f'the model "{line.model}" has no backend "{name}"{near}', line.line)
        elif line.from_ is None:
            left = [moment for moment in stored.get(line.of, ()) if moment is not None and (line.of, moment) not in given]
            if left:
                message = f"is needed here: there are prices from {left[-1]} on, so one without a time would not count now"
                yield Fault(("from",), message, line.line)


def _priced(model: ModelEntry, wanted: dict[Of, list[PriceLine]]) -> ModelEntry:
    entries = [
        entry if lines is None else entry.model_copy(update={"prices": _merged(entry.prices, lines)})
        for entry, lines in zip(model.backends, [wanted.get((model.id, backend)) for backend in model.backend_ids()], strict=True)
    ]
    lines = wanted.get((model.id, None))
    prices = model.prices if lines is None else _merged(model.prices, lines)
    return model.model_copy(update={"backends": entries, "prices": prices})


def _merged(prices: PricesEntry | list[DatedPricesEntry] | None, lines: list[PriceLine]) -> PricesEntry | list[DatedPricesEntry]:
    """These prices and those that stand there, in order. What was one mapping stays one where it can."""
    found: dict[str | None, PricesEntry] = dict(entries_of(prices))
    for line in lines:
        found[line.from_] = PricesEntry(input=line.input, output=line.output, cached=line.cached)
    if found.keys() == {None} and not isinstance(prices, list):
        return found[None]
    ordered = sorted(found.items(), key=lambda item: float("-inf") if item[0] is None else seconds_of(item[0]))
    return [
        DatedPricesEntry.model_validate({"from": moment, "input": entry.input, "output": entry.output, "cached": entry.cached})
        for moment, entry in ordered
    ]
