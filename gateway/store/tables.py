"""The schema. Times are Unix seconds (double); money is whole 1e-12 USD (`_pusd`); digests are SHA-256, 32 bytes.

Usage has no foreign keys: its rows outlive what they name, and are written in bulk.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    false,
    literal_column,
)

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


def _limits() -> list[Column[Any]]:
    """Null = none. Windows of budgets: day, week, month; null = for ever."""
    return [
        Column("rpm", BigInteger),
        Column("tpm", BigInteger),
        Column("concurrency", BigInteger),
        Column("budget_pusd", BigInteger),
        Column("budget_window", Text),
        Column("rpd", BigInteger),
        Column("tpd", BigInteger),
        Column("token_budget", BigInteger),
        Column("token_budget_window", Text),
        Column("soft", Integer),  # percent of a budget from which on it is told of
        Column("budget_since", Time),  # when the budgets were last set back: what was spent before does not count
    ]


teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Time, nullable=False),
    *_limits(),  # of all that its users do
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
    *_limits(),  # of all that the user does, with any key and login
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
    *_limits(),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),
    Column("revoked_at", Time),
    Column("description", Text, nullable=False, server_default=""),
    Column("networks", Strings, nullable=False, server_default="[]"),  # CIDR; [] = from anywhere
    Column("prefix", Text),  # what is shown of an imported key; null: it begins with "sk-gw-" and its id
    Column("created_by", Text),
    Column("held", Strings, nullable=False, server_default="[]"),  # what an admin has set, and managers only narrow
    Column("content_log", Boolean, nullable=False, server_default=false()),  # its requests and answers are kept: `contents`
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
    Column("created_at", Time, nullable=False),  # of the login that it descends from
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
    Column("issued_epoch", Integer),  # the logins' of who issued it: once those have ended, so has the link
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

# What requests used. Raw rows are in a table for each day: gateway.store.days. What the figures below are made of: gateway.store.rollups.
_USED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_microusd", "cost_rest_pusd")


def _used() -> list[Column[int]]:
    """A sum of money is two numbers: whole 1e-6 USD and what is left over in 1e-12 USD; one number would end at 9.2 million USD."""
    return [Column(name, BigInteger, nullable=False) for name in _USED]


def _bucket() -> list[Column[Any]]:
    """`at`: start of the hour or day, Unix seconds, UTC. `key_id` "" = a login token; all others "" = none."""
    names = ("user_id", "key_id", "model", "backend", "ending", "team_id")
    return [
        Column("at", BigInteger, primary_key=True, autoincrement=False),
        *(Column(name, Text, primary_key=True) for name in names),
        Column("revision", BigInteger, primary_key=True, autoincrement=False),
        Column("experiment", Text, primary_key=True),
        Column("arm", Text, primary_key=True),
    ]


usage_by_hour = Table("usage_by_hour", metadata, *_bucket(), *_used())
usage_by_day = Table("usage_by_day", metadata, *_bucket(), *_used())


def day_of_hour() -> ColumnElement[int]:
    """The day that an hour's bucket is of, counted from 1970-01-01: hours of keys and users are found by it."""
    return usage_by_hour.c.at.op("/")(literal_column("86400", BigInteger))


# Rows are stored as they come, each day of a user or a key on another page, and each hour of fifty: so the indexes have what reports read
# of them. Those of hours are in the order of days, for reports of many names. The longest names that there are fill 2,200 of the 2,700
# bytes that an entry of an index may have in PostgreSQL.
for _who in ("key_id", "user_id"):
    _rest = [column for column in usage_by_day.c if column.name not in (_who, "at")]
    Index(f"ix_usage_by_day_{_who}", usage_by_day.c[_who], usage_by_day.c.at, *_rest)
    Index(f"ix_usage_by_hour_{_who}", day_of_hour(), *(usage_by_hour.c[name] for name in (_who, "at", "model", "team_id", *_USED)))


def _sums(name: str, *key: str) -> Table:
    """`key`: the primary key, in the order in which its rows stand side by side; with PostgreSQL, those of its index, which therefore has
    the sums as well.
    """
    types: dict[str, Any] = {"step_s": Integer, "at": BigInteger}  # step_s: 3600 or 86400
    return Table(
        name,
        metadata,
        *(Column(one, types.get(one, Text), autoincrement=False, nullable=False) for one in key),
        *_used(),
        PrimaryKeyConstraint(*key, postgresql_include=_USED),
        sqlite_with_rowid=False,
    )


