"""What a local stack makes for itself where the operator set nothing: a database file and secrets."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from pydantic import SecretStr

from serving.errors import OperatorError
from serving.settings import Settings

DATABASE_FILE = "visiongate.db"
SECRET_BYTES = 32


def completed(settings: Settings) -> Settings:
    """Fill the empty fields; every command with the same run directory gets the same values.

    Raises OperatorError where the run directory cannot be written.
    """
    folder = settings.run_directory.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return settings.model_copy(
            update={
                "database_url": settings.database_url or f"sqlite:///{folder / DATABASE_FILE}",
                "key_hash_secret": settings.key_hash_secret or kept_secret(folder / "key_hash_secret"),
                "admin_token": settings.admin_token or kept_secret(folder / "admin_token"),
            }
        )
    except OSError as exc:
        raise OperatorError(f"The run directory {folder} cannot be used: {exc.strerror}.") from exc


def kept_secret(path: Path) -> SecretStr:
    """Made at first use, readable by its owner only. Of several makers at once, one wins for all."""
    if not path.exists():
        _make_secret(path)
    return SecretStr(path.read_text(encoding="ascii"))


def _make_secret(path: Path) -> None:
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES))
        path.hardlink_to(draft)  # appears whole, and fails where another process was first
    except FileExistsError:
        return
    finally:
        Path(draft).unlink()
