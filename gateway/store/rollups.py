"""What rows add to the figures that reports are read from, so that no report reads rows.

`usage_by_hour` and `usage_by_day` keep every combination there was (a *bucket*); reports of one key or one user read those.
All others read sums that are kept ready: a *kind* is what is added up (`group`) within what
(`scope`), for instance the endings of one model's requests. Groups that have few names are summed by hour and by day (`usage_totals`),
keys and users by day (`usage_of_each_day`, each day of theirs apart by team), because there may be as many of them as there are rows;
and by week (`usage_of_each_week`), because a page of fifty names would read their days by the thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from gateway.store.days import COLUMNS, DAY_S
from gateway.store.rows import Columns, repeated
from gateway.store.tables import usage_by_hour, usage_totals

HOUR_S = 3600
WEEK_S = 7 * DAY_S
BUCKET = tuple(usage_by_hour.primary_key.columns.keys())
USED = tuple(usage_totals.c.keys())[len(usage_totals.primary_key) :]
SPLIT = 1_000_000  # pusd in 1e-6 USD
JOINT = "\x1f"  # between the parts of a name that has two
_READ = (
    "started_at", "user_id", "key_id", "model", "backend", "ending", "team_id", "revision", "experiment", "arm",
    "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_pusd",
)  # fmt: skip
_READ_AT = tuple(COLUMNS.index(name) for name in _READ)
_NAMED_AT, _SUMMED_AT = _READ_AT[1:10], _READ_AT[10:]
_COMMON = tuple(name for name in BUCKET if name not in ("user_id", "key_id"))
_COMMON_AT = tuple(BUCKET.index(name) for name in _COMMON)

Key = tuple[Any, ...]
Cells = dict[Key, list[int]]
"""By bucket, or by the primary key of a table of sums: requests, prompt, completion, cached and reasoning tokens, pusd."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "key": ("key_id",),
    "user": ("user_id",),
    "team": ("team_id",),
    "model": ("model",),
    "backend": ("backend",),
    "ending": ("ending",),
    "arm": ("experiment", "arm"),
    "version": ("revision",),
}
SCOPES: Mapping[str, tuple[str, ...]] = {"": (), "model": ("model",), "team": ("team_id",), "team+model": ("team_id", "model")}
MANY = ("key", "user")


@dataclass(frozen=True, slots=True)
class Kind:
    """`scope` and `group`: columns of a bucket. `needs`: where one of these is empty, nothing is counted."""

    name: str
    scope: tuple[str, ...]
    group: tuple[str, ...]
    needs: tuple[str, ...]


def kind_name(scope: str, group: str) -> str:
    return f"{scope}/{group}"


def _kinds(groups: Iterable[str], scopes: Iterable[str]) -> tuple[Kind, ...]:
    found = []
    for scope in scopes:
        for group in groups:
            if not set(GROUPS[group]) & set(SCOPES[scope]):
                needs = tuple(name for name in ("team_id",) if name in SCOPES[scope]) + (("arm",) if group == "arm" else ())
                found.append(Kind(kind_name(scope, group), SCOPES[scope], GROUPS[group], needs))
    return tuple(found)


FEW_KINDS = _kinds([group for group in GROUPS if group not in MANY], SCOPES)
MANY_KINDS = _kinds(MANY, ("", "model"))


@dataclass(frozen=True, slots=True)
class Folded:
    """What some rows add, table by table."""

    hours: Cells
    days: Cells
    totals: Cells
    of_each: Cells


def fold(columns: Columns) -> Folded:
    """What these rows add."""
    return derived(hours_of(columns, {}))


