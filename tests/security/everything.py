"""Everything that a gateway can be asked, with marked secrets: what works, what is refused and what is nonsense.

Every answer is searched as it comes: none may hold a secret but the one that it is there to show.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from auth.keys import mint
from tests.gateway_process import Gateway
from tests.oidc_provider import OpenIdProvider
from tests.security.marked_upstream import BEHAVIOURS
from tests.security.marks import Marks

CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")


@dataclass
class Drive:
    """`findings`: what leaked, and where. `did`: statuses by what was done, to see that it really was."""

    gateway: Gateway
    marks: Marks
    http: httpx.Client
    findings: list[str] = field(default_factory=list)
    did: dict[str, list[int]] = field(default_factory=dict)
    token: str = ""

    def call(self, method: str, path: str, what: str = "", *, allow: Iterable[str] = (), key: str = "", **options: Any) -> httpx.Response:
        """A request as the admin, or with `key`. `allow`: what its answer may hold."""
        headers = {"authorization": f"Bearer {key or self.token}"} if key or self.token else {}
        options["headers"] = {**headers, **options.get("headers", {})}
        answer = self.http.request(method, path, **options)
        self.look(f"{method} {what or path}", answer, allow)
        return answer

    def made(self, path: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Something new, made by the admin: what the answer says of it."""
        answer = self.call("POST", path, what, json=body)
        assert answer.is_success, (what, answer.text)
        return dict(answer.json())

    def bare(self, method: str, path: str, what: str, *, allow: Iterable[str] = (), **options: Any) -> httpx.Response:
        """The same without any credential but what `options` holds."""
        answer = self.http.request(method, path, **options)
        self.look(f"{method} {what}", answer, allow)
        return answer

    def look(self, what: str, answer: httpx.Response, allow: Iterable[str] = ()) -> None:
        self.did.setdefault(what, []).append(answer.status_code)
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items()).encode()
        self.search(f"the answer {answer.status_code} to {what}", head + b"\n\n" + answer.content, allow)

    def search(self, where: str, data: bytes, allow: Iterable[str] = ()) -> None:
        self.findings += [f"{where}: {found}" for found in self.marks.found_in(data, allow)]


def everything(drive: Drive, provider: OpenIdProvider) -> None:
    """All of it, in an order that leaves the gateway usable to the end."""
    log_in(drive)
    keys = make_keys(drive)
    strangers(drive)
    log_in_elsewhere(drive, provider)
    inference(drive, keys)
    people(drive)
    secrets_and_revisions(drive)
    nonsense(drive)
    garbage(drive)
    commands(drive)


def log_in(drive: Drive) -> None:
    """Right and wrong passwords, refreshing, a token used twice, logging out."""
    marks, password = drive.marks, drive.gateway.environment["GATEWAY_ADMIN_PASSWORD"]
    for number in range(3):
        body = {"email": "admin@localhost", "password": marks.make(f"wrong password {number}", "Pw ")}
        drive.bare("POST", "/auth/login", "a wrong password", json=body)
    drive.bare(
        "POST", "/auth/login", "an unknown user", json={"email": "nobody@localhost", "password": marks.make("a stranger's password")}
    )
    drive.bare("POST", "/auth/login", "a password of the wrong type", json={"email": 7, "password": [marks.make("listed password")]})
    drive.bare("POST", "/auth/login", "a login cut off", content=f'{{"password": "{marks.make("cut-off password")}')
    first = _log_in(drive, "first", "admin@localhost", password)
    drive.token = first["access_token"]
    drive.call("GET", "/auth/me")
    old = first["refresh_token"]
    answer = drive.bare("POST", "/auth/refresh", "a refresh", json={"refresh_token": old}, allow=["access token (refreshed)"])
    _learn_pair(drive, "refreshed", answer.json())
    drive.bare("POST", "/auth/refresh", "a refresh token used twice", json={"refresh_token": old})
    drive.bare("POST", "/auth/refresh", "an unknown refresh token", json={"refresh_token": marks.make("unknown refresh token")})
    drive.bare("POST", "/auth/refresh", "a refresh token in a cookie", headers={"cookie": f"gateway_refresh={marks.make('cookie')}"})
    second = _log_in(drive, "second", "admin@localhost", password)
    drive.bare("POST", "/auth/logout", "logging out", json={"refresh_token": second["refresh_token"]})
    _log_in(drive, "cookie", "admin@localhost", password, cookie=True)
    drive.token = _log_in(drive, "third", "admin@localhost", password)["access_token"]


