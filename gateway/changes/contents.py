"""Reading what was logged of requests and answers, and forgetting it.

Whoever reads leaves an entry in the audit log first: who, from where, which request, and why. Reading needs the scope `content`, which no
role carries: a key has it where an admin gave it to that key. Forgetting is an admin's affair, who need not be able to read. No entry
holds what was said.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import asdict, dataclass

from auth.principal import CONTENT, Principal
from gateway.changes.actor import EXTERNAL, Actor, Change, change
from gateway.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from gateway.metering.spool import ANSWER, REQUEST, unpacked
from gateway.store import contents, keys, requests, users
from gateway.store.contents import About, Sealed
from gateway.store.engine import Database
from gateway.store.errors import SecretUnreadable
from gateway.store.generation import Generation
from gateway.store.secrets import SecretBox

MIN_REASON_CHARS, MAX_REASON_CHARS = 3, 200
_ENTITY = "content"
_ROWS = 100
_RESEALED_ROWS = 20
_KEY_BEGINS = "sk-gw-"
_UNKNOWN = {
    "key": "There is no such key, and nothing is kept of one. Name its id.",
    "user": "There is no such user, and nothing is kept of one. Name their id or e-mail.",
    "request": "There is no such request: its id is x-request-id of its answer. One that has just ended is known a few seconds later.",
}
_SHOWN = ("key_id", "user_id", "model", "ending")


@dataclass(frozen=True, slots=True)
class Said:
    """One request in the clear. None: that side is not kept (binary, or `about.not_kept`)."""

    about: About
    request: bytes | None
    answer: bytes | None


async def read_content(db: Database, generation: Generation, actor: Actor, request_id: str, reason: str, *, box: SecretBox) -> Said:
    """What one request said and was answered. The entry in the audit log is written before anything is opened."""
    reason = checked_reason(reason)
    async with change(db, generation, actor) as step:
        if CONTENT not in step.holds:
            raise Forbidden("Only a key with the scope 'content' may do this.")
        found = await contents.by_id(step.conn, request_id)
        if found is None or not _reaches(step, found.about.model):
            raise NotFound("Nothing is kept of such a request.")
        about = asdict(found.about)
        await step.record("read", _ENTITY, request_id, None, {"reason": reason} | {name: about[name] for name in _SHOWN}, log=False)
    return await asyncio.to_thread(_opened, found, box)


async def erase_contents(db: Database, generation: Generation, actor: Actor, kind: str, entity_id: str, reason: str) -> int:
    """Forget all that was logged of a key, a user or one request (`kind`) until now, also what is still on its way into the database.

    A user may be named by e-mail, a key by the beginning of its text; `NotFound` where nobody knows of whom or what it is. Returns how many
    requests that were. Their rows go some at a time; should that be cut off, the keeper goes on with it.
    """
    reason = checked_reason(reason)
    if kind not in contents.KINDS or not entity_id:
        raise InvalidRequest("Name a key, a user or a request.")
    async with change(db, generation, actor) as step:
        step.require_admin()
        if not step.rights.whole:
            raise Forbidden("A key that is bound to networks, models or an expiry erases nothing.")
        entity_id = await _known(step, kind, entity_id)
        await contents.note_erasure(step.conn, kind, entity_id, step.now_s)
        await step.record("erase", _ENTITY, f"{kind}:{entity_id}", None, {"reason": reason}, log=False)
    erased = 0
    while True:
        async with db.write() as conn:
            # Whatever is stored by now, when it began is for clocks to say that may differ.
            gone = await contents.erase(conn, kind, entity_id, None, limit=_ROWS)
        erased += gone
        if gone < _ROWS:
            return erased


async def reseal_contents(db: Database, generation: Generation, actor: Actor, *, box: SecretBox) -> tuple[int, int]:
    """Encrypt anew, with the present key, what is encrypted with the one before: (how many requests, how many could not be opened).

    Some at a time, and again from where it was cut off. To be done before the old key is forgotten.
    """
    async with change(db, generation, actor) as step:
        step.require_admin()
    resealed, unreadable, after = 0, 0, ""
    while True:
        async with db.read() as conn:
            rows = await contents.sealed_otherwise(conn, box.fingerprint, after=after, limit=_RESEALED_ROWS)
        if not rows:
            break
        after = rows[-1][0]
        fresh = await asyncio.to_thread(_resealed, rows, box)
        unreadable += len(rows) - len(fresh)
        resealed += len(fresh)
        async with db.write() as conn:
            for request_id, request, answer in fresh:
                await contents.put_resealed(conn, request_id, box.fingerprint, request, answer)
    if resealed:
        async with change(db, generation, actor) as step:
            await step.record("reseal", _ENTITY, "*", None, {"requests": resealed, "unreadable": unreadable}, log=False)
    return resealed, unreadable


def checked_reason(reason: str) -> str:
    """Raises `InvalidRequest`."""
    reason = reason.strip()
    if not MIN_REASON_CHARS <= len(reason) <= MAX_REASON_CHARS or not reason.isprintable():
        raise InvalidRequest(
            f"Say why, in {MIN_REASON_CHARS} to {MAX_REASON_CHARS} printable characters: it is kept in the audit log.", param="reason"
        )
    return reason


async def _known(step: Change, kind: str, named: str) -> str:
    """The id of the key, user or request that is meant and known. Nothing need be logged of it yet: that may wait on a disk."""
    entity_id, known = named, False
    if kind == "user":
        user = await (users.by_typed_email(step.conn, named) if "@" in named else users.by_id(step.conn, named))
        known = user is not None or named.startswith(EXTERNAL)  # those have no row
        entity_id = named if user is None else user.id
    elif kind == "key":
        entity_id = named.split("-")[2] if named.startswith(_KEY_BEGINS) else named
        known = await keys.by_id(step.conn, entity_id) is not None
    else:
        known = await requests.usage_row(step.conn, named) is not None
    if known or await contents.has_any(step.conn, kind, entity_id):
        return entity_id
    raise NotFound(_UNKNOWN[kind])


def _reaches(step: Change, model: str) -> bool:
    """A key that is for some models reads what was said to those."""
    pattern = None if step.rights.key is None else Principal.compile_globs(step.rights.key.models)
    return pattern is None or pattern.match(model) is not None


def _opened(found: Sealed, box: SecretBox) -> Said:
    about = found.about
    return Said(about, _side(about.request_id, REQUEST, found.request, box), _side(about.request_id, ANSWER, found.answer, box))


def _side(request_id: str, side: str, sealed: bytes | None, box: SecretBox) -> bytes | None:
    if sealed is None:
        return None
    try:
        return unpacked(request_id, side, box.open_bytes(request_id, sealed))
    except SecretUnreadable:
        text = "It is encrypted with another GATEWAY_SECRET_KEY than this process has."
    except (ValueError, zlib.error):
        text = "It is not what was logged of this request: somebody has changed the database."
    raise Unavailable(text, code="content_unreadable")


def _resealed(rows: list[tuple[str, bytes | None, bytes | None]], box: SecretBox) -> list[tuple[str, bytes | None, bytes | None]]:
    fresh = []
    for request_id, request, answer in rows:
        try:
            both = [None if one is None else box.reseal(request_id, one) for one in (request, answer)]
        except SecretUnreadable:
            continue
        fresh.append((request_id, both[0], both[1]))
    return fresh
