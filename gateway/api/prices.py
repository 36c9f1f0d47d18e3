"""`/admin/prices`: what models and backends cost, as a table that can be taken out and brought in."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from gateway.api.context import By, TheControl
from gateway.changes import PricePlan, import_prices, plan_prices
from gateway.errors import InvalidRequest, NotFound
from gateway.routing.price_list import PriceLine, in_force, lines_of, read_csv, write_csv
from gateway.routing.prices import normal_moment
from gateway.routing.stored import read_stored
from gateway.store import revisions

_CSV = "text/csv"
_AMOUNT = "USD per million tokens, a decimal string."
_EXAMPLE = "model,backend,from,input,output,cached\nchat,,,0.15,0.60,0.075\nchat,custom-1,2027-01-01T00:00:00Z,0.12,0.50,\n"


class PriceOut(BaseModel):
    """One price of a model, or of one of its backends."""

    model: str = Field(examples=["chat"])
    backend: str | None = Field(description="null: of all backends of the model that have none of their own.")
    from_: str | None = Field(alias="from", description="When it begins to count, RFC 3339; null: from the beginning.")
    input: str = Field(description=_AMOUNT, examples=["0.15"])
    output: str = Field(description=_AMOUNT, examples=["0.6"])
    cached: str | None = Field(description=f"{_AMOUNT} Of prompt tokens that the backend had cached; null: as input.")


class ListedPrice(PriceOut):
    in_force: bool = Field(description="Does it count now? Not if its time is still to come, or a later one has taken its place.")


class PriceTable(BaseModel):
    revision: int = Field(description="The revision that is live.")
    data: list[ListedPrice]


class PriceChange(PriceOut):
    was: PriceOut | None = Field(description="What stood there, with the same time; null: nothing.")


class PricesImported(BaseModel):
    revision: int | None = Field(description="The new revision, which is live now. null: nothing was to be changed, or it was a dry run.")
    changes: list[PriceChange]
    unchanged: int = Field(description="How many prices of the table are there already.")


async def list_prices(
    request: Request,
    control: TheControl,
    format: Annotated[Literal["json", "csv"] | None, Query(description="Absent: as `Accept` says, else json.")] = None,
) -> Any:
    """Every price of the live revision: those that count, those that did and those that will."""
    async with control.db.look() as conn:
        live = await revisions.live_revision(conn)
    if live is None:
        raise NotFound("There is no revision yet.")
    lines = lines_of(read_stored(live.document).document)
    if format == "csv" or (format is None and _CSV in request.headers.get("accept", "")):
        return Response(write_csv(lines), media_type=_CSV, headers={"content-disposition": 'attachment; filename="prices.csv"'})
    counting = in_force(lines, time.time())
    return PriceTable(revision=live.id, data=[ListedPrice(**_fields(line), in_force=line in counting) for line in lines])


async def import_table(
    request: Request,
    control: TheControl,
    by: By,
    from_: Annotated[str, Query(alias="from", max_length=40, description="When those begin to count that do not say, RFC 3339.")] = "",
    dry_run: Annotated[bool, Query(description="Only say what would change.")] = False,
) -> PricesImported:
    """Bring in prices as CSV: one new revision, or nothing where any line is wrong.

    Columns: model, input, output, and if wanted backend, from, cached. What is not in the table stays as it is.
    """
    text = (await request.body()).decode("utf-8")
    lines = await asyncio.to_thread(read_csv, text, _moment(from_))  # a big table takes seconds
    if dry_run:
        async with control.db.look() as conn:
            return _shown(await plan_prices(conn, lines), None)
    plan, revision = await import_prices(control.db, control.generation, by, lines)
    if revision is None:
        return _shown(plan, None)
    return _shown(plan, revision.id)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["prices"]
    table: dict[str, Any] = {"content": {_CSV: {"schema": {"type": "string"}, "example": _EXAMPLE}}}
    listed: dict[int | str, dict[str, Any]] = {200: table}
    app.add_api_route("/admin/prices", list_prices, methods=["GET"], response_model=PriceTable, responses=listed, tags=tags)
    app.add_api_route(
        "/admin/prices/import",
        import_table,
        methods=["POST"],
        response_model=PricesImported,
        openapi_extra={"requestBody": {"required": True} | table},
        tags=tags,
    )


def _moment(text: str) -> str | None:
    try:
        return normal_moment(text) if text else None
    except ValueError as error:
        raise InvalidRequest(f"from {error}.", param="from") from None


def _fields(line: PriceLine) -> dict[str, Any]:
    return {
        "model": line.model,
        "backend": line.backend,
        "from": line.from_,
        "input": line.input,
        "output": line.output,
        "cached": line.cached,
    }


def _shown(plan: PricePlan, revision: int | None) -> PricesImported:
    changes = [PriceChange(**_fields(line), was=None if was is None else PriceOut(**_fields(was))) for line, was in plan.changes]
    return PricesImported(revision=revision, changes=changes, unchanged=plan.unchanged)