def _log_in(drive: Drive, name: str, email: str, password: str, cookie: bool = False) -> dict[str, Any]:
    body = {"email": email, "password": password, "cookie": cookie}
    answer = drive.bare("POST", "/auth/login", "a login", json=body)
    assert answer.status_code == 200, answer.text
    if cookie:
        drive.marks.learn(f"refresh token ({name})", answer.cookies["gateway_refresh"])
        drive.http.cookies.clear()
    return _learn_pair(drive, name, answer.json())


def _learn_pair(drive: Drive, name: str, pair: dict[str, Any]) -> dict[str, Any]:
    """A login token is searched for by its claims and by its signature; its head is the same for all."""
    _, claims, signature = pair["access_token"].split(".")
    drive.marks.learn(f"claims of the access token ({name})", claims)
    drive.marks.learn(f"access token ({name})", signature)
    if pair["refresh_token"]:
        drive.marks.learn(f"refresh token ({name})", pair["refresh_token"])
    return pair


def log_in_elsewhere(drive: Drive, provider: OpenIdProvider) -> None:
    """A login through an OpenID provider; its code a second time; one that the provider refuses, and one that nobody began."""
    back = provider.sign_in(drive.bare("GET", "/auth/oidc/login", "beginning a login elsewhere").headers["location"], "dana")
    given = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
    for name in ("code", "state"):
        drive.marks.learn(f"{name} of the provider", given[name])
    for cookie in drive.http.cookies.jar:
        drive.marks.learn(f"cookie {cookie.name}", (cookie.value or "").strip('"'))
    path = f"{urlsplit(back).path}?{urlsplit(back).query}"
    drive.bare("GET", path, "coming back from the provider")
    drive.marks.learn("refresh token of the provider's login", drive.http.cookies["gateway_refresh"])
    drive.bare("GET", path, "coming back twice")
    drive.http.cookies.clear()
    drive.bare("GET", path, "coming back without having begun")
    refused = drive.bare("GET", "/auth/oidc/login", "beginning a login elsewhere").headers["location"]
    back = provider.sign_in(refused, "dana", "deny")
    drive.bare("GET", f"{urlsplit(back).path}?{urlsplit(back).query}", "coming back refused")
    drive.http.cookies.clear()


def make_keys(drive: Drive) -> dict[str, str]:
    """Keys of many kinds: made, rotated, imported, revoked, changed with nonsense. By name; all but `revoked` work."""
    made = {}
    limited = {"rpm": 1, "description": "one a minute"}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"content_log": True},
        "limited": limited,
        "revoked": {},
        "rotated": {},
        "all": {"scopes": ["inference", "usage"], "content_log": True},
    }
    for name, fields in kinds.items():
        issued = drive.made("/admin/keys", "a key", {"name": name, **fields})
        made[name] = _learn_key(drive, f"key {name}", issued["key"])
        if name == "revoked":
            drive.call("POST", f"/admin/keys/{issued['id']}/revoke", "revoking a key")
        if name == "rotated":
            newer = drive.made(f"/admin/keys/{issued['id']}/rotate", "rotating a key", {"grace_s": 3600})
            _learn_key(drive, "key rotated anew", newer["key"])
        drive.call("PATCH", f"/admin/keys/{issued['id']}", "changing a key", json={"name": f"{name} key"})
        odd = {"rpm": drive.marks.make(f"nonsense for key {name}"), "key": issued["key"]}
        drive.call("PATCH", f"/admin/keys/{issued['id']}", "changing a key with nonsense", json=odd)
    brought = drive.marks.make("imported key", "sk-other-service-", "-0aB")
    drive.call("POST", "/admin/keys/import", "importing a key", json={"name": "imported", "key": brought})
    drive.call("POST", "/admin/keys/import", "importing it again", json={"name": "imported", "key": brought})
    drive.call("POST", "/admin/keys/import", "importing a list", json={"name": "odd", "key": [drive.marks.make("odd imported key")]})
    return made | {"imported": brought}


