"""Logging in through a real OpenID provider on loopback: in a browser, and on the command line by way of one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from auth.fetch import Fetcher
from auth.oidc import OidcLogin
from auth.oidc_config import OidcConfig
from auth.principal import Role
from auth.provider import Provider
from auth.seal import Seal
from gateway.api import create_api
from gateway.api.login import COOKIE as REFRESH
from gateway.changes import Actor, create_user, disable_user, enable_user, reset_password, set_role
from gateway.errors import Forbidden
from gateway.store import identities, trail, users
from gateway.store.users import User
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, openid_provider
from tests.unit.gateway.api.conftest import FAR, INIT, Plane

PUBLIC = "https://gw.example.com"
VERIFIER = secrets.token_urlsafe(32)
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
FOR_CLI = {"cli_port": "51234", "cli_challenge": CHALLENGE, "cli_state": "s" * 22}


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with openid_provider(f"{PUBLIC}/auth/oidc/callback") as found:
        found.put_user("dana", email="dana@example.com", email_verified=True, name="Dana <b>", groups=["staff"])
        found.put_user("root", email="root@example.com", email_verified=True, groups=["staff", "ops"])
        found.put_user("nobody", email="nobody@example.com", email_verified=True, groups=[])
        found.put_user("unsure", email="unsure@example.com", email_verified=False, groups=["staff"])
        found.put_user("mute", groups=["staff"])
        yield found


@dataclass
class Site:
    """A gateway with a login through the provider. Each `app` is another process of it: they share the database and the secret key."""

    plane: Plane
    provider: OpenIdProvider
    config: OidcConfig
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    fetchers: list[Fetcher] = field(default_factory=list)

    def app(self, **changes: Any) -> FastAPI:
        self.fetchers.append(Fetcher(step_s=2, whole_s=3))
        login = OidcLogin(Provider(replace(self.config, **changes), self.fetchers[-1]), Seal(self.key))
        return create_api(replace(self.plane.control, oidc=login))

    async def user(self, email: str) -> User | None:
        async with self.plane.control.db.read() as conn:
            return await users.by_email(conn, email)

    async def actions(self, user_id: str) -> list[str]:
        """What the audit trail says of this user, oldest first."""
        async with self.plane.control.db.read() as conn:
            return [entry.action for entry in reversed(await trail.page(conn, limit=50)) if entry.entity_id == user_id]


@pytest.fixture
async def site(plane: Plane, provider: OpenIdProvider) -> AsyncIterator[Site]:
    config = OidcConfig(
        provider.url, CLIENT_ID, PUBLIC, CLIENT_SECRET, role_claim="groups", roles={"ops": Role.ADMIN, "staff": Role.MEMBER}
    )
    made = Site(plane, provider, config)
    yield made
    for fetcher in made.fetchers:
        await fetcher.close()


@asynccontextmanager
async def browser(app: FastAPI, peer: tuple[str, int] = FAR, url: str = PUBLIC) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=peer), base_url=url) as client:
        yield client


async def begin(client: httpx.AsyncClient, **query: str) -> str:
    """Where the gateway sends the browser: to the provider."""
    response = await client.get("/auth/oidc/login", params=query)
    assert response.status_code == 302, response.text
    return response.headers["location"]


async def sign_in(site: Site, url: str, subject: str, action: str = "authorize") -> str:
    return await asyncio.to_thread(site.provider.sign_in, url, subject, action)


async def log_in(site: Site, client: httpx.AsyncClient, subject: str, **query: str) -> httpx.Response:
    """All the way: what the gateway answers to the browser that comes back."""
    return await client.get(await sign_in(site, await begin(client, **query), subject))


async def access_token(client: httpx.AsyncClient) -> str:
    """What the pages of the gateway do first: an access token for the refresh cookie."""
    response = await client.post("/auth/refresh", headers={"sec-fetch-site": "same-origin"})
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


async def test_it_is_offered_where_browsers_find_it(site: Site) -> None:
    """Elsewhere the cookie would be another host's than the one that the provider sends the browser back to."""
    async with browser(site.app()) as client:
        response = await client.get("/auth/oidc", headers={"host": "10.0.0.1"})
    assert response.json() == {"enabled": True, "login_url": f"{PUBLIC}/auth/oidc/login"}


