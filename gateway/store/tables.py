"""The schema. Times are Unix seconds (double); money is whole 1e-12 USD (`_pusd`); digests are SHA-256, 32 bytes.

Usage has no foreign keys: its rows outlive what they name, and are written in bulk.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, text

from gateway.store.columns import JsonText, Serial, Strings, Time

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Time, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),  # lower case, stripped
    Column("role", Text, nullable=False),
    Column("password_hash", Text),  # null: cannot log in with a password
    Column("token_epoch", Integer, nullable=False),  # login tokens of an older epoch are refused
    Column("created_at", Time, nullable=False),
    Column("disabled_at", Time),
    Column("kind", Text, nullable=False, server_default="person"),  # person, service: a service never logs in
    Column("name", Text),  # to show
    Column("team_id", Text, index=True),  # of at most one team; a manager manages this one
    Column("rpm", BigInteger),  # limits of what the user does with a login token; keys have their own
    Column("tpm", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_pusd", BigInteger),
    Column("budget_window", Text),
    Column("last_login_at", Time),
    Column("held", Strings, nullable=False, server_default="[]"),  # what an admin has set, and managers only narrow: limits, disabled
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),  # the public id in the key's text
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("models", Strings, nullable=False),  # globs over route ids
    Column("scopes", Strings, nullable=False),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_pusd", BigInteger),
    Column("budget_window", Text),  # day, week, month; null = for ever
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),
    Column("revoked_at", Time),
    Column("description", Text, nullable=False, server_default=""),
    Column("networks", Strings, nullable=False, server_default="[]"),  # CIDR; [] = from anywhere
    Column("prefix", Text),  # what is shown of an imported key; null: it begins with "sk-gw-" and its id
    Column("created_by", Text),
    Column("held", Strings, nullable=False, server_default="[]"),  # what an admin has set, and managers only narrow
    Column("search_text", Text, nullable=False, server_default=""),  # prefix, name and description in lower case, at most 600 characters
    # All that lists choose by: a search looks through this index and reads nothing else.
    Index("ix_api_keys_listed", "created_at", "id", "user_id", "revoked_at", "search_text"),
    Index(None, "user_id", "created_at", "id"),
)

# When a key was last used, to the minute. Beside the keys: it changes all the time, and nobody reloads anything for it.
key_uses = Table(
    "key_uses",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("at", Time, nullable=False),
)

# A rotated key has several digests for a while; those before the newest carry the end of their grace.
api_key_digests = Table(
    "api_key_digests",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("key_id", Text, ForeignKey("api_keys.id"), nullable=False, index=True),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("family", Text, nullable=False, index=True),  # all tokens that descend from one login
    Column("user_id", Text, ForeignKey("users.id"), nullable=False, index=True),
    Column("token_epoch", Integer, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False, index=True),
    Column("used_at", Time),  # exchanged for its successor; seen again = stolen
)

# One-time links with which a user sets a password. The text is never stored.
password_links = Table(
    "password_links",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False, index=True),
    Column("issued_by", Text),  # the user who issued it, and with which key; null: whoever holds the machine, a login
    Column("issued_with", Text),
)

# Where a user has logged in from: such an address goes first when many try.
login_addresses = Table(
    "login_addresses",
    metadata,
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True),
    Column("address", Text, primary_key=True),
    Column("at", Time, nullable=False, index=True),
)

# Who a user is at an OpenID provider.
identities = Table(
    "identities",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", Time, nullable=False),
    Column("role", Text),  # what the provider last said, mapped: only a change of it is carried over
)

# One-time codes that a browser's login hands to the command line that began it.
login_codes = Table(
    "login_codes",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False, index=True),
    Column("challenge", Text, nullable=False),  # PKCE, S256
    Column("expires_at", Time, nullable=False, index=True),
)

# Keys that sign login tokens. The newest one signs; those before it verify until they expire.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("algorithm", Text, nullable=False),  # HS256, RS256, ES256
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),  # null: the one that signs
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("updated_at", Time, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("parent_id", BigInteger, ForeignKey("revisions.id")),  # what was live when this one was made: where a rollback goes
    Column("created_at", Time, nullable=False),
    Column("author", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("document", JsonText, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the canonical document, hex
    Column("file_digest", Text),  # set where the content came from a config file
    sqlite_autoincrement=True,
)

live_revision = Table(
    "live_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision_id", BigInteger, ForeignKey("revisions.id"), nullable=False),
    Column("changed_at", Time, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),  # grows in the order of commits
    Column("at", Time, nullable=False),
    Column("kind", Text, nullable=False),  # user, key, team, revision, secret, signing_key
    Column("entity_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    sqlite_autoincrement=True,
)

# Append-only: triggers refuse everything else (r0004).
audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at", Time, nullable=False),
    Column("actor_user_id", Text),
    Column("via", Text, nullable=False),
    Column("address", Text),
    Column("action", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("entity_id", Text, nullable=False),
    Column("before", JsonText),
    Column("after", JsonText),
    Column("hash", LargeBinary, nullable=False),  # over the entry and the hash before it: gateway.store.chain
    Column("actor_key_id", Text),  # null: a login, or no user at all; hashed where it is not null
    Index(None, "entity", "entity_id"),
    Index(None, "actor_user_id", "id"),
    Index(None, "actor_key_id", "id"),
    Index(None, "action", "id"),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

# In the order of a usage record's fields.
usage = Table(
    "usage",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("started_at", Time, nullable=False, index=True),
    Column("operation", Text, nullable=False),
    Column("key_id", Text),
    Column("user_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("revision", BigInteger),
    Column("client_request_id", Text),
    Column("backend", Text),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("ending", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("token_source", Text, nullable=False),
    Column("cost_pusd", BigInteger, nullable=False),
    Column("duration_ms", Double),
    Column("ttft_ms", Double),
    Column("queue_ms", Double),
    Column("connect_ms", Double),
    Column("experiment", Text),
    Column("arm", Text),
    # Reports by arm read raw rows: few have one, and those that have none cost nothing here.
    Index("ix_usage_arm", "started_at", sqlite_where=text("arm IS NOT NULL"), postgresql_where=text("arm IS NOT NULL")),
)

usage_rollup = Table(
    "usage_rollup",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),  # start of the hour, Unix seconds, UTC
    Column("user_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),  # "" = a login token
    Column("model", Text, primary_key=True),
    Column("backend", Text, primary_key=True),  # "" = none was reached
    Column("ending", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_pusd", BigInteger, nullable=False),
    Index(None, "key_id", "hour"),
    Index(None, "user_id", "hour"),
)

ledger_segments = Table(
    "ledger_segments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("offset", BigInteger, nullable=False),  # bytes of the segment whose rows are in `usage`
    Column("updated_at", Time, nullable=False),
)

metric_samples = Table(
    "metric_samples",
    metadata,
    Column("at", Time, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("labels", JsonText, nullable=False),
    Column("value", Double, nullable=False),
    Index(None, "name", "at"),
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
