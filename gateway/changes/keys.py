"""Changes of API keys.

Admins change every key. Managers change those of their team's members, viewers and services, and their own. Everybody else sees, rotates
and revokes their own, with a login: they neither make keys nor change limits, which would go round those that were set for them.

What an admin has set of a key (`ApiKey.held`) managers only narrow, and so they do with their own keys. A key that acts gives no more than
it carries: what it makes, changes or rotates is bound to its scopes, networks, models and expiry.

The scope `content` (reading what was logged of requests) is given, renewed and widened by admins alone, and by a key only where it carries
it itself: not even its owner learns a new text of such a key. (An admin's key that is bound to nothing can still make an admin, who logs
in and gives it: that leaves more than one entry.) Whether a key's content is logged is for admins to say, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from auth.address import parse_networks
from auth.existing import beginning, unfit
from auth.keys import digest, looks_like_key, mint
from auth.principal import CONTENT, SCOPES, Limits
from gateway.changes.actor import Actor, Change, change
from gateway.changes.bounds import LIMITS, REACH, bounds_of, held_after, wider
from gateway.changes.limits import FIELDS as _LIMITS
from gateway.changes.limits import check_limits, edited, set_back, shown_limits
from gateway.changes.sealing import require_box
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.store import keys, password_links, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.keys import ApiKey
from gateway.store.secrets import SecretBox
from gateway.store.users import User

DEFAULT_SCOPES = ("inference",)
MAX_GRACE_S = 90 * 86_400
MAX_DESCRIPTION_CHARS = 1000
MAX_NETWORKS = 100
_MAX_NAME_CHARS = 200
_MAX_GLOBS = 100
_MAX_GLOB_CHARS = 200
_ENTITY = "key"
_WIDER = {
    "models": "The key that you act with is for some models: this one would be for others.",
    "networks": "The key that you act with is for some networks: this one would work outside them.",
    "expires_at": "The key that you act with ends: this one would end later, or never.",
}


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key just made. `key` is its text, to be shown this once. Times are Unix seconds."""

    id: str
    key: str = field(repr=False)
    name: str
    scopes: tuple[str, ...]
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new key is to be. `owner_id` None: the actor, or from the command line the first admin.

    `models`: globs over route ids. `networks`: CIDR, none = from anywhere. `expires_at`: Unix seconds. `content_log`: what it asks and is
    answered is kept.
    """

    name: str
    owner_id: str | None = None
    scopes: Sequence[str] = DEFAULT_SCOPES
    models: Sequence[str] = ("*",)
    limits: Limits = field(default_factory=Limits)
    expires_at: float | None = None
    description: str = ""
    networks: Sequence[str] = ()
    content_log: bool = False


async def create_key(
    db: Database,
    generation: Generation,
    actor: Actor,
    *,
    name: str,
    owner_id: str | None = None,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    models: Sequence[str] = ("*",),
    limits: Limits | None = None,
    expires_at: float | None = None,
    description: str = "",
    networks: Sequence[str] = (),
    content_log: bool = False,
    box: SecretBox | None = None,
) -> IssuedKey:
    """A new key; see `Grant`. Nobody can grant a scope that they do not hold. `box`: needed where its content is logged."""
    key_id, text = mint()
    grant = Grant(name, owner_id, scopes, models, limits or Limits(), expires_at, description, networks, content_log)
    async with change(db, generation, actor) as step:
        key = await _granted(step, key_id, grant, box)
        await keys.insert_key(step.conn, key, digest(text))
        await step.record("create", _ENTITY, key.id, None, shown(key))
    return IssuedKey(key.id, text, key.name, key.scopes, key.expires_at)


async def import_key(
    db: Database, generation: Generation, actor: Actor, text: str, grant: Grant, *, box: SecretBox | None = None
) -> ApiKey:
    """A key that exists elsewhere and works here from now on: only its digest is kept. Admins only: its secret is not of our making."""
    problem = unfit(text)
    if problem is not None:
        raise InvalidRequest(problem, param="key")
    own = looks_like_key(text.encode())  # of another installation of this gateway: it keeps its id
    key_id = text.split("-")[2] if own else mint()[0]
    async with change(db, generation, actor) as step:
        step.require_admin()
        if await keys.is_taken(step.conn, key_id, digest(text)):
            raise Conflict("There is such a key already.", param="key")
        key = replace(await _granted(step, key_id, grant, box), prefix=None if own else beginning(text))
        await keys.insert_key(step.conn, key, digest(text))
        await step.record("import", _ENTITY, key.id, None, shown(key))
    return key


async def revoke_key(db: Database, generation: Generation, actor: Actor, key_id: str) -> ApiKey:
    """New requests are refused; running ones finish. Revoking a revoked key changes nothing."""
    async with change(db, generation, actor) as step:
        key, _ = await _known(step, key_id)
        if key.revoked_at is not None:
            return key
        after = replace(key, revoked_at=step.now_s)
        await keys.revoke(step.conn, key_id, step.now_s)
        await step.record("revoke", _ENTITY, key_id, shown(key), shown(after))
        return after


async def rotate_key(db: Database, generation: Generation, actor: Actor, key_id: str, *, grace_s: float = 0) -> IssuedKey:
    """A new text for the same key: same id, limits and budget. The old text works for `grace_s` more seconds."""
    if not 0 <= grace_s <= MAX_GRACE_S:
        raise InvalidRequest(f"The grace period is between 0 and {MAX_GRACE_S // 86_400} days.", param="grace")
    async with change(db, generation, actor) as step:
        key, owner = await _known(step, key_id)
        if key.revoked_at is not None:
            raise Conflict("This key is revoked.")
        _require_reader(step, key.scopes)
        if not (step.is_self(owner.id) and step.actor.login):  # whoever rotates it learns the new text
            _require_held(step, key.scopes)
            _require_within(step, key, REACH)
        _, text = mint(key.id)
        if key.prefix is not None:  # an imported one: its new text begins as all others do
            key = replace(key, prefix=None)
            await keys.update_key(step.conn, key)
        await keys.replace_digest(step.conn, key.id, digest(text), step.now_s, step.now_s + grace_s)
        await password_links.delete_issued_with(step.conn, key.id)  # whoever had the old text may have issued them
        await step.record("rotate", _ENTITY, key.id, shown(key), shown(key) | {"grace_s": grace_s})
    return IssuedKey(key.id, text, key.name, key.scopes, key.expires_at)


async def update_key(
    db: Database, generation: Generation, actor: Actor, key_id: str, fields: Mapping[str, Any], *, box: SecretBox | None = None
) -> ApiKey:
    """Change a key that stays the same key; its text goes on working. Only admins and managers change limits.

    `fields`: any of name, description, scopes, models, networks, expires_at, rpm, tpm, rpd, tpd, concurrency, budget (a `Budget`),
    token_budget (a `TokenBudget`), soft, content_log; None takes away an expiry or a limit. What was spent of a budget stays spent.
    """
    async with change(db, generation, actor) as step:
        step.require_manager()
        key, owner = await _known(step, key_id)
        if key.revoked_at is not None:
            raise Conflict("This key is revoked.")
        after = _edited(key, fields)
        _check(after)
        if after.expires_at is not None and after.expires_at <= step.now_s and after.expires_at != key.expires_at:
            raise InvalidRequest("The expiry lies in the past.", param="expires_at")
        if after.scopes != key.scopes:
            _require_held(step, after.scopes)
            _require_of_role(owner, after.scopes)
        elif wider(REACH, key, after) is not None:  # as much as giving it anew
            _require_reader(step, after.scopes)
        if after.content_log != key.content_log:
            await _require_may_log(step, after, box)
        _require_within(step, after, [name for name in REACH if getattr(after, name) != getattr(key, name)])
        if step.by_admin:
            after = replace(after, held=held_after(after, fields))
        else:
            _require_narrower(step, owner, key, after)
        if after != key:
            await keys.update_key(step.conn, after)
            await step.record("update", _ENTITY, key_id, shown(key), shown(after))
        return after


async def reset_key_budget(db: Database, generation: Generation, actor: Actor, key_id: str) -> ApiKey:
    """What the key has spent so far counts against its budgets no more. Admins only."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        key, _ = await _known(step, key_id)
        if key.revoked_at is not None:
            raise Conflict("This key is revoked.")
        after = replace(key, limits=set_back(key.limits, step.now_s))
        await keys.update_key(step.conn, after)
        await step.record("reset_budget", _ENTITY, key_id, shown(key), shown(after))
        return after


