"""Which state the tables are in, and the steps from any earlier one to the newest (Alembic's revisions).

::

    migrations/versions/0001_api_keys.py        a file is named as its revision, and follows the one before it
                        0002_key_lifecycle.py
                        0003_usage_ledger.py

There is no way back: an earlier state could not hold what was kept since.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from sqlalchemy import Connection, inspect, text

from serving.errors import OperatorError

MIGRATIONS = Path(__file__).parent / "migrations"
REVISIONS = tuple(sorted(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py")))
BEFORE_REVISIONS = "0001_api_keys"
"""The state of a database that was made before its revision was written down."""


def is_newest(connection: Connection) -> bool:
    """Cheap, and without Alembic. Raises OperatorError for a database that a newer program has changed."""
    revision = _revision(connection)
    if revision is not None and revision not in REVISIONS:
        raise OperatorError(
            f"The database is in the state {revision!r}, which is newer than this program; "
            f"it knows states up to {REVISIONS[-1]!r}."
        )
    return revision == REVISIONS[-1]


def upgrade(connection: Connection) -> None:
    """Within the connection's transaction, which must keep out whoever else would do the same.

    Raises OperatorError as `is_newest` does.
    """
    if is_newest(connection):
        return
    from alembic import command  # noqa: PLC0415 - half a second, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if _revision(connection) is None and inspect(connection).has_table("api_keys"):
        command.stamp(config, BEFORE_REVISIONS)
    command.upgrade(config, REVISIONS[-1])


def no_way_back() -> NoReturn:
    """What a revision has for its `downgrade`."""
    raise OperatorError("An earlier state of the database could not hold what is in it; restore a backup.")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
