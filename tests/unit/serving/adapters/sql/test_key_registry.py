"""What of a key lies on the disk; what the registry does is in the contract's suite."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from tests.support.keys import ACTOR, registry_of


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_the_files_never_hold_a_secret(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    registry = registry_of(database, ManualClock())
    issued = await registry.create(actor=ACTOR, user="ada", tier="pro")
    rotated = await registry.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(hours=1))
    await registry.revoke(issued.record.id, actor=ACTOR)

    kept = everything_in(tmp_path)
    await database.close()

    for key in (issued, rotated):
        assert key.api_key.prefix.encode() in kept
        assert key.api_key.secret.encode() not in kept