def _learn_key(drive: Drive, name: str, text: str) -> str:
    drive.marks.learn(name, text.rpartition("-")[2])
    return text


def strangers(drive: Drive) -> None:
    """Credentials that are none, by every way a credential can come in."""
    paths = ("/v1/models", "/v1/chat/completions", "/admin/keys", "/auth/me", "/nothing/here")
    forged = json.dumps({"sub": drive.marks.make("forged claims")})
    for number, header in enumerate(CREDENTIAL_HEADERS):
        unknown = mint()[1]
        drive.marks.learn(f"unknown key {number}", unknown.rpartition("-")[2])
        claims = base64.urlsafe_b64encode(forged.encode()).decode().rstrip("=")
        odd = [unknown, drive.marks.make(f"nonsense {header}", "' OR 1=1 -- "), f"eyJhbGciOiJub25lIn0.{claims}."]
        for path in paths:
            for text in odd:
                value = f"Bearer {text}" if header == "authorization" else text
                drive.bare("POST" if "chat" in path else "GET", path, f"a stranger through {header}", headers={header: value})
    both = {"authorization": f"Bearer {mint()[1]}", "x-api-key": drive.marks.make("second credential")}
    drive.bare("GET", "/v1/models", "two credentials", headers=both)
    basic = base64.b64encode(f"user:{drive.marks.make('basic password')}".encode()).decode()
    drive.bare("GET", "/v1/models", "basic authentication", headers={"authorization": f"Basic {basic}"})
    drive.bare("GET", "/v1/models", "a credential in the query", params={"api_key": drive.marks.make("key in the query")})
    drive.bare("GET", "/metrics", "metrics through a proxy", headers={"x-forwarded-for": "203.0.113.9", "via": drive.marks.make("via")})
    drive.bare("GET", "/auth/oidc/callback", "a callback", params={"code": drive.marks.make("code"), "state": drive.marks.make("state")})
    for place in ("/v1/models/{}", "/admin/users/{}", "/admin/keys/{}", "/{}", "/docs/{}"):
        # the answer may say what it was asked for; nothing else may
        name = f"in the path {place}"
        drive.call("GET", place.format(drive.marks.make(name)), "a secret in the path", allow=[name])


def inference(drive: Drive, keys: dict[str, str]) -> None:
    """Prompts: answered, streamed, refused, broken off; and everything that a backend can do wrong (last: it opens breakers)."""
    for number in range(3):
        body = _chat("up/good", drive.marks.make(f"limited prompt {number}"), False)
        drive.call("POST", "/v1/chat/completions", "a chat over the limit", key=keys["limited"], json=body, allow=["answer"])
    for name in ("rotated", "imported", "revoked", "all"):
        body = _chat("up/good", drive.marks.make(f"prompt of {name}"), False)
        drive.call("POST", "/v1/chat/completions", f"a chat of {name}", key=keys[name], json=body, allow=["answer"])
    bodies(drive, keys["plain"])
    leave(drive, keys["plain"])
    for model in BEHAVIOURS:
        for stream in (False, True):
            name = f"prompt to {model}{' streamed' if stream else ''}"
            body = _chat(f"up/{model}", drive.marks.make(name, '비밀 "', " é\\n"), stream)
            # the words of a backend's error are passed on, but for the key that it was sent: what it says there of the prompt is its answer
            said = [name] if model in ("error-event", "400") else ["answer"]
            drive.call("POST", "/v1/chat/completions", f"a chat with {model}", key=keys["plain"], json=body, allow=said)
    drive.call("GET", "/v1/usage", key=keys["all"])


