from __future__ import annotations

import pytest

from auth.authenticator import Authenticator
from auth.credential import Shown
from auth.errors import CredentialInvalid, CredentialMissing, StoreAway
from auth.keys import digest, mint
from auth.ports import KeyRecord, UserRecord
from auth.principal import Principal, Role
from auth.tokens import AccessTokens

NOW = 1_800_000_000.0
SECRET = bytes(range(32))


class Store:
    """A credential store with one key and one user."""

    away = behind = False

    def __init__(self) -> None:
        self.key_id, self.key = mint()
        self.principal = Principal("usr_1", Role.MEMBER, frozenset({"inference"}), key_id=self.key_id, limit_id=self.key_id)
        self.records = {digest(self.key): KeyRecord(self.key_id, digest(self.key), self.principal)}
        self.users = {"usr_1": UserRecord("usr_1", "a@localhost", Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes), 0)}
        self.refused: dict[bytes, str] = {}

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        return self.records.get(digest)

    def key_refusal(self, digest: bytes) -> str:
        return self.refused.get(digest, "unknown")

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return self.users.get(user_id)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def authenticator(store: Store) -> Authenticator:
    return Authenticator(store, AccessTokens(SECRET))


def reason(authenticator: Authenticator, credential: bytes, now_s: float = NOW) -> str:
    with pytest.raises(CredentialInvalid) as refused:
        authenticator.authenticate(credential, now_s)
    return refused.value.reason


def test_a_key_gives_its_prebuilt_principal(store: Store, authenticator: Authenticator) -> None:
    assert authenticator.authenticate(store.key.encode(), NOW) is store.principal


def test_keys_on_one_connection_are_each_judged_by_themselves(store: Store, authenticator: Authenticator) -> None:
    shown, stranger = Shown(), mint()[1].encode()
    assert authenticator.authenticate(store.key.encode(), NOW, shown) is store.principal
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(stranger, NOW, shown)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(store.key.encode()[:-1], NOW, shown)
    for _ in range(2):
        assert authenticator.authenticate(store.key.encode(), NOW, shown) is store.principal
    store.records.clear()  # revoked
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(store.key.encode(), NOW, shown)


def test_a_key_runs_out_at_its_expiry(store: Store, authenticator: Authenticator) -> None:
    key_digest = digest(store.key)
    store.records[key_digest] = KeyRecord(store.key_id, key_digest, store.principal, expires_at=NOW)
    assert authenticator.authenticate(store.key.encode(), NOW - 0.001) is store.principal
    assert reason(authenticator, store.key.encode()) == "expired"


def test_refusals_are_told_apart_for_the_log(store: Store, authenticator: Authenticator) -> None:
    with pytest.raises(CredentialMissing):
        authenticator.authenticate(b"", NOW)
    _, stranger = mint()
    assert reason(authenticator, stranger.encode()) == "unknown"
    assert reason(authenticator, b"sk-gw-short") == "malformed"
    assert reason(authenticator, b"\xff\xfe") == "malformed"
    assert reason(authenticator, store.key.encode() + b"x") == "malformed"
    store.refused[digest(stranger)] = "revoked"
    assert reason(authenticator, stranger.encode()) == "revoked"


def test_an_imported_key_of_any_shape_works(store: Store, authenticator: Authenticator) -> None:
    store.records[digest("old-key")] = KeyRecord("imported", digest("old-key"), store.principal)
    assert authenticator.authenticate(b"old-key", NOW) is store.principal


def test_a_login_token_gives_the_users_present_principal(store: Store, authenticator: Authenticator) -> None:
    token = AccessTokens(SECRET).issue(store.users["usr_1"], NOW).encode()
    assert authenticator.authenticate(token, NOW) is store.users["usr_1"].principal
    assert reason(authenticator, token, NOW + 900) == "expired"
    demoted = UserRecord("usr_1", "a@localhost", Role.VIEWER, Principal("usr_1", Role.VIEWER, Role.VIEWER.scopes), 0)
    store.users["usr_1"] = demoted
    assert authenticator.authenticate(token, NOW) is demoted.principal


def test_a_login_token_ends_with_its_user_or_epoch(store: Store, authenticator: Authenticator) -> None:
    user = store.users["usr_1"]
    token = AccessTokens(SECRET).issue(user, NOW).encode()
    store.users["usr_1"] = UserRecord(user.user_id, user.email, user.role, user.principal, token_epoch=1)
    assert reason(authenticator, token) == "revoked"
    store.users.clear()
    assert reason(authenticator, token) == "disabled"


def test_a_bad_token_never_falls_through_to_the_keys(store: Store, authenticator: Authenticator) -> None:
    bad = AccessTokens(bytes(32)).issue(store.users["usr_1"], NOW).encode()
    store.records[digest(bad)] = KeyRecord("k", digest(bad), store.principal)
    assert reason(authenticator, bad) == "signature"
    assert reason(authenticator, b"eyJ\xff.a.b") == "malformed"


def test_while_the_database_is_away_the_unknown_are_asked_to_come_back_and_the_refused_stay_refused(
    store: Store, authenticator: Authenticator
) -> None:
    store.away = True
    _, new = mint()
    with pytest.raises(StoreAway):
        authenticator.authenticate(new.encode(), NOW)
    token = AccessTokens(SECRET).issue(UserRecord("usr_new", "n@localhost", Role.MEMBER, store.principal, 0), NOW)
    with pytest.raises(StoreAway):
        authenticator.authenticate(token.encode(), NOW)
    store.refused[digest(new)] = "revoked"
    assert reason(authenticator, new.encode()) == "revoked"
    assert authenticator.authenticate(store.key.encode(), NOW) is store.principal
    assert reason(authenticator, token[:-4].encode() + b"AAAA") == "signature"


def test_while_a_change_is_not_read_yet_who_may_be_in_it_is_asked_to_come_back(store: Store, authenticator: Authenticator) -> None:
    store.behind = True
    with pytest.raises(StoreAway):
        authenticator.authenticate(mint()[1].encode(), NOW)
    token = AccessTokens(SECRET).issue(UserRecord("usr_new", "n@localhost", Role.MEMBER, store.principal, 0), NOW)
    with pytest.raises(StoreAway):
        authenticator.authenticate(token.encode(), NOW)
    assert reason(authenticator, b"whatever") == "malformed"
    store.refused[digest(store.key)] = "revoked"
    store.records.clear()
    assert reason(authenticator, store.key.encode()) == "revoked"