def shown(key: ApiKey) -> dict[str, Any]:
    """What the audit trail keeps of a key."""
    return {
        "name": key.name,
        "description": key.description,
        "prefix": key.begins,
        "owner": key.user_id,
        "models": list(key.models),
        "scopes": list(key.scopes),
        "networks": list(key.networks),
        **(dict.fromkeys(LIMITS) | shown_limits(key.limits)),
        "expires_at": key.expires_at,
        "held": list(key.held),
        "content_log": key.content_log,
        "revoked": key.revoked_at is not None,
    }


async def _granted(step: Change, key_id: str, grant: Grant, box: SecretBox | None) -> ApiKey:
    """The key that this grant describes, if the actor may give it. Raises `Forbidden`, `NotFound`, `Conflict`, `InvalidRequest`."""
    key = ApiKey(
        key_id,
        "",
        grant.name.strip(),
        _unique(grant.models),
        _unique(grant.scopes),
        grant.limits,
        step.now_s,
        grant.expires_at,
        description=grant.description.strip(),
        networks=_networks(grant.networks),
        created_by=step.actor.label,
        content_log=grant.content_log,
    )
    _check(key)
    if key.expires_at is not None and key.expires_at <= step.now_s:
        raise InvalidRequest("The expiry lies in the past.", param="expires_at")
    step.require_manager()
    _require_held(step, key.scopes)
    _require_within(step, key, REACH)
    if key.content_log:
        await _require_may_log(step, key, box)
    owner = await _owner(step, grant.owner_id)
    _require_of_role(owner, key.scopes)
    return replace(key, user_id=owner.id, held=bounds_of(key) if step.by_admin else ())


