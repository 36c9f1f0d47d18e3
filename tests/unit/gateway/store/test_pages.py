"""Lists: pages by key, searches without wildcards; secrets and revisions as the store keeps them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from auth.principal import Limits, Role
from gateway.store import key_uses, keys, revisions, secrets, teams, users
from gateway.store.engine import Database
from gateway.store.errors import SecretUnreadable
from gateway.store.keys import ApiKey
from gateway.store.secrets import SecretBox

KEY_A = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"
KEY_B = "zVqBiWoXeUg1AfLd8RcHy5Tm2NbZ7xQv9p0SwJ3k"


async def test_users_by_pages(db: Database) -> None:
    emails = sorted(f"user{n:02d}@localhost" for n in range(25))
    async with db.write() as conn:
        for email in reversed(emails):
            await users.create(conn, email, Role.MEMBER, None, 1.0)
        seen: list[str] = []
        while batch := await users.page(conn, after=seen[-1] if seen else "", limit=10):
            seen += [u.email for u in batch]
        assert seen == emails
        assert [u.email for u in await users.page(conn, search="ER07@")] == ["user07@localhost"]
        assert await users.page(conn, search="%") == []
        assert await users.page(conn, search="user_1") == []


async def test_keys_by_pages(db: Database) -> None:
    async with db.write() as conn:
        one, other = [await users.create(conn, f"{n}@localhost", Role.MEMBER, None, 1.0) for n in "ab"]
        for n in range(20):
            owner = one if n % 2 else other
            key = ApiKey(f"id{n:010d}", owner.id, f"name {n}%", ("*",), ("inference",), Limits(rpm=n + 1), float(n // 4))
            await keys.insert_key(conn, key, n.to_bytes(32))
        await keys.revoke(conn, "id0000000003", 5.0)
        seen: list[ApiKey] = []
        while batch := await keys.page(conn, after=seen[-1] if seen else None, limit=6):
            seen += [found.key for found in batch]
        assert [k.id for k in seen] == [f"id{n:010d}" for n in range(20) if n != 3]
        assert seen[5].limits == Limits(rpm=7)
        assert len(await keys.page(conn, user_id=one.id)) == 9
        assert len(await keys.page(conn, user_id=one.id, revoked=True)) == 10
        assert [k.key.name for k in await keys.page(conn, search="me 7%")] == ["name 7%"]
        assert [k.key.id for k in await keys.page(conn, search="id0000000012")] == ["id0000000012"]
        assert await keys.page(conn, search="_") == []


async def test_keys_are_found_by_what_people_know_of_them(db: Database) -> None:
    async with db.write() as conn:
        team = await teams.create(conn, "Search", 1.0)
        kim = await users.create(conn, "kim@example.com", Role.MEMBER, None, 1.0, name="Kim Müller", team_id=team.id)
        lee = await users.create(conn, "lee@example.com", Role.MEMBER, None, 1.0)
        plain = ApiKey("aaaaaaaaaaaa", kim.id, "Indexer", ("*",), ("inference",), Limits(), 1.0, description="Nightly ÜBUNG")
        brought = ApiKey(
            "bbbbbbbbbbbb",
            lee.id,
            "old one",
            ("*",),
            ("inference",),
            Limits(),
            2.0,
            prefix="hf_Qw",
            networks=("10.0.0.0/8",),
            created_by="cli",
        )
        await keys.insert_keys(conn, [(plain, b"1" * 32), (brought, b"2" * 32)])
        await key_uses.save(conn, {plain.id: 60.0})

        async def found(search: str = "", **chosen: Any) -> list[str]:
            return [found.key.id[0] for found in await keys.page(conn, search=search, **chosen)]

        for search, ids in {
            "": "ab", "  ": "ab", "indexer": "a", "INDEX": "a", "übung": "a", "sk-gw-aaaa": "a", "aaaaaaaaaaaa": "a", "hf_qw": "b",
            "sk-gw-bbbb": "", "KIM@": "a", "müller": "a", "@example": "ab", "_": "b", "%": "", "\\": "", "old one": "b", "none": "",
        }.items():  # fmt: skip
            assert await found(search) == list(ids), search
        assert await found(team_id=team.id) == ["a"]
        assert await found("example", team_id=team.id) == ["a"]
        assert await found("lee", team_id=team.id) == []
        assert await found(team_id="") == []
        assert await found("lee", user_id=lee.id) == ["b"]
        one, other = await keys.page(conn)
        assert (one.owner_email, one.team_id, one.last_used_at, one.key.begins) == ("kim@example.com", team.id, 60.0, "sk-gw-aaaaaaaaaaaa")
        assert other == await keys.listed(conn, brought.id)
        assert (other.key, other.last_used_at, other.key.begins) == (brought, None, "hf_Qw")
        await keys.update_key(conn, replace(plain, name="Renamed", description=""))
        assert (await found("indexer"), await found("renamed")) == ([], ["a"])
        assert [await keys.is_taken(conn, i, d) for i, d in (("x", b"1" * 32), (plain.id, b"9" * 32), ("x", b"9" * 32))] == [
            True,
            True,
            False,
        ]


async def test_secrets_are_encrypted_and_can_change_their_key(db: Database) -> None:
    box = SecretBox(KEY_A)
    async with db.write() as conn:
        assert await secrets.put(conn, box, "upstream", "top-secret-value")
        assert not await secrets.put(conn, box, "upstream", "top-secret-value"), "the same value is no change"
        assert await secrets.read_all(conn, box) == {"upstream": "top-secret-value"}
        raw = (await conn.exec_driver_sql("SELECT ciphertext FROM secrets")).scalar_one()
        assert b"top-secret-value" not in bytes(raw)
        with pytest.raises(SecretUnreadable, match="upstream"):
            await secrets.read_all(conn, SecretBox(KEY_B))
        assert await secrets.reseal_all(conn, SecretBox(KEY_B, [KEY_A])) == 1
        assert await secrets.read_all(conn, SecretBox(KEY_B)) == {"upstream": "top-secret-value"}
        assert [s.name for s in await secrets.names(conn)] == ["upstream"]
        assert await secrets.remove(conn, "upstream")
        assert not await secrets.remove(conn, "upstream")


def test_the_digest_of_a_document_does_not_depend_on_its_order() -> None:
    assert revisions.content_digest({"a": 1, "b": [{"c": "값"}]}) == revisions.content_digest({"b": [{"c": "값"}], "a": 1})
    assert revisions.content_digest({"a": 1}) != revisions.content_digest({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        revisions.content_digest({"a": float("nan")})
