"""`gateway metrics`: metrics over time, from the samples that the keeper puts into the database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import duration_s, rfc3339, since
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, show_table, tell

if TYPE_CHECKING:
    from gateway.store.plots import Asked, Line, Plot

app = typer.Typer(no_args_is_help=True, help="Metrics over time, without Prometheus.")
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_UNITS = ("", "k", "M", "G", "T")
_LABELS = ("model", "backend", "operation", "status")


@app.command("list")
def names(as_json: Json = False) -> None:
    """Which metrics the database keeps, and by what they can be narrowed and split."""
    from gateway.metering.sampled import SAMPLED

    if as_json:
        fields = ("name", "kind", "unit", "labels", "description")
        show_json([dict(zip(fields, (m.name, m.kind, m.unit, list(m.labels), m.help), strict=True)) for m in SAMPLED.values()])
        return
    rows = [(m.name, m.kind, m.unit, ", ".join(m.labels) or "-", m.help) for m in SAMPLED.values()]
    show_table(("metric", "kind", "unit", "labels", "of"), rows)


@app.command("show")
def plotted(
    metric: Annotated[str, typer.Argument(metavar="METRIC", help="One of `gateway metrics list`.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Only this model's.")] = "",
    backend: Annotated[str, typer.Option("--backend", metavar="ID", help="Only this backend's.")] = "",
    operation: Annotated[str, typer.Option("--operation", metavar="NAME", help="Only these: chat, embeddings, ...")] = "",
    status: Annotated[str, typer.Option("--status", metavar="2xx|4xx|5xx", help="Only this class of status.")] = "",
    by: Annotated[str, typer.Option("--by", metavar="|".join(_LABELS), help="A line for each.")] = "",
    since_text: Annotated[str, typer.Option("--since", metavar="6h", help="From when: 90s, 1h, 7d or an RFC 3339 time.")] = "1h",
    until_text: Annotated[str, typer.Option("--until", metavar="1h", help="Before when: the same. Without it: now.")] = "",
    step: Annotated[str, typer.Option("--step", metavar="5m", help="How wide a step is at least. Without it: as fits the screen.")] = "",
    as_json: Json = False,
) -> None:
    """A metric over time: rates per second, means of gauges, quantiles of times."""
    now_s = time.time()
    since_s, until_s = since(since_text, now_s), since(until_text, now_s, "--until") if until_text else now_s
    if until_s <= since_s:
        raise typer.BadParameter("It lies before --since.", param_hint="--until")
    step_s = duration_s(step, "--step") if step else 0 if as_json else int((until_s - since_s) / _COLUMNS)
    asked = _asked(metric, dict(zip(_LABELS, (model, backend, operation, status), strict=True)), by, since_s, until_s, step_s)
    plot = in_context(lambda ctx: _plot(ctx, asked, now_s))
    if as_json:
        _print_json(asked, plot)
    else:
        _print(asked, plot)


def _asked(name: str, given: dict[str, str], by: str, since_s: float, until_s: float, step_s: int) -> Asked:
    from gateway.metering.sampled import SAMPLED
    from gateway.store.plots import Asked

    metric = SAMPLED.get(name) or SAMPLED.get(f"gateway_{name}")
    if metric is None:
        raise typer.BadParameter("There is none of this name; `gateway metrics list` says which there are.", param_hint="METRIC")
    only: dict[Any, str] = {label: value for label, value in given.items() if value}
    for option, label in [*((f"--{label}", label) for label in only), *([("--by", by)] if by else [])]:
        if label not in metric.labels:
            raise typer.BadParameter(f"This metric has: {', '.join(metric.labels) or 'no labels'}.", param_hint=option)
    chosen: Any = by or None
    return Asked(metric, since_s, until_s, step_s, only, chosen)


async def _plot(ctx: Context, asked: Asked, now_s: float) -> Plot:
    from gateway.store.plots import plot

    async with ctx.db.read() as conn:
        return await plot(conn, asked, now_s)


def _print_json(asked: Asked, plot: Plot) -> None:
    metric = asked.metric
    head = {"metric": metric.name, "kind": metric.kind, "unit": metric.unit, "by": asked.by, "step_s": plot.step_s}
    series = [{"group": line.group, "others": line.others, "values": line.values} for line in plot.lines]
    show_json(head | {"at": [rfc3339(at) for at in plot.at], "series": series})


def _print(asked: Asked, plot: Plot) -> None:
    drawn = [(line, name, values) for line in plot.lines for name, values in line.values.items()]
    if not any(value is not None for _, _, values in drawn for value in values):
        tell("There are no samples of that time. A running gateway takes one every 15 seconds.")
        return
    unit = f"{asked.metric.unit} per second" if asked.metric.kind == "counter" else asked.metric.unit
    show(f"{asked.metric.name} ({unit}), {rfc3339(plot.at[0])} to {rfc3339(plot.at[-1] + plot.step_s)}, a step is {_duration(plot.step_s)}")
    rows = [_row(line, name, values, asked.metric.kind == "histogram") for line, name, values in drawn]
    numbers = ("min", "mean", "max", "last")
    show_table((asked.by or "of", "figure", "", *numbers), rows, right=frozenset(numbers))


def _row(line: Line, name: str, values: Sequence[float | None], of_times: bool) -> tuple[str, ...]:
    group = "others" if line.others else "all" if line.group is None else line.group
    known = [value for value in values if value is not None]
    figures = [min(known), sum(known) / len(known), max(known), values[-1]] if known else [None] * 4
    wording = "rate (1/s)" if of_times and name == "rate" else name
    return group, wording, spark(values), *(_short(value) for value in figures)


def spark(values: Sequence[float | None]) -> str:
    """A bar for each value, from nothing to the highest; a space where nothing is known. Longer ones are drawn by the largest of a few."""
    few = -(-len(values) // _COLUMNS) if values else 1
    parts = [[value for value in values[start : start + few] if value is not None] for start in range(0, len(values), few)]
    highest = max((max(part) for part in parts if part), default=0.0)
    return "".join(_bar(max(part), highest) if part else " " for part in parts)


def _bar(value: float, highest: float) -> str:
    return _BARS[0] if highest <= 0 else _BARS[min(len(_BARS) - 1, int(value / highest * len(_BARS)))]


def _short(value: float | None) -> str:
    """Three digits and a unit: 0.0123, 4.5, 678, 1.2k."""
    if value is None:
        return "-"
    power = 0
    while abs(value) >= 1000 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{_UNITS[power]}"


def _duration(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