def _edited(key: ApiKey, fields: Mapping[str, Any]) -> ApiKey:
    own = {name: value for name, value in fields.items() if name not in _LIMITS}
    for name in ("name", "description"):
        if name in own:
            own[name] = own[name].strip()
    for name in ("scopes", "models"):
        if name in own:
            own[name] = _unique(own[name])
    if "networks" in own:
        own["networks"] = _networks(own["networks"])
    return replace(key, limits=edited(key.limits, fields), **own)


async def _owner(step: Change, owner_id: str | None) -> User:
    """Whom the new key is for: the actor, or somebody whom they manage."""
    chosen = owner_id or step.actor.user_id
    if chosen is None:
        owner = await users.first_admin(step.conn)
    elif step.is_self(chosen):
        owner = await users.by_id(step.conn, chosen)
    else:
        owner = await step.managed(chosen)
    if owner is None:
        raise NotFound("There is no such user.", param="owner")
    if not owner.enabled:
        raise Conflict("The owner is disabled.", param="owner")
    return owner


async def _known(step: Change, key_id: str) -> tuple[ApiKey, User]:
    """A key that the actor may change, and its owner. Another's is as unknown as one that does not exist, but for the owner's manager."""
    key = await keys.by_id(step.conn, key_id)
    owner = None if key is None else await users.by_id(step.conn, key.user_id)
    if key is None or owner is None or not step.sees(owner):
        raise NotFound("There is no such key.")
    own = step.is_self(owner.id) and step.actor.login  # a key is no person: it does not change itself
    if not own and not step.manages(owner):
        raise Forbidden("You may not change this key.")
    return key, owner


def _require_reader(step: Change, scopes: Sequence[str]) -> None:
    """Whoever gives the scope `content`, widens a key that has it, or learns its text, may."""
    if CONTENT in scopes and not (step.by_admin and (step.rights.key is None or CONTENT in step.holds)):
        raise Forbidden("The scope 'content' is given and renewed by an admin: with a login, the command line, or a key that has it.")


async def _require_may_log(step: Change, key: ApiKey, box: SecretBox | None) -> None:
    if not step.by_admin:
        raise Forbidden("Only an admin says whether the content of a key's requests is logged.")
    if key.content_log:
        await require_box(step, box)


def _require_held(step: Change, scopes: Sequence[str]) -> None:
    _require_reader(step, scopes)
    if not step.by_admin and not step.holds.issuperset(scopes):  # an admin makes what has them all
        raise Forbidden("A key cannot have a scope that you do not hold.")


def _require_within(step: Change, key: ApiKey, names: Sequence[str]) -> None:
    """The key that acts, if one does, reaches as far in all of these."""
    further = None if step.rights.key is None else wider(names, step.rights.key, key)
    if further is not None:
        raise Forbidden(_WIDER[further])


def _require_narrower(step: Change, owner: User, key: ApiKey, after: ApiKey) -> None:
    """What a manager may make of a key: what an admin has set, and all of their own keys, at most narrower."""
    own = step.is_self(owner.id)
    further = wider((*REACH, *LIMITS) if own else key.held, key, after)
    if further is not None:
        whose = "You may narrow your own keys, not widen them" if own else "An admin has set this: you may narrow it, not widen it"
        raise Forbidden(f"{whose} ({further}).")


def _require_of_role(owner: User, scopes: Sequence[str]) -> None:
    if not owner.role.key_scopes.issuperset(scopes):
        raise InvalidRequest(f"The owner's role ({owner.role}) does not include every one of these scopes.", param="scopes")


def _networks(texts: Sequence[str]) -> tuple[str, ...]:
    """In normal form. Nothing is skipped: a list of blanks must not come to mean "from anywhere"."""
    if len(texts) > MAX_NETWORKS or not all(text.strip() for text in texts):
        raise InvalidRequest(f"A key has at most {MAX_NETWORKS} networks such as 10.0.0.0/8, none of them blank.", param="networks")
    try:
        return parse_networks(texts).texts
    except ValueError as error:
        raise InvalidRequest(str(error), param="networks") from None


def _check(key: ApiKey) -> None:
    name, scopes, models = key.name, key.scopes, key.models
    if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest(f"A key needs a name of 1 to {_MAX_NAME_CHARS} printable characters.", param="name")
    if len(key.description) > MAX_DESCRIPTION_CHARS or not key.description.replace("\n", " ").isprintable():
        raise InvalidRequest(f"A description has at most {MAX_DESCRIPTION_CHARS} printable characters.", param="description")
    if not scopes or not SCOPES.issuperset(scopes):
        raise InvalidRequest(f"Scopes are one or more of {', '.join(sorted(SCOPES))}.", param="scopes")
    if not models or len(models) > _MAX_GLOBS:
        raise InvalidRequest(f"A key needs 1 to {_MAX_GLOBS} model patterns; * stands for all.", param="models")
    if any(not glob or len(glob) > _MAX_GLOB_CHARS or not glob.isprintable() or glob != glob.strip() for glob in models):
        raise InvalidRequest(f"A model pattern has 1 to {_MAX_GLOB_CHARS} printable characters.", param="models")
    check_limits(key.limits)


def _unique(items: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
