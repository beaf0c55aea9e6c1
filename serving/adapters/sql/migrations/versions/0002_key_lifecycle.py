"""A key's secret moves to a table of its own, to be one of several; users can be disabled; an audit table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.adapters.sql.schema import no_way_back

revision = "0002_key_lifecycle"
down_revision = "0001_api_keys"
downgrade = no_way_back


def upgrade() -> None:
    op.create_table(
        "key_secrets",
        sa.Column("prefix", sa.String(12), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("prefix", name="pk_key_secrets"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_key_secrets_key_id"),
    )
    op.create_index("ix_key_secrets_key_id", "key_secrets", ["key_id"])
    # A key's own expiry stays with the key; its one secret has none until it is rotated.
    op.execute(
        "INSERT INTO key_secrets (prefix, key_id, key_hash, created_at) "
        "SELECT prefix, id, key_hash, created_at FROM api_keys"
    )
    with op.batch_alter_table("api_keys") as api_keys:
        api_keys.drop_constraint("uq_api_keys_prefix", type_="unique")
        api_keys.drop_column("prefix")
        api_keys.drop_column("key_hash")
        api_keys.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_api_keys_user", "api_keys", ["user"])
    op.create_table(
        "disabled_users",
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user", name="pk_disabled_users"),
    )
    op.create_table(
        "key_changes",
        # On SQLite only INTEGER counts up by itself, and AUTOINCREMENT never gives an id twice.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(240), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=True),
        sa.Column("details", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_key_changes"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_key_changes_user", "key_changes", ["user"])
    op.create_index("ix_key_changes_key_id", "key_changes", ["key_id"])
