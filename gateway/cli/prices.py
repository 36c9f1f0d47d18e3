"""`gateway prices`: what models and backends cost, as a table."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.options import Json
from gateway.cli.output import CommandFailed, fail, show, show_json, show_table, tell

if TYPE_CHECKING:
    from gateway.changes import PricePlan
    from gateway.routing.price_list import PriceLine
    from gateway.store.revisions import Revision

app = typer.Typer(help="What models and backends cost, in USD per million tokens.", no_args_is_help=True)

_HEADERS = ("model", "backend", "from", "input", "output", "cached")
_AMOUNTS = frozenset({"input", "output", "cached"})
_MAX_FILE_BYTES = 8_000_000


@app.command("list")
def list_prices(as_json: Json = False, as_csv: Annotated[bool, typer.Option("--csv", help="Print what import takes.")] = False) -> None:
    """List every price of the live revision: those that count, those that did and those that will."""
    from gateway.routing.price_list import in_force, lines_of, write_csv
    from gateway.routing.stored import read_stored

    async def work(ctx: Context) -> Revision:
        from gateway.cli.revisions import revision_or_live

        return await revision_or_live(ctx, None)

    lines = lines_of(read_stored(in_context(work).document).document)
    counting, now_s = in_force(lines, time.time()), time.time()
    if as_csv:
        show(write_csv(lines).replace("\r\n", "\n").rstrip("\n"))
    elif as_json:
        show_json([_fields(line) | {"in_force": line in counting} for line in lines])
    else:
        rows = [(*_row(line), "counts" if line in counting else _other_state(line, now_s)) for line in lines]
        show_table((*_HEADERS, "state"), rows, right=_AMOUNTS, empty="No model has a price.")


@app.command("import")
def import_file(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV with the columns model, input, output, and backend, from, cached; - for stdin.")
    ],
    from_: Annotated[str, typer.Option("--from", metavar="TIME", help="When those begin to count that do not say (RFC 3339).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the revision.")] = "",
    as_json: Json = False,
) -> None:
    """Bring in prices from CSV: one new revision, or nothing where any line is wrong. What is not in the file stays."""
    from gateway.changes import import_prices, plan_prices
    from gateway.routing.faults import DocumentInvalid
    from gateway.routing.file import fault_lines
    from gateway.routing.price_list import read_csv

    async def work(ctx: Context) -> tuple[PricePlan, Revision | None]:
        if not dry_run:
            return await import_prices(ctx.db, ctx.generation, ctx.actor, lines, note)
        async with ctx.db.read() as conn:
            return await plan_prices(conn, lines), None

    moment = _moment(from_)
    try:
        lines = read_csv(_text(file), moment)
        plan, revision = in_context(work)
    except DocumentInvalid as invalid:
        raise CommandFailed("\n".join(fault_lines(invalid.faults, "stdin" if file == "-" else file))) from None
    if as_json:
        show_json(_plan_fields(plan) | {"revision": None if revision is None else revision.id})
        return
    if plan.changes:
        rows = [(*_row(line), "" if was is None else "/".join(was.cells()[3:])) for line, was in plan.changes]
        show_table((*_HEADERS, "was"), rows, right=_AMOUNTS)
    if revision is not None:
        show(f"Revision {revision.id} is live: {revision.info.note}.")
    elif plan.changes:
        tell(f"Nothing was changed: a dry run. {len(plan.changes)} new or other, {plan.unchanged} there already.")
    else:
        tell(f"Nothing to change: all {plan.unchanged} are there already.")


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1) if file == "-" else _bytes(Path(file))
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(f"{file}:{error.object.count(10, 0, error.start) + 1}: not UTF-8 text")
    except OSError as error:
        fail(f"{file} cannot be read: {(error.strerror or 'unknown reason').lower()}")
    return text if len(data) <= _MAX_FILE_BYTES else fail(f"{file} is larger than {_MAX_FILE_BYTES} bytes.")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(_MAX_FILE_BYTES + 1)


def _moment(text: str) -> str | None:
    from gateway.routing.prices import normal_moment

    try:
        return normal_moment(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}.", param_hint="--from") from None


def _row(line: PriceLine) -> tuple[str | None, ...]:
    return tuple(cell or None for cell in line.cells())


def _other_state(line: PriceLine, now_s: float) -> str:
    from gateway.routing.prices import seconds_of

    return "planned" if line.from_ is not None and seconds_of(line.from_) > now_s else "past"


def _fields(line: PriceLine) -> dict[str, Any]:
    return {name: cell or None for name, cell in zip(_HEADERS, line.cells(), strict=True)}


def _plan_fields(plan: PricePlan) -> dict[str, Any]:
    changes = [_fields(line) | {"was": None if was is None else _fields(was)} for line, was in plan.changes]
    return {"changes": changes, "unchanged": plan.unchanged}
