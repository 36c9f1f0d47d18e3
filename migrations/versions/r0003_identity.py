"""Identity: teams, service accounts, what a key is for and from where, and what logins need: links, addresses, identities, signing keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teams")),
        sa.UniqueConstraint("name", name=op.f("uq_teams_name")),
    )
    op.add_column("users", sa.Column("kind", sa.Text(), nullable=False, server_default="person"))
    for name in ("name", "team_id", "budget_window"):
        op.add_column("users", sa.Column(name, sa.Text(), nullable=True))
    for name in ("rpm", "tpm", "concurrency", "budget_pusd"):
        op.add_column("users", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("users", sa.Column("last_login_at", sa.Double(), nullable=True))
    op.create_index(op.f("ix_users_team_id"), "users", ["team_id"])
    op.add_column("api_keys", sa.Column("description", sa.Text(), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("networks", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("api_keys", sa.Column("prefix", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("created_by", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("search_text", sa.Text(), nullable=False, server_default=""))
    op.create_index(op.f("ix_api_keys_user_id_created_at_id"), "api_keys", ["user_id", "created_at", "id"])
    op.drop_index(op.f("ix_api_keys_user_id"), "api_keys")
    op.create_index("ix_api_keys_listed", "api_keys", ["created_at", "id", "user_id", "revoked_at", "search_text"])
    op.drop_index(op.f("ix_api_keys_created_at_id"), "api_keys")
    _make_searchable()
    op.create_table(
        "key_uses",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_key_uses")),
    )
    op.create_table(
        "password_links",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_password_links")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_password_links_user_id_users")),
    )
    op.create_index(op.f("ix_password_links_user_id"), "password_links", ["user_id"])
    op.create_index(op.f("ix_password_links_expires_at"), "password_links", ["expires_at"])
    op.create_table(
        "login_addresses",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "address", name=op.f("pk_login_addresses")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_login_addresses_user_id_users")),
    )
    op.create_index(op.f("ix_login_addresses_at"), "login_addresses", ["at"])
    op.create_table(
        "identities",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_identities")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_identities_user_id_users")),
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"])
    op.create_table(
        "login_codes",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("challenge", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_login_codes")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_login_codes_user_id_users")),
    )
    op.create_index(op.f("ix_login_codes_user_id"), "login_codes", ["user_id"])
    op.create_index(op.f("ix_login_codes_expires_at"), "login_codes", ["expires_at"])
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_keys")),
    )


def _make_searchable() -> None:
    """What keys are searched by, in lower case: as the store writes it, and SQL's own lower() knows ASCII alone."""
    keys = sa.table("api_keys", sa.column("id", sa.Text), sa.column("name", sa.Text), sa.column("search_text", sa.Text))
    found = op.get_bind().execute(sa.select(keys.c.id, keys.c.name)).all()
    rows = [{"key_id": key_id, "text": f"{name}\n\nsk-gw-{key_id}".lower()} for key_id, name in found]
    if rows:
        change = keys.update().where(keys.c.id == sa.bindparam("key_id")).values(search_text=sa.bindparam("text"))
        op.get_bind().execute(change, rows)
