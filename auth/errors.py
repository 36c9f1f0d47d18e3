"""Why a credential or a password was not accepted.

AuthError                  `reason` is a fixed word for the log; the client sees one answer for all
├── CredentialMissing      no credential at all
├── CredentialInvalid      malformed, unknown, revoked, expired, not in force yet (early), wrong signature, two different ones
│   └── KeyUnknown         a token names a signing key that is not known: the issuer's published keys may have changed meanwhile
├── StoreAway              not known here, while what is known cannot be brought up to date: it may be new (503)
│   └── SigningAway        the key that signs login tokens cannot be opened: none is issued, and not each can be judged (503)
├── LoginFailed            wrong e-mail or password (never told apart)
├── LoginDelayed           too many wrong ones of this account or from this address: try again later (429)
├── HasherBusy             too many passwords wait to be checked: try again later (429)
└── PasswordUnsuitable     a new password is too short or too long; `message` says so to whoever chose it
"""

from __future__ import annotations


class AuthError(Exception):
    """Base. `reason`: missing, malformed, unknown, revoked, expired, early, reused, signature, role, conflicting, disabled, password,
    delayed, busy, unsuitable, store_away, signing_away.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CredentialMissing(AuthError):
    def __init__(self) -> None:
        super().__init__("missing")


class CredentialInvalid(AuthError):
    pass


class KeyUnknown(CredentialInvalid):
    def __init__(self) -> None:
        super().__init__("signature")


class StoreAway(AuthError):
    """Answered as "try again", never as "wrong": whoever is told 401 throws a good key away."""

    retry_after_s = 1.0

    def __init__(self, reason: str = "store_away") -> None:
        super().__init__(reason)


class SigningAway(StoreAway):
    def __init__(self) -> None:
        super().__init__("signing_away")


class LoginFailed(AuthError):
    def __init__(self, reason: str = "password") -> None:
        super().__init__(reason)


class LoginDelayed(AuthError):
    def __init__(self, retry_after_s: float) -> None:
        super().__init__("delayed")
        self.retry_after_s = retry_after_s


class HasherBusy(AuthError):
    retry_after_s = 5.0

    def __init__(self) -> None:
        super().__init__("busy")


class PasswordUnsuitable(AuthError):
    def __init__(self, message: str) -> None:
        super().__init__("unsuitable")
        self.message = message