async def test_a_newcomer_gets_an_account_and_is_logged_in(site: Site) -> None:
    async with browser(site.app()) as client:
        response = await log_in(site, client, "dana", next="/ui/keys?x=1#top")
        assert (response.status_code, response.headers["location"]) == (302, f"{PUBLIC}/ui/keys?x=1#top")
        assert response.headers["cache-control"] == "no-store"
        refresh = next(cookie for cookie in response.headers.get_list("set-cookie") if cookie.startswith(REFRESH))
        for part in ("HttpOnly", "SameSite=strict", "Path=/auth", "Secure"):
            assert part in refresh
        me = await client.get("/auth/me", headers={"authorization": f"Bearer {await access_token(client)}"})
    assert (me.json()["email"], me.json()["role"]) == ("dana@example.com", "member")
    dana = await site.user("dana@example.com")
    assert dana is not None and dana.name == "Dana <b>" and dana.last_login_at
    assert await site.actions(dana.id) == ["create", "link_identity", "login"]


async def test_who_comes_again_is_the_same_whatever_their_email_is_now(site: Site) -> None:
    site.provider.put_user("mover", email="before@example.com", email_verified=True, groups=["staff"])
    app = site.app()
    async with browser(app) as client:
        await log_in(site, client, "mover")
    site.provider.put_user("mover", email="root@localhost", email_verified=False, groups=["staff"])
    async with browser(app) as client:
        assert (await log_in(site, client, "mover")).status_code == 302
        me = await client.get("/auth/me", headers={"authorization": f"Bearer {await access_token(client)}"})
    assert me.json()["email"] == "before@example.com"
    before = await site.user("before@example.com")
    assert before is not None
    assert await site.actions(before.id) == ["create", "link_identity", "login", "login"]


async def test_admin_is_who_is_mapped_to_it(site: Site) -> None:
    async with browser(site.app()) as client:
        assert (await log_in(site, client, "root")).status_code == 302
        listed = await client.get("/admin/users", headers={"authorization": f"Bearer {await access_token(client)}"})
    assert listed.status_code == 200


@pytest.mark.parametrize(
    ("subject", "changes", "words"),
    [
        ("nobody", {}, "no role"),
        ("unsure", {}, "e-mail"),
        ("unsure", {"trust_email": True}, "e-mail"),
        ("mute", {"trust_email": True}, "e-mail"),
        ("dana", {"role_claim": ""}, "no role"),
    ],
)
async def test_who_gets_no_account(site: Site, subject: str, changes: dict[str, Any], words: str) -> None:
    async with browser(site.app(**changes)) as client:
        response = await log_in(site, client, subject)
        assert response.status_code == 403
        assert words in response.json()["detail"]
        assert not any(cookie.startswith(REFRESH) for cookie in response.headers.get_list("set-cookie"))
    assert await site.user(f"{subject}@example.com") is None


async def test_the_default_role(site: Site) -> None:
    async with browser(site.app(default_role=Role.VIEWER)) as client:
        assert (await log_in(site, client, "nobody")).status_code == 302
    made = await site.user("nobody@example.com")
    assert made is not None and made.role == Role.VIEWER


async def test_a_service_address_is_nobodys(site: Site) -> None:
    site.provider.put_user("robot", email="robot@service", email_verified=True, groups=["staff"])
    async with browser(site.app(link_by_email=True)) as client:
        assert (await log_in(site, client, "robot")).status_code == 403


