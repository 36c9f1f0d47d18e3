"""Changes of what everything else rests on: the keys that sign login tokens, and the key that secrets are encrypted with."""

from __future__ import annotations

import asyncio

from auth.signing import Material, generate
from auth.tokens import ACCESS_LIFETIME_S, ACTIVATION_S
from gateway.changes.actor import Actor, Change, change
from gateway.changes.sealing import require_own_key
from gateway.store import contents, meta, secrets, signing
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.secret_key import SecretKeys
from gateway.store.secrets import SecretBox

_ENTITY = "signing_key"
_SLACK_S = 60.0  # clocks of hosts differ
_KEPT_S = 86_400.0
_ROWS = 100


async def ensure_signing_key(db: Database, generation: Generation, actor: Actor, *, box: SecretBox, algorithm: str) -> bool:
    """There is a key for this algorithm, and it is the one that signs. True: it was made now."""
    async with db.read() as conn:
        known = await signing.newest(conn)
    if known is not None and known[1] == algorithm:
        return False
    kid, material = await asyncio.to_thread(generate, algorithm)
    async with change(db, generation, actor) as step:
        known = await signing.newest(step.conn)
        if known is not None and known[1] == algorithm:  # another process was first
            return False
        await _succeed(step, box, kid, algorithm, material, at_once=False)
        return True


async def rotate_signing_key(
    db: Database, generation: Generation, actor: Actor, *, box: SecretBox, algorithm: str, at_once: bool = False
) -> str:
    """A new key signs from now on; its id. Tokens of those before it stay good until they run out.

    `at_once`, for a key that somebody else may have: they stop being good now. Whoever is logged in gets a new one with the refresh token.
    """
    kid, material = await asyncio.to_thread(generate, algorithm)
    async with change(db, generation, actor) as step:
        step.require_admin()
        await _succeed(step, box, kid, algorithm, material, at_once=at_once)
    return kid


async def reseal_secrets(db: Database, generation: Generation, actor: Actor, *, keys: SecretKeys) -> tuple[int, int]:
    """Encrypt everything anew with the present GATEWAY_SECRET_KEY: (secrets, signing keys). All or, with `SecretUnreadable`, nothing."""
    box = SecretBox.of(keys)
    async with change(db, generation, actor) as step:
        step.require_admin()
        await require_own_key(step, box)
        counts = await secrets.reseal_all(step.conn, box), await signing.reseal_all(step.conn, box, step.now_s)
        await meta.remember_secret_key(step.conn, keys.current)
        after = {"secrets": counts[0], "signing_keys": counts[1]}
        await step.record("reseal", "secret", "*", None, after, log=False)  # what was opened is the same: nobody need read it again
        return counts


async def forget_secrets(db: Database, generation: Generation, actor: Actor, *, keys: SecretKeys, algorithm: str) -> list[str]:
    """Go on with another GATEWAY_SECRET_KEY after the one that everything is encrypted with was lost. Returns the names of what is gone,
    beside all that was logged of requests and answers.

    A new key signs login tokens; those of the keys before it are refused. Refresh tokens, passwords and API keys rest on no secret key.
    """
    kid, material = await asyncio.to_thread(generate, algorithm)
    async with change(db, generation, actor) as step:
        step.require_admin()
    said = await _drop_contents(db)
    async with change(db, generation, actor) as step:
        step.require_admin()
        gone, signers = await secrets.remove_all(step.conn), await signing.remove_all(step.conn)
        await meta.remember_secret_key(step.conn, keys.current)
        await signing.add(step.conn, SecretBox.of(keys), kid, algorithm, material, step.now_s)
        await step.record("forget", "secret", "*", {"secrets": gone, "signing_keys": signers, "contents": said}, {"secrets": []})
        await step.record("create", _ENTITY, kid, None, {"kid": kid, "algorithm": algorithm, "at_once": True})
        return gone


async def _drop_contents(db: Database) -> int:
    """How many requests that were. Before the change and some at a time: gigabytes take longer than a statement may. Cut off, it is done
    again; what comes after it is not stored any more (`gateway.keeper.contents`).
    """
    dropped = 0
    while True:
        async with db.write() as conn:
            gone = await contents.delete_any(conn, limit=_ROWS)
        dropped += gone
        if gone < _ROWS:
            return dropped


async def _succeed(step: Change, box: SecretBox, kid: str, algorithm: str, material: Material, *, at_once: bool) -> None:
    await require_own_key(step, box)
    before = await signing.newest(step.conn)
    await signing.forget_ended(step.conn, step.now_s - _KEPT_S)
    await signing.end_all(step.conn, step.now_s if at_once else step.now_s + ACTIVATION_S + ACCESS_LIFETIME_S + _SLACK_S)
    await signing.add(step.conn, box, kid, algorithm, material, step.now_s)
    old = None if before is None else {"kid": before[0], "algorithm": before[1]}
    await step.record("create" if old is None else "rotate", _ENTITY, kid, old, {"kid": kid, "algorithm": algorithm, "at_once": at_once})
