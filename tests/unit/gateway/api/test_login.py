"""Logging in, staying logged in, logging out; the cookie; the limit per address."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from auth.login import Login
from auth.principal import Role
from auth.throttle import customer
from auth.tokens import AccessTokens
from auth.turns import MAX_BEHIND
from gateway.api import create_api
from gateway.api.login import COOKIE, LOGIN_RATES
from gateway.limits.edge import MAX_KEYS, AddressLimits, Memory
from gateway.store import login_addresses, trail, users
from gateway.store.logins import Accounts, RefreshTokens
from tests.unit.gateway.api.conftest import PASSWORD, Plane

ADMIN = {"email": "admin@example.com", "password": PASSWORD}


async def test_login_me_refresh_logout(anyone: httpx.AsyncClient) -> None:
    response = await anyone.post("/auth/login", json=ADMIN)
    assert response.status_code == 200
    pair = response.json()
    assert set(pair) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (pair["token_type"], pair["expires_in"]) == ("bearer", 900)
    assert "set-cookie" not in response.headers
    assert response.headers["cache-control"] == "no-store"

    me = await anyone.get("/auth/me", headers={"authorization": f"bearer {pair['access_token']}"})
    assert me.json()["email"] == "admin@example.com"
    assert me.json()["scopes"] == ["admin", "inference", "metrics", "usage"]

    again = (await anyone.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).json()
    assert again["refresh_token"] != pair["refresh_token"]
    assert (await anyone.post("/auth/logout", json={"refresh_token": again["refresh_token"]})).status_code == 204
    response = await anyone.post("/auth/refresh", json={"refresh_token": again["refresh_token"]})
    assert response.status_code == 401
    assert list(response.json()) == ["detail"]
    assert (await anyone.post("/auth/logout", json={"refresh_token": "unknown"})).status_code == 204


async def test_nobody_logs_in_while_no_key_can_sign_and_no_refresh_token_is_spent(plane: Plane, anyone: httpx.AsyncClient) -> None:
    pair = (await anyone.post("/auth/login", json=ADMIN)).json()
    db = plane.control.db
    away = Login(Accounts(db), RefreshTokens(db), plane.control.passwords, AccessTokens(()))
    transport = httpx.ASGITransport(create_api(replace(plane.control, login=away)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for path, body in (("/auth/login", ADMIN), ("/auth/refresh", {"refresh_token": pair["refresh_token"]})):
            response = await client.post(path, json=body)
            assert (response.status_code, response.headers["retry-after"]) == (503, "30")
            assert "cannot be opened" in response.json()["detail"]
    assert (await anyone.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 200


async def test_a_refresh_token_used_twice_ends_the_login(anyone: httpx.AsyncClient) -> None:
    first = (await anyone.post("/auth/login", json=ADMIN)).json()["refresh_token"]
    second = (await anyone.post("/auth/refresh", json={"refresh_token": first})).json()["refresh_token"]
    assert (await anyone.post("/auth/refresh", json={"refresh_token": first})).status_code == 401
    assert (await anyone.post("/auth/refresh", json={"refresh_token": second})).status_code == 401


@pytest.mark.parametrize(
    ("email", "password"),
    [("admin@example.com", "wrong"), ("nobody@example.com", PASSWORD), ("", ""), ("admin@example.com", "x" * 1024), ("a" * 250, "한글")],
)
async def test_a_wrong_login_says_nothing_more(anyone: httpx.AsyncClient, email: str, password: str) -> None:
    response = await anyone.post("/auth/login", json={"email": email, "password": password})
    assert response.status_code == 401
    assert response.json() == {"detail": "The e-mail address or the password is wrong."}


async def test_the_cookie_takes_the_refresh_token(anyone: httpx.AsyncClient) -> None:
    response = await anyone.post("/auth/login", json=ADMIN | {"cookie": True})
    assert response.json()["refresh_token"] is None
    cookie = response.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/auth", "Secure", f"Max-Age={30 * 86_400}"):
        assert part in cookie
    value = cookie.split(";")[0].removeprefix(f"{COOKIE}=")
    assert value not in response.text

    anyone.cookies.clear()
    headers = {"cookie": f"{COOKIE}={value}"}
    response = await anyone.post("/auth/refresh", headers=headers)
    assert response.status_code == 200
    assert response.json()["refresh_token"] is None  # what came from the cookie goes back into it
    newer = response.headers["set-cookie"].split(";")[0].removeprefix(f"{COOKIE}=")
    assert newer != value

    anyone.cookies.clear()
    response = await anyone.post("/auth/logout", headers={"cookie": f"{COOKIE}={newer}"})
    assert response.status_code == 204
    assert "Max-Age=0" in response.headers["set-cookie"]
    anyone.cookies.clear()
    assert (await anyone.post("/auth/refresh", headers={"cookie": f"{COOKIE}={newer}"})).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://gateway"}, 403),
        ({"origin": "http://gateway:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://gateway"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "http://behind-a-proxy"}, 200),
        ({}, 200),
    ],
)
async def test_the_cookie_is_for_own_pages(anyone: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    assert (await anyone.post("/auth/login", json=ADMIN | {"cookie": True}, headers=headers)).status_code == status
    anyone.cookies.clear()
    made = await anyone.post("/auth/login", json=ADMIN | {"cookie": True})
    cookie = {"cookie": made.headers["set-cookie"].split(";")[0]}
    anyone.cookies.clear()
    assert (await anyone.post("/auth/refresh", headers=headers | cookie)).status_code == status


async def test_without_any_refresh_token(anyone: httpx.AsyncClient) -> None:
    assert (await anyone.post("/auth/refresh")).status_code == 401
    assert (await anyone.post("/auth/logout")).status_code == 204


async def test_a_new_password_ends_every_login(plane: Plane, anyone: httpx.AsyncClient) -> None:
    member = {"email": "member@example.com", "password": PASSWORD}
    pair = (await anyone.post("/auth/login", json=member)).json()
    headers = {"authorization": f"Bearer {pair['access_token']}"}
    change = {"password": PASSWORD, "new_password": "another long one"}
    wrong = await anyone.post("/auth/password", json=change | {"password": "guess"}, headers=headers)
    assert wrong.status_code == 400
    short = await anyone.post("/auth/password", json=change | {"new_password": "short"}, headers=headers)
    assert short.status_code == 400
    assert short.json()["detail"][0]["path"] == "new_password"
    assert (await anyone.post("/auth/password", json=change, headers=headers)).status_code == 204
    assert (await anyone.get("/auth/me", headers=headers)).status_code == 401
    assert (await anyone.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 401
    assert (await anyone.post("/auth/login", json=member)).status_code == 401
    assert (await anyone.post("/auth/login", json=member | {"password": "another long one"})).status_code == 200


async def test_an_api_key_is_not_a_person(plane: Plane) -> None:
    async with plane.client(plane.keys["admin"]) as client:
        response = await client.get("/auth/me")
        assert response.status_code == 403
        assert "login" in response.json()["detail"]


async def test_attempts_are_limited_per_address(plane: Plane) -> None:
    """Also right ones: a login costs a hash. But not of a user who has logged in from there before."""
    allowed = int(LOGIN_RATES.split("/")[0])
    manager = {"email": "manager@example.com", "password": PASSWORD}
    async with plane.client(peer=("198.51.100.1", 1)) as client:
        codes = [(await client.post("/auth/login", json=manager)).status_code for _ in range(allowed)]
        assert codes == [200] * allowed
        response = await client.post("/auth/login", json=ADMIN)
        assert response.status_code == 429
        assert list(response.json()) == ["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-request-id"]
        spoofed = await client.post("/auth/login", json=ADMIN, headers={"x-forwarded-for": "192.0.2.1"})
        assert spoofed.status_code == 429
        assert (await client.post("/auth/login", json=manager)).status_code == 200
        assert (await client.post("/auth/login", json=manager | {"password": "wrong"})).status_code == 401
        assert (await client.post("/auth/refresh", json={"refresh_token": "x"})).status_code == 401  # another endpoint, another count
    async with plane.client(peer=("198.51.100.2", 1)) as client:
        assert (await client.post("/auth/login", json=ADMIN)).status_code == 200


async def test_wrong_passwords_make_the_next_ones_wait(plane: Plane) -> None:
    """The right one waits as well (or the wait would tell it); from a known address nobody else's tries count."""
    async with plane.client(peer=("198.51.100.7", 1)) as home, plane.client(peer=("198.51.100.8", 1)) as stranger:
        assert (await home.post("/auth/login", json=ADMIN)).status_code == 200
        codes = [(await stranger.post("/auth/login", json=ADMIN | {"password": f"guess {i}"})).status_code for i in range(7)]
        assert codes == [401] * 5 + [429] * 2
        response = await stranger.post("/auth/login", json=ADMIN)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert list(response.json()) == ["detail"]
        assert (await home.post("/auth/login", json=ADMIN)).status_code == 200
        unknown = [(await stranger.post("/auth/login", json={"email": "no@where", "password": f"{i}"})).status_code for i in range(6)]
        assert unknown == [401] * 5 + [429]  # as an account that exists