class TestExistingAccounts:
    """Whose e-mail there is an account of already."""

    async def test_it_stays_shut_by_default(self, site: Site) -> None:
        site.provider.put_user("a", email="ADMIN@example.com", email_verified=True, groups=["ops"])
        async with browser(site.app()) as client:
            response = await log_in(site, client, "a")
        assert response.status_code == 403
        assert "another account" in response.json()["detail"]

    async def test_it_opens_where_that_is_wanted_and_keeps_its_role(self, site: Site) -> None:
        site.provider.put_user("b", email="viewer@example.com", email_verified=True, groups=["ops"])
        async with browser(site.app(link_by_email=True)) as client:
            assert (await log_in(site, client, "b")).status_code == 302
        viewer = site.plane.people[Role.VIEWER]
        found = await site.user("viewer@example.com")
        assert found is not None and (found.id, found.role) == (viewer.id, Role.VIEWER)
        async with browser(site.app()) as client:  # linked once, it stays so
            assert (await log_in(site, client, "b")).status_code == 302

    async def test_not_by_an_email_that_nobody_has_verified(self, site: Site) -> None:
        site.provider.put_user("c", email="admin@example.com", email_verified=False, groups=["ops"])
        async with browser(site.app(link_by_email=True)) as client:
            assert (await log_in(site, client, "c")).status_code == 403

    async def test_not_a_second_time_by_somebody_else(self, site: Site) -> None:
        """An address that the provider gives to another person must not open the account of who had it."""
        site.provider.put_user("first", email="member@example.com", email_verified=True, groups=["staff"])
        site.provider.put_user("second", email="member@example.com", email_verified=True, groups=["staff"])
        app = site.app(link_by_email=True)
        async with browser(app) as client:
            assert (await log_in(site, client, "first")).status_code == 302
        async with browser(app) as client:
            assert (await log_in(site, client, "second")).status_code == 403

    async def test_not_one_that_is_disabled(self, site: Site) -> None:
        control = site.plane.control
        gone = await create_user(control.db, control.generation, INIT, email="gone@example.com", role="member")
        await disable_user(control.db, control.generation, INIT, gone.id)
        site.provider.put_user("gone", email="gone@example.com", email_verified=True, groups=["staff"])
        async with browser(site.app(link_by_email=True)) as client:
            response = await log_in(site, client, "gone")
        assert (response.status_code, response.json()["detail"]) == (403, "This account is disabled.")

    async def test_a_disabled_user_comes_no_further(self, site: Site) -> None:
        control = site.plane.control
        site.provider.put_user("leaver", email="leaver@example.com", email_verified=True, groups=["staff"])
        app = site.app()
        async with browser(app) as client:
            await log_in(site, client, "leaver")
            leaver = await site.user("leaver@example.com")
            assert leaver is not None
            await disable_user(control.db, control.generation, INIT, leaver.id)
            assert (await client.post("/auth/refresh")).status_code == 401
            assert (await log_in(site, client, "leaver")).status_code == 403

    async def test_a_service_never_logs_in(self, site: Site) -> None:
        async with browser(site.app()) as client:
            site.provider.put_user("thing", email="thing@example.com", email_verified=True, groups=["staff"])
            await log_in(site, client, "thing")
            thing = await site.user("thing@example.com")
            assert thing is not None

            async with site.plane.control.db.write() as conn:
                await conn.execute(text("UPDATE users SET kind = 'service' WHERE id = :id"), {"id": thing.id})
            assert (await log_in(site, client, "thing")).status_code == 403


class TestRolesThatChange:
    async def _twice(self, site: Site, subject: str, before: list[str], after: list[str], set_here: Role | None = None) -> tuple[int, Role]:
        control = site.plane.control
        email = f"{subject}@example.com"
        site.provider.put_user(subject, email=email, email_verified=True, groups=before)
        app = site.app()
        async with browser(app) as client:
            assert (await log_in(site, client, subject)).status_code == 302
            user = await site.user(email)
            assert user is not None
            if set_here is not None:
                await set_role(control.db, control.generation, INIT, user.id, set_here)
            site.provider.put_user(subject, email=email, email_verified=True, groups=after)
            status = (await log_in(site, client, subject)).status_code
        user = await site.user(email)
        assert user is not None
        return status, user.role

    async def test_what_the_provider_takes_away_is_gone(self, site: Site) -> None:
        assert await self._twice(site, "lowered", ["ops"], ["staff"]) == (302, Role.MEMBER)

    async def test_what_it_gives_is_there(self, site: Site) -> None:
        assert await self._twice(site, "raised", ["staff"], ["ops"]) == (302, Role.ADMIN)

    async def test_what_an_admin_set_here_stays(self, site: Site) -> None:
        assert await self._twice(site, "promoted", ["staff"], ["staff"], Role.MANAGER) == (302, Role.MANAGER)
        assert await self._twice(site, "demoted", ["ops"], ["ops"], Role.VIEWER) == (302, Role.VIEWER)

    async def test_who_has_no_role_left_is_out_and_their_logins_end(self, site: Site) -> None:
        assert await self._twice(site, "out", ["staff"], []) == (403, Role.MEMBER)
        out = await site.user("out@example.com")
        assert out is not None
        async with site.plane.control.db.read() as conn:
            count = await conn.execute(text("SELECT count(*) FROM refresh_tokens WHERE user_id = :id"), {"id": out.id})
            assert count.scalar() == 0
        async with browser(site.app()) as client:
            assert (await log_in(site, client, "out")).status_code == 403  # and stays out

    async def test_the_last_admin_stays_one(self, site: Site) -> None:
        control = site.plane.control
        site.provider.put_user("last", email="last@example.com", email_verified=True, groups=["ops"])
        app = site.app()
        async with browser(app) as client:
            await log_in(site, client, "last")
            await disable_user(control.db, control.generation, INIT, site.plane.people[Role.ADMIN].id)
            site.provider.put_user("last", email="last@example.com", email_verified=True, groups=["staff"])
            assert (await log_in(site, client, "last")).status_code == 302
        last = await site.user("last@example.com")
        assert last is not None and last.role == Role.ADMIN


