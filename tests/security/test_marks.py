"""The search finds what is there: a search that finds nothing proves nothing otherwise."""

from __future__ import annotations

import base64
import json
import os
import urllib.parse

import pytest

from auth.keys import mint
from tests.gateway_process import PASSWORD
from tests.security.marks import Marks, shapes_in
from tests.server_logs import faults_in


@pytest.mark.parametrize("around", [("", ""), ("a", "b"), ("ab", "cde"), ('"\\ é ', "\n\x00"), ("비밀 ", " %&="), ("\0" * 100, "\0" * 100)])
def test_a_secret_is_found_however_it_is_written(around: tuple[str, str]) -> None:
    marks = Marks()
    secret = marks.make("it", *around)
    plain = secret.encode()
    written = [
        plain, json.dumps(secret).encode(), json.dumps({"a": json.dumps([secret])}).encode(), urllib.parse.quote(secret).encode(),
        urllib.parse.urlencode({"q": secret}).encode(), repr(plain).encode(), base64.b64encode(plain),
        base64.urlsafe_b64encode(b"x" + plain),
        base64.b64encode(b"user:" + plain), plain.hex().encode(), plain.hex().upper().encode(),
    ]  # fmt: skip
    for form in written:
        assert marks.found_in(os.urandom(200) + form + os.urandom(200)), form
        assert marks.found_in(form, allowed=["it"]) == []
    assert marks.found_in(secret[:10].encode() + os.urandom(10_000)) == []


def test_the_shapes_of_secrets_are_found() -> None:
    key = mint()[1]
    token = (
        base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=") + "." + base64.urlsafe_b64encode(b'{"sub":"usr_1234"}').decode()
    )
    for text in (key, f'{{"k":"{key}"}}', f"{token}.c2ln", "$argon2id$v=19$m=19456", "Authorization: Bearer abcdefghijklmnopqrstuvwxyz"):
        assert shapes_in(text.encode()), text
    for harmless in ("sk-gw-k3v9x0q2m7ab", '"key_id":"k3v9x0q2m7ab"', "eyJ", "bearer token is missing"):
        assert shapes_in(harmless.encode()) == []


def test_a_log_with_a_secret_fails_the_run() -> None:
    clean = b'{"event":"request","status":200,"key_id":"k3v9x0q2m7ab"}\n'
    assert faults_in(clean) == []
    for secret in (PASSWORD, mint()[1], "sk-upstream"):
        assert faults_in(clean + b'{"event":"oops","what":"' + secret.encode() + b'"}\n'), secret
