"""Settings, read once from the environment, then `.env` in the working directory, then `.env` in GATEWAY_HOME.

Only `app` and `cli` read them; everything else gets plain values. `.env.example` lists the same names (a test keeps them equal).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from auth.address import parse_networks
from auth.oidc_config import OidcConfig, checked_issuer, checked_public_url, checked_scopes, parse_roles
from auth.principal import Role


class SettingsError(Exception):
    """A setting cannot be used. The message is one plain sentence that names it."""


def _env(name: str, *aliases: str) -> AliasChoices:
    return AliasChoices(name, *aliases)


class Settings(BaseSettings):
    """Every setting, with its default and unit. Times in seconds, sizes in MB (1e6 bytes)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=True, populate_by_name=True)

    home: Path = Field(Path("~/.gateway"), validation_alias=_env("GATEWAY_HOME"), description="folder of database, secrets, ledger")
    database_url: str = Field("", validation_alias=_env("GATEWAY_DATABASE_URL"), description="empty: SQLite in GATEWAY_HOME")
    redis_url: str = Field("", validation_alias=_env("GATEWAY_REDIS_URL"), description="optional: limits over several hosts")
    redis_away: Literal["closed", "open"] = Field(
        "closed",
        validation_alias=_env("GATEWAY_REDIS_AWAY"),
        description="closed: limited callers are refused then; open: each host decides",
    )
    secret_key: SecretStr = Field(
        SecretStr(""), validation_alias=_env("GATEWAY_SECRET_KEY"), description="at least 32 characters; made in GATEWAY_HOME if empty"
    )
    secret_key_file: Path | None = Field(
        None, validation_alias=_env("GATEWAY_SECRET_KEY_FILE"), description="file that holds it, e.g. one mounted into a container"
    )
    secret_key_previous: SecretStr = Field(
        SecretStr(""), validation_alias=_env("GATEWAY_SECRET_KEY_PREVIOUS"), description="the one before it, until `gateway secrets rotate`"
    )
    jwt_algorithm: Literal["HS256", "RS256", "ES256"] = Field("HS256", validation_alias=_env("GATEWAY_JWT_ALGORITHM"))
    trusted_issuers: str = Field(
        "", validation_alias=_env("GATEWAY_TRUSTED_ISSUERS"), description="whose tokens are accepted: JSON, or the path of a JSON file"
    )
    admin_email: str = Field("admin@localhost", validation_alias=_env("GATEWAY_ADMIN_EMAIL"), description="the first admin")
    admin_password: SecretStr = Field(
        SecretStr(""), validation_alias=_env("GATEWAY_ADMIN_PASSWORD"), description="empty: one is made and printed once"
    )
    login_lifetime_s: float = Field(
        7_776_000,
        ge=60,
        validation_alias=_env("GATEWAY_LOGIN_LIFETIME_S"),
        description="a login ends this long after it began, however often it is refreshed",
    )
    timeout_connect_s: float = Field(5, ge=0, validation_alias=_env("GATEWAY_TIMEOUT_CONNECT_S"), description="0 = none")
    timeout_first_byte_s: float = Field(300, ge=0, validation_alias=_env("GATEWAY_TIMEOUT_FIRST_BYTE_S"), description="0 = none")
    timeout_idle_s: float = Field(120, ge=0, validation_alias=_env("GATEWAY_TIMEOUT_IDLE_S"), description="0 = none")
    timeout_total_s: float = Field(3600, ge=0, validation_alias=_env("GATEWAY_TIMEOUT_TOTAL_S"), description="0 = none")
    timeout_body_s: float = Field(
        600, ge=0, validation_alias=_env("GATEWAY_TIMEOUT_BODY_S"), description="a whole request body; later: 408; 0 = none"
    )
    max_body_mb: float = Field(32, gt=0, validation_alias=_env("GATEWAY_MAX_BODY_MB"), description="request bodies above: 413")
    max_answer_mb: float = Field(64, gt=0, validation_alias=_env("GATEWAY_MAX_ANSWER_MB"), description="unstreamed answers above: 502")
    max_running: int = Field(
        10_000, ge=1, validation_alias=_env("GATEWAY_MAX_RUNNING"), description="relayed requests at once, per server process; more wait"
    )
    queue_wait_s: float = Field(5, ge=0, validation_alias=_env("GATEWAY_QUEUE_WAIT_S"), description="how long they wait before 503")
    max_held_mb: float = Field(
        512, gt=0, validation_alias=_env("GATEWAY_MAX_HELD_MB"), description="bodies in memory, per server process; above: 503"
    )
    ledger_max_mb: float = Field(
        4096,
        ge=0,
        validation_alias=_env("GATEWAY_LEDGER_MAX_MB"),
        description="of the ledger on disk while the database is away; beyond: 503 for new requests; 0: what the disk holds",
    )
    ledger_fsync_ms: float = Field(
        0, ge=0, validation_alias=_env("GATEWAY_LEDGER_FSYNC_MS"), description="how often the ledger is forced onto the disk; 0 = never"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), validation_alias=_env("GATEWAY_CORS_ORIGINS", "ALLOWED_ORIGINS"), description="comma-separated; for /v1 only"
    )
    stale_s: float = Field(
        86_400,
        ge=0,
        validation_alias=_env("GATEWAY_STALE_S"),
        description="known keys go on working this long without the database",
    )
    drain_s: float = Field(30, ge=0, validation_alias=_env("GATEWAY_DRAIN_S"), description="SIGTERM: running requests may finish this long")
    reader_after_s: float = Field(
        10,
        ge=-1,
        validation_alias=_env("GATEWAY_READER_AFTER_S"),
        description="how long after its start a process of its own takes over reports and lists; -1: never",
    )
    hub_access: bool = Field(False, validation_alias=_env("GATEWAY_HUB_ACCESS"), description="may local models be fetched from a hub")
    usage_kept_days: int = Field(
        400,
        ge=0,
        validation_alias=_env("GATEWAY_USAGE_KEPT_DAYS"),
        description="rows of single requests, in days; reports stay; 0 = for ever",
    )
    content_kept_days: int = Field(
        30,
        ge=1,
        le=36_500,
        validation_alias=_env("GATEWAY_CONTENT_KEPT_DAYS"),
        description="logged requests and answers, in days; then they are dropped",
    )
    content_log_max_bytes: int = Field(
        1_000_000,
        ge=1_000,
        le=16_000_000,
        validation_alias=_env("GATEWAY_CONTENT_LOG_MAX_BYTES"),
        description="kept of a logged request, and of its answer; beyond: truncated",
    )
    content_spool_max_mb: float = Field(
        1024,
        gt=0,
        validation_alias=_env("GATEWAY_CONTENT_SPOOL_MAX_MB"),
        description="logged content on disk while the database is away; beyond: not kept",
    )
    webhook_url: str = Field("", validation_alias=_env("GATEWAY_WEBHOOK_URL"), description="told of budgets that are spent; empty: nobody")
    webhook_secret: SecretStr = Field(
        SecretStr(""), validation_alias=_env("GATEWAY_WEBHOOK_SECRET"), description="signs what is sent there; empty: unsigned"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", validation_alias=_env("GATEWAY_LOG_LEVEL"))
    host: str = Field("127.0.0.1", validation_alias=_env("HOST"))
    port: int = Field(8000, ge=0, le=65535, validation_alias=_env("PORT"))
    tls_cert_file: Path | None = Field(
        None, validation_alias=_env("GATEWAY_TLS_CERT_FILE"), description="certificate chain, PEM; with the key file: https instead of http"
    )
    tls_key_file: Path | None = Field(None, validation_alias=_env("GATEWAY_TLS_KEY_FILE"), description="its private key, PEM, unencrypted")
    tls_client_ca_file: Path | None = Field(
        None,
        validation_alias=_env("GATEWAY_TLS_CLIENT_CA_FILE"),
        description="PEM; clients must have a certificate of one of these",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), validation_alias=_env("GATEWAY_TRUSTED_PROXIES"), description="networks whose word on the client's address is taken; none"
    )
    allow_link_local: bool = Field(
        False, validation_alias=_env("GATEWAY_ALLOW_LINK_LOCAL"), description="may backends have link-local and metadata addresses"
    )
    oidc_issuer: str = Field("", validation_alias=_env("GATEWAY_OIDC_ISSUER"), description="OpenID provider to log in through; empty: none")
    oidc_client_id: str = Field("", validation_alias=_env("GATEWAY_OIDC_CLIENT_ID"), description="what the gateway is called there")
    oidc_client_secret: SecretStr = Field(
        SecretStr(""), validation_alias=_env("GATEWAY_OIDC_CLIENT_SECRET"), description="empty: a public client"
    )
    oidc_public_url: str = Field("", validation_alias=_env("GATEWAY_OIDC_PUBLIC_URL"), description="where browsers find the gateway")
    oidc_scopes: str = Field("openid email profile", validation_alias=_env("GATEWAY_OIDC_SCOPES"), description="separated by spaces")
    oidc_role_claim: str = Field("", validation_alias=_env("GATEWAY_OIDC_ROLE_CLAIM"), description="claim that roles are read from")
    oidc_roles: str = Field("", validation_alias=_env("GATEWAY_OIDC_ROLES"), description="JSON: value of the claim to role")
    oidc_default_role: Literal["", "manager", "member", "viewer"] = Field(
        "", validation_alias=_env("GATEWAY_OIDC_DEFAULT_ROLE"), description="where no value fits; empty: no account is made"
    )
    oidc_link_by_email: bool = Field(
        False, validation_alias=_env("GATEWAY_OIDC_LINK_BY_EMAIL"), description="may a verified e-mail open an existing account"
    )
    oidc_trust_email: bool = Field(
        False, validation_alias=_env("GATEWAY_OIDC_TRUST_EMAIL"), description="e-mails are verified though the provider does not say so"
    )
    upstream_ca_file: Path | None = Field(
        None, validation_alias=_env("GATEWAY_UPSTREAM_CA_FILE"), description="more authorities to trust for backends, PEM"
    )
    local_models_dir: Path | None = Field(None, validation_alias=_env("LOCAL_MODELS_DIR"), description="empty: GATEWAY_HOME/models")
    default_chat_model: str = Field("", validation_alias=_env("DEFAULT_CHAT_MODEL"))
    default_embedding_model: str = Field("", validation_alias=_env("DEFAULT_EMBEDDING_MODEL"))
    model_device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", validation_alias=_env("MODEL_DEVICE"))
    model_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", validation_alias=_env("MODEL_DTYPE"))

    @field_validator(
        "home",
        "local_models_dir",
        "secret_key_file",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "upstream_ca_file",
        mode="before",
    )
    @classmethod
    def _expand(cls, value: object) -> object:
        if value == "":
            return None
        return Path(value).expanduser().absolute() if isinstance(value, str | Path) else value

    @field_validator("host", mode="before")
    @classmethod
    def _closed(cls, value: object) -> object:
        return value or "127.0.0.1"  # an empty address would mean every interface

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it begins with redis://, rediss:// or unix://")
        try:
            _ = urlsplit(value).port
        except ValueError:
            raise ValueError("its port is not a number") from None
        if value and importlib.util.find_spec("redis") is None:
            raise ValueError("it needs the package redis: install the gateway with its extra `redis`")
        return value

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers write them: one with a path, or without a scheme, would never be equal to any."""
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+/?", origin, re.IGNORECASE):
                raise ValueError(f"{origin!r} is not an origin such as https://app.example.com (scheme, host and port, no path), nor *")
        return tuple(origin if origin == "*" else origin.rstrip("/").lower() for origin in value)

    @field_validator("webhook_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/?#@]+([/?][^\s#]*)?", value, re.IGNORECASE):
            raise ValueError("it is an http or https URL such as https://hooks.example.com/gateway, without a user or a fragment")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return parse_networks(value).texts

    @field_validator("oidc_issuer", "oidc_scopes", "oidc_roles", "oidc_public_url")
    @classmethod
    def _oidc_fits(cls, value: str, info: ValidationInfo) -> str:
        checks: dict[str, Callable[[str], object]] = {
            "oidc_issuer": checked_issuer,
            "oidc_scopes": checked_scopes,
            "oidc_roles": parse_roles,
            "oidc_public_url": checked_public_url,
        }
        if value:
            checks[str(info.field_name)](value)
        return value

    @field_validator("oidc_public_url")
    @classmethod
    def _oidc_whole(cls, value: str, info: ValidationInfo) -> str:
        needed = {"GATEWAY_OIDC_CLIENT_ID": info.data.get("oidc_client_id"), "GATEWAY_OIDC_PUBLIC_URL": value}
        missing = [name for name, given in needed.items() if not given]
        if info.data.get("oidc_issuer") and missing:
            raise ValueError(f"GATEWAY_OIDC_ISSUER needs {' and '.join(missing)} too")
        return value

    @field_validator("trusted_issuers")
    @classmethod
    def _issuers(cls, value: str) -> str:
        if value:
            from auth.trusted import trusted_issuers  # cryptography: where nobody needs it, no command loads it

            trusted_issuers(value)
        return value

    @property
    def oidc(self) -> OidcConfig | None:
        """The OpenID provider to log in through."""
        if not self.oidc_issuer:
            return None
        return OidcConfig(
            issuer=self.oidc_issuer,
            client_id=self.oidc_client_id,
            public_url=checked_public_url(self.oidc_public_url),
            client_secret=self.oidc_client_secret.get_secret_value(),
            scopes=checked_scopes(self.oidc_scopes),
            role_claim=self.oidc_role_claim,
            roles=parse_roles(self.oidc_roles),
            default_role=Role(self.oidc_default_role) if self.oidc_default_role else None,
            link_by_email=self.oidc_link_by_email,
            trust_email=self.oidc_trust_email,
        )

    @property
    def models_dir(self) -> Path:
        """Where `path:` of a local backend is looked up first."""
        return self.local_models_dir or self.home / "models"

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force, with an async driver."""
        if not self.database_url:
            return f"sqlite+aiosqlite:///{quote(str(self.home / 'gateway.sqlite3'))}"
        for plain, driver in (
            ("postgresql://", "postgresql+asyncpg://"),
            ("postgres://", "postgresql+asyncpg://"),
            ("sqlite://", "sqlite+aiosqlite://"),
        ):
            if self.database_url.startswith(plain):
                return driver + self.database_url.removeprefix(plain)
        return self.database_url

    def secret_key_sources(self) -> tuple[Path, str, Path | None, str]:
        """Where GATEWAY_SECRET_KEY may come from: the arguments of `load_secret_keys`."""
        return self.home, self.secret_key.get_secret_value(), self.secret_key_file, self.secret_key_previous.get_secret_value()

    @property
    def run_dir(self) -> Path:
        """Sockets, counters and segment files of the running server."""
        return self.home / "run"

    @property
    def reader_socket(self) -> Path:
        """Where the reader process answers the server processes."""
        return self.run_dir / "reader.sock"

    @property
    def password_lock(self) -> Path:
        """Held by whoever hashes a password: one at a time on this host."""
        return self.run_dir / "passwords.lock"


def load_settings() -> Settings:
    """Read the settings; `SettingsError` with one sentence per fault."""
    try:
        home = Path(os.environ.get("GATEWAY_HOME") or _from_env_file(Path(".env"), "GATEWAY_HOME") or "~/.gateway").expanduser().absolute()
        files = (home / ".env", Path(".env"))  # the later file wins, the environment beats both
        return Settings(_env_file=files, GATEWAY_HOME=str(home))  # type: ignore[call-arg]  # both are pydantic-settings' own ways in
    except UnicodeDecodeError:
        raise SettingsError("a file .env (in the working directory or in GATEWAY_HOME) is not UTF-8 text.") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors(include_input=False))
        raise SettingsError(f"a setting cannot be used: {faults}") from None


def _from_env_file(path: Path, name: str) -> str:
    from dotenv import dotenv_values

    return dotenv_values(path).get(name) or "" if path.is_file() else ""