class TestTheWayThere:
    """The state belongs to one browser, one login, a short time."""

    async def test_the_cookie(self, site: Site) -> None:
        async with browser(site.app()) as client:
            response = await client.get("/auth/oidc/login")
        state = parse_qs(urlsplit(response.headers["location"]).query)["state"][0]
        (cookie,) = response.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-gateway_oidc_")
        for part in ("HttpOnly", "SameSite=lax", "Secure", "Path=/", "Max-Age=600"):
            assert part in cookie.split("; ")
        assert state not in cookie and len(cookie) < 4096

    async def test_where_browsers_speak_http(self, site: Site) -> None:
        public = "http://localhost:8000"
        async with browser(site.app(public_url=public), url=public) as client:
            cookie = (await client.get("/auth/oidc/login")).headers["set-cookie"]
        assert cookie.startswith("gateway_oidc_") and "Path=/auth/oidc" in cookie and "Secure" not in cookie

    async def test_another_browser_cannot_finish_it(self, site: Site) -> None:
        """Login CSRF: a stranger begins, and has somebody's browser open the address that ends it."""
        app = site.app()
        async with browser(app) as stranger, browser(app) as victim:
            url = await sign_in(site, await begin(stranger), "dana")
            response = await victim.get(url)
            assert (response.status_code, "set-cookie" in response.headers) == (400, True)
            assert not victim.cookies
            await begin(victim)  # not either while a login of its own is under way
            response = await victim.get(url)
            assert response.status_code == 400
            assert REFRESH not in victim.cookies
            assert (await stranger.get(url)).status_code == 302  # nobody had used the code up

    async def test_a_cookie_under_the_name_of_another_login(self, site: Site) -> None:
        async with browser(site.app()) as client:
            await begin(client)
            (first,) = client.cookies.values()
            url = await sign_in(site, await begin(client), "dana")
            name = next(name for name, value in client.cookies.items() if value != first)
            response = await client.get(url, headers={"cookie": f"{name}={first}"})
        assert response.status_code == 400

    async def test_an_address_is_good_for_one_attempt(self, site: Site) -> None:
        app = site.app()
        async with browser(app) as client:
            url = await sign_in(site, await begin(client), "dana")
            kept = dict(client.cookies)
            assert (await client.get(url)).status_code == 302
            assert not any("oidc" in name for name in client.cookies)
            assert (await client.get(url)).status_code == 400
        async with browser(app) as copy:  # even where the cookie was copied: the provider takes a code once
            copy.cookies.update(kept)
            response = await copy.get(url)
        assert response.status_code == 403
        assert REFRESH not in response.headers.get("set-cookie", "")

    async def test_two_tabs(self, site: Site) -> None:
        async with browser(site.app()) as client:
            first, second = await begin(client, next="/ui/1"), await begin(client, next="/ui/2")
            for url, path in ((second, "/ui/2"), (first, "/ui/1")):
                response = await client.get(await sign_in(site, url, "dana"))
                assert response.headers["location"] == PUBLIC + path

    async def test_begun_logins_do_not_pile_up(self, site: Site) -> None:
        async with browser(site.app()) as client:
            for _ in range(30):
                await begin(client)
            assert len(client.cookies) <= 9
            assert (await log_in(site, client, "dana")).status_code == 302

    async def test_any_process_finishes_it(self, site: Site) -> None:
        one, other = site.app(), site.app()
        async with browser(one) as client, browser(other) as next_client:
            url = await sign_in(site, await begin(client), "dana")
            next_client.cookies = client.cookies
            assert (await next_client.get(url)).status_code == 302

    async def test_a_code_of_another_login_is_refused(self, site: Site) -> None:
        """Injection: the code of one login in the address of another; PKCE and nonce belong to one."""
        async with browser(site.app()) as client:
            mine = await sign_in(site, await begin(client), "dana")
        async with browser(site.app()) as client:
            theirs = await sign_in(site, await begin(client), "root")
            state = dict(parse_qsl(urlsplit(theirs).query))["state"]
            code = dict(parse_qsl(urlsplit(mine).query))["code"]
            response = await client.get("/auth/oidc/callback", params={"code": code, "state": state})
        assert response.status_code == 403
        assert REFRESH not in response.headers.get("set-cookie", "")

    @pytest.mark.parametrize(
        ("extra", "status"),
        [
            ([("iss", "https://evil.example.com")], 403),
            ([("code", "another")], 400),
            ([("state", "another")], 400),
            ([("error", "access_denied")], 403),
            ([("error", "temporarily_unavailable")], 503),
        ],
    )
    async def test_addresses_with_more_in_them(self, site: Site, extra: list[tuple[str, str]], status: int) -> None:
        async with browser(site.app()) as client:
            url = await sign_in(site, await begin(client), "dana")
            response = await client.get(f"{url}&{urlencode(extra)}")
        assert response.status_code == status
        assert list(response.json()) == ["detail"]
        assert REFRESH not in response.headers.get("set-cookie", "")

    @pytest.mark.parametrize("query", ["", "state=x", "code=x", "state=x&code=y", "error=access_denied", "state=" + "x" * 4000 + "&code=y"])
    async def test_who_never_began(self, site: Site, query: str) -> None:
        async with browser(site.app()) as client:
            response = await client.get(f"/auth/oidc/callback?{query}")
        assert response.status_code == 400
        assert list(response.json()) == ["detail"]

    async def test_who_says_no_at_the_provider(self, site: Site) -> None:
        async with browser(site.app()) as client:
            url = await sign_in(site, await begin(client), "dana", "deny")
            if "state=" not in url:  # this provider leaves it out
                url = f"{url}&state={next(iter(parse_qs(urlsplit(await begin(client)).query)['state']))}"
            response = await client.get(url)
        assert response.status_code == 403

    @pytest.mark.parametrize("path", ["//evil.example.com", "https://evil.example.com", "/\\evil.example.com", "javascript:alert(1)", ""])
    async def test_it_leads_nowhere_else(self, site: Site, path: str) -> None:
        async with browser(site.app()) as client:
            response = await client.get("/auth/oidc/login", params={"next": path})
        assert response.status_code == 400
        assert "location" not in response.headers

    async def test_the_host_header_decides_nothing(self, site: Site) -> None:
        async with browser(site.app()) as client:
            response = await client.get("/auth/oidc/login", headers={"host": "evil.example.com", "x-forwarded-host": "evil.example.com"})
        query = parse_qs(urlsplit(response.headers["location"]).query)
        assert query["redirect_uri"] == [f"{PUBLIC}/auth/oidc/callback"]
        assert query["code_challenge_method"] == ["S256"]

    async def test_requests_are_limited_per_address(self, site: Site) -> None:
        async with browser(site.app(), ("198.51.100.77", 1)) as client:
            codes = [(await client.get("/auth/oidc/callback")).status_code for _ in range(61)]
        assert codes == [400] * 60 + [429]