def _chat(model: str, prompt: str, stream: bool) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, "user": "someone"}


def bodies(drive: Drive, key: str) -> None:
    """Bodies that are wrong, other endpoints, files."""
    make = drive.marks.make
    wrong: list[Any] = [
        {"model": 7, "messages": make("prompt beside a wrong model")},
        {"model": "up/good", "messages": {"content": make("prompt of the wrong type")}},
        {"model": "up/good", "messages": [], "stream": make("stream of the wrong type")},
        {"messages": [{"role": "user", "content": make("prompt without a model")}]},
        [make("prompt in a list")],
    ]
    for body in wrong:
        drive.call("POST", "/v1/chat/completions", "a wrong body", key=key, json=body)
    for name, text in (("cut-off", '{{"model": "up/good", "messages": [{{"content": "{}'), ("bare", "{}"), ("NUL", '{{"a\\u0000": "{}"}}')):
        drive.call("POST", "/v1/chat/completions", "no JSON", key=key, content=text.format(make(f"{name} prompt")))
    name = "unknown model"
    drive.call("POST", "/v1/chat/completions", "an unknown model", key=key, json=_chat(make(name), make("its prompt"), False), allow=[name])
    big = make("big prompt") + "x" * 2_000_000
    drive.call("POST", "/v1/chat/completions", "a body over the limit", key=key, json=_chat("up/good", big, False))
    asked = ("prompt", "input", "messages", "query", "documents")
    for path in (
        "completions",
        "embeddings",
        "responses",
        "messages",
        "rerank",
        "moderations",
        "images/generations",
        "audio/speech",
        "tokenize",
    ):
        text = make(f"text for {path}")
        body = {"model": "up/good", "max_tokens": 5} | {n: [{"role": "user", "content": text}] if n == "messages" else text for n in asked}
        drive.call("POST", f"/v1/{path}", key=key, json=body, allow=["answer"])
    files = {"file": (make("file name", "", ".wav"), make("file content").encode() * 10, "audio/wav")}
    for model in ("up/good", "up/500"):
        form = {"model": model, "prompt": make(f"prompt beside a file for {model}")}
        drive.call("POST", "/v1/audio/transcriptions", "a file", key=key, data=form, files=files, allow=["answer"])
    headers = {"x-request-id": "client-1", "cookie": f"session={make('cookie of a client')}", "user-agent": make("user agent")}
    drive.call(
        "POST", "/v1/chat/completions", "odd headers", key=key, json=_chat("up/good", "hi", False), headers=headers, allow=["answer"]
    )


def leave(drive: Drive, key: str) -> None:
    """A client that goes away in the middle of a stream."""
    body = _chat("up/stalls", drive.marks.make("prompt of one who leaves"), True)
    headers = {"authorization": f"Bearer {key}"}
    with drive.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        drive.did["leaving a stream"] = [answer.status_code]
        next(answer.iter_bytes())


def people(drive: Drive) -> None:
    """Users, passwords and links."""
    make = drive.marks.make
    password = make("a user's password", "Pw ")
    body = {"email": "dana@example.com", "role": "member", "password": password}
    dana = drive.made("/admin/users", "a user", body)["id"]
    drive.call("POST", "/admin/users", "the same user", json=body)
    drive.call("POST", "/admin/users", "an odd user", json={"email": "x@example.com", "password": {make("key of a password"): 1}})
    drive.call("POST", "/admin/users", "a user with too much", json={"email": "y@example.com", "passwort": make("misspelt password")})
    drive.call("POST", "/admin/users", "a bad role", json={"email": "z@example.com", "role": "king", "password": make("a king's password")})
    newer = make("a newer password", "Pw ")
    drive.token, admin = _log_in(drive, "dana", "dana@example.com", password)["access_token"], drive.token
    drive.call("POST", "/auth/password", "a wrong present password", json={"password": make("not the password"), "new_password": newer})
    drive.call("POST", "/auth/password", "too short a password", json={"password": password, "new_password": newer[3:10]})
    drive.call("POST", "/auth/password", "one's own password", json={"password": password, "new_password": newer})
    drive.token = admin
    shown = drive.call("POST", f"/admin/users/{dana}/password", "a password made by the gateway", json={})
    if shown.status_code == 200 and shown.json().get("password"):
        drive.marks.learn("password made by the gateway", shown.json()["password"])
    set_password = {"password": make("password set by the admin", "Pw ")}
    drive.call("POST", f"/admin/users/{dana}/password", "a password set by an admin", json=set_password)
    link(drive, dana)