async def test_a_stolen_token_is_no_way_to_guess_the_password(plane: Plane) -> None:
    async with plane.client(plane.token(Role.MEMBER), peer=("198.51.100.9", 1)) as client:
        guesses = [{"password": f"guess {i}", "new_password": "another long one"} for i in range(7)]
        codes = [(await client.post("/auth/password", json=guess)).status_code for guess in guesses]
        assert codes == [400] * 5 + [429] * 2


async def test_a_busy_hasher_is_a_429_but_not_for_who_is_known(plane: Plane) -> None:
    hold, held, turns = threading.Event(), threading.Event(), plane.control.passwords.turns
    async with plane.client(peer=("198.51.100.3", 1)) as client:
        assert (await client.post("/auth/login", json=ADMIN)).status_code == 200
        first = asyncio.create_task(turns.run(lambda: (held.set(), hold.wait()), ahead=True))
        await asyncio.to_thread(held.wait)  # the turn is taken
        waiting = [asyncio.create_task(plane.control.passwords.verify("x", None)) for _ in range(MAX_BEHIND + 1)]
        await asyncio.sleep(0)  # the queue of strangers is full
        other = await client.post("/auth/login", json={"email": "viewer@example.com", "password": PASSWORD})
        assert other.status_code == 429
        assert other.headers["retry-after"] == "5"
        known = asyncio.create_task(client.post("/auth/login", json=ADMIN))
        hold.set()
        assert (await known).status_code == 200
        await asyncio.gather(first, *waiting)