def hours_of(columns: Columns, hours: Cells) -> Cells:
    """Adds the rows to the buckets of `hours`: column by column, and what all rows have in common, as most of a batch is, once."""
    started_at = columns[_READ_AT[0]]
    if not started_at:
        return hours
    first, last = (_hour(at_s) for at_s in (min(started_at), max(started_at)))
    parts = [[first] * len(started_at) if first == last else list(map(_hour, started_at)), *(columns[at] for at in _NAMED_AT)]
    shared = repeated(parts)
    own = [part for at, part in enumerate(parts) if at not in shared]
    if own:
        rows = Counter(zip(*own, strict=True))
        places = list(map({name: place for place, name in enumerate(rows)}.__getitem__, zip(*own, strict=True)))
    else:
        rows, places = Counter({(): len(started_at)}), [0] * len(started_at)
    sums = [_by_place(columns[at], places, list(rows.values())) for at in _SUMMED_AT]
    for name, *cell in zip(rows, rows.values(), *sums, strict=True):
        values = iter(name)
        at, user_id, key_id, model, backend, ending, team_id, revision, experiment, arm = (
            shared[part] if part in shared else next(values) for part in range(len(parts))
        )
        bucket = (at, user_id, key_id or "", model, backend or "", ending, team_id or "", revision or 0, experiment or "", arm or "")
        _add(hours, bucket, cell)
    return hours


def _hour(at_s: float) -> int:
    return int(at_s // HOUR_S) * HOUR_S


def _by_place(values: list[int], places: list[int], rows: list[int]) -> list[int]:
    """The sum of the values of each place. `places`: of each value; `rows`: how many each place has."""
    if repeated([values]):
        one = 0 + values[0]  # what is no number is refused, as in a sum
        return [count * one for count in rows]
    sums = [0] * len(rows)
    for place, value in zip(places, values, strict=True):
        sums[place] += value
    return sums


def derived(hours: Cells) -> Folded:
    """Everything else follows from the buckets by hour."""
    days = _to_days(hours)
    common: Cells = {}
    pick = itemgetter(*_COMMON_AT)
    for bucket, cell in hours.items():
        _add(common, pick(bucket), cell)
    totals: Cells = {}
    for step_s, cells in ((HOUR_S, common), (DAY_S, _to_days(common))):
        for kind in FEW_KINDS:
            for (at, scope, name, _), cell in _of_kind(kind, _COMMON, cells, "at"):
                totals[step_s, kind.name, scope, at, name] = cell
    of_each: Cells = {}
    for kind in MANY_KINDS:
        for (at, scope, name, team_id), cell in _of_kind(kind, BUCKET, days, "team_id"):
            of_each[kind.name, scope, at, name, team_id] = cell
    return Folded(hours, days, totals, of_each)


def weeks_of(of_each: Cells) -> Cells:
    """The sums of keys and users by week, from those by day."""
    weeks: Cells = {}
    for (kind, scope, at, name, team_id), cell in of_each.items():
        _add(weeks, (kind, scope, name, at // WEEK_S * WEEK_S, team_id), cell)
    return weeks


def _to_days(hours: Cells) -> Cells:
    days: Cells = {}
    for key, cell in hours.items():
        _add(days, (key[0] // DAY_S * DAY_S, *key[1:]), cell)
    return days


def _of_kind(kind: Kind, names: tuple[str, ...], cells: Cells, beside: str) -> Iterable[tuple[tuple[int, str, str, Any], list[int]]]:
    """((at, scope, name, `beside`), sums) of a kind. `names`: of the parts of the cells' keys, `at` first."""
    found: Cells = {}
    pick = itemgetter(0, *(names.index(name) for name in (*kind.scope, *kind.group, beside)))
    needed = [names.index(name) for name in kind.needs]
    for key, cell in cells.items():
        if not needed or all(key[at] for at in needed):
            _add(found, pick(key), cell)
    cut = 1 + len(kind.scope)
    for key, cell in found.items():
        yield (key[0], joined(key[1:cut]), joined(key[cut:-1]), key[-1]), cell


def joined(parts: Iterable[Any]) -> str:
    """A name in the tables of sums; numbers are padded, so that they sort as numbers."""
    return JOINT.join([part if type(part) is str else f"{part:012d}" for part in parts])


def _add(cells: Cells, key: Key, more: list[int]) -> None:
    cell = cells.get(key)
    if cell is None:
        cells[key] = more.copy()
    else:
        cell[0] += more[0]
        cell[1] += more[1]
        cell[2] += more[2]
        cell[3] += more[3]
        cell[4] += more[4]
        cell[5] += more[5]


def as_values(cells: Cells) -> list[Any]:
    """Values of a row per cell, in a fixed order: two transactions over the same rows cannot block each other."""
    return [value for key in sorted(cells) for value in (*key, *cells[key][:5], *divmod(cells[key][5], SPLIT))]