def link(drive: Drive, user_id: str) -> None:
    """A one-time link: made, used, used again; and one that is none."""
    made = drive.call("POST", f"/admin/users/{user_id}/password-link", "a link").json()
    token = next((str(value) for name, value in made.items() if name in ("token", "link", "url")), "")
    if token:
        token = token.rpartition("=")[2].rpartition("/")[2].rpartition("#")[2]
        drive.marks.learn("password link", token.rpartition(".")[2])
    new = drive.marks.make("password set by the link", "Pw ")
    for text in (token, token, drive.marks.make("unknown link")):
        drive.bare("POST", "/auth/password/reset", "using a link", json={"token": text, "new_password": new})


def secrets_and_revisions(drive: Drive) -> None:
    """Keys of backends: stored by name, as text in a document, in one that is wrong."""
    make = drive.marks.make
    drive.call("PUT", "/admin/secrets/spare", "a secret", json={"value": make("stored secret", "up-")})
    drive.call("PUT", "/admin/secrets/spare", "a newer secret", json={"value": make("stored secret, newer", "up-")})
    drive.call("PUT", "/admin/secrets/spare", "a secret of the wrong type", json={"value": [make("listed secret")]})
    drive.call("PUT", "/admin/secrets/spare", "a secret with a line break", json={"value": make("broken secret", "a\n")})
    drive.call("PUT", "/admin/secrets/spare", "a misspelt secret", json={"valu": make("misspelt secret")})
    drive.call("GET", "/admin/secrets")
    live = drive.call("GET", "/admin/revisions/live").json()["document"]
    backend = {"type": "custom", "baseURL": "http://127.0.0.1:1/v1", "apiKey": make("key in a document", "up-"), "model": "m"}
    document = json.loads(json.dumps(live))
    document["models"].append({"id": "extra", "backends": [backend]})
    drive.call("POST", "/admin/revisions", "a revision", json={"document": document, "note": "with a key"})
    wrong = [
        backend | {"apiKey": {"text": make("key of the wrong type")}},
        backend | {"api_kye": make("misspelt key")},
        backend | {"baseURL": f"http://user:{make('password in a URL')}@127.0.0.1:1/v1"},
        backend | {"baseURL": f"http://127.0.0.1:1/v1?key={make('key in a URL')}"},
        backend | {"weight": make("weight")},
        backend | {"apiKey": make("key with a line break", "up\n")},
        backend | {"authorization": make("whole header", "Bearer ", "\r\n")},
    ]
    for odd in wrong:
        bad = {"models": [{"id": "bad", "backends": [odd]}]}
        for path in ("/admin/revisions", "/admin/revisions/check"):
            drive.call("POST", path, "a wrong document", json={"document": bad})
    for path in (
        "/admin/revisions",
        "/admin/backends",
        "/admin/prices",
        "/admin/usage",
        "/admin/metrics/names",
        "/admin/metrics/series?metric=gateway_requests_total&by=model",
        "/admin/users",
        "/admin/keys",
        "/admin/audit",
        "/admin/revisions/live",
    ):
        drive.call("GET", path)
    drive.call("POST", "/admin/revisions/rollback", "a rollback", json={})
    drive.call("DELETE", "/admin/secrets/spare", "deleting a secret")


