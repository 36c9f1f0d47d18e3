"""Every route of the gateway, relayed, mounted or ordinary, has a policy and a row in the table; every row holds for every caller, however
the credential is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.routing import BaseRoute, Mount, Route

from gateway.api import create_api
from gateway.api.guard import GuardedRoute, check_guarded
from gateway.api.policies import POLICIES, RouteWithoutPolicy
from gateway.app import Services
from gateway.relay.operations import ROUTES
from gateway.settings import Settings
from gateway.store.migrate import migrate
from tests.security.scene import Scene
from tests.security.table import CALLERS, KEYS, LET_IN, LOGINS, STRANGERS, TABLE

FORMS = {"authorization": "Bearer {}", "x-api-key": "{}", "api-key": "{}"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def walked(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, BaseRoute]]:
    """("METHOD template", route) of everything that the router may hand a request to, however deep."""
    for route in routes:
        path = prefix + str(getattr(route, "path", "?"))
        inner = getattr(route, "routes", None)
        if inner:
            yield from walked(inner, path)
        for method in getattr(route, "methods", None) or () if not inner else ():
            yield f"{method} {path}", route
        if not inner and not getattr(route, "methods", None):
            yield f"? {path}", route


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, BaseRoute]]:
    """Of the application as a server process composes it."""
    settings = Settings(GATEWAY_HOME=str(tmp_path_factory.mktemp("walk")))  # type: ignore[call-arg]  # by alias

    async def compose() -> list[tuple[str, BaseRoute]]:
        await migrate(settings.database)
        services = await Services.open(settings)
        try:
            return list(walked(create_api(services.control).routes))
        finally:
            await services.close()

    return asyncio.run(compose())


def test_every_route_has_a_policy_and_a_row(routes: list[tuple[str, BaseRoute]]) -> None:
    for name, route in routes:
        assert isinstance(route, GuardedRoute), f"{name} is served without the guard"
        assert POLICIES[name] is route.policy, f"{name} is not guarded by what the table says"
    served = {name for name, _ in routes} | {f"POST {path.decode()}" for path in ROUTES}
    assert served == POLICIES.keys(), "a policy without a route, or a route without a policy"
    assert served == TABLE.keys(), "enter the route in tests/security/table.py"


def test_the_rows_say_what_the_policies_say() -> None:
    assert {name: row.policy for name, row in TABLE.items()} == {name: policy.name for name, policy in POLICIES.items()}
    assert {policy.name for policy in POLICIES.values()} <= LET_IN.keys()


def test_what_stands_outside_the_table_cannot_be_served() -> None:
    async def endpoint() -> None: ...

    with pytest.raises(RouteWithoutPolicy, match="GET /admin/forgotten"):
        GuardedRoute("/admin/forgotten", endpoint, methods=["GET"])
    for unguarded in (Route("/healthz", endpoint), Mount("/docs", routes=[Route("/", endpoint)])):
        with pytest.raises(RouteWithoutPolicy):
            check_guarded([unguarded])


def test_every_caller_is_asked_for(served: Scene) -> None:
    assert served.callers.keys() == CALLERS
    assert len(STRANGERS) + len(LOGINS) + len(KEYS) == len(CALLERS)


@pytest.mark.parametrize("caller", sorted(CALLERS))
def test_the_table_in_full(served: Scene, caller: str) -> None:
    credential = served.callers[caller]
    wrong = []
    with served.client(caller) as http:
        for header, form in FORMS.items():
            headers = {header: form.format(credential)} if credential is not None else {}
            for name, row in TABLE.items():
                method = name.split(" ", 1)[0]
                answer = http.request(method, row.path.format(**served.ids), json=row.body, headers=headers)
                if answer.status_code != row.expected(caller):
                    wrong.append(f"{name} by {header}: {answer.status_code}, not {row.expected(caller)}: {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("first", sorted(FORMS))
@pytest.mark.parametrize("second", sorted(FORMS))
def test_two_different_credentials_are_no_credential_on_any_route(served: Scene, first: str, second: str) -> None:
    if first == second:
        return
    headers = {first: FORMS[first].format(served.callers["login admin"]), second: FORMS[second].format(served.callers["key inference"])}
    for name, row in TABLE.items():
        if row.policy in ("public", "loopback or metrics"):
            continue
        answer = served.http.request(name.split(" ", 1)[0], row.path.format(**served.ids), json=row.body, headers=headers)
        assert answer.status_code == 401, (name, answer.text)


def test_no_other_method_is_served_anywhere(served: Scene) -> None:
    """An admin's credential: what a path does not have must not be there for anybody."""
    headers = {"authorization": f"Bearer {served.callers['login admin']}"}
    for path in sorted({row.path for row in TABLE.values()}):
        real = path.format(**served.ids).partition("?")[0]
        declared = {name.split(" ", 1)[0] for name, row in TABLE.items() if _matches(name.split(" ", 1)[1], real)}
        for method in METHODS:
            if method in declared:
                continue
            answer = served.http.request(method, real, headers=headers)
            assert answer.status_code in (404, 405, 501), (method, real, answer.status_code)


def _matches(template: str, path: str) -> bool:
    return Route(template, lambda _: None).path_regex.match(path) is not None  # type: ignore[arg-type, return-value]  # never called


def test_metrics_through_a_proxy(served: Scene) -> None:
    """Whoever stands on this machine and speaks for somebody else needs the scope."""
    allowed = {"key metrics", "login admin"}
    for caller in sorted(CALLERS):
        credential = served.callers[caller]
        headers = {"x-forwarded-for": "198.51.100.9"} | ({"x-api-key": credential} if credential else {})
        expected = 200 if caller in allowed else 401 if caller in STRANGERS else 403
        assert served.http.get("/metrics", headers=headers).status_code == expected, caller


def test_nothing_but_the_routes_of_the_table_is_documented(served: Scene) -> None:
    document: dict[str, Any] = served.http.get("/openapi.json").json()
    told = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    plain = {name.replace(":path}", "}").replace(":int}", "}") for name in TABLE}
    assert told <= plain, told - plain
