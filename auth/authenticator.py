"""From a credential to a principal. Synchronous and short: it runs before every request."""

from __future__ import annotations

from hmac import compare_digest

from auth.credential import Shown, looks_like_token
from auth.errors import CredentialInvalid, CredentialMissing, StoreAway
from auth.keys import digest, looks_like_key
from auth.ports import CredentialStore, TokensOfOthers
from auth.principal import Principal
from auth.tokens import AccessTokens


class Authenticator:
    """Recognises API keys and login tokens by their shape; one never falls through to the other."""

    def __init__(self, store: CredentialStore, tokens: AccessTokens, others: TokensOfOthers | None = None) -> None:
        """`others`: verifies what is not signed by one of our own keys; None: nobody else is trusted."""
        self._store = store
        self._tokens = tokens
        self._others = others

    def authenticate(self, credential: bytes, now_s: float, shown: Shown | None = None) -> Principal:
        """Who sent `credential` (the bare value, without "Bearer"). `now_s`: Unix seconds. `shown`: what the same connection showed before.

        Raises `CredentialMissing`, `CredentialInvalid`, `StoreAway`. The reasons are for the log alone.
        """
        if not credential:
            raise CredentialMissing
        if looks_like_token(credential):
            return self._by_token(credential, now_s)
        key_digest = _digest(credential, shown)  # nothing but the digest goes any further
        record = self._store.key_by_digest(key_digest)
        if record is None:
            reason = self._store.key_refusal(key_digest)
            if reason == "unknown" and (self._store.away or (self._store.behind and looks_like_key(credential))):
                raise StoreAway
            raise CredentialInvalid(reason if reason != "unknown" or looks_like_key(credential) else "malformed")
        if record.expires_at is not None and record.expires_at <= now_s:
            raise CredentialInvalid("expired")
        return record.principal

    def _by_token(self, credential: bytes, now_s: float) -> Principal:
        try:
            token = credential.decode("ascii")
        except UnicodeDecodeError:
            raise CredentialInvalid("malformed") from None
        if self._others is not None and not self._tokens.issued(token):
            return self._others.principal(token, now_s)
        claims = self._tokens.verify(token, now_s)
        user = self._store.user_by_id(claims.user_id)
        if user is None:
            if self._store.away or self._store.behind:
                raise StoreAway
            raise CredentialInvalid("disabled")
        if claims.token_epoch != user.token_epoch:
            raise CredentialInvalid("revoked")
        return user.principal


def _digest(credential: bytes, shown: Shown | None) -> bytes:
    """The same key needs no second hash. Behind a proxy others may have shown theirs on this connection: the time tells nothing of it."""
    if shown is None:
        return digest(credential)
    if not compare_digest(credential, shown.credential):
        shown.digest = digest(credential)
        shown.credential = credential
    return shown.digest