class TestTheProviderAway:
    async def test_it_is_said_and_nothing_else_suffers(self, site: Site) -> None:
        app = site.app(issuer="http://127.0.0.1:1")
        async with browser(app) as client:
            response = await client.get("/auth/oidc/login")
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in response.text
            assert (await client.get("/healthz")).status_code == 200

    async def test_between_going_and_coming_back(self, plane: Plane) -> None:
        with openid_provider(f"{PUBLIC}/auth/oidc/callback") as going:
            going.put_user("dana", email="dana@example.com", email_verified=True)
            site = Site(plane, going, OidcConfig(going.url, CLIENT_ID, PUBLIC, CLIENT_SECRET, default_role=Role.MEMBER))
            async with browser(site.app()) as client:
                url = await sign_in(site, await begin(client), "dana")
                going.process.terminate()
                await asyncio.to_thread(going.process.wait, 10)
                response = await client.get(url)
        assert response.status_code == 503
        assert REFRESH not in response.headers.get("set-cookie", "")
        for fetcher in site.fetchers:
            await fetcher.close()


async def test_where_no_provider_is_set_up(plane: Plane) -> None:
    async with browser(plane.app) as client:
        assert (await client.get("/auth/oidc")).json() == {"enabled": False, "login_url": None}
        for method, path in (("GET", "login"), ("GET", "callback"), ("POST", "approve?ticket=x")):
            assert (await client.request(method, f"/auth/oidc/{path}")).status_code == 404
        response = await client.post("/auth/oidc/token", json={"code": "x", "code_verifier": "y"})
        assert response.status_code == 404


