"""Keys that sign login tokens, in both databases: made once, rotated, encrypted anew."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import func, select, update

from auth.errors import CredentialInvalid
from auth.ports import UserRecord
from auth.principal import Principal, Role
from auth.signing import from_text, generate, to_text
from auth.tokens import ACCESS_LIFETIME_S, ACTIVATION_S, AccessTokens, head_of
from gateway.changes import Actor, ensure_signing_key, reseal_secrets, rotate_signing_key, set_secret
from gateway.errors import Forbidden, Unavailable
from gateway.store import changelog, meta, secrets, signing, trail
from gateway.store.engine import Database
from gateway.store.errors import SecretUnreadable
from gateway.store.generation import Generation
from gateway.store.secret_key import SecretKeys, fingerprint
from gateway.store.secrets import SecretBox
from gateway.store.tables import signing_keys

OLD, NEW = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz", "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"
BOX = SecretBox(OLD)
INIT = Actor(None, "init")
USER = UserRecord("usr_1", "a@localhost", Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes))


async def keys(db: Database, at: float | None = None, box: SecretBox = BOX) -> list[tuple[str, str, float | None]]:
    async with db.read() as conn:
        return [(key.kid, key.algorithm, key.expires_at) for key in await signing.read_all(conn, box, time.time() if at is None else at)]


async def tokens(db: Database) -> AccessTokens:
    async with db.read() as conn:
        return AccessTokens(await signing.read_all(conn, BOX, time.time()))


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_each_kind_survives_being_written_down(algorithm: str) -> None:
    _, material = generate(algorithm)
    text = to_text(material)
    again = from_text(algorithm, text)
    assert to_text(again) == text
    for other in {"HS256", "RS256", "ES256"} - {algorithm}:
        with pytest.raises(ValueError):
            from_text(other, text)


def test_no_other_kind_is_made() -> None:
    with pytest.raises(ValueError, match="none"):
        generate("none")


async def test_the_first_is_made_once(db: Database, generation: Generation) -> None:
    made = await asyncio.gather(*(ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256") for _ in range(4)))
    assert sorted(made) == [False, False, False, True]
    ((kid, algorithm, end),) = await keys(db)
    assert (algorithm, end) == ("HS256", None)
    async with db.read() as conn:
        assert [(e.kind, e.entity_id) for e in await changelog.after(conn, 0)] == [("signing_key", kid)]
    assert head_of((await tokens(db)).issue(USER))["kid"] == kid  # at once: there is no other


async def test_rotation(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    old = await tokens(db)
    before = old.issue(USER)
    began_s = time.time()
    kid = await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="ES256")
    (first, _, end), second = await keys(db)
    assert second == (kid, "ES256", None)
    assert end is not None
    now_s = time.time()
    assert now_s + ACTIVATION_S + ACCESS_LIFETIME_S < end < now_s + ACTIVATION_S + ACCESS_LIFETIME_S + 120
    both = await tokens(db)
    assert both.verify(before).user_id == "usr_1"
    assert head_of(both.issue(USER))["kid"] == first
    later = now_s + ACTIVATION_S + 1
    after = both.issue(USER, later)
    assert (head_of(after)["kid"], head_of(after)["alg"]) == (kid, "ES256")
    assert both.verify(after, later).user_id == "usr_1"
    last = both.issue(USER, began_s + ACTIVATION_S - 0.1)  # the last that the old one signs is good to its own end
    assert head_of(last)["kid"] == first
    assert both.verify(last, began_s + ACTIVATION_S + ACCESS_LIFETIME_S - 2)
    assert [key[0] for key in await keys(db, end + 1)] == [kid]
    with pytest.raises(CredentialInvalid):
        both.verify(old.issue(USER, end - 10), end + 1)  # whoever has the old key cannot use it for ever


async def test_a_key_that_may_be_stolen_ends_at_once(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    stolen = await tokens(db)
    await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    kid = await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256", at_once=True)
    assert [key[0] for key in await keys(db)] == [kid]
    fresh = await tokens(db)
    assert head_of(fresh.issue(USER))["kid"] == kid
    with pytest.raises(CredentialInvalid):
        fresh.verify(stolen.issue(USER))


async def test_another_algorithm_makes_a_new_key(db: Database, generation: Generation) -> None:
    for algorithm, expected in (("HS256", True), ("ES256", True), ("ES256", False), ("HS256", True)):
        assert await ensure_signing_key(db, generation, INIT, box=BOX, algorithm=algorithm) is expected
    assert [key[1] for key in await keys(db)] == ["HS256", "ES256", "HS256"]


async def test_those_long_ended_are_forgotten(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    async with db.write() as conn:
        await conn.execute(update(signing_keys).values(expires_at=time.time() - 90_000))
    await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    async with db.read() as conn:
        assert (await conn.execute(select(func.count()).select_from(signing_keys))).scalar() == 1


async def test_only_an_admin_may(db: Database, generation: Generation) -> None:
    stranger = Actor("usr_nobody", "api", scopes=frozenset({"admin"}))
    with pytest.raises(Forbidden):
        await rotate_signing_key(db, generation, stranger, box=BOX, algorithm="HS256")
    with pytest.raises(Forbidden):
        await reseal_secrets(db, generation, stranger, keys=SecretKeys(NEW, (OLD,)))
    assert await keys(db) == []


async def test_no_key_is_in_the_database_in_the_clear_nor_in_the_audit_log(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="ES256")
    await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    async with db.read() as conn:
        opened = [to_text(key.material) for key in await signing.read_all(conn, BOX, time.time())]
        rows = repr((await conn.execute(select(signing_keys))).all())
        entries = await trail.page(conn)
    assert len(opened) == 2
    assert [(entry.action, entry.entity) for entry in entries] == [("rotate", "signing_key"), ("create", "signing_key")]
    for text in opened:
        for part in (text, text.strip(), *text.splitlines()[1:-1]):
            assert part not in rows
            assert part not in repr(entries)


async def test_everything_is_encrypted_anew(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="RS256")
    async with db.write() as conn:
        await meta.remember_secret_key(conn, OLD)
        await secrets.put(conn, BOX, "upstream", "sk-upstream")
    replacing = SecretKeys(NEW, (OLD,))
    async with db.read() as conn:
        assert await meta.secret_key_is_previous(conn, replacing)
    before = await keys(db)
    assert await reseal_secrets(db, generation, INIT, keys=replacing) == (1, 1)
    assert await keys(db, box=SecretBox(NEW)) == before
    with pytest.raises(SecretUnreadable):
        await keys(db, box=BOX)
    async with db.write() as conn:
        assert await secrets.read_all(conn, SecretBox(NEW)) == {"upstream": "sk-upstream"}
        assert await meta.secret_key_fingerprint(conn) == fingerprint(NEW)
        assert not await meta.secret_key_is_previous(conn, replacing)


async def test_a_server_that_was_forgotten_seals_nothing(db: Database, generation: Generation) -> None:
    """It was started with the key that has been replaced since: nobody else could open what it writes."""
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    async with db.write() as conn:
        await meta.remember_secret_key(conn, OLD)
    both = SecretBox(NEW, (OLD,))
    assert await set_secret(db, generation, INIT, "before", "value", box=both), "while it is being replaced"
    assert await set_secret(db, generation, INIT, "also_before", "value", box=BOX)
    with pytest.raises(Unavailable, match="GATEWAY_SECRET_KEY"):
        await set_secret(db, generation, INIT, "third", "value", box=SecretBox("x" * 20 + "0123456789abcdefghij", (OLD,)))
    await reseal_secrets(db, generation, INIT, keys=SecretKeys(NEW, (OLD,)))
    before = await keys(db, box=both)
    refused = [
        set_secret(db, generation, INIT, "after", "value", box=BOX),
        rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256", at_once=True),
        ensure_signing_key(db, generation, INIT, box=BOX, algorithm="ES256"),
        reseal_secrets(db, generation, INIT, keys=SecretKeys(OLD)),
        reseal_secrets(db, generation, INIT, keys=SecretKeys(OLD, ("x" * 20 + "0123456789abcdefghij",))),
    ]
    for change in refused:
        with pytest.raises(Unavailable, match="restart"):
            await change
    assert await keys(db, box=both) == before
    async with db.read() as conn:
        assert {info.name for info in await secrets.names(conn)} == {"before", "also_before"}
    assert await set_secret(db, generation, INIT, "after", "value", box=SecretBox(NEW))


async def test_what_one_of_them_cannot_open_leaves_all_as_it_was(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="HS256")
    async with db.write() as conn:
        await meta.remember_secret_key(conn, OLD)
        await secrets.put(conn, BOX, "a", "sk-a")
        await secrets.put(conn, SecretBox("x" * 20 + "0123456789abcdefghij"), "b", "sk-b")
    with pytest.raises(SecretUnreadable):
        await reseal_secrets(db, generation, INIT, keys=SecretKeys(NEW, (OLD,)))
    assert len(await keys(db)) == 1  # the old key still opens it
    async with db.write() as conn:
        assert await meta.secret_key_fingerprint(conn) == fingerprint(OLD)


STRANGE = SecretBox("x" * 20 + "0123456789abcdefghij")


async def replaced_elsewhere(db: Database, generation: Generation, *, at_once: bool) -> None:
    """The key that signs was encrypted with a secret key that is not ours; then it was replaced."""
    kid, material = generate("HS256")
    async with db.write() as conn:
        await signing.add(conn, STRANGE, kid, "HS256", material, time.time())
    with pytest.raises(SecretUnreadable):
        await keys(db)
    await rotate_signing_key(db, generation, INIT, box=BOX, algorithm="HS256", at_once=at_once)


async def test_a_replaced_key_that_cannot_be_opened_keeps_nobody_out(db: Database, generation: Generation) -> None:
    await replaced_elsewhere(db, generation, at_once=False)
    ((kid, _, end),) = await keys(db)
    assert end is None
    assert head_of((await tokens(db)).issue(USER))["kid"] == kid


async def test_one_that_has_ended_is_not_encrypted_anew(db: Database, generation: Generation) -> None:
    await replaced_elsewhere(db, generation, at_once=True)
    assert await reseal_secrets(db, generation, INIT, keys=SecretKeys(NEW, (OLD,))) == (0, 1)
    assert len(await keys(db, box=SecretBox(NEW))) == 1


async def test_a_row_that_somebody_changed_is_no_key(db: Database, generation: Generation) -> None:
    await ensure_signing_key(db, generation, INIT, box=BOX, algorithm="ES256")
    for ciphertext in (b"nonsense", BOX.seal("nonsense"), BOX.seal(to_text(b"k" * 32))):
        async with db.write() as conn:
            await conn.execute(update(signing_keys).values(ciphertext=ciphertext))
        with pytest.raises(SecretUnreadable):
            await keys(db)
