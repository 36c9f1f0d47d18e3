"""PostgreSQL: the indexes by which the days of a key or a user are found have all that reports read of them; the rows were on as many pages
as there are days.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_NAMES = ("user_id", "key_id", "model", "backend", "ending", "team_id", "revision", "experiment", "arm")
_USED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_microusd", "cost_rest_pusd")


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for who in ("key_id", "user_id"):
        name = op.f(f"ix_usage_by_day_{who}_at")
        op.drop_index(name, "usage_by_day")
        op.create_index(name, "usage_by_day", [who, "at"], postgresql_include=[one for one in (*_NAMES, *_USED) if one != who])
