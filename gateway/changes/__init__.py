"""Every change of state is one function here; the command line, the API, the UI and config files call it.

Each is one transaction: the rows, an entry in the change log and an entry in the audit trail, or nothing. After the commit the generation
counter tells every process of the host. Each checks for itself whether its actor may do it.

Raises `Forbidden`, `NotFound`, `Conflict`, `InvalidRequest` (of gateway.errors) and `StoreUnavailable`.
"""

from gateway.changes.actor import Actor
from gateway.changes.contents import Said, erase_contents, read_content, reseal_contents
from gateway.changes.identities import admit_identity, issue_login_code, take_login_code
from gateway.changes.keys import Grant, IssuedKey, create_key, import_key, reset_key_budget, revoke_key, rotate_key, update_key
from gateway.changes.passwords import PasswordLink, issue_password_link, password_link_user, use_password_link
from gateway.changes.prices import PricePlan, import_prices, plan_prices
from gateway.changes.revisions import apply_revision, delete_secret, rollback, set_secret
from gateway.changes.signing import ensure_signing_key, forget_secrets, reseal_secrets, rotate_signing_key
from gateway.changes.teams import create_team, delete_team, rename_team, reset_team_budget, update_team
from gateway.changes.users import (
    create_service,
    create_user,
    disable_user,
    enable_user,
    ensure_admin,
    may_give_password,
    reset_password,
    reset_user_budget,
    set_role,
    set_team,
    update_user,
)

__all__ = [
    "Actor",
    "Grant",
    "IssuedKey",
    "PasswordLink",
    "PricePlan",
    "Said",
    "admit_identity",
    "apply_revision",
    "create_key",
    "create_service",
    "create_team",
    "create_user",
    "delete_secret",
    "delete_team",
    "disable_user",
    "enable_user",
    "ensure_admin",
    "ensure_signing_key",
    "erase_contents",
    "forget_secrets",
    "import_key",
    "import_prices",
    "issue_login_code",
    "issue_password_link",
    "may_give_password",
    "password_link_user",
    "plan_prices",
    "read_content",
    "rename_team",
    "reseal_contents",
    "reseal_secrets",
    "reset_key_budget",
    "reset_password",
    "reset_team_budget",
    "reset_user_budget",
    "revoke_key",
    "rollback",
    "rotate_key",
    "rotate_signing_key",
    "set_role",
    "set_secret",
    "set_team",
    "take_login_code",
    "update_key",
    "update_team",
    "update_user",
    "use_password_link",
]