class TestTheCommandLine:
    @staticmethod
    def ticket(page: httpx.Response) -> str:
        """Where the form of the page leads."""
        assert page.status_code == 200, page.text
        found = re.search(r'action="([^"]+)"', page.text)
        assert found is not None
        return found[1].replace("&amp;", "&")

    async def code(self, site: Site, client: httpx.AsyncClient, subject: str = "dana") -> str:
        return await self.approved(client, await log_in(site, client, subject, **FOR_CLI))

    async def approved(self, client: httpx.AsyncClient, page: httpx.Response) -> str:
        """The code that a yes on this page sends to the program."""
        response = await client.post(self.ticket(page), headers={"sec-fetch-site": "same-origin"})
        assert response.status_code == 303
        back = urlsplit(response.headers["location"])
        assert (back.scheme, back.netloc, back.path) == ("http", "127.0.0.1:51234", "/callback")
        query = dict(parse_qsl(back.query))
        assert query["state"] == FOR_CLI["cli_state"]
        return query["code"]

    async def test_the_browser_asks_and_the_program_gets_its_tokens_once(self, site: Site) -> None:
        async with browser(site.app()) as client, browser(site.app()) as program:
            page = await log_in(site, client, "dana", **FOR_CLI)
            words = base64.b32encode(hashlib.sha256(CHALLENGE.encode()).digest())[:8].decode()
            assert f"{words[:4]}-{words[4:]}" in page.text
            assert "dana@example.com" in page.text
            assert "<script" not in page.text
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert page.headers["x-frame-options"] == "DENY"
            assert REFRESH not in page.headers.get("set-cookie", "")  # the browser itself is not logged in by it
            code = await self.code(site, client)
            response = await program.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})
            assert response.status_code == 200
            pair = response.json()
            me = await program.get("/auth/me", headers={"authorization": f"Bearer {pair['access_token']}"})
            assert me.json()["email"] == "dana@example.com"
            assert (await program.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 200
            again = await program.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})
            assert again.status_code == 400

    async def test_a_code_without_its_verifier_is_worth_nothing(self, site: Site) -> None:
        async with browser(site.app()) as client:
            code = await self.code(site, client)
            for verifier in ("x" * 43, VERIFIER):  # and it is gone after the first attempt
                response = await client.post("/auth/oidc/token", json={"code": code, "code_verifier": verifier})
                assert response.status_code == 400

    async def test_of_two_at_once_one_gets_them(self, site: Site) -> None:
        async with browser(site.app()) as client:
            code = await self.code(site, client)
            sent = [client.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER}) for _ in range(8)]
            assert sorted(response.status_code for response in await asyncio.gather(*sent)) == [200] + [400] * 7

    async def test_a_code_of_somebody_disabled_meanwhile(self, site: Site) -> None:
        control = site.plane.control
        site.provider.put_user("quick", email="quick@example.com", email_verified=True, groups=["staff"])
        async with browser(site.app()) as client:
            code = await self.code(site, client, "quick")
            quick = await site.user("quick@example.com")
            assert quick is not None
            await disable_user(control.db, control.generation, INIT, quick.id)
            assert (await client.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})).status_code == 400

    @pytest.mark.parametrize("when", ["the code is made", "the ticket is made"])
    @pytest.mark.parametrize("how", ["password", "disabled and enabled"])
    async def test_logins_that_ended_meanwhile_take_it_with_them(self, site: Site, when: str, how: str) -> None:
        """Whoever ends all their logins ends those that are half done, too."""
        control = site.plane.control
        site.provider.put_user("ended", email="ended@example.com", email_verified=True, groups=["staff"])
        async with browser(site.app()) as client:
            page = await log_in(site, client, "ended", **FOR_CLI)
            code = await self.approved(client, page) if when == "the code is made" else ""
            ended = await site.user("ended@example.com")
            assert ended is not None
            if how == "password":
                await reset_password(control.db, control.generation, INIT, ended.id, password_hash="of another password")
            else:
                await disable_user(control.db, control.generation, INIT, ended.id)
                await enable_user(control.db, control.generation, INIT, ended.id)
            code = code or await self.approved(client, page)
            response = await client.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})
            assert response.status_code == 400, response.text
            code = await self.code(site, client, "ended")  # the next login is as good as ever
            assert (await client.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})).status_code == 200

    async def test_an_expired_code(self, site: Site) -> None:

        async with browser(site.app()) as client:
            code = await self.code(site, client)
            async with site.plane.control.db.write() as conn:
                await conn.execute(text("UPDATE login_codes SET expires_at = expires_at - 61"))
            assert (await client.post("/auth/oidc/token", json={"code": code, "code_verifier": VERIFIER})).status_code == 400

    @pytest.mark.parametrize(
        "headers",
        [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example.com"}, {"origin": "null"}, {"sec-fetch-site": "same-site"}],
    )
    async def test_only_our_own_page_says_yes(self, site: Site, headers: dict[str, str]) -> None:
        async with browser(site.app()) as client:
            page = await log_in(site, client, "dana", **FOR_CLI)
            assert (await client.post(self.ticket(page), headers=headers)).status_code == 400

    async def test_what_is_no_ticket(self, site: Site) -> None:
        async with browser(site.app()) as client:
            await begin(client)
            (note,) = client.cookies.values()
            for ticket in ("", "x", note):
                response = await client.post("/auth/oidc/approve", params={"ticket": ticket})
                assert response.status_code == 400
                assert "location" not in response.headers

    @pytest.mark.parametrize(
        "change",
        [
            {"cli_port": "80"}, {"cli_port": "70000"}, {"cli_port": "evil.example.com"}, {"cli_challenge": "short"}, {"cli_state": ""},
            {"cli_challenge": "x" * 42 + "="}, {"cli_state": "a b" * 8},
        ],
    )  # fmt: skip
    async def test_programs_that_are_none(self, site: Site, change: dict[str, str]) -> None:
        async with browser(site.app()) as client:
            assert (await client.get("/auth/oidc/login", params=FOR_CLI | change)).status_code == 400


async def test_two_first_logins_at_once_make_one_account(site: Site) -> None:
    site.provider.put_user("twin", email="twin@example.com", email_verified=True, groups=["staff"])
    app = site.app()
    async with browser(app) as one, browser(app) as other:
        urls = [await sign_in(site, await begin(client), "twin") for client in (one, other)]
        responses = await asyncio.gather(one.get(urls[0]), other.get(urls[1]))
    assert [response.status_code for response in responses] == [302, 302]
    twin = await site.user("twin@example.com")
    assert twin is not None
    async with site.plane.control.db.read() as conn:
        known = await identities.find(conn, site.provider.url, "twin")
    assert known is not None and known.user_id == twin.id
    assert sorted(await site.actions(twin.id)) == ["create", "link_identity", "login", "login"]


async def test_the_actor_of_a_login_has_no_rights(plane: Plane) -> None:
    """What a login changes is decided by what the provider proved, not by an actor that could do more."""
    control = plane.control
    with pytest.raises(Forbidden):
        await create_user(control.db, control.generation, Actor(None, "api"), email="x@example.com", role="viewer")