# Sums by what there are few of (models, teams, backends ...), hour by hour and day by day.
usage_totals = _sums("usage_totals", "step_s", "kind", "scope", "at", "name")


# Sums of keys and users by day, and by weeks that begin on Thursdays, as 1970 did. A report of many names reads the whole weeks of each,
# and few days, at its ends.
usage_of_each_day = _sums("usage_of_each_day", "kind", "scope", "at", "name", "team_id")
Index(None, *(usage_of_each_day.c[one] for one in ("kind", "scope", "at", "team_id", "name")))
usage_of_each_week = _sums("usage_of_each_week", "kind", "scope", "name", "at", "team_id")
Index(None, *(usage_of_each_week.c[one] for one in ("kind", "scope", "team_id", "name", "at")))

ledger_segments = Table(
    "ledger_segments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("offset", BigInteger, nullable=False),  # bytes of the segment whose rows are in SQL
    Column("updated_at", Time, nullable=False),
    Column("folder", Text),  # the id of the folder (that is, of the host) that the file is in
    Column("finished_at", Time),  # wholly shipped, and the file removed; kept so that a gap in a writer's numbers can be seen
)

# What the keeper tells of budgets, each once. `since`: the start of the window, or when the budget was set back in it; `threshold`: in the
# unit of `kind` (budget: 1e-12 USD, token_budget: tokens).
budget_events = Table(
    "budget_events",
    metadata,
    Column("limit_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("type", Text, primary_key=True),  # budget.soft, budget.spent
    Column("since", Time, primary_key=True, autoincrement=False),
    Column("threshold", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),  # JSON, as it is sent: every attempt sends the same bytes
    Column("created_at", Time, nullable=False),
    Column("forget_at", Time),  # null: never, the window is for ever
    Column("next_at", Time),  # when it is to be sent, or sent again; null: it was taken
    Column("attempts", Integer, nullable=False),
    Index(None, "next_at"),
)

# Requests and answers of those keys and models whose content is logged. What was said is only here, and only encrypted; `sealed_with`: the
# fingerprint of the key that it was done with. What is large stands last: lists do not read it.
contents = Table(
    "contents",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("at", Time, nullable=False),
    Column("key_id", Text),  # null: a login token
    Column("user_id", Text, nullable=False),
    Column("team_id", Text),
    Column("model", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("ending", Text, nullable=False),
    Column("not_kept", Text),  # why there is only this row: full, disk, fault; null: the content is here
    Column("sealed_with", Text, nullable=False),
    Column("request_type", Text, nullable=False),  # media type
    Column("answer_type", Text, nullable=False),
    Column("request_bytes", BigInteger, nullable=False),  # as they went over the wire, however much of them is kept
    Column("answer_bytes", BigInteger, nullable=False),
    Column("request_truncated", Boolean, nullable=False),
    Column("answer_truncated", Boolean, nullable=False),
    Column("request", LargeBinary),  # null: none is kept (binary, or `not_kept`)
    Column("answer", LargeBinary),
    Index(None, "key_id", "at", "request_id"),
    Index(None, "user_id", "at", "request_id"),
    Index(None, "model", "at", "request_id"),
    Index(None, "at", "request_id"),
    Index(None, "sealed_with"),
)

# What was to be forgotten, and when that was said: records from before it that are still on their way into the database are not stored.
content_erasures = Table(
    "content_erasures",
    metadata,
    Column("kind", Text, primary_key=True),  # key, user, request
    Column("entity_id", Text, primary_key=True),
    Column("at", Time, nullable=False),
)

# What each metric added up to in a step of time: gateway.store.samples. Hosts add to the same rows.
metric_samples = Table(
    "metric_samples",
    metadata,
    Column("step_s", Integer, primary_key=True, autoincrement=False),
    Column("grain", Text, primary_key=True),  # by which label it is added up; all: by none, "": over all of them
    Column("name", Text, primary_key=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),  # Unix seconds, a multiple of step_s
    Column("model", Text, primary_key=True),
    Column("backend", Text, primary_key=True),
    Column("operation", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("value", Double, nullable=False),  # of a gauge: times seconds
    *(Column(f"b{number:02}", Double) for number in range(20)),  # observations by bucket
    Index("ix_metric_samples_series", "step_s", "grain", "name", "model", "backend", "operation", "status", "at"),
    sqlite_with_rowid=False,
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