def nonsense(drive: Drive) -> None:
    """Every route of the control plane with a body and a query that make no sense."""
    document = drive.call("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        if path.startswith("/v1/") or path in ("/auth/logout", "/auth/login", "/auth/refresh"):
            continue
        for method in set(operations) & {"post", "put", "patch", "delete", "get"}:
            word = drive.marks.make(f"nonsense for {method} {path}")
            target = path.replace("{", "no-").replace("}", "").replace(":path", "").replace(":int", "")
            odd = {"password": [word], "name": {word: word}, "key": 1, "token": {"a": word}}
            query = {"q": word, "limit": word, "after": word, "since": word, "state": word, "code": word}
            drive.call(method.upper(), target, "nonsense", params=query, json=None if method in ("get", "delete") else odd)


def garbage(drive: Drive) -> None:
    """Bytes that are no HTTP, and HTTP that is not allowed."""
    make = drive.marks.make
    for text in (
        f"{make('word')}\r\n\r\n",
        f"GET /{make('space')} {make('version')} HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nhost: x\r\nauthorization Bearer {make('header without a colon')}\r\n\r\n",
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {make('key with a bad length')}\r\ncontent-length: x\r\n\r\n",
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz{make('bad chunk')}\r\n",
        f"GET / HTTP/1.1\r\nhost: {make('host')}/?\r\nx-api-key: {make('key beside a bad host')}\r\n\r\n",
        f"GET / HTTP/1.1\r\nhost: x\r\nx-long: {make('long header')}{'x' * 200_000}\r\n\r\n",
    ):
        drive.search("the answer to garbage", _raw(drive.gateway.port, text.encode()))
        drive.did.setdefault("garbage", []).append(0)


def _raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                received += chunk
    return received


def commands(drive: Drive) -> None:
    """The command line: what it prints, and that nothing secret is among the arguments it takes."""
    make = drive.marks.make
    key = _command(drive, "keys", "create", "--name", "by command", secret_out=True)
    _learn_key(drive, "key made by a command", key.strip())
    _command(
        drive, "users", "create", "--email", "eve@example.com", "--role", "viewer", "--password-stdin", stdin=make("eve's password", "Pw ")
    )
    _command(
        drive, "users", "create", "--email", "eve@example.com", "--role", "viewer", "--password-stdin", stdin=make("eve's again", "Pw ")
    )
    _command(drive, "secrets", "set", "by-command", stdin=make("secret by command", "up-"))
    _command(drive, "keys", "import", "--name", "by-command", stdin=make("key imported by a command", "sk-legacy-", "-9Zz"))
    wrong = f"models:\n  - id: m\n    backends:\n      - {{type: custom, apiKey: {make('key in a file')}, baseURL: 7}}\n"
    file = drive.gateway.home.parent / "wrong.yaml"
    for text in (wrong, f"{wrong}        api_kye: {make('misspelt key in a file')}\n", f"{wrong}   bad: [{make('word in a file')}"):
        file.write_text(text)
        _command(drive, "check", "-f", str(file))
    _command(drive, "apply", "-f", str(file))
    file.unlink()
    for arguments in (["keys", "list"], ["secrets", "list"], ["export"], ["doctor"]):
        _command(drive, *arguments)


def _command(drive: Drive, *arguments: str, stdin: str = "", secret_out: bool = False) -> str:
    """Whatever its exit code; stdout is searched too unless it is there to show a secret."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "gateway"), *arguments],
        env=drive.gateway.env(),
        input=f"{stdin}\n",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=drive.gateway.home.parent,
    )
    what = f"`gateway {arguments[0]} {arguments[1] if len(arguments) > 1 else ''}`"
    drive.did.setdefault(what, []).append(done.returncode)
    drive.search(f"stderr of {what}", done.stderr.encode())
    if not secret_out:
        drive.search(f"stdout of {what}", done.stdout.encode())
    return done.stdout