async def test_a_login_is_remembered(plane: Plane) -> None:
    """When, from where, and in the audit trail; a wrong one leaves nothing there, for a stranger could fill it."""
    user = plane.people[Role.MEMBER]
    async with plane.client(peer=("2001:db8::7", 1)) as client:
        assert (await client.post("/auth/login", json={"email": user.email, "password": "wrong"})).status_code == 401
        before = time.time()
        pair = (await client.post("/auth/login", json={"email": user.email, "password": PASSWORD})).json()
        assert (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 200
        assert (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 401
    async with plane.control.db.read() as conn:
        found = await users.by_id(conn, user.id)
        entries = await trail.page(conn, entity_id=user.id)
        assert await login_addresses.has(conn, user.id, "2001:db8::/64")
    assert found is not None
    assert found.last_login_at is not None
    assert before <= found.last_login_at <= time.time()
    told = [(entry.action, entry.actor_user_id, entry.via, entry.address) for entry in entries[:2]]
    assert told == [("refresh_reused", user.id, "api", "2001:db8::7"), ("login", user.id, "api", "2001:db8::7")]


async def test_a_common_password_is_refused_in_words(plane: Plane) -> None:
    async with plane.client(plane.token(Role.MEMBER)) as client:
        for new, word in (("Password123", "common"), ("member@example.com", "e-mail")):
            response = await client.post("/auth/password", json={"password": PASSWORD, "new_password": new})
            assert response.status_code == 400
            assert word in response.json()["detail"]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1", "fe80::/64"),
        ("", ""),
        ("::x", ""),
        ("2001:db8::/64", "2001:db8::/64"),
    ],
)
def test_who_is_one_customer(address: str, name: str) -> None:
    assert customer(address) == name


def test_windows_move_and_the_least_lately_used_are_forgotten() -> None:
    memory = Memory()
    assert [memory.acquire_entry("a", 2, 60) for _ in range(3)] == [True, True, False]
    start, used = memory.get_moving_window("a", 2, 60)
    assert used == 2
    assert abs(start - time.time()) < 1
    assert memory.acquire_entry("a", 2, 0)  # a window that has moved past both
    assert memory.get_moving_window("unknown", 2, 60)[1] == 0
    for i in range(MAX_KEYS + 5):
        memory.acquire_entry(f"key {i}", 1, 60)
    assert memory.get("a") == 0
    assert not memory.acquire_entry(f"key {MAX_KEYS}", 1, 60)
    assert memory.acquire_entry("key 0", 1, 60)


def test_the_working_folders_env_file_is_not_read(tmp_path: Path) -> None:
    here = Path.cwd()
    (tmp_path / ".env").write_text("RATELIMIT_ENABLED=false\nRATELIMIT_STRATEGY=nonsense\nRATELIMIT_DEFAULT=1/day\n")
    os.chdir(tmp_path)
    try:
        AddressLimits(lambda request: "")  # would raise for the strategy
    finally:
        os.chdir(here)


def test_roles_have_their_scopes() -> None:
    assert {role.value: sorted(role.scopes) for role in Role} == {
        "admin": ["admin", "inference", "metrics", "usage"],
        "manager": ["inference", "usage"],
        "member": ["inference", "usage"],
        "viewer": ["usage"],
    }
