"""`gateway explain` and `gateway models list`: what the live revision does with a model name."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table

if TYPE_CHECKING:
    from gateway.cli.reasons import Found
    from gateway.routing.document import BackendEntry, ModelEntry, RevisionDocument
    from gateway.routing.probes import Probed
    from gateway.store.keys import ApiKey
    from gateway.store.revisions import Revision

models_app = typer.Typer(help="Models of the live revision.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class _Live:
    """The live revision, and what is known of its backends now."""

    revision: int
    document: RevisionDocument
    states: Mapping[str, str]
    probes: Mapping[str, Probed]
    key: ApiKey | None = None


def explain(
    model: Annotated[str, typer.Option("--model", metavar="M", help="The name that clients ask for.")],
    key: Annotated[str, typer.Option("--key", metavar="ID", help="As asked by this key.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="U", help="As asked by this end user: the body's `user`.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME:VALUE", help="As asked with this header.")] = None,
    as_json: Json = False,
) -> None:
    """Say which backend would serve a request for this model, and why."""
    from gateway.cli.reasons import Asker, explained

    headers = tuple(_header(text) for text in header or ())
    live = _live(key)
    entry = next((entry for entry in live.document.models if entry.id == model), None)
    if entry is None:
        near = difflib.get_close_matches(model, [known.id for known in live.document.models], n=1)
        meant = f"; did you mean {near[0]!r}" if near else ""
        fail(f"Revision {live.revision} has no model {model!r}{meant}: requests get 404 model_not_found.")
    if live.key is not None:
        _check_key(live.key, model)
    asker = Asker(live.key.id if live.key is not None else "", user, headers)
    _show(live, explained(live.document, entry, asker, live.states, live.probes), as_json)


def _header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not value.strip():
        raise typer.BadParameter(f"{text!r} is not NAME:VALUE.", param_hint="--header")
    return name.strip().lower().encode(), value.strip().encode()


def _check_key(key: ApiKey, model: str) -> None:
    from auth.principal import Principal

    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= time.time()):
        fail(f"The key {key.id} is {'revoked' if key.revoked_at is not None else 'expired'}: its requests get 401.")
    allowed = Principal.compile_globs(key.models)
    if allowed is not None and allowed.match(model) is None:
        fail(f"The key {key.id} may not use {model!r} (its models: {', '.join(key.models)}): requests get 404 model_not_found.")


def _show(live: _Live, found: Found, as_json: bool) -> None:
    from gateway.cli.sentences import why

    entry, backends = found.entry, _backends(found.entry, live)
    reason = why(found)
    if as_json:
        show_json({
            "model": entry.id,
            "revision": live.revision,
            "policy": entry.policy,
            "asked_by": found.asker or None,
            "arm": found.arm,
            "stages": [list(stage) for stage in found.stages],
            "why": reason,
            "fallback": entry.fallback,
            "shadow": entry.shadow.backend if entry.shadow is not None else None,
            "backends": backends,
        })  # fmt: skip
        return
    more = [name for name in ("priority", "part") if any(b[name] for b in backends)]
    show_table(
        ("backend", "type", "weight", *more, "share", "asked for", "where", "state"),
        [
            (b["id"], b["type"], b["weight"], *(b[name] for name in more), f"{b['share']:.1%}", b["model"], b["where"], b["state"])
            for b in backends
        ],
        right=frozenset({"weight", "priority", "share"}),
    )
    show(f"{entry.id} in revision {live.revision}: {reason}")


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models of the live revision with their backends."""
    live = _live()
    listed: list[dict[str, Any]] = [
        {
            "id": entry.id,
            "name": entry.name or entry.id,
            "policy": entry.policy,
            "revision": live.revision,
            "backends": _backends(entry, live),
        }
        for entry in live.document.models
    ]
    if as_json:
        show_json(listed)
        return
    rows = [(model["id"], model["name"], model["policy"], ", ".join(_short(b) for b in model["backends"])) for model in listed]
    show_table(("model", "name", "policy", "backends"), rows, empty="The live revision has no models.")


def _live(key: str = "") -> _Live:
    from gateway.cli.folders import local_states
    from gateway.cli.revisions import revision_or_live
    from gateway.routing.probes import FILE_NAME, read_probes
    from gateway.routing.stored import read_stored

    async def work(ctx: Context) -> tuple[Revision, Mapping[str, str], tuple[int, dict[str, Probed]], ApiKey | None]:
        probes = read_probes(ctx.settings.run_dir / FILE_NAME)
        return await revision_or_live(ctx, None), local_states(ctx.settings), probes, await _key(ctx, key) if key else None

    revision, states, (probed_revision, probes), found = in_context(work)
    return _Live(revision.id, read_stored(revision.document).document, states, probes if probed_revision == revision.id else {}, found)


async def _key(ctx: Context, text: str) -> ApiKey:
    from gateway.cli.keys import bare_id
    from gateway.store import keys

    async with ctx.db.read() as conn:
        key = await keys.by_id(conn, bare_id(text))
    if key is None:
        fail(f"There is no key {bare_id(text)!r}.")
    return key


def _backends(entry: ModelEntry, live: _Live) -> list[dict[str, Any]]:
    from gateway.cli.reasons import part_names, shares

    share, parts = shares(entry), part_names(entry)
    return [
        {
            "id": name,
            "type": backend.type,
            "weight": backend.weight,
            "priority": backend.priority,
            "part": parts.get(name),
            "share": share[name],
            "model": backend.model or entry.id,
            "where": _where(backend),
            "state": _state(backend, live.probes.get(f"{entry.id}/{name}"), live.states),
        }
        for name, backend in zip(entry.backend_ids(), entry.backends, strict=True)
    ]


def _state(backend: BackendEntry, probed: Probed | None, states: Mapping[str, str]) -> str | None:
    """Of a local model what it does, of a probed backend what its probe finds; of others only a running server knows."""
    if backend.type == "local":
        return states.get(backend.path, "not running")
    if probed is None or probed.alive is None or probed.valid_s(time.time()) <= 0:
        return None
    return "alive" if probed.alive else f"dead: {probed.reason}"


def _where(backend: BackendEntry) -> str:
    return getattr(backend, "base_url", None) or getattr(backend, "path", None) or "in the server itself"


def _short(backend: dict[str, Any]) -> str:
    return f"{backend['id']} {backend['weight']}" + (f" ({backend['state']})" if backend["state"] else "")
